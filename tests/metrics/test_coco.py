"""COCO metrics, held against pycocotools' own `summarize` and its arrays."""

from __future__ import annotations

import contextlib
import copy
import io
import sys
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as reference_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from instseg.core import rle
from instseg.core.errors import DataError
from instseg.metrics.coco import evaluate_coco


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray[Any, Any]:
    """A random ellipse; areas reach from a few pixels to more than 96 x 96."""
    y, x = np.mgrid[:height, :width]
    ry, rx = rng.uniform(1, 75, 2)
    cy, cx = rng.uniform(0, height), rng.uniform(0, width)
    return (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1).astype(np.uint8)


def random_case(seed: int, images: int = 6, per_image: int = 14) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A data set with several classes, crowds, images without objects and one class without objects, and
    results that are near misses, duplicates, wrong classes and inventions."""
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": f"class {i}"} for i in (1, 3, 7, 9)],
    }
    results = []
    for image in range(images):
        height, width = int(rng.integers(120, 200)), int(rng.integers(120, 200))
        truth["images"].append({"id": image * 10, "file_name": f"{image}.png", "height": height, "width": width})
        for _ in range(0 if image == 1 else per_image):
            mask = blob(rng, height, width)
            if not mask.any():
                continue
            category, code = int(rng.choice([1, 3, 7])), rle.encode(mask)
            x0, y0, x1, y1 = rle.boxes([code])[0]
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]),  # starts at 0 on purpose
                    "image_id": image * 10,
                    "category_id": category,
                    "iscrowd": int(rng.random() < 0.1),
                    "area": float(mask.sum()),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": rle.to_json(code),
                }
            )
            for _ in range(rng.integers(0, 3)):
                moved = np.roll(mask, rng.integers(-6, 7, 2), axis=(0, 1))
                guess = category if rng.random() < 0.8 else int(rng.choice([1, 3, 7, 9]))
                results.append(result(image * 10, guess, rng, moved))
        for _ in range(3):
            results.append(result(image * 10, int(rng.choice([1, 3, 7, 9])), rng, blob(rng, height, width)))
    return truth, results


def result(image: int, category: int, rng: np.random.Generator, mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    score = float(np.round(rng.random(), 2))  # rounded: ties must be broken as the reference does
    code = rle.encode(mask)
    return {"image_id": image, "category_id": category, "score": score, "segmentation": rle.to_json(code)}


def reference(truth: dict[str, Any], results: list[dict[str, Any]], kind: str, max_dets: int) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        data = copy.deepcopy(truth)
        for number, annotation in enumerate(data["annotations"]):
            annotation["id"] = number + 1
        ground = COCO()
        ground.dataset = data
        ground.createIndex()
        rows = copy.deepcopy(results)
        if kind == "bbox":
            for row in rows:
                row["bbox"] = reference_mask.toBbox(row["segmentation"]).tolist()
        evaluation = COCOeval(ground, ground.loadRes(rows), kind)
        evaluation.params.maxDets = [1, 10, max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
        if max_dets == 100:
            evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_twelve_figures_equal_the_reference(seed: int, backend: Any, kind: Any) -> None:
    truth, results = random_case(seed)
    expected = reference(truth, results, kind, 100).stats
    got = evaluate_coco(truth, results, kind, 100, backend)
    figures = [got.ap, got.ap50, got.ap75, got.ap_small, got.ap_medium, got.ap_large]
    figures += [got.ar_at[1], got.ar_at[10], got.ar_at[100], got.ar_small, got.ar_medium, got.ar_large]
    np.testing.assert_allclose(figures, expected, rtol=0, atol=1e-9)
    assert got.backend == backend and got.ar == got.ar_at[100]


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("max_dets", [15, 500])
def test_any_cap_on_detections_equals_the_reference_arrays(max_dets: int, kind: Any) -> None:
    truth, results = random_case(7)
    arrays = reference(truth, results, kind, max_dets).eval
    got = evaluate_coco(truth, results, kind, max_dets)
    np.testing.assert_allclose(got.precision, arrays["precision"][:, :, :, 0, -1], rtol=0, atol=1e-9)
    defined = arrays["precision"][..., 0, -1]
    assert got.ap == pytest.approx(defined[defined > -1].mean(), abs=1e-9)
    large = arrays["recall"][:, :, 3, -1]
    assert got.ar_large == pytest.approx(large[large > -1].mean(), abs=1e-9)
    for k, row in enumerate(got.per_class):
        part = arrays["precision"][:, :, k, 0, -1]
        assert row["ap"] == pytest.approx(part[part > -1].mean() if (part > -1).any() else -1, abs=1e-9)


def test_cap_on_detections_binds_in_crowded_images() -> None:
    truth, results = random_case(3, images=2, per_image=40)
    assert evaluate_coco(truth, results, "segm", 5).ar < evaluate_coco(truth, results, "segm", 500).ar


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_no_results_give_zero_and_no_nan(backend: Any) -> None:
    truth, _ = random_case(0)
    got = evaluate_coco(truth, [], "segm", 500, backend)
    assert got.ap == got.ap50 == got.ar == 0.0
    assert np.isfinite(got.precision).all()


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_data_without_any_object_gives_minus_one_everywhere(backend: Any) -> None:
    truth, results = random_case(0)
    truth["annotations"] = []
    got = evaluate_coco(truth, results, "segm", 100, backend)
    assert got.ap == got.ap_small == got.ar == -1.0
    assert got.per_class[0]["ap"] == -1.0 and got.per_class[0]["best_f1"] == -1.0
    assert got.curve()[1].tolist() == [0.0] * 101


def test_box_in_a_mask_result_does_not_move_it_to_another_size_class() -> None:
    truth, results = random_case(4)
    boxed = [{**r, "bbox": [0.0, 0.0, 119.0, 119.0]} for r in results]
    assert evaluate_coco(truth, boxed, "segm").to_dict() == evaluate_coco(truth, results, "segm").to_dict()


def test_found_object_on_an_image_without_objects_lowers_ap() -> None:
    truth, _ = random_case(0)
    perfect = [
        {k: a[k] for k in ("image_id", "category_id", "segmentation")} | {"score": 0.5}
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    assert evaluate_coco(truth, perfect).ap == pytest.approx(1.0)
    wrong = [{**perfect[0], "image_id": 10, "score": 0.9, "segmentation": blank_mask(truth, 10)}]
    assert evaluate_coco(truth, perfect + wrong).ap < 1.0


def blank_mask(truth: dict[str, Any], image_id: int) -> dict[str, Any]:
    image = next(i for i in truth["images"] if i["id"] == image_id)
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    mask[5:30, 5:30] = 1
    return rle.to_json(rle.encode(mask))


def test_missing_area_box_and_crowd_flag_are_taken_from_the_mask() -> None:
    truth, results = random_case(5)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    bare = copy.deepcopy(truth)
    for annotation in bare["annotations"]:
        for key in ("area", "bbox", "iscrowd"):
            del annotation[key]
    for kind in ("segm", "bbox"):
        assert evaluate_coco(bare, results, kind).to_dict() == evaluate_coco(truth, results, kind).to_dict()


def test_polygons_and_uncompressed_codes_are_read_as_truth() -> None:
    uncompressed = {"size": [40, 50], "counts": [40, 40, 1920]}
    truth = {
        "images": [{"id": 1, "height": 40, "width": 50}],
        "categories": [{"id": 1, "name": "square"}, {"id": 2, "name": "stripe"}],
        "annotations": [
            {"id": 0, "image_id": 1, "category_id": 1, "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]},
            {
                "id": 0,
                "image_id": 1,
                "category_id": 2,
                "segmentation": uncompressed,
            },
        ],
    }
    square, stripe = np.zeros((40, 50), np.uint8), np.zeros((40, 50), np.uint8)
    square[5:25, 5:25] = 1
    stripe[:, 1] = 1
    results = [
        {"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": rle.encode(square)},
        {"image_id": 1, "category_id": 2, "score": 0.9, "segmentation": rle.encode(stripe)},
    ]
    for backend in ("hotcoco", "pycocotools"):
        assert evaluate_coco(truth, results, "segm", backend=backend).ap == pytest.approx(1.0)


def test_inputs_are_left_as_they_were() -> None:
    truth, results = random_case(1)
    before = copy.deepcopy((truth, results))
    evaluate_coco(truth, results, "segm", backend="pycocotools")
    assert (truth, results) == before


def test_without_hotcoco_the_reference_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    truth, results = random_case(2)
    assert evaluate_coco(truth, results).backend == "pycocotools"


def test_best_f1_names_the_score_that_separates_right_from_wrong() -> None:
    mask = np.zeros((30, 30), np.uint8)
    mask[3:20, 3:20] = 1
    other = 1 - mask
    code = {"segmentation": rle.encode(mask), "image_id": 1, "category_id": 1}
    truth = {
        "images": [{"id": 1, "height": 30, "width": 30}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{**code, "id": 1}],
    }
    results = [{**code, "score": 0.7}, {**code, "segmentation": rle.encode(other), "score": 0.3}]
    row = evaluate_coco(truth, results).per_class[0]
    assert row["best_f1"] == pytest.approx(1.0) and row["best_f1_score"] == pytest.approx(0.7)
    assert row["instances"] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 999}, "image 999"),
        ({"score": float("nan")}, "score nan"),
        ({"score": None}, "score None"),
        ({"segmentation": {"size": [9, 9], "counts": "11"}}, "[9, 9]"),
        ({"segmentation": None}, "no RLE"),
    ],
)
def test_unusable_result_is_one_line_that_names_it(change: dict[str, Any], words: str) -> None:
    truth, results = random_case(0)
    with pytest.raises(DataError) as caught:
        evaluate_coco(truth, [results[0] | change])
    assert words in str(caught.value) and "\n" not in str(caught.value) and "result 0" in str(caught.value)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_ids_may_be_negative_or_huge(backend: Any) -> None:
    truth, results = random_case(3)
    expected = evaluate_coco(truth, results, "segm", 20, backend)
    images = {0: -7, 10: 0, 20: 5, 30: 2**53, 40: 2**63, 50: 2**70}
    categories = {1: -(2**40), 3: 0, 7: 2**31, 9: 2**65}
    for image in truth["images"]:
        image["id"] = images[image["id"]]
    for category in truth["categories"]:
        category["id"] = categories[category["id"]]
    for row in [*truth["annotations"], *results]:
        row["image_id"], row["category_id"] = images[row["image_id"]], categories[row["category_id"]]
    found = evaluate_coco(truth, results, "segm", 20, backend)
    assert found.ap == expected.ap and found.ar == expected.ar
    assert [row["id"] for row in found.per_class] == list(categories.values())
    assert [row["ap"] for row in found.per_class] == [row["ap"] for row in expected.per_class]
