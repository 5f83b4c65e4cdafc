"""COCO average precision and recall of masks and boxes.

The protocol is COCOeval's: ten IoU thresholds .50:.05:.95, 101 recall points, greedy matching by descending
score, crowds ignored, sizes split at 32² and 96² pixels of the original image. Two backends compute the same
arrays: hotcoco (fast) and pycocotools (the reference, and what is used where hotcoco is missing).
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from instseg.core import rle
from instseg.core.errors import DataError

Kind = Literal["segm", "bbox"]
Backend = Literal["auto", "hotcoco", "pycocotools"]
FloatArray = npt.NDArray[np.float64]

IOU_THRESHOLDS: FloatArray = np.linspace(0.5, 0.95, 10)
RECALL_POINTS: FloatArray = np.linspace(0.0, 1.0, 101)
FIGURES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
_AREAS = ("all", "small", "medium", "large")


@dataclass(frozen=True)
class CocoMetrics:
    """The figures of one COCO evaluation. Every value lies in [0, 1], or is -1.0 where the data holds no
    object to measure it on (pycocotools' convention, so that a -1 never looks like a failure of the model).

    `ar` is the average recall with at most `max_dets` detections per image and class, `ar_at` the same at 1,
    10 and `max_dets`. `per_class` holds a dict for each category of the ground truth, in ascending order of
    id: `name`, `id`, `instances` (crowds not counted), `ap`, `ap50`, `ap75`, `ar`, and the best F1 at IoU 0.5
    with the score that gives it.
    """

    kind: Kind
    max_dets: int
    backend: str
    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar: float
    ar_small: float
    ar_medium: float
    ar_large: float
    ar_at: dict[int, float]
    per_class: list[dict[str, Any]]
    precision: FloatArray = field(
        repr=False
    )  # (T, R, K): T IoU thresholds, R recall points, K categories; -1 = no object
    scores: FloatArray = field(repr=False)  # (T, R, K): the score at which that recall is reached

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, ready for JSON."""
        names = (
            "ap",
            "ap50",
            "ap75",
            "ap_small",
            "ap_medium",
            "ap_large",
            "ar",
            "ar_small",
            "ar_medium",
            "ar_large",
        )
        out: dict[str, Any] = {name: getattr(self, name) for name in names}
        out["ap_by_iou"] = self.ap_by_iou
        out["ar_at"] = {str(k): v for k, v in self.ar_at.items()}
        out |= {
            "max_dets": self.max_dets,
            "backend": self.backend,
            "per_class": [dict(row) for row in self.per_class],
        }
        return out

    @property
    def ap_by_iou(self) -> dict[str, float]:
        """AP at each of the ten IoU thresholds, ``"0.50"`` to ``"0.95"``: at the high ones boundaries decide."""
        return {f"{t:.2f}": _mean(p) for t, p in zip(IOU_THRESHOLDS, self.precision, strict=True)}

    def curve(self, iou: float | None = 0.5) -> tuple[FloatArray, FloatArray]:
        """Precision over recall, averaged over the categories that have objects: `(recall (101,), precision
        (101,))`.

        `iou` is one of the ten thresholds (the nearest is taken), None the mean over all ten.
        """
        chosen = self.precision if iou is None else self.precision[[int(np.abs(IOU_THRESHOLDS - iou).argmin())]]
        present = chosen[:, :, (chosen > -1).all(axis=(0, 1))]
        mean = present.mean(axis=(0, 2)) if present.size else np.zeros(len(RECALL_POINTS))
        return RECALL_POINTS.copy(), mean


def evaluate_coco(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: Kind = "segm",
    max_dets: int = 100,
    backend: Backend = "auto",
) -> CocoMetrics:
    """Scores a COCO results list against a COCO data set; equal to pycocotools for any `max_dets`.

    Ids of images, categories and annotations may be any whole numbers: the backends are given others, from 1 on (one
    takes ids for unsigned, and an annotation 0 breaks the matching of COCOeval).

    Args:
        ground_truth: `images`, `categories`, `annotations`; masks as polygons or RLE. `iscrowd`, `area` and `bbox` are
            filled in where absent. An image without annotations counts: what is found on it is wrong.
        results: dicts of `image_id`, `category_id`, `score`, and `segmentation` (RLE) or `bbox` (xywh). For
            `kind="segm"` a `bbox` is not read: it would move an object to the size class of its box. For
            `kind="bbox"` a missing box is the mask's own.
        kind: masks or boxes.
        max_dets: how many results of a category count in an image, best first.
        backend: what computes; "auto" takes the faster one that is installed.

    Raises:
        DataError: a result names an unknown image, lacks its score or shape, or has a mask of another size.
    """
    if max_dets < 1:
        raise DataError(f"max_dets is {max_dets}: at least one detection per image must count.")
    images = {int(image["id"]): image for image in ground_truth["images"]}
    categories = sorted({int(c["id"]): dict(c) for c in ground_truth["categories"]}.items())  # the order of the arrays
    numbers = _Numbers(
        {image: n for n, image in enumerate(sorted(images), 1)}, {c: n for n, (c, _) in enumerate(categories, 1)}
    )
    dataset = {
        "images": [{**image, "id": numbers.images[i]} for i, image in images.items()],
        "categories": [{**content, "id": numbers.categories[i]} for i, content in categories],
        "annotations": _prepare_truth(ground_truth["annotations"], images, numbers),
    }
    found = {**dataset, "annotations": _prepare_results(results, images, numbers, kind)}
    caps = sorted({min(1, max_dets), min(10, max_dets), max_dets})
    chosen = _pick_backend(backend)
    precision, recall, scores = _run(chosen, dataset, found, kind, caps)
    return _summarize(dataset, [i for i, _ in categories], kind, caps, chosen, precision, recall, scores)


@dataclass(frozen=True)
class _Numbers:
    """What the backends are given for each id of an image and of a category, from 1 on."""

    images: dict[int, int]
    categories: dict[int, int]

    def of(self, row: Mapping[str, Any]) -> dict[str, int]:
        """Those of an annotation or result; 0 for a category that the data set does not have."""
        category = self.categories.get(int(row["category_id"]), 0)
        return {"image_id": self.images[int(row["image_id"])], "category_id": category}


def _prepare_truth(
    annotations: Sequence[Mapping[str, Any]], images: Mapping[int, Any], numbers: _Numbers
) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for annotation in annotations:
        image = images.get(int(annotation["image_id"]))
        if image is None:
            continue  # COCOeval walks over images: such an annotation is never seen
        row = {key: annotation[key] for key in ("segmentation", "bbox", "area") if key in annotation}
        row |= {**numbers.of(annotation), "id": len(out) + 1, "iscrowd": int(annotation.get("iscrowd", 0))}
        if "area" not in row or "bbox" not in row:
            mask = _as_rle(annotation, image)
            row.setdefault("area", float(rle.area([mask])[0]))
            row.setdefault("bbox", _xywh(rle.boxes([mask])[0]))
        out.append(row)
    return out


def _as_rle(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> rle.RLE:
    shape = annotation.get("segmentation")
    height, width = int(image["height"]), int(image["width"])
    if isinstance(shape, list):
        return rle.from_polygons(shape, height, width)
    if isinstance(shape, Mapping):
        return rle.from_json(dict(shape))
    raise DataError(
        f"annotation {annotation.get('id', '?')} of image {annotation['image_id']} has no segmentation "
        "to take its area and bbox from"
    )


def _prepare_results(
    results: Sequence[Mapping[str, Any]], images: Mapping[int, Any], numbers: _Numbers, kind: Kind
) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    masks: list[rle.RLE] = []
    need_masks = kind == "segm" or any("bbox" not in result for result in results)
    for number, result in enumerate(results):
        image = images.get(int(result.get("image_id", -1)))
        if image is None:
            raise DataError(
                f"result {number} names image {result.get('image_id')}, which the annotations do not have: "
                "predict and evaluate with the same file"
            )
        score = result.get("score")
        if score is None or not math.isfinite(score):
            raise DataError(
                f"result {number} (image {result['image_id']}) has score {score}: a finite number is needed"
            )
        out.append({**numbers.of(result), "id": number + 1, "score": float(score), "iscrowd": 0})
        if need_masks:
            masks.append(_result_mask(number, result, image, kind))
    areas, boxes = (rle.area(masks), rle.boxes(masks)) if masks else (np.zeros(0), np.zeros((0, 4)))
    for number, (row, result) in enumerate(zip(out, results, strict=True)):
        if kind == "segm":
            row |= {"segmentation": masks[number], "area": float(areas[number]), "bbox": _xywh(boxes[number])}
        else:
            box = [float(v) for v in result["bbox"]] if "bbox" in result else _xywh(boxes[number])
            row |= {"bbox": box, "area": box[2] * box[3]}
    return out


def _result_mask(number: int, result: Mapping[str, Any], image: Mapping[str, Any], kind: Kind) -> rle.RLE:
    if kind == "bbox" and "bbox" in result:
        return {"size": [1, 1], "counts": b"1"}  # holds the place: the box at hand is used
    shape = result.get("segmentation")
    if not isinstance(shape, Mapping) or not {"size", "counts"} <= shape.keys():
        raise DataError(f"result {number} (image {result['image_id']}) has no RLE segmentation")
    expected = [int(image["height"]), int(image["width"])]
    if list(shape["size"]) != expected:
        raise DataError(
            f"result {number} has a mask of {list(shape['size'])} pixels (height, width), "
            f"image {result['image_id']} has {expected}: results must be at the size of the original image"
        )
    return rle.from_json(dict(shape))


def _xywh(box: npt.NDArray[np.float64]) -> list[float]:
    x0, y0, x1, y1 = (float(v) for v in box)
    return [x0, y0, x1 - x0, y1 - y0]


def _pick_backend(backend: Backend) -> str:
    if backend == "auto":
        return "hotcoco" if find_spec("hotcoco") is not None else "pycocotools"
    if backend not in ("hotcoco", "pycocotools"):
        raise DataError(f'metrics backend "{backend}" is unknown: use "auto", "hotcoco" or "pycocotools"')
    return backend


def _run(
    backend: str, truth: dict[str, Any], found: dict[str, Any], kind: Kind, caps: list[int]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """COCOeval's arrays `precision (T, R, K, A, M)`, `recall (T, K, A, M)`, `scores (T, R, K, A, M)`."""
    if backend == "hotcoco":
        import hotcoco

        evaluation: Any = hotcoco.COCOeval(hotcoco.COCO(truth), hotcoco.COCO(found), kind)
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            # `loadRes` fails on an empty list and takes sizes from boxes: both sides are built alike
            pair = COCO(), COCO()
            for side, content in zip(pair, (truth, found), strict=True):
                side.dataset = content
                side.createIndex()
            evaluation = COCOeval(*pair, kind)
    evaluation.params.maxDets = caps
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    arrays = evaluation.eval
    precision, recall, scores = (np.asarray(arrays[k], dtype=np.float64) for k in ("precision", "recall", "scores"))
    return precision, recall, scores


def _mean(values: FloatArray) -> float:
    """Mean of what is defined; -1.0 when nothing is (no object of that size or class)."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _summarize(
    dataset: dict[str, Any],
    ids: Sequence[int],
    kind: Kind,
    caps: list[int],
    backend: str,
    precision: FloatArray,
    recall: FloatArray,
    scores: FloatArray,
) -> CocoMetrics:
    by_area = {name: _mean(precision[:, :, :, a, -1]) for a, name in enumerate(_AREAS)}
    recall_by_area = {name: _mean(recall[:, :, a, -1]) for a, name in enumerate(_AREAS)}
    curves, curve_scores = precision[:, :, :, 0, -1], scores[:, :, :, 0, -1]
    return CocoMetrics(
        kind=kind,
        max_dets=caps[-1],
        backend=backend,
        ap=by_area["all"],
        ap50=_mean(curves[0]),
        ap75=_mean(curves[5]),
        ap_small=by_area["small"],
        ap_medium=by_area["medium"],
        ap_large=by_area["large"],
        ar=recall_by_area["all"],
        ar_small=recall_by_area["small"],
        ar_medium=recall_by_area["medium"],
        ar_large=recall_by_area["large"],
        ar_at={cap: _mean(recall[:, :, 0, m]) for m, cap in enumerate(caps)},
        per_class=_per_class(dataset, ids, curves, recall[:, :, 0, -1], curve_scores),
        precision=curves,
        scores=curve_scores,
    )


def _per_class(
    dataset: dict[str, Any], ids: Sequence[int], precision: FloatArray, recall: FloatArray, scores: FloatArray
) -> list[dict[str, Any]]:
    names = {int(category["id"]): str(category["name"]) for category in dataset["categories"]}
    counts = dict.fromkeys(names, 0)
    for annotation in dataset["annotations"]:
        if not annotation["iscrowd"] and annotation["category_id"] in counts:
            counts[annotation["category_id"]] += 1
    rows = []
    for k, category in enumerate(sorted(names)):
        f1, threshold = _best_f1(precision[0, :, k], scores[0, :, k])
        rows.append(
            {
                "name": names[category],
                "id": ids[k],
                "instances": counts[category],
                "ap": _mean(precision[:, :, k]),
                "ap50": _mean(precision[0, :, k]),
                "ap75": _mean(precision[5, :, k]),
                "ar": _mean(recall[:, k]),
                "best_f1": f1,
                "best_f1_score": threshold,
            }
        )
    return rows


def _best_f1(precision: FloatArray, scores: FloatArray) -> tuple[float, float]:
    """Highest F1 over the recall points at IoU 0.5, and the score threshold that gives it.

    Without objects both are -1; where nothing was found rightly the threshold is.
    """
    if precision.size == 0 or precision[0] <= -1:
        return -1.0, -1.0
    f1 = 2 * precision * RECALL_POINTS / np.maximum(precision + RECALL_POINTS, 1e-12)
    best = int(f1.argmax())
    return float(f1[best]), float(scores[best]) if f1[best] > 0 else -1.0
