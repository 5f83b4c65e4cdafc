"""Which class is taken for which, at one operating point."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from instseg.core import rle


@dataclass(frozen=True)
class Confusion:
    """Counts of matched and unmatched objects.

    `matrix` is (C + 1, C + 1) int64: rows are the true class, columns the predicted one, in the order of
    `names`; the last row holds predictions on background, the last column objects that were missed. Its sum
    without the last row is the number of objects (crowds not counted).
    """

    matrix: npt.NDArray[np.int64]
    names: tuple[str, ...]
    iou: float
    score: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "names": [*self.names, "background"],
            "matrix": self.matrix.tolist(),
            "iou": self.iou,
            "score": self.score,
        }


def confusion_matrix(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou: float = 0.5,
    score: float = 0.25,
    kind: Literal["segm", "bbox"] = "segm",
) -> Confusion:
    """Matches masks, or boxes, whatever their class, best overlap first, and counts the pairs of classes.

    A prediction takes part when its score is at least `score`; a pair needs an IoU of at least `iou`, and
    every object and every prediction is in one pair at most. An unmatched prediction that lies in a crowd
    (`iou` of its own area) is not counted.

    ground_truth: COCO data set with RLE or polygon masks, `height` and `width` of each image.
    results: dicts of `image_id`, `category_id`, `score`, RLE `segmentation` or `bbox` (xywh). A category that
        the data set does not have is left out.
    """
    categories = sorted(ground_truth["categories"], key=lambda c: int(c["id"]))
    index = {int(c["id"]): k for k, c in enumerate(categories)}
    truths: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in ground_truth["annotations"]:
        if annotation["category_id"] in index:
            truths[annotation["image_id"]].append(annotation)
    for result in results:
        if result["score"] >= score and result["category_id"] in index:
            found[result["image_id"]].append(result)
    background = len(categories)
    matrix = np.zeros((background + 1, background + 1), dtype=np.int64)
    for image in ground_truth["images"]:
        objects, predictions = truths[image["id"]], found[image["id"]]
        true = np.array([index[a["category_id"]] for a in objects if not a.get("iscrowd", 0)], dtype=np.int64)
        named = np.array([index[r["category_id"]] for r in predictions], dtype=np.int64)
        pairs, in_crowd = _match(_overlaps(objects, predictions, image, kind), objects, iou)
        free_true, free_named = np.ones(len(true), dtype=bool), ~in_crowd
        for d, g in pairs:
            matrix[true[g], named[d]] += 1
            free_true[g] = free_named[d] = False
        matrix[:, background] += np.bincount(true[free_true], minlength=background + 1)
        matrix[background] += np.bincount(named[free_named], minlength=background + 1)
    return Confusion(matrix, tuple(str(c["name"]) for c in categories), iou, score)


def _overlaps(
    objects: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
    image: Mapping[str, Any],
    kind: Literal["segm", "bbox"],
) -> npt.NDArray[np.float64]:
    """IoU of each prediction (row) and each object; with a crowd, the part of the prediction that lies in it."""
    crowd = [bool(a.get("iscrowd", 0)) for a in objects]
    if kind == "segm":
        codes = [_code(a["segmentation"], image) for a in objects]
        return rle.iou([_code(r["segmentation"], image) for r in predictions], codes, crowd)
    found, true = (
        np.array([r["bbox"] for r in rows], dtype=np.float64).reshape(-1, 4) for rows in (predictions, objects)
    )
    low = np.maximum(found[:, None, :2], true[:, :2])
    high = np.minimum(found[:, None, :2] + found[:, None, 2:], true[:, :2] + true[:, 2:])
    common = (high - low).clip(min=0).prod(-1)
    area = found[:, None, 2:].prod(-1)
    union = np.where(np.array(crowd, dtype=bool), area, area + true[:, 2:].prod(-1) - common)
    table: npt.NDArray[np.float64] = common / np.maximum(union, 1e-12)
    return table


def _match(
    table: npt.NDArray[np.float64], objects: Sequence[Mapping[str, Any]], threshold: float
) -> tuple[list[tuple[int, int]], npt.NDArray[np.bool_]]:
    """Pairs (prediction, object) with objects counted without crowds, and which predictions lie in a
    crowd."""
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in objects], dtype=bool)
    in_crowd: npt.NDArray[np.bool_] = np.any(table[:, crowd] >= threshold, axis=1)
    table = table[:, ~crowd]
    d, g = np.nonzero(table >= threshold)
    pairs: list[tuple[int, int]] = []
    used_d: set[int] = set()
    used_g: set[int] = set()
    for k in np.argsort(-table[d, g], kind="stable").tolist():
        pair = int(d[k]), int(g[k])
        if pair[0] not in used_d and pair[1] not in used_g:
            pairs.append(pair)
            used_d.add(pair[0])
            used_g.add(pair[1])
    return pairs, in_crowd


def _code(shape: Any, image: Mapping[str, Any]) -> rle.RLE:
    if isinstance(shape, list):
        return rle.from_polygons(shape, int(image["height"]), int(image["width"]))
    return rle.from_json(dict(shape))
