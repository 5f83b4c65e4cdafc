"""What iscrowd means is decided for a data set as a whole and said in one line; no true crowd becomes an object."""

import json
from pathlib import Path
from typing import Any

import pytest

from instseg.data.crowds import Crowd
from instseg.data.open import open_dataset
from instseg.inspect.check import check_dataset


def square(x: float, y: float, side: float = 6) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def write(
    folder: Path, objects: list[tuple[int, int]], crowds: list[tuple[int, int]], first: int, parts: int, split: str
) -> Path:
    """A set of 200 x 200 images with objects and crowds, each (image, category); ``parts`` of the objects have two
    parts."""
    from PIL import Image

    images = sorted({image for image, _ in (*objects, *crowds)})
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{split}{i}.png", "width": 200, "height": 200} for i in images],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "dog"}],
        "annotations": [],
    }
    for n, (image, category) in enumerate(objects):
        x, y = 10 * (n % 18), 10 * (n // 18 % 18)
        polygons = [square(x, y)] + ([square(x, 190)] if n < parts else [])
        entry = {"id": n + 1, "image_id": image, "category_id": category, "iscrowd": 0, "segmentation": polygons}
        content["annotations"].append(entry)
    for n, (image, category) in enumerate(crowds):
        code = {"size": [200, 200], "counts": [200 * n, 50 + n, 40_000 - 200 * n - 50 - n]}
        entry = {"id": first + n, "image_id": image, "category_id": category, "iscrowd": 1, "segmentation": code}
        content["annotations"].append(entry)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    for i in images:
        Image.new("RGB", (200, 200)).save(folder / "images" / f"{split}{i}.png")
    return folder


MANY = [(1, 1)] * 40
COCO_ID = 900_100_000_001


@pytest.mark.parametrize(
    ("objects", "crowds", "first", "parts", "taken"),
    [
        (MANY, [(1, 1)], 100, 4, 0),  # as in COCO
        (MANY, [(1, 1)], COCO_ID, 4, 0),
        (MANY, [(1, 1)], COCO_ID, 0, 0),  # COCO's numbers are proof whatever the rest looks like
        (MANY, [(1, 1), (1, 1)], COCO_ID, 0, 0),
        (MANY, [(1, 1), (1, 1)], 100, 4, 2),  # two of a class in an image
        (MANY, [(1, 1), (1, 2)], 100, 4, 2),  # one without ten others of its class
        (MANY, [(1, 1)], 100, 0, 1),  # no polygon of several parts
        ([], [(1, 1), (2, 1), (3, 2)], 100, 0, 3),  # everything drawn with a brush
        ([(1, 1)] * 9 + [(2, 1)] * 30, [(1, 1)], 100, 4, 1),
        ([(1, 1)] * 10 + [(2, 1)] * 30, [(1, 1)], 100, 4, 0),
    ],
)
def test_what_is_marked_is_an_object_only_where_coco_would_not_mark_it(
    tmp_path: Path,
    objects: list[tuple[int, int]],
    crowds: list[tuple[int, int]],
    first: int,
    parts: int,
    taken: int,
) -> None:
    folder = write(tmp_path, objects, crowds, first, parts, "train")
    if not objects and not taken:
        return
    with pytest.warns(UserWarning) as said:
        dataset = open_dataset(folder)
    assert len(dataset.objects()[0]) == len(objects) + taken
    assert sum(a.crowd for record in dataset.records for a in record.annotations) == len(crowds) - taken
    lines = [str(warning.message) for warning in said]
    assert len(lines) == 1
    count = "1 annotation" if len(crowds) == 1 else f"{len(crowds)} annotations"
    assert f"{count} marked iscrowd" in lines[0]
    assert ("taken as objects" in lines[0]) == bool(taken)
    assert ("crowd=ignore" if taken else "crowd=object") in lines[0]


def boxed(folder: Path, side: float) -> Path:
    """The same set with boxes: objects of 6 pixels, crowds of ``side``."""
    file = folder / "annotations" / "train.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        entry["bbox"] = [0, 0, side, side] if entry["iscrowd"] else [0, 0, 6, 6]
    file.write_text(json.dumps(content))
    return folder


def test_a_filter_that_breaks_a_rule_for_a_few_does_not_make_objects_of_crowds(tmp_path: Path) -> None:
    crowds = [(image, 1) for image in range(1, 7)]
    objects = [(image, 1) for image in range(1, 6) for _ in range(12)] + [(6, 1)] * 3
    folder = boxed(write(tmp_path, objects, crowds, 100, 4, "train"), 60)
    with pytest.warns(UserWarning, match="left out: crowds"):
        assert len(open_dataset(folder).objects()[0]) == len(objects)
    with pytest.warns(UserWarning, match="taken as objects"):  # as large as objects are
        assert len(open_dataset(boxed(folder, 7)).objects()[0]) == len(objects) + 6


def test_ids_beyond_cocos_and_ids_that_objects_share_prove_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, MANY, [(1, 1), (1, 1)], 1_732_540_000_000, 4, "train")
    with pytest.warns(UserWarning, match="2 annotations marked iscrowd are taken as objects"):
        open_dataset(folder)
    file = folder / "annotations" / "train.json"
    content = json.loads(file.read_text())
    for number, entry in enumerate(content["annotations"]):
        entry["id"] = COCO_ID + number
    file.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="2 annotations marked iscrowd are taken as objects"):
        open_dataset(folder)


