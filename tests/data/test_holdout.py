"""Images held out of a data set that has no validation split."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from instseg.core import rle
from instseg.core.categories import Categories
from instseg.data.dataset import InstanceDataset
from instseg.data.holdout import held_out, hold_out, make_record, parts
from instseg.data.open import open_dataset
from instseg.data.records import Annotation, Record

CODE = rle.encode(np.ones((4, 4), np.uint8))


def dataset(labels: Sequence[Sequence[int]], names: Sequence[str] | None = None, classes: int = 9) -> InstanceDataset:
    """One image for each entry, with an object of each label in it."""
    records = []
    for i, kinds in enumerate(labels):
        objects = tuple(
            Annotation(10 * i + k, label, CODE, (0.0, 0.0, 4.0, 4.0), 16.0) for k, label in enumerate(kinds)
        )
        records.append(Record(i, None, 4, 4, objects, names[i] if names else f"{i:04d}.png"))
    return InstanceDataset(records, Categories.from_names([f"kind {i}" for i in range(classes)]), name="pictures")


def names(data: InstanceDataset, rows: Sequence[int]) -> set[str]:
    return {data.file_name(int(i)) for i in rows}


def test_a_tenth_of_the_images_is_held_out_and_no_image_is_in_both_parts() -> None:
    data = dataset([[i % 3] for i in range(120)])
    train, val = hold_out(data, 0.1, seed=0)
    assert len(val) == 12 and sorted([*train, *val]) == list(range(120))


def test_classes_and_images_without_objects_are_held_out_in_proportion() -> None:
    kinds: list[list[int]] = [[0]] * 100 + [[1]] * 60 + [[2]] * 20 + [[]] * 20
    data = dataset(kinds)
    _, val = hold_out(data, 0.1, seed=3)
    held = [kinds[i] for i in val]
    assert [held.count([0]), held.count([1]), held.count([2]), held.count([])] == [10, 6, 2, 2]


def test_rare_classes_that_share_images_with_common_ones_are_in_both_parts() -> None:
    kinds = [[0] if i % 10 else [0, 1] for i in range(200)]
    train, val = hold_out(dataset(kinds), 0.1, seed=0)
    assert sum(1 in kinds[i] for i in val) == 2 and sum(1 in kinds[i] for i in train) == 18


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 8), max_size=4), min_size=1, max_size=40),
    st.floats(0.01, 0.9),
    st.integers(0, 5),
)
def test_training_keeps_every_class_of_two_images_or_more(kinds: list[list[int]], fraction: float, seed: int) -> None:
    train, val = hold_out(dataset(kinds), fraction, seed)
    assert sorted([*train, *val]) == list(range(len(kinds)))
    assert (len(val) == 0) == (len(kinds) < 4) and len(train) > 0
    for label in range(9):
        images = [i for i, found in enumerate(kinds) if label in found]
        assert len(images) < 2 or any(i in train for i in images)


def test_fewer_than_four_images_are_all_trained_on() -> None:
    assert len(hold_out(dataset([[0], [0], [0]]), 0.5, 0)[1]) == 0
    assert len(hold_out(dataset([[0], [0], [0], [0]]), 0.01, 0)[1]) == 1


def test_something_to_find_is_held_out_where_most_images_are_empty() -> None:
    kinds: list[list[int]] = [[0]] * 3 + [[]] * 17
    for seed in range(5):
        _, val = hold_out(dataset(kinds), 0.1, seed)
        assert len(val) == 2 and any(kinds[i] for i in val)


def test_the_split_follows_from_the_seed_and_not_from_the_order_of_the_records() -> None:
    kinds = [[i % 4] for i in range(60)]
    files = [f"{i}.png" for i in range(60)]
    data, turned = dataset(kinds, files), dataset(kinds[::-1], files[::-1])
    first = names(data, hold_out(data, 0.2, 1)[1])
    assert first == names(data, hold_out(data, 0.2, 1)[1]) == names(turned, hold_out(turned, 0.2, 1)[1])
    assert first != names(data, hold_out(data, 0.2, 2)[1])


def test_records_of_one_file_stay_together() -> None:
    data = dataset([[0]] * 40, [f"{i // 2}.png" for i in range(40)])
    train, val = hold_out(data, 0.2, 0)
    assert len(val) == 8 and not names(data, train) & names(data, val)


def test_a_checkpoint_finds_the_held_out_images_again_in_any_order() -> None:
    kinds, files = [[i % 4] for i in range(60)], [f"{i}.png" for i in range(60)]
    data = dataset(kinds, files)
    _, val = hold_out(data, 0.2, 5)
    record = json.loads(json.dumps(make_record(data, val, 0.2, 5)))
    assert (record["seed"], record["fraction"], record["held_out"]) == (5, 0.2, 12)
    assert record["fingerprint"] == data.fingerprint()["annotations"]
    for again in (data, dataset(kinds[::-1], files[::-1]), data.with_classes(["kind 2"])):
        found = held_out(again, record)
        assert found is not None and names(found, range(len(found))) == names(data, val)
    rest = parts(data, record)
    assert rest is not None and names(data, rest[0]) == {*files} - names(data, val)


@pytest.mark.parametrize("kinds", [[[0]] * 59, [[0]] * 61])
def test_other_data_has_no_held_out_part(kinds: list[list[int]]) -> None:
    data = dataset([[0]] * 60)
    record = make_record(data, hold_out(data, 0.2, 0)[1], 0.2, 0)
    assert held_out(dataset(kinds), record) is None
    assert held_out(dataset([[0]] * 60, [f"other-{i}.png" for i in range(60)]), record) is None
    assert held_out(data, None) is None


def test_one_picture_under_two_names_is_in_one_part(tmp_path: Path) -> None:
    """As where a folder holds a picture that its records call both "0.png" and "images/0.png", or by a link."""
    (tmp_path / "images").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    records = []
    for i in range(60):
        file = tmp_path / "images" / f"{i // 3}.png"
        file.touch()
        link = tmp_path / f"link {i // 3}.png"
        if i % 3 == 2:
            link.symlink_to(file)
        path = (file, tmp_path / "linked" / file.name, link)[i % 3]
        records.append(Record(i, path, 4, 4, (), str(path.relative_to(tmp_path))))
    data = InstanceDataset(records, Categories.from_names(["cell"]))
    for chosen in (data, data.subset(np.arange(60))):
        train, val = hold_out(chosen, 0.2, 0)
        assert len(val) == 12 and not {i // 3 for i in train} & {i // 3 for i in val}


def test_two_names_of_one_picture_in_a_data_set_on_disk_are_in_one_part(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i in range(20):
        Image.new("L", (9, 9), i).save(tmp_path / "images" / f"{i // 2}.png")
        name = f"{i // 2}.png" if i % 2 else f"images/{i // 2}.png"
        images.append({"id": i, "file_name": name, "width": 9, "height": 9})
        shape = [[0, 0, 5 + i % 2, 0, 5, 5]]
        annotations.append({"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "segmentation": shape})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    data = open_dataset(tmp_path / "set.json", on_error="skip")
    train, val = hold_out(data, 0.3, 0)
    assert len(val) == 6
    assert not {data.path(int(i)) for i in train} & {data.path(int(i)) for i in val}
