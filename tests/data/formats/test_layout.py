"""A data set is recognized by looking, whatever its tool calls its files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from instseg.core.errors import DataError
from instseg.data.open import open_dataset, splits


def move(folder: Any, to: Path, json_at: str, images_at: str) -> Path:
    """The folder's data set with its JSON and images elsewhere."""
    for path, place in ((folder.path / "images", to / images_at),):
        place.mkdir(parents=True, exist_ok=True)
        for file in path.iterdir():
            shutil.copy(file, place / file.name)
    (to / json_at).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder.json, to / json_at)
    return to


@pytest.mark.parametrize(
    ("json_at", "images_at", "split"),
    [
        ("labels.json", "data", "train"),
        ("result.json", ".", "train"),
        ("annotations/instances_default.json", "images/default", "train"),
        ("annotations/instances_Train.json", "images/Train", "train"),
        ("annotations/instances_Validation.json", "images/Validation", "val"),
        ("annotations/instances_val2017.json", "val2017", "val"),
        ("Train/labels.json", "Train/data", "train"),
        ("valid/_annotations.coco.json", "valid", "val"),
        ("ds0/annotations/coco_instances.json", "ds0/img", "train"),
        ("coco_instances_test.json", "pictures/deep/down", "test"),
        ("annotations/lvis_v1_train.json", "train2017", "train"),
        ("export 2026-01-01 (1).json", "some where", "train"),
        ("meta/dev.json", "photos", "val"),
    ],
)
def test_a_folder_opens_as_it_was_unpacked(
    folder: Any, tmp_path: Path, json_at: str, images_at: str, split: str
) -> None:
    root = move(folder, tmp_path / "unpacked", json_at, images_at)
    assert splits(root) == (split,)
    dataset = open_dataset(root, split)
    assert [record.path for record in dataset.records] == [root / images_at / f"{n}.png" for n in (1, 2)]


@pytest.mark.parametrize("other", ["captions_train2017.json", "person_keypoints_train2017.json", "panoptic_train.json"])
def test_instances_are_taken_from_among_cocos_other_files(folder: Any, tmp_path: Path, other: str) -> None:
    root = move(folder, tmp_path / "coco", "annotations/instances_train2017.json", "train2017")
    field = {"c": "caption", "p": "segments_info"}[other[0]] if "keypoints" not in other else "keypoints"
    content = {"images": [], "categories": [], "annotations": [{"id": 1, field: [], "image_id": 1}]}
    (root / "annotations" / other).write_text(json.dumps(content))
    assert len(open_dataset(root)) == 2


def test_predictions_of_an_earlier_run_are_not_the_annotations(folder: Any, tmp_path: Path) -> None:
    root = move(folder, tmp_path / "set", "labels.json", "data")
    content = {"info": {"description": "instseg predictions"}, **json.loads((root / "labels.json").read_text())}
    content["annotations"] = []
    (root / "runs" / "predict").mkdir(parents=True)
    (root / "runs" / "predict" / "predictions.json").write_text(json.dumps(content))
    assert len(open_dataset(root).objects()[0]) == 2


def test_predictions_in_a_folder_called_val_are_not_a_split(folder: Any, tmp_path: Path) -> None:
    root = move(folder, tmp_path / "set", "train.json", "images")
    content = {"info": {"description": "instseg predictions"}, **json.loads((root / "train.json").read_text())}
    (root / "val").mkdir()
    (root / "val" / "predictions.json").write_text(json.dumps(content))
    assert splits(root) == ("train",)


def test_a_file_without_a_split_is_what_is_trained_on_also_beside_one_with(folder: Any, tmp_path: Path) -> None:
    root = move(folder, tmp_path / "dev", "annotations.json", "images")
    assert splits(root) == ("train",)
    shutil.copy(root / "annotations.json", root / "test.json")
    assert splits(root) == ("train", "test")
    assert len(open_dataset(root)) == 2


def test_a_json_beside_the_caller_is_found_with_its_pictures(
    folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.json.parent)
    assert len(open_dataset("train.json")) == 2


