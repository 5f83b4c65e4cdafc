from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from instseg.core.errors import CheckpointError, DataError
from instseg.core.meta import Categories
from instseg.data.dataset import InstanceDataset, ground_truth
from instseg.data.records import Record
from instseg.infer.evaluate import evaluate


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
    from .conftest import picture, records

    empty = InstanceDataset(records([3, 0]), categories, read=lambda r: picture(3))
    assert evaluate(oracle, empty, progress=False)["segm"]["ap"] < 1


def test_folder_holds_metrics_plots_and_results_that_pycocotools_scores_the_same(
    oracle: Any, dataset: InstanceDataset, tmp_path: Path
) -> None:
    oracle.category_ids = oracle.category_ids[::-1]  # bolts are called nuts: pairing goes by name, not by id
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
    oracle.categories = ("bolt", "washer")
    report = evaluate(oracle, dataset, progress=False)
    assert report["classes"] == {"matched_by": "names", "only_in_model": ["washer"], "only_in_data": ["nut"]}
    assert report["per_class"][1]["ap"] == 0.0 and report["segm"]["ap"] == pytest.approx(0.5)


def test_no_class_in_common_is_refused_before_anything_is_computed(oracle: Any, dataset: InstanceDataset) -> None:
    oracle.categories = ("cat", "dog")
    with pytest.raises(DataError, match="no class in common"):
        evaluate(oracle, dataset, progress=False)


def test_random_weights_are_refused(oracle: Any, dataset: InstanceDataset) -> None:
    oracle.has_weights = False
    with pytest.raises(CheckpointError, match="no weights"):
        evaluate(oracle, dataset, progress=False)


def broken(record: Record) -> Tensor:
    from .conftest import picture

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
    with pytest.warns(UserWarning, match="1 images cannot be read"):
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
