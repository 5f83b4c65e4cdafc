from __future__ import annotations

from typing import Any

import numpy as np

from instseg.core import rle
from instseg.metrics.confusion import confusion_matrix


def square(x: int, size: int = 10) -> dict[str, Any]:
    mask = np.zeros((20, 100), np.uint8)
    mask[5 : 5 + size, x : x + size] = 1
    return rle.encode(mask)


def truth(*objects: tuple[int, int, bool]) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "height": 20, "width": 100}, {"id": 2, "height": 20, "width": 100}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": c, "iscrowd": int(crowd), "segmentation": square(x)}
            for i, (x, c, crowd) in enumerate(objects)
        ],
    }


def found(x: int, category: int, score: float = 0.9, image: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "score": score, "segmentation": square(x)}


def test_pairs_misses_and_inventions_land_in_their_cells() -> None:
    data = truth((0, 2, False), (20, 5, False), (40, 5, False))
    results = [found(0, 2), found(20, 2), found(80, 5), found(80, 2, image=2)]
    confusion = confusion_matrix(data, results)
    assert confusion.names == ("dog", "cat")  # in order of id, not of the file
    assert confusion.matrix.tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0]]


def test_low_scores_are_left_out() -> None:
    confusion = confusion_matrix(truth((0, 2, False)), [found(0, 2, score=0.2)])
    assert confusion.matrix.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_second_prediction_of_one_object_is_an_invention_and_the_better_overlap_wins() -> None:
    confusion = confusion_matrix(truth((0, 2, False)), [found(2, 5, score=0.99), found(0, 2, score=0.5)])
    assert confusion.matrix.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_prediction_inside_a_crowd_is_not_counted() -> None:
    confusion = confusion_matrix(truth((0, 2, True)), [found(0, 2)])
    assert confusion.matrix.sum() == 0


def test_nothing_found_and_nothing_there_is_all_zero() -> None:
    assert confusion_matrix(truth(), []).matrix.sum() == 0
