"""One small set as some twenty tools export it to COCO: each is recognized as unpacked and read as it is meant."""

import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instseg.core.errors import DataError
from instseg.data.dataset import InstanceDataset
from instseg.data.open import open_dataset, splits
from instseg.inspect.check import check_dataset

Unpack = Callable[[str, Path], dict[str, Any]]
ARCHIVE = Path(__file__).parent / "exports" / "coco.zip"
# What the user reads where a set cannot be trained on.
REFUSED = {
    "datumaro-coco_panoptic": "holds panoptic segments, which is another kind of COCO file",
    "labelstudio-coco_of_brush": "no image has an object to train on",
    "supervisely-to_coco": 'none of its 6 images is here: the first is "img_01.png"',
}
SAID = {
    "cvat-coco_brush": ["55 annotations marked iscrowd are taken as objects (an image has two of one class"],
    "cvat-coco_mixed": [
        "26 annotations marked iscrowd are taken as objects",
        "left out 1 annotation: 1 without a mask",
    ],
    "supervision-coco": [
        "3 annotations marked iscrowd are taken as objects",
        "left out 1 annotation: 1 without a mask",
    ],
    "coco-official_byhand": ["1 annotation marked iscrowd is left out: crowds, as COCO marks them"],
}


def _names() -> list[str]:
    with zipfile.ZipFile(ARCHIVE) as archive:
        return sorted(Path(name).stem for name in archive.namelist() if name.startswith("truth/"))


def _open(data: Path, split: str) -> tuple[InstanceDataset, list[str]]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        dataset = open_dataset(data, split)
    return dataset, [str(warning.message) for warning in said]


def _found(folder: Path, datasets: dict[str, InstanceDataset]) -> dict[str, Any]:
    """Of each picture by its path in the folder: its split, objects and number of crowds."""
    found = {}
    for split, dataset in datasets.items():
        for record in dataset.records:
            assert record.path is not None
            objects = Counter(
                (dataset.categories.names[a.label], int(a.area)) for a in record.annotations if not a.crowd
            )
            crowds = sum(a.crowd for a in record.annotations)
            found[os.path.relpath(record.path, folder)] = (split, objects, crowds)
    return found


def _wanted(truth: dict[str, Any]) -> dict[str, Any]:
    words = {"valid": "val", "default": "train"}
    return {
        image["file"]: (
            words.get(image["split"], image["split"]),
            Counter((name, area) for name, area in image["objects"]),
            image["crowds"],
        )
        for image in truth["images"]
    }


@pytest.mark.parametrize("name", [name for name in _names() if name not in REFUSED])
def test_an_export_holds_the_objects_of_its_truth(name: str, tmp_path: Path, unpack: Unpack) -> None:
    truth = unpack(name, tmp_path)
    opened = {split: _open(tmp_path, split) for split in splits(tmp_path)}
    assert _found(tmp_path, {split: dataset for split, (dataset, _) in opened.items()}) == _wanted(truth)
    lines = [line for _, said in opened.values() for line in said]
    expected = SAID.get(name, [])
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected, strict=True):
        assert words in line
    for dataset, _ in opened.values():  # every class of the file but those that stand for the ground or for all
        assert set(truth["classes"]) - set(dataset.categories.names) <= {"_background_", "nuclei-abcd"}
        assert [len(dataset[i].labels) for i in range(len(dataset))]
    report = check_dataset(tmp_path)
    assert report.ok
    assert not [problem for problem in report.problems if problem.kind == "bbox"]


@pytest.mark.parametrize("name", [name for name in _names() if name not in REFUSED])
def test_the_json_alone_reads_as_the_folder_does(name: str, tmp_path: Path, unpack: Unpack) -> None:
    truth = unpack(name, tmp_path)
    found = {}
    for file in tmp_path.rglob("*.json"):
        dataset, _ = _open(file, "train")
        found |= _found(tmp_path, {"": dataset})
    objects = {file: objects for file, (_, objects, _) in found.items()}
    assert objects == {file: objects for file, (_, objects, _) in _wanted(truth).items()}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_trained_on_says_why(name: str, tmp_path: Path, unpack: Unpack) -> None:
    unpack(name, tmp_path)
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    assert REFUSED[name] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not check_dataset(tmp_path).ok
