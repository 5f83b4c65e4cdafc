"""A view shows of masks and boxes what it shows of the image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instseg.core import crop as geometry
from instseg.core import rle as rle_codes
from instseg.core.crop import CropTransform, crop_masks, full_crop
from instseg.core.geometry import fit_factor, mask_extents
from instseg.data.transforms.crop import crop_image, draw_crop


def blobs(seed: int, height: int, width: int, count: int = 4) -> np.ndarray:
    """(N, H, W) uint8 rectangles with holes."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), dtype=np.uint8)
    for mask in masks:
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + int(rng.integers(1, height)), x : x + int(rng.integers(1, width))] = 1
        mask[y + 1 : y + 2, x + 1 : x + 2] = 0
    return masks


def as_picture(masks: np.ndarray) -> Tensor:
    """The masks as the channels of an image that only shows 0 and 255, so that it can be compared with them."""
    return torch.from_numpy(masks[:3]) * 255


@st.composite
def views(draw: st.DrawFn, height: int, width: int) -> CropTransform:
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    span = (draw(st.integers(1, height - top)), draw(st.integers(1, width - left)))
    size = draw(st.sampled_from([span, (span[0] * 2, span[1] * 2), (max(1, span[0] // 2), max(1, span[1] // 2))]))
    return CropTransform(top, left, *span, size, draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 3)))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1000), views(23, 31))
def test_masks_equal_those_cut_resized_and_turned_densely(seed: int, view: CropTransform) -> None:
    masks = blobs(seed, 23, 31)
    shown, _, index = crop_masks([rle_codes.encode(mask) for mask in masks], view)
    window = torch.from_numpy(masks)[:, view.top : view.top + view.height, view.left : view.left + view.width]
    rows = torch.arange(view.size[0]) * view.height // view.size[0]
    columns = torch.arange(view.size[1]) * view.width // view.size[1]

    def turned(m: Tensor) -> Tensor:
        m = m.flip(-1) if view.mirror else m
        m = m.flip(-2) if view.mirror_vertical else m
        return torch.rot90(m, view.turns, (-2, -1))

    if view.enlarges:
        window = turned(window)
        rows = torch.arange(view.out_size[0]) * window.shape[1] // view.out_size[0]
        columns = torch.arange(view.out_size[1]) * window.shape[2] // view.out_size[1]
        dense = window[:, rows][:, :, columns]
    else:
        dense = turned(window[:, rows][:, :, columns])
    alive = dense.flatten(1).any(1).bool()
    assert shown.dtype == torch.uint8
    assert index.tolist() == alive.nonzero().flatten().tolist()
    assert torch.equal(shown, dense[alive])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000), views(23, 31), st.sampled_from([1, 2, 3]))
def test_boxes_are_the_tight_boxes_of_the_cut_masks_times_the_factor(
    seed: int, view: CropTransform, factor: int
) -> None:
    view = replace(view, size=(view.height * factor, view.width * factor))
    shown, boxes, _ = crop_masks([rle_codes.encode(mask) for mask in blobs(seed, 23, 31)], view)
    assert torch.equal(boxes, mask_extents(shown.bool()).float())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), views(23, 31))
def test_image_and_masks_stay_together(seed: int, view: CropTransform) -> None:
    view = replace(view, size=(view.height, view.width))
    masks = blobs(seed, 23, 31, count=3)
    picture = crop_image(as_picture(masks), view)
    shown, _, index = crop_masks([rle_codes.encode(mask) for mask in masks], view)
    assert picture.shape[1:] == view.out_size
    assert torch.equal(picture[index], shown * 255)


def test_masks_are_cut_in_groups_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [rle_codes.encode(mask) for mask in blobs(3, 40, 50, count=20)]
    view = CropTransform(5, 5, 30, 40, (15, 20), mirror=True, turns=1)
    whole = crop_masks(codes, view)
    monkeypatch.setattr(geometry, "_CHUNK_PIXELS", 3 * 30 * 40)
    for one, other in zip(whole, crop_masks(codes, view), strict=True):
        assert torch.equal(one, other)


def test_no_masks_give_empty_tensors_of_the_views_size() -> None:
    masks, boxes, index = crop_masks([], CropTransform(0, 0, 10, 20, (20, 40), turns=1))
    assert masks.shape == (0, 40, 20)
    assert boxes.shape == (0, 4)
    assert len(index) == 0


def test_object_outside_the_window_is_dropped_even_when_its_box_meets_it() -> None:
    corner = np.zeros((20, 20), dtype=np.uint8)
    corner[0, :] = corner[:, 0] = 1  # an L around the window
    masks, _, index = crop_masks([rle_codes.encode(corner)], CropTransform(5, 5, 10, 10, (10, 10)))
    assert len(masks) == len(index) == 0


def test_bilinear_resize_has_no_antialiasing() -> None:
    image = torch.zeros(3, 4, 8, dtype=torch.uint8)
    image[:, :, ::4] = 200
    shown = crop_image(image, CropTransform(0, 0, 4, 8, (1, 2)))
    assert shown.max() == 0  # the samples lie between columns 1 and 2, and 5 and 6


def test_boxes_turn_counter_clockwise_as_the_pixels() -> None:
    box = torch.tensor([[1.0, 2.0, 4.0, 3.0]])
    assert CropTransform(0, 0, 10, 20, (10, 20), turns=1).boxes(box).tolist() == [[2, 16, 3, 19]]
    assert CropTransform(0, 0, 10, 20, (20, 40), mirror=True).boxes(box).tolist() == [[32, 4, 38, 6]]


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [((480, 640), 800, 1333, (800, 1067)), ((300, 1000), 800, 1333, (400, 1333)), ((1200, 800), 640, 1333, (960, 640))],
)
def test_resize_fits_short_and_long_side(
    size: tuple[int, int], short: int, long: int, expected: tuple[int, int]
) -> None:
    factor = fit_factor(*size, short, long)
    assert draw_crop(*size, factor, None, np.random.default_rng(0)).size == expected


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.2, 4), st.integers(32, 300), st.integers(0, 99))
def test_crop_lies_in_the_image_and_has_its_size(height: int, width: int, factor: float, crop: int, seed: int) -> None:
    view = draw_crop(height, width, factor, crop, np.random.default_rng(seed))
    for start, span, side, out in (
        (view.top, view.height, height, view.size[0]),
        (view.left, view.width, width, view.size[1]),
    ):
        assert start >= 0
        assert start + span <= side
        assert out == min(crop, max(1, int(side * factor + 0.5)))
        assert span == side or abs(span * factor - crop) <= max(factor, 1)


def test_full_crop_changes_nothing() -> None:
    masks = blobs(1, 12, 17, count=3)
    assert torch.equal(crop_image(as_picture(masks), full_crop(12, 17)), as_picture(masks))
