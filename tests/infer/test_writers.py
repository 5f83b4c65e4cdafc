from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from instseg.core import rle
from instseg.core.errors import DataError
from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.core.meta import Categories
from instseg.infer import writers
from instseg.infer.writers import CocoWriter, ResultsWriter, atomic, write_json, write_label_image, write_picture


def found(size: tuple[int, int] = (30, 40)) -> Instances:
    """Three objects and one mask without a pixel; scores 0.9, 0.5, 0.2, 0.04."""
    masks = torch.zeros(4, *size, dtype=torch.bool)
    masks[0, 2:10, 3:9] = True
    masks[2, 12:20, 3:30] = True
    masks[3, 1:5, 20:30] = True
    return Instances(torch.tensor([0.9, 0.5, 0.2, 0.04]), torch.tensor([0, 1, 1, 0]), Masks.from_bool(masks))


@pytest.fixture
def categories() -> Categories:
    return Categories(("cat", "dog"), (17, 3))


def annotations(folder: Path, **changes: Any) -> Path:
    content = {
        "images": [
            {"id": 31, "file_name": "left/a.png", "width": 40, "height": 30},
            {"id": 32, "file_name": "right/a.png", "width": 40, "height": 30},
            {"id": 33, "file_name": "b.png", "width": 99, "height": 30},
        ],
        "categories": [{"id": 8, "name": "Dog"}, {"id": 5, "name": "cat"}],
        "annotations": [],
    }
    path = folder / "val.json"
    path.write_text(json.dumps(content | changes))
    return path


def test_predictions_are_a_coco_data_set_that_pycocotools_opens(tmp_path: Path, categories: Categories) -> None:
    path = tmp_path / "new" / "predictions.json"
    with CocoWriter(path, categories) as writer:
        assert writer.add(found(), "a.png") == 1
        assert writer.add(found()[:0], "deep/empty.png") == 2
        assert writer.add(found(), "c.png") == 3
    assert (writer.images, writer.annotations) == (3, 4)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    assert [coco.imgs[i]["file_name"] for i in (1, 2, 3)] == ["a.png", "deep/empty.png", "c.png"]
    assert coco.imgs[2] == {"id": 2, "file_name": "deep/empty.png", "width": 40, "height": 30}
    assert {c["id"]: c["name"] for c in coco.dataset["categories"]} == {17: "cat", 3: "dog"}
    first, second = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert first["category_id"] == 17 and first["score"] == pytest.approx(0.9)
    assert first["bbox"] == [3, 2, 6, 8] and first["area"] == 48 and first["iscrowd"] == 0
    assert coco.annToMask(first).sum() == 48
    assert second["category_id"] == 3 and second["instance"] == 3  # the mask without a pixel is left out
    assert sorted(coco.anns) == [1, 2, 3, 4]


def test_least_score_decides_what_is_kept(tmp_path: Path, categories: Categories) -> None:
    for score, kept in ((0.0, 3), (0.05, 2), (0.25, 1), (0.95, 0)):
        with CocoWriter(tmp_path / "p.json", categories, score) as writer:
            writer.add(found(), "a.png")
        assert len(json.loads((tmp_path / "p.json").read_text())["annotations"]) == kept


def test_no_image_at_all_is_valid_json(tmp_path: Path, categories: Categories) -> None:
    with CocoWriter(tmp_path / "p.json", categories):
        pass
    assert json.loads((tmp_path / "p.json").read_text())["images"] == []


def test_failure_half_way_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path, categories: Categories) -> None:
    path = tmp_path / "predictions.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), CocoWriter(path, categories) as writer:
        writer.add(found(), "a.png")
        raise RuntimeError("killed")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.json"]


def test_full_disk_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, categories: Categories, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers.shutil, "copyfileobj", full)
    with pytest.raises(DataError) as caught, CocoWriter(tmp_path / "p.json", categories) as writer:
        writer.add(found(), "a.png")
    assert "No space left on device" in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"), atomic(tmp_path / "file" / "x.png"):
        pass


def test_results_for_an_annotation_file_use_its_ids_and_hold_no_box(tmp_path: Path, categories: Categories) -> None:
    known = annotations(tmp_path)
    with ResultsWriter(tmp_path / "p.json", categories, known) as writer:
        assert writer.add(found(), "/data/right/a.png") == 32
        assert writer.add(found(), "/data/left/a.png") == 31
    rows = json.loads((tmp_path / "p.json").read_text())
    assert [(r["image_id"], r["category_id"]) for r in rows] == [(32, 5), (32, 8), (31, 5), (31, 8)]
    assert all(set(r) == {"image_id", "category_id", "score", "segmentation"} for r in rows)
    assert rle.area([rle.from_json(rows[0]["segmentation"])])[0] == 48
    with contextlib.redirect_stdout(io.StringIO()):
        COCO(str(known)).loadRes(str(tmp_path / "p.json"))


@pytest.mark.parametrize(
    ("name", "words"),
    [("/data/z.png", "no image of this name"), ("a.png", "several images"), ("b.png", "99 x 30")],
)
def test_image_that_is_not_the_annotated_one_is_one_line(
    tmp_path: Path, categories: Categories, name: str, words: str
) -> None:
    with ResultsWriter(tmp_path / "p.json", categories, annotations(tmp_path)) as writer:
        with pytest.raises(DataError) as caught:
            writer.add(found(), name)
        assert words in str(caught.value) and "\n" not in str(caught.value)
        writer.add(found(), "left/a.png")
    assert {r["image_id"] for r in json.loads((tmp_path / "p.json").read_text())} == {31}


@pytest.mark.parametrize(
    "changes", [{"images": 3}, {"categories": [{"name": "cat"}]}, {"images": [{"id": 3}]}, {"categories": []}]
)
def test_file_that_is_not_coco_or_shares_no_class_is_one_line(
    tmp_path: Path, categories: Categories, changes: dict[str, Any]
) -> None:
    with pytest.raises(DataError) as caught:
        ResultsWriter(tmp_path / "p.json", categories, annotations(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        ResultsWriter(tmp_path / "p.json", categories, tmp_path / "missing.json")


def test_label_image_keeps_sixteen_bits(tmp_path: Path) -> None:
    labels = np.zeros((5, 6), np.uint16)
    labels[2, 3] = 60000
    write_label_image(tmp_path / "deep" / "labels.png", labels)
    with Image.open(tmp_path / "deep" / "labels.png") as image:
        assert np.array_equal(np.asarray(image), labels)


@pytest.mark.parametrize(("suffix", "form"), [(".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP")])
def test_pictures_are_written_in_the_form_of_their_suffix(tmp_path: Path, suffix: str, form: str) -> None:
    write_picture(tmp_path / f"a{suffix}", np.full((20, 30, 3), 90, np.uint8))
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.format == form and image.size == (30, 20)


def test_json_without_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"ap": float("nan")})
    assert list(tmp_path.iterdir()) == []
