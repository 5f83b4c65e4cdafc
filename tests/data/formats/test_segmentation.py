"""Polygons and run-length codes of every kind become masks, and what cannot be used is named."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from instseg.core import rle as rle_codes
from instseg.data.formats.segmentation import BadSegmentation, read_segmentation

SQUARE = [2, 2, 12, 2, 12, 10, 2, 10]


def pixels(segmentation: Any, height: int = 30, width: int = 40) -> np.ndarray:
    return rle_codes.decode(read_segmentation(segmentation, height, width).rle)


def test_polygon_fills_its_inside() -> None:
    mask = pixels([SQUARE])
    assert mask.shape == (30, 40)
    assert mask.sum() == 80
    assert mask[2:10, 2:12].all()


def test_parts_of_an_object_are_one_mask() -> None:
    mask = pixels([SQUARE, [20, 20, 30, 20, 30, 25, 20, 25]])
    assert mask.sum() == 80 + 50


def test_plain_and_compressed_counts_mean_the_same_and_keep_holes() -> None:
    ring = np.zeros((30, 40), dtype=np.uint8)
    ring[5:20, 5:25] = 1
    ring[10:15, 10:15] = 0
    compressed = coco_mask.encode(np.asfortranarray(ring))
    edges = np.flatnonzero(np.diff(ring.T.reshape(-1), prepend=0, append=2)).tolist()
    plain = np.diff([0, *edges]).tolist()
    assert np.array_equal(pixels({"size": [30, 40], "counts": compressed["counts"].decode()}), ring)
    assert np.array_equal(pixels({"size": [30, 40], "counts": plain}), ring)


def test_polygon_over_the_border_is_cut_and_reported() -> None:
    found = read_segmentation([[-10, -10, 10, -10, 10, 10, -10, 10]], 30, 40)
    assert found.cut
    assert rle_codes.decode(found.rle)[:10, :10].all()
    assert not read_segmentation([[-0.5, 0, 40.5, 0, 40, 30]], 30, 40).cut


def test_a_part_of_fewer_than_three_points_is_left_out_alone() -> None:
    found = read_segmentation([SQUARE, [1, 1, 2, 2], [20, 20, 30, 20, 30, 25, 20, 25]], 30, 40)
    assert (rle_codes.decode(found.rle).sum(), found.lost) == (80 + 50, 1)


POINTS = [[2, 2], [12, 2], [12, 10], [2, 10]]


@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE,
        POINTS,
        [POINTS],
        [SQUARE, []],
        [[str(value) for value in SQUARE]],
        "[[2, 2, 12, 2, 12, 10, 2, 10]]",
        [{"x": x, "y": y} for x, y in POINTS],
    ],
    ids=["flat", "points", "parts of points", "an empty part", "text numbers", "text", "named points"],
)
def test_polygons_are_read_however_they_are_nested(segmentation: Any) -> None:
    assert pixels(segmentation).sum() == 80
    assert pixels(segmentation)[2:10, 2:12].all()


def test_rle_is_read_with_float_or_text_numbers_and_in_a_list() -> None:
    assert pixels({"size": [30.0, "40"], "counts": [600.0, 600]}).sum() == 600
    assert pixels([{"size": [30, 40], "counts": [0, 300, 900]}, {"size": [30, 40], "counts": [900, 300]}]).sum() == 600


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ([], "no_mask"),
        (None, "no_mask"),
        ("text", "no_mask"),
        ([[]], "no_mask"),
        ([{}], "polygon_points"),
        ([[1, 1, 5, 5]], "polygon_points"),
        ([1, 1, 5, 5], "polygon_points"),
        ([[1, 1, 5, 5, 9]], "polygon_points"),
        ([[1, 1, 5, 5, "a", 9]], "polygon_points"),
        ([[1, 1, 5, 5, None, 9]], "polygon_nan"),
        ([[1, 1, 5, 5, float("nan"), 9]], "polygon_nan"),
        ([[1, 1, 5, 5, float("inf"), 9]], "polygon_nan"),
        ([[float("inf"), 1, 5, 5, -float("inf"), 9]], "polygon_nan"),
        ([[50, 5, 60, 5, 60, 15]], "polygon_outside"),
        ([[-9, -9, -2, -9, -2, -2]], "polygon_outside"),
        ([[1, 1, 1e9, 1, 1e9, 1e9]], "polygon_outside"),
        ({"size": [40, 30], "counts": "0"}, "rle_size"),
        ({"size": [30, 40]}, "rle_counts"),
        ({"counts": "abc"}, "rle_counts"),
        ({"size": [30, 40], "counts": [5, 5]}, "rle_counts"),
        ({"size": [30, 40], "counts": [1300, -100]}, "rle_counts"),
        ({"size": [30, 40], "counts": "~~~~"}, "rle_counts"),
        ({"size": [30, 40], "counts": "5"}, "rle_counts"),
    ],
)
def test_what_cannot_be_used_is_named(segmentation: Any, kind: str) -> None:
    with pytest.raises(BadSegmentation) as caught:
        read_segmentation(segmentation, 30, 40)
    assert caught.value.kind == kind
    assert "\n" not in caught.value.message
