import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.core import rle
from instseg.core.masks import Masks


def encoded(window, top, left, size):
    return Masks.from_pieces([(top, left, torch.from_numpy(window).float())], size).rle()[0]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5), st.integers(0, 5), st.integers(0, 9999), st.data())
def test_a_window_encodes_as_the_whole_mask_does(h, w, below, right, seed, data):
    rng = np.random.default_rng(seed)
    top, left = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))
    size = (top + h + below, left + w + right)
    window = rng.random((h, w)) < rng.random()
    whole = np.zeros(size, np.uint8)
    whole[top : top + h, left : left + w] = window
    assert encoded(window, top, left, size) == rle.encode(whole)


def test_long_runs_and_large_differences_are_packed_as_coco_packs_them():
    rng = np.random.default_rng(0)
    mask = np.zeros((4000, 3000), np.uint8)
    mask[17:3900, 40:2900] = rng.random((3883, 2860)) < 0.999
    assert encoded(mask[17:3900, 40:2900], 17, 40, mask.shape) == rle.encode(mask)
    assert np.array_equal(rle.decode(rle.encode(mask)), mask)


def test_json_round_trip_of_both_forms():
    code = rle.encode(np.eye(5, dtype=np.uint8))
    assert rle.from_json(rle.to_json(code)) == code
    uncompressed = {"size": [2, 2], "counts": [1, 2, 1]}
    assert rle.decode(rle.from_json(uncompressed)).tolist() == [[0, 1], [1, 0]]


def test_boxes_are_xyxy_with_an_exclusive_end_and_zero_when_empty():
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 3:7] = 1
    assert rle.boxes([rle.encode(mask), rle.encode(mask * 0)]).tolist() == [[3, 2, 7, 4], [0, 0, 0, 0]]
    assert rle.area([rle.encode(mask)]).tolist() == [8]
    assert rle.area([]).shape == (0,)


def test_areas_of_many_codes_are_counted():
    assert rle.area([rle.encode(np.ones((2, 3)))] * 300).tolist() == [6] * 300


def test_iou_of_nothing_is_an_empty_table():
    assert rle.iou([], [rle.encode(np.ones((2, 2)))], [False]).shape == (0, 1)


def test_polygon_parts_are_merged():
    code = rle.from_polygons([[0, 0, 2, 0, 2, 2, 0, 2], [4, 4, 6, 4, 6, 6, 4, 6]], 8, 8)
    assert rle.area([code])[0] == pytest.approx(8)


def test_more_than_255_codes_are_measured_at_once():
    code = rle.encode(np.ones((20, 30)))
    assert rle.area([code] * 300).tolist() == [600] * 300
    assert rle.boxes([code] * 300).shape == (300, 4)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9999), st.booleans())
def test_a_code_decodes_into_its_own_box(height, width, seed, columns):
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    x0, x1 = sorted(rng.integers(0, width + 1, 2))
    y0, y1 = (0, height) if columns else sorted(rng.integers(0, height + 1, 2))
    mask[y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < rng.choice([0.3, 0.9, 1.0])
    code = rle.encode(mask)
    top, left, window = rle.decode_window(code)
    whole = np.zeros_like(mask)
    whole[top : top + window.shape[0], left : left + window.shape[1]] = window
    assert np.array_equal(whole, mask)
    x0, y0, x1, y1 = rle.boxes([code])[0]
    assert window.shape == (y1 - y0, x1 - x0)


def test_windows_of_large_images_and_of_codes_from_json_are_decoded():
    rng = np.random.default_rng(1)
    mask = np.zeros((4000, 3000), np.uint8)
    mask[1000:1400, 2000:2200] = rng.random((400, 200)) < 0.5
    mask[100:103, 20:2900] = 1
    for code in (rle.encode(mask), rle.to_json(rle.encode(mask))):
        top, left, window = rle.decode_window(code)
        assert (top, left) == (100, 20)
        assert np.array_equal(window, mask[100 : 100 + window.shape[0], 20 : 20 + window.shape[1]].astype(bool))
    assert rle.decode_window(rle.from_counts([0, 6, 0, 0, 6], 3, 4))[2].all()
