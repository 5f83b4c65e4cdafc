"""Data sets on disk become samples and COCO ground truth."""

import contextlib
import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch.utils.data import DataLoader

from instseg.core.categories import Categories
from instseg.core.errors import DataError
from instseg.core.masks import Masks
from instseg.data.dataset import InstanceDataset, collate, ground_truth
from instseg.data.open import open_dataset, splits
from instseg.data.transforms.augment import Augment, build_transform

STRONG = Augment(enlarge=1.5, crop=32, flip=0.5, rotate90=True, brightness=0.3, hue=0.1, copy_paste=0.5)


def as_coco(content: dict[str, Any]) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
    return coco


def test_a_folder_opens_and_gives_samples(folder: Any) -> None:
    dataset = open_dataset(folder.path, "train")
    assert len(dataset) == 2
    assert dataset.name == "cells"
    assert dataset.categories == Categories(("cell",), (1,))
    sample = dataset[1]
    assert sample.image.shape == (3, 30, 40)
    assert torch.equal(sample.image, dataset.image(1))
    assert sample.boxes.tolist() == [[2, 2, 12, 10]]
    assert sample.masks.sum() == 80
    assert (sample.image_id, sample.index) == (2, 1)


@pytest.mark.parametrize("ids", [(0, 1, 2), (1, 2, 3), (90, 7, 13)])
def test_category_ids_with_holes_become_labels_in_the_order_of_ids(folder: Any, ids: tuple[int, ...]) -> None:
    folder.content["categories"] = [{"id": number, "name": f"c{number}"} for number in ids]
    folder.content["annotations"] = []
    for number in ids:
        folder.annotate(category_id=number)
    dataset = open_dataset(folder.save())
    assert dataset.categories.ids == tuple(sorted(ids))
    assert dataset.categories.names == tuple(f"c{number}" for number in sorted(ids))
    assert dataset[0].labels.tolist() == [sorted(ids).index(number) for number in ids]
    assert [a["category_id"] for a in ground_truth(dataset)["annotations"]] == list(ids)


def test_crowds_are_no_targets_but_ground_truth(folder: Any) -> None:
    folder.annotate(iscrowd=1, segmentation={"size": [30, 40], "counts": [0, 600, 600]}, area=600)
    dataset = open_dataset(folder.save(), crowd="ignore")
    assert len(dataset[0].labels) == 1
    truth = ground_truth(dataset)["annotations"]
    assert [a["iscrowd"] for a in truth] == [0, 1, 0]
    assert truth[1]["area"] == 600


def test_annotation_id_zero_does_not_break_pycocotools(folder: Any) -> None:
    for number, entry in enumerate(folder.content["annotations"]):
        entry["id"] = number
    truth = ground_truth(open_dataset(folder.save()))
    assert [a["id"] for a in truth["annotations"]] == [1, 2]
    assert as_coco(truth).annToMask(truth["annotations"][0]).sum() == 80


def test_ground_truth_has_the_masks_area_the_files_box_and_is_json(folder: Any) -> None:
    folder.content["annotations"][0].update(area=9999, bbox=[2.25, 2, 9.5, 8])  # tools write the area of the box
    truth = json.loads(json.dumps(ground_truth(open_dataset(folder.save()))))
    assert truth["annotations"][0]["area"] == 80
    assert truth["annotations"][0]["bbox"] == [2.25, 2, 9.5, 8]
    assert truth["images"][0] == {"id": 1, "file_name": "1.png", "height": 30, "width": 40}


def test_box_and_area_come_from_the_mask_where_the_file_has_none(folder: Any) -> None:
    for key in ("bbox", "area", "id", "iscrowd"):
        del folder.content["annotations"][0][key]
    truth = ground_truth(open_dataset(folder.save()))["annotations"][0]
    assert truth["bbox"] == [2, 2, 10, 8]
    assert truth["area"] == 80


def test_images_without_objects_are_kept_unless_told(folder: Any) -> None:
    folder.content["annotations"] = folder.content["annotations"][:1]
    folder.save()
    assert len(open_dataset(folder.path)) == 2
    sample = open_dataset(folder.path)[1]
    assert sample.masks.shape == (0, 30, 40)
    assert sample.boxes.shape == (0, 4)
    assert len(open_dataset(folder.path, keep_empty=False)) == 1


