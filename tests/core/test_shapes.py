"""Shapes are rasterized where a loss asks for them, and are the same objects everywhere."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.core import rle as rle_codes
from instseg.core.crop import CropTransform, crop_masks
from instseg.core.shapes import Outline, Shapes

RING = np.array([[4.0, 3.0], [28.5, 5.0], [25.0, 22.0], [6.0, 18.5]])
SIZE = (30, 40)
WHOLE = CropTransform(0, 0, *SIZE, SIZE)


def outline(ring: np.ndarray = RING, size: tuple[int, int] = SIZE) -> Outline:
    return Outline(rle_codes.from_polygons([ring.reshape(-1).tolist()], *size), (ring,))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 4, 8, 16]))
def test_at_a_stride_they_are_what_bilinear_resizing_and_rounding_makes_of_them(
    seed: int, h: int, w: int, stride: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    masks = (torch.rand(3, h * stride, w * stride, generator=draw) < 0.5).to(torch.uint8)
    expected = F.interpolate(masks[None].float(), scale_factor=1 / stride, mode="bilinear")[0] >= 0.5
    assert torch.equal(Shapes.from_masks(masks).at_stride(stride).bool(), expected)
    assert torch.equal(Shapes.from_masks(masks.bool()).at_stride(stride).bool(), expected)


def test_sides_that_no_stride_divides_are_padded_with_zeros() -> None:
    shapes = Shapes.from_masks(torch.ones(1, 7, 9, dtype=torch.uint8))
    assert shapes.at_stride(4).tolist() == [[[1, 1, 0], [1, 1, 0]]]


def test_a_matte_at_a_stride_is_a_mean_and_not_rounded() -> None:
    matte = torch.linspace(0, 1, 64).view(1, 8, 8)
    shapes = Shapes.from_masks(matte)
    assert shapes.soft and torch.equal(shapes.full(), matte)
    torch.testing.assert_close(shapes.at_stride(4)[0, 0, 0], matte[0, 1:3, 1:3].mean())


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirror", [False, True])
def test_points_follow_the_pixels(mirror: bool, turns: int) -> None:
    crop = CropTransform(2, 3, 24, 30, (48, 60), mirror, not mirror, turns)
    _, boxes, _ = crop_masks([outline().code], crop)
    x0, y0, x1, y1 = boxes[0].tolist()
    points = crop.points(RING)
    inside = points.clip(0, [crop.out_size[1], crop.out_size[0]])
    assert np.abs(np.array([*inside.min(axis=0), *inside.max(axis=0)]) - [x0, y0, x1, y1]).max() <= 2


def test_outlines_are_decoded_through_their_crop_and_only_when_asked() -> None:
    crop = CropTransform(0, 0, 24, 36, (12, 18), True, False, 1)
    shapes = Shapes.from_outlines([outline()], crop)
    assert not shapes.rasterized and shapes.size == (18, 12) and len(shapes) == 1
    assert torch.equal(shapes.full(), crop_masks([outline().code], crop)[0])
    assert shapes.rasterized


def test_a_polygon_in_a_box_is_rasterized_there() -> None:
    shapes = Shapes.from_outlines([outline()], WHOLE)
    box = torch.tensor([[4.0, 3.0, 28.5, 22.0]])
    found = shapes.in_boxes(box, 28)
    scaled = (RING - [4, 3]) * [28 / 24.5, 28 / 19]
    expected = rle_codes.decode(rle_codes.from_polygons([scaled.reshape(-1).tolist()], 28, 28))
    assert torch.equal(found[0], torch.from_numpy(expected).float())
    assert not shapes.rasterized


def test_a_polygon_in_a_box_is_the_same_after_the_masks_were_asked_for() -> None:
    shapes = Shapes.from_outlines([outline()], WHOLE)
    box = torch.tensor([[4.0, 3.0, 28.5, 22.0]])
    before = shapes.in_boxes(box, 28)
    shapes.at_stride(4)
    assert torch.equal(shapes.in_boxes(box, 28), before)
    assert torch.equal(shapes[[0]].to("cpu").in_boxes(box, 28), before)


def test_a_code_beside_a_polygon_does_not_change_how_the_polygon_is_rasterized() -> None:
    box = torch.tensor([[4.0, 3.0, 28.5, 22.0]])
    code = Outline(outline().code)
    mixed = Shapes.from_outlines([outline(), code], WHOLE).in_boxes(box.repeat(2, 1), 28)
    assert torch.equal(mixed[:1], Shapes.from_outlines([outline()], WHOLE).in_boxes(box, 28))
    assert torch.equal(mixed[1:], Shapes.from_outlines([code], WHOLE).in_boxes(box, 28))


@pytest.mark.parametrize("side", [14, 28, 56])
def test_a_mask_in_a_box_is_close_to_its_polygon_there(side: int) -> None:
    lazy = Shapes.from_outlines([outline()], WHOLE)
    dense = Shapes.from_masks(torch.from_numpy(rle_codes.decode(outline().code))[None])
    box = torch.tensor([[4.0, 3.0, 28.5, 22.0]])
    assert (lazy.in_boxes(box, side) != dense.in_boxes(box, side)).float().mean() < 0.08


def test_a_matte_in_its_own_frame_is_itself_and_zero_outside_the_image() -> None:
    matte = torch.rand(1, 16, 16)
    shapes = Shapes.from_masks(matte)
    torch.testing.assert_close(shapes.in_boxes(torch.tensor([[0.0, 0.0, 16.0, 16.0]]), 16), matte)
    beyond = shapes.in_boxes(torch.tensor([[32.0, 0.0, 48.0, 16.0]]), 4)
    assert bool((beyond == 0).all())


def test_outlines_travel_as_outlines_and_masks_as_windows() -> None:
    lazy = pickle.loads(pickle.dumps(Shapes.from_outlines([outline()], WHOLE)))
    assert not lazy.rasterized and torch.equal(lazy.full(), Shapes.from_outlines([outline()], WHOLE).full())
    masks = torch.zeros(50, 400, 400, dtype=torch.uint8)
    masks[:, 10:20, 10:20] = 1
    data = pickle.dumps(Shapes.from_masks(masks))
    assert len(data) < 30_000 and torch.equal(pickle.loads(data).full(), masks)
    matte = torch.rand(2, 5, 6)
    assert torch.equal(pickle.loads(pickle.dumps(Shapes.from_masks(matte))).full(), matte)


def test_some_of_the_shapes() -> None:
    two = Shapes.from_outlines([outline(), outline(RING + 2)], WHOLE)
    assert torch.equal(two[[1]].full(), two.full()[[1]])
    assert len(two[torch.tensor([True, False])]) == 1
    with pytest.raises(ValueError, match="1 boxes for 2 shapes"):
        two.in_boxes(torch.zeros(1, 4), 7)


def test_no_shapes() -> None:
    none = Shapes.from_outlines([], WHOLE)
    assert none.full().shape == (0, *SIZE) and none.at_stride(4).shape == (0, 8, 10)
    assert none.in_boxes(torch.zeros(0, 4), 14).shape == (0, 14, 14)
