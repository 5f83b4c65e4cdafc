from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from instseg.core.categories import Categories
from instseg.core.errors import CheckpointError, ConfigError, DataError
from instseg.data.dataset import InstanceDataset, ground_truth
from instseg.data.holdout import KEY, make_record
from instseg.data.images.read import ImageRule
from instseg.data.open import open_dataset
from instseg.data.records import Record
from instseg.evaluation.evaluate import evaluate


def test_perfect_model_has_ap_one_for_masks_and_boxes(oracle: Any, dataset: InstanceDataset) -> None:
    report = evaluate(oracle, dataset, batch=3, progress=False)
    assert report["segm"]["ap"] == report["bbox"]["ap"] == pytest.approx(1.0)
    assert (report["images"], report["instances"], report["predictions"]) == (4, 11, 11)
    assert [row["name"] for row in report["per_class"]] == ["bolt", "nut"]
    assert report["per_class"][1]["box_ap"] == pytest.approx(1.0)
    assert report["data"] == "parts" and report["split"] == "val" and report["model"] == "oracle"


def test_cap_of_the_model_is_the_cap_of_the_evaluation(oracle: Any, dataset: InstanceDataset) -> None:
    assert evaluate(oracle, dataset, progress=False)["max_dets"] == 100
    oracle.config.max_instances = 500
    assert evaluate(oracle, dataset, progress=False)["max_dets"] == 500
    assert evaluate(oracle, dataset, progress=False, max_dets=2)["segm"]["ap"] < 1


def test_objects_invented_on_an_image_without_objects_cost_ap(oracle: Any, categories: Categories) -> None:
    from tests.oracle import picture, records

    empty = InstanceDataset(records([3, 0]), categories, read=lambda r: picture(3))
    assert evaluate(oracle, empty, progress=False)["segm"]["ap"] < 1


def test_folder_holds_metrics_plots_and_results_that_pycocotools_scores_the_same(
    oracle: Any, dataset: InstanceDataset, tmp_path: Path
) -> None:
    # bolts are called nuts: pairing goes by name, not by id
    oracle.categories = Categories(oracle.categories, oracle.category_ids[::-1])
    report = evaluate(oracle, dataset, out=tmp_path, progress=False, max_dets=100)
    assert json.loads((tmp_path / "metrics.json").read_text()) == report
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"precision_recall.png", "confusion.png"}
    rows = json.loads((tmp_path / "results.json").read_text())
    assert all("bbox" not in row for row in rows)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = ground_truth(dataset)
        truth.createIndex()
        reference = COCOeval(truth, truth.loadRes(rows), "segm")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    assert report["segm"]["ap"] == pytest.approx(reference.stats[0], abs=1e-9)


def test_classes_on_one_side_only_are_reported(oracle: Any, dataset: InstanceDataset) -> None:
    oracle.categories = Categories(("bolt", "washer"), oracle.category_ids)
    report = evaluate(oracle, dataset, progress=False)
    assert report["classes"] == {"matched_by": "names", "only_in_model": ["washer"], "only_in_data": ["nut"]}
    assert report["per_class"][1]["ap"] == 0.0 and report["segm"]["ap"] == pytest.approx(0.5)


def test_no_class_in_common_is_refused_before_anything_is_computed(oracle: Any, dataset: InstanceDataset) -> None:
    oracle.categories = Categories(("cat", "dog"), oracle.category_ids)
    with pytest.raises(DataError, match="no class in common"):
        evaluate(oracle, dataset, progress=False)


def test_random_weights_are_refused(oracle: Any, dataset: InstanceDataset) -> None:
    oracle.has_weights = False
    with pytest.raises(CheckpointError, match="no weights"):
        evaluate(oracle, dataset, progress=False)


def broken(record: Record) -> Tensor:
    from tests.oracle import picture

    if record.image_id == 101:
        raise DataError("1.png: truncated")
    return picture(len(record.annotations))


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_one_line_also_from_a_worker(oracle: Any, dataset: InstanceDataset, workers: int) -> None:
    data = InstanceDataset(dataset.records, dataset.categories, read=broken)
    with pytest.raises(DataError) as caught:
        evaluate(oracle, data, workers=workers, progress=False)
    assert str(caught.value) == "1.png: truncated"