def test_a_sample_follows_from_seed_epoch_and_index_alone(folder: Any) -> None:
    dataset = open_dataset(folder.path, seed=5).with_transform(build_transform(STRONG, train=True))
    other = open_dataset(folder.path, seed=5).with_transform(build_transform(STRONG, train=True))
    other.set_epoch(3)
    other[0]
    dataset.set_epoch(3)
    dataset[1]
    assert torch.equal(dataset[0].image, other[0].image)
    assert torch.equal(dataset[0].masks, other[0].masks)
    images = []
    for seed, epoch in ((5, 3), (5, 4), (6, 3)):
        dataset.seed = seed
        dataset.set_epoch(epoch)
        images.append(dataset[0].image)
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_workers_make_the_same_samples_also_when_they_live_on() -> None:
    dataset = open_dataset("shapes", size=6).with_transform(build_transform(STRONG, train=True))

    def loaded(workers: int) -> list[torch.Tensor]:
        loader = DataLoader(dataset, 2, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0)
        tensors = []
        for epoch in (0, 1):
            dataset.set_epoch(epoch)
            for batch in loader:
                tensors += batch.images + [target.masks for target in batch.targets]
        return tensors

    alone, helped = loaded(0), loaded(2)
    assert len(alone) == len(helped) == 24
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("train", [True, False])
def test_a_data_set_can_be_pickled_for_spawned_workers(folder: Any, train: bool) -> None:
    for data in (folder.path, "shapes"):
        dataset = open_dataset(data).with_transform(build_transform(STRONG, train))
        assert torch.equal(pickle.loads(pickle.dumps(dataset))[0].image, dataset[0].image)


def test_changing_the_transform_leaves_the_data_set_alone(folder: Any) -> None:
    dataset = open_dataset(folder.path)
    view = dataset.with_transform(build_transform(Augment(enlarge=2.0, flip=0), train=True))
    view.set_epoch(7)
    assert view[0].image.shape == (3, 60, 80)
    assert dataset[0].image.shape == (3, 30, 40)


