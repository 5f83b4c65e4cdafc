"""The bundled microscopy images."""

from pathlib import Path

import instseg.data
from instseg.data.open import open_dataset
from instseg.inspect.check import check_dataset

FOLDER = Path(instseg.data.__file__).parent.parent / "assets" / "nuclei-mini"


def test_both_splits_open_and_share_no_image() -> None:
    train, val = open_dataset("nuclei-mini", "train"), open_dataset("nuclei-mini", "val")
    assert len(train) == 22
    assert len(val) == 10
    assert train.categories.names == val.categories.names == ("nucleus",)
    assert not {record.file_name for record in train.records} & {record.file_name for record in val.records}


def test_it_is_small_and_comes_with_its_license() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 3_000_000
    assert "CC0" in (FOLDER / "LICENSE").read_text()


def test_it_has_no_defect() -> None:
    report = check_dataset("nuclei-mini")
    assert report.problems == []
    assert [(s.split, s.images, s.objects) for s in report.statistics] == [("train", 22, 1089), ("val", 10, 659)]