def test_unreadable_image_is_left_out_when_told_to_skip(oracle: Any, dataset: InstanceDataset) -> None:
    data = InstanceDataset(dataset.records, dataset.categories, read=broken, on_error="skip")
    with pytest.warns(UserWarning, match="1 of 4 images of split train cannot be read"):
        report = evaluate(oracle, data, progress=False)
    assert report["images"] == 3 and report["skipped_images"] == 1
    assert report["segm"]["ap"] == pytest.approx(1.0)


def test_evaluation_leaves_modes_and_random_numbers_of_a_training_run_alone(
    oracle: Any, dataset: InstanceDataset
) -> None:
    oracle.train()
    oracle.frozen.eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    evaluate(oracle, dataset, progress=False)
    assert oracle.training and oracle.layer.training and not oracle.frozen.training
    assert torch.equal(torch.get_rng_state(), before)


def test_model_that_finds_nothing_has_ap_zero(oracle: Any, dataset: InstanceDataset) -> None:
    blind = InstanceDataset(dataset.records, dataset.categories, read=lambda r: torch.zeros(3, 60, 80).byte())
    report = evaluate(oracle, blind, progress=False)
    assert report["segm"]["ap"] == report["bbox"]["ap"] == 0.0


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    oracle: Any, dataset: InstanceDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(oracle, "predict_batch", lambda images: pytest.fail("the work began"))
    with pytest.raises(ConfigError, match="is a file, not a folder; choose another"):
        evaluate(oracle, dataset, out=tmp_path / "file", progress=False)


def write_coco(folder: Path, split: str, numbers: list[int]) -> Path:
    """A data set on disk whose pictures hold so many objects each."""
    from PIL import Image
    from tests.oracle import picture, records

    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for i, number in enumerate(numbers):
        Image.fromarray(picture(number).permute(1, 2, 0).numpy()).save(folder / "images" / f"{i}.png")
    content = ground_truth(InstanceDataset(records(numbers), Categories(("bolt", "nut"), (4, 9))))
    path = folder / "annotations" / f"{split}.json"
    path.write_text(json.dumps(content))
    return path


def test_of_the_data_that_a_run_divided_the_images_held_out_are_evaluated(oracle: Any, tmp_path: Path) -> None:
    path = write_coco(tmp_path / "parts", "train", [3, 6, 0, 2, 4, 1])
    oracle.extra[KEY] = make_record(open_dataset(path), np.array([1, 4]), 0.3, 0)
    for data in (tmp_path / "parts", path):
        report = evaluate(oracle, data, progress=False)
        assert (report["images"], report["instances"]) == (2, 10)
        assert report["held_out"] == {"images": 2, "of": 6}
        report = evaluate(oracle, data, split="train", progress=False)
        assert report["images"] == 6 and report["held_out"] is None


def test_other_data_than_that_of_the_run_is_evaluated_whole(oracle: Any, tmp_path: Path) -> None:
    path = write_coco(tmp_path / "parts", "train", [3, 6, 0, 2, 4, 1])
    oracle.extra[KEY] = make_record(open_dataset(path), np.array([1, 4]), 0.3, 0)
    write_coco(tmp_path / "more", "train", [1, 2])
    with pytest.warns(UserWarning, match="not those that the run was given: all 2 are evaluated"):
        report = evaluate(oracle, tmp_path / "more", progress=False)
    assert report["images"] == 2 and report["held_out"] is None
    write_coco(tmp_path / "more", "val", [1, 2])
    assert evaluate(oracle, tmp_path / "more", progress=False)["images"] == 2
    oracle.extra.clear()
    with pytest.raises(DataError):
        evaluate(oracle, tmp_path / "parts", progress=False)