def test_annotations_on_stored_pixels_of_a_turned_photograph_stay_on_them(folder: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = folder.path / "images" / "1.png"
    stored = Image.open(path).copy()
    stored.save(path, exif=exif)
    dataset = open_dataset(folder.path)  # the record says 40 x 30, as stored
    assert np.array_equal(dataset.image(0).permute(1, 2, 0), np.asarray(stored))
    folder.content["images"][0].update(width=30, height=40)
    dataset = open_dataset(folder.save())
    assert dataset.image(0).shape == (3, 40, 30)


def test_sizes_missing_from_the_file_are_read_from_the_images(folder: Any) -> None:
    for entry in folder.content["images"]:
        del entry["width"], entry["height"]
    assert open_dataset(folder.save()).records[0].width == 40


def roboflow(folder: Any, root: Path) -> Path:
    for word in ("train", "valid"):
        (root / word).mkdir(parents=True)
        for image in ("1.png", "2.png"):
            shutil.copy(folder.path / "images" / image, root / word)
        content = json.loads(folder.json.read_text())
        content["categories"] = [
            {"id": 0, "name": "cells", "supercategory": "none"},
            {"id": 1, "name": "round", "supercategory": "cells"},
            {"id": 2, "name": "flat", "supercategory": "cells"},
        ]
        (root / word / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def test_roboflow_layout_opens_without_its_parent_category(folder: Any, tmp_path: Path) -> None:
    root = roboflow(folder, tmp_path / "export")
    assert splits(root) == ("train", "val")
    for split in ("train", "val"):
        dataset = open_dataset(root, split)
        assert dataset.categories == Categories(("round", "flat"), (1, 2))
        assert dataset[0].labels.tolist() == [0]
    assert len(open_dataset(root / "valid", "val")) == 2


def test_roboflow_category_zero_stays_when_objects_have_it(folder: Any, tmp_path: Path) -> None:
    root = roboflow(folder, tmp_path / "export")
    path = root / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(content))
    assert open_dataset(root).categories.ids == (0, 1, 2)


def test_standard_coco_layout_opens(folder: Any, tmp_path: Path) -> None:
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(folder.path / "images", root / f"{split}2017")
        shutil.copy(folder.json, root / "annotations" / f"instances_{split}2017.json")
    assert splits(root) == ("train", "val")
    assert open_dataset(root, "val").records[0].path == root / "val2017" / "1.png"


def test_a_json_opens_with_images_beside_it_or_in_a_folder(folder: Any, tmp_path: Path) -> None:
    for place in ("images", "."):
        root = tmp_path / f"single-{len(place)}"
        shutil.copytree(folder.path / "images", root / place, dirs_exist_ok=True)
        shutil.copy(folder.json, root / "mine.json")
        assert len(open_dataset(root / "mine.json", "val")) == 2
    assert splits(root / "mine.json") == ("train",)


def test_images_are_found_by_their_paths_in_the_file(folder: Any) -> None:
    folder.content["images"][0]["file_name"] = "images/1.png"
    folder.content["images"][1]["file_name"] = "C:/somewhere/else/2.png"
    dataset = open_dataset(folder.save())
    assert [record.path for record in dataset.records] == [folder.path / "images" / f"{n}.png" for n in (1, 2)]


def test_a_data_yaml_says_where_everything_lies(folder: Any, tmp_path: Path) -> None:
    shutil.move(folder.path / "images", folder.path / "pictures")
    path = tmp_path / "cells.yaml"
    path.write_text("root: cells\ntrain: annotations/train.json\nimages: pictures\n")
    assert splits(path) == ("train",)
    assert len(open_dataset(path)) == 2
    with pytest.raises(DataError, match='no field "val"'):
        open_dataset(path, "val")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: a.json\nimage: x\n", 'Did you mean "images"'),
        ("- a\n", "fields root, train"),
        ("train: [", "not a readable YAML"),
        ("train: a.json\n", "not a COCO JSON"),
        ("root: cells\ntrain: annotations/train.json\nimages: nowhere\n", "does not exist"),
    ],
)
def test_a_wrong_yaml_is_one_clear_line(folder: Any, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "cells.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        open_dataset(path)
    assert "\n" not in str(caught.value)


def test_a_missing_split_says_which_there_are(folder: Any) -> None:
    with pytest.raises(DataError, match='split "val"; it has: train'):
        open_dataset(folder.path, "val")


@pytest.mark.parametrize("name", ["nowhere", "shape", "nothing.json"])
def test_a_missing_data_set_is_one_clear_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such data set"):
        open_dataset(tmp_path / name)


def test_a_defect_stops_unless_skipping_is_asked_for(folder: Any) -> None:
    folder.annotate(category_id=9)
    folder.content["images"].append({"id": 3, "file_name": "3.png", "width": 40, "height": 30})
    folder.save()
    with pytest.raises(DataError, match="on_error=skip") as caught:
        open_dataset(folder.path)
    assert "annotation 3 of image 1" in str(caught.value)
    with pytest.warns(UserWarning, match="skipped 2 defective records") as warned:
        dataset = open_dataset(folder.path, on_error="skip")
    assert len(warned) == 1
    assert len(dataset) == 2
    assert len(dataset[0].labels) == 1


def test_an_image_that_breaks_later_is_replaced_when_skipping(folder: Any) -> None:
    raising, skipping = open_dataset(folder.path), open_dataset(folder.path, on_error="skip")
    (folder.path / "images" / "1.png").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"1\.png"):
        raising[0]
    with pytest.warns(UserWarning, match="skipped an image"):
        sample = skipping[0]
    assert (sample.image_id, sample.index) == (2, 0)
    (folder.path / "images" / "2.png").write_bytes(b"torn")
    with pytest.raises(DataError, match="no image"), pytest.warns(UserWarning):
        skipping[0]


def test_training_without_any_object_is_refused_and_evaluation_is_not(folder: Any) -> None:
    folder.content["annotations"] = []
    folder.save()
    with pytest.raises(DataError, match="no image has an object"):
        open_dataset(folder.path, "train")
    folder.split = "val"
    folder.save()
    assert len(open_dataset(folder.path, "val")) == 2


def test_no_mask_of_image_size_is_kept_in_memory(tmp_path: Path) -> None:
    """300 small objects of a 12-megapixel image: a dense stack would be 3.6 GB."""
    import tracemalloc

    from instseg.data.records import Annotation, Record

    height, width = 3000, 4000
    places = [(y, x, torch.ones(40, 40)) for y in range(0, 3000, 200) for x in range(0, 4000, 200)]
    codes = Masks.from_pieces(places, (height, width)).rle()
    annotations = tuple(Annotation(i + 1, 0, code, (0, 0, 1, 1), 1.0) for i, code in enumerate(codes))
    record = Record(1, None, height, width, annotations, "big.png")
    blank = torch.zeros(3, height, width, dtype=torch.uint8)
    augment = Augment(train_short=[300], train_long=400, flip=0.5)
    dataset = InstanceDataset(
        [record], Categories.from_names(["a"]), build_transform(augment, train=True), read=lambda _: blank
    )
    tracemalloc.start()
    sample = dataset[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sample.masks.shape == (300, 300, 400)
    assert peak < 200e6


def test_iterating_ends_after_the_last_sample():
    data = open_dataset("shapes", "val", size=3)
    assert len(list(data)) == 3
    with pytest.raises(IndexError):
        data[3]