@pytest.mark.parametrize(("crowd", "objects"), [("ignore", 40), ("object", 42)])
def test_the_user_decides(tmp_path: Path, crowd: Crowd, objects: int, recwarn: pytest.WarningsRecorder) -> None:
    folder = write(tmp_path, MANY, [(1, 1), (1, 2)], 100, 0, "train")
    assert len(open_dataset(folder, crowd=crowd).objects()[0]) == objects
    assert not recwarn.list


def test_all_splits_of_a_data_set_are_read_alike(tmp_path: Path) -> None:
    """A small split alone may look like COCO; the tool that wrote both is known from the other."""
    write(tmp_path, MANY, [(1, 1)], 100, 4, "val")
    with pytest.warns(UserWarning, match="left out: crowds"):
        assert len(open_dataset(tmp_path, "val").objects()[0]) == 40
    write(tmp_path, MANY, [(1, 1), (1, 1)], 100, 4, "train")
    with pytest.warns(UserWarning, match="taken as objects"):
        assert len(open_dataset(tmp_path, "val").objects()[0]) == 41


def test_numbered_crowds_stay_beside_objects_of_a_tool(tmp_path: Path) -> None:
    folder = write(tmp_path, MANY, [(1, 2), (1, 2), (1, 1)], COCO_ID - 3, 4, "train")
    with pytest.warns(UserWarning, match=r"2 annotations marked iscrowd are taken .*, 1 numbered as COCO"):
        dataset = open_dataset(folder)
    assert sum(a.crowd for record in dataset.records for a in record.annotations) == 1


def test_the_check_counts_crowds_by_split_and_class(tmp_path: Path) -> None:
    folder = write(tmp_path, MANY, [(1, 1), (1, 2)], 100, 4, "train")
    write(folder, MANY, [(1, 1)], COCO_ID, 4, "val")
    report = check_dataset(folder, crowd="ignore")
    assert [statistics.crowds_per_class for statistics in report.statistics] == [{"cell": 1, "dog": 1}, {"cell": 1}]
    assert "crowd regions    cell 1, dog 1" in report.text()
    auto = check_dataset(folder)
    assert [statistics.crowds_per_class for statistics in auto.statistics] == [{}, {"cell": 1}]
    assert "warning [crowd]" in auto.text()


ODD = [("1", 1), ("0", 0), (1.0, 1), (True, 1), (None, 0), ("false", 0), (float("nan"), 0), ("NaN", 0), ("N", 0)]


@pytest.mark.parametrize(("value", "crowd"), ODD)
def test_iscrowd_is_read_however_it_is_written(folder: Any, value: Any, crowd: int) -> None:
    folder.annotate(iscrowd=value)
    dataset = open_dataset(folder.save(), crowd="ignore")
    assert sum(a.crowd for record in dataset.records for a in record.annotations) == crowd