def test_two_data_sets_in_one_folder_are_not_mixed(folder: Any, tmp_path: Path) -> None:
    root = move(folder, tmp_path / "all", "a/annotations/instances_default.json", "a/images")
    move(folder, root, "b/deeper/annotations/instances_default.json", "b/deeper/images")
    with pytest.raises(DataError, match="2 annotation files fit"):
        open_dataset(root)


def test_one_json_a_picture_does_not_hide_the_data_set(folder: Any, tmp_path: Path) -> None:
    root = move(folder, tmp_path / "set", "pictures/annotations.json", "pictures")
    for number in range(100):
        (root / "pictures" / f"IMG_{number}.json").write_text('{"shapes": [], "imagePath": "1.png"}')
    assert len(open_dataset(root)) == 2


def test_two_files_that_fit_one_split_are_named(folder: Any, tmp_path: Path) -> None:
    root = move(folder, tmp_path / "set", "a.json", "images")
    shutil.copy(root / "a.json", root / "b.json")
    with pytest.raises(DataError, match=r"2 annotation files fit split \"train\" \(a.json, b.json\)"):
        open_dataset(root)


def test_two_years_of_one_split_are_asked_about(folder: Any, tmp_path: Path) -> None:
    root = move(folder, tmp_path / "coco", "annotations/instances_train2014.json", "train2014")
    move(folder, root, "annotations/instances_train2017.json", "train2017")
    with pytest.raises(DataError, match=r"instances_train2014.json, annotations/instances_train2017.json"):
        open_dataset(root)


def test_what_is_not_recognized_is_answered_with_what_lies_there(folder: Any, tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    shutil.copytree(folder.path / "images", root / "images")
    (root / "labels").mkdir()
    (root / "labels" / "1.txt").write_text("0 .1 .1 .2 .2 .3 .3")
    with pytest.raises(DataError) as caught:
        open_dataset(root)
    assert "looked for a JSON file with COCO's lists images, annotations and categories" in str(caught.value)
    assert "it holds 2 .png, 1 .txt in images/, labels/" in str(caught.value)


def test_linked_folders_are_followed(folder: Any, tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "train.json").symlink_to(folder.json)
    (root / "images").symlink_to(folder.path / "images")
    assert [record.path for record in open_dataset(root).records] == [root / "images" / f"{n}.png" for n in (1, 2)]


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "export.zip").touch()
    with pytest.raises(DataError, match="is an archive; unpack it"):
        open_dataset(tmp_path / "export.zip")


def test_images_are_not_taken_from_above_the_data_set(folder: Any, tmp_path: Path) -> None:
    """There the same names may be the mirrored pictures of another set."""
    root = move(folder, tmp_path / "all", "flipped/annotations.json", "images")
    for data in (root / "flipped", root / "flipped" / "annotations.json"):
        with pytest.raises(DataError, match="none of its 2 images is here"):
            open_dataset(data)
    shutil.copytree(root / "images", root / "flipped" / "images")
    dataset = open_dataset(root / "flipped")
    assert [record.path for record in dataset.records] == [root / "flipped" / "images" / f"{n}.png" for n in (1, 2)]


def test_the_ground_is_not_a_class(folder: Any) -> None:
    for name in ("_background_", "__background__", "BACKGROUND"):
        folder.content["categories"] = [{"id": 0, "name": name}, {"id": 1, "name": "cell"}]
        assert open_dataset(folder.save()).categories.names == ("cell",)
    folder.content["annotations"][0]["category_id"] = 0  # somebody draws it
    assert open_dataset(folder.save()).categories.names == ("BACKGROUND", "cell")


def test_a_root_category_without_an_object_is_not_a_class(folder: Any) -> None:
    folder.content["categories"] = [
        {"id": 0, "name": "cells-a1b2", "supercategory": "none"},
        {"id": 1, "name": "cell", "supercategory": "cells-a1b2"},
    ]
    assert open_dataset(folder.save()).categories.names == ("cell",)