@pytest.mark.parametrize("record", [{"images": 6}, {"images": 6, "names": 3}, [1], "all"])
def test_a_damaged_record_of_held_out_images_is_one_line(oracle: Any, tmp_path: Path, record: Any) -> None:
    oracle.extra[KEY] = record
    path = write_coco(tmp_path, "train", [3, 6, 0, 2, 4, 1])
    if isinstance(record, dict) and "names" in record:
        record |= make_record(open_dataset(path), np.array([1]), 0.3, 0) | {"mask": "*" * 7}
    with pytest.raises(CheckpointError, match="record of the images held out cannot be read") as error:
        evaluate(oracle, path, progress=False)
    assert "\n" not in str(error.value)


def test_a_broken_image_stops_the_evaluation_or_is_left_out_as_asked(oracle: Any, tmp_path: Path) -> None:
    write_coco(tmp_path, "val", [3, 6, 2])
    image = tmp_path / "images" / "1.png"
    image.write_bytes(image.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"1\.png"):
        evaluate(oracle, tmp_path, progress=False)
    with pytest.warns(UserWarning) as caught:
        report = evaluate(oracle, tmp_path, progress=False, on_error="skip")
    assert sum("1.png" in str(w.message) for w in caught) == 1
    assert report["images"] == 2 and report["segm"]["ap"] == pytest.approx(1.0)


def test_what_iscrowd_means_is_a_choice(oracle: Any, tmp_path: Path) -> None:
    path = write_coco(tmp_path, "val", [3])
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    found = {c: evaluate(oracle, path, progress=False, crowd=c)["instances"] for c in ("ignore", "object")}
    assert found == {"ignore": 2, "object": 3}


def test_images_are_as_white_as_those_of_the_training(oracle: Any, dataset: InstanceDataset) -> None:
    seen: list[ImageRule] = []

    class Watched(InstanceDataset):
        def image(self, index: int) -> Tensor:
            seen.append(self.image_rule)
            return super().image(index)

    dataset.__class__ = Watched
    oracle.extra["image_rule"] = ImageRule(full_scale=4095.0).to_json()
    oracle.image_rule = ImageRule(full_scale=4095.0)
    evaluate(oracle, dataset, progress=False)
    assert {rule.full_scale for rule in seen} == {4095.0} and dataset.image_rule.full_scale is None


def test_an_evaluation_of_which_no_image_can_be_read_is_an_error_and_not_an_ap(
    oracle: Any, dataset: InstanceDataset
) -> None:
    def unreadable(record: Record) -> Tensor:
        raise DataError(f"{record.file_name}: truncated")

    data = InstanceDataset(dataset.records, dataset.categories, read=unreadable, on_error="skip", name="parts")
    with pytest.raises(DataError, match=r"parts: no image of split train can be read; first: 0\.png: truncated"):
        evaluate(oracle, data, progress=False)


def turned_square(path: Path, oracle: Any, exif: bool) -> None:
    """A square picture with EXIF orientation 180 degrees, and a model trained on images read with ``exif``."""
    from PIL import Image

    orientation = Image.Exif()
    orientation[0x0112] = 3
    values = np.zeros((60, 60, 3), np.uint8)
    values[:20] = 90
    (path / "images").mkdir(parents=True)
    (path / "annotations").mkdir()
    Image.fromarray(values).save(path / "images" / "a.png", exif=orientation)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 60}],
        "categories": [{"id": 4, "name": "bolt"}, {"id": 9, "name": "nut"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 4, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9]]}],
    }
    (path / "annotations" / "val.json").write_text(json.dumps(content))
    oracle.image_rule = ImageRule(exif=exif)
    oracle.extra["image_rule"] = oracle.image_rule.to_json()


@pytest.mark.parametrize("exif", [True, False])
def test_an_image_whose_size_does_not_show_its_orientation_is_read_as_in_training(
    oracle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exif: bool
) -> None:
    turned_square(tmp_path, oracle, exif)
    seen: list[Tensor] = []
    find = oracle.predict_batch
    monkeypatch.setattr(oracle, "predict_batch", lambda images: (seen.extend(images), find([i * 0 for i in images]))[1])
    evaluate(oracle, tmp_path, progress=False)
    assert bool(seen[0][0, 0, 0] == 90) is not exif and bool(seen[0][0, -1, 0] == 90) is exif
