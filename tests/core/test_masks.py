import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.core import rle
from instseg.core.errors import DataError
from instseg.core.geometry import InputGeometry
from instseg.core.masks import Masks


def dense(soft, content, size):
    """The two-step rendering of the reference, at image size; maps are at a quarter of the input."""
    h, w = soft.shape[1:]
    up = F.interpolate(soft[None], size=(h * 4, w * 4), mode="bilinear")
    cut = up[:, :, : content[0], : content[1]]
    return F.interpolate(cut, size=size, mode="bilinear")[0]


def placed(soft, content, size, image_size=None, offset=(0, 0), **options):
    return Masks.from_maps(soft, content, 4, **options).to_image(
        InputGeometry(content, size, image_size or size, offset)
    )


def blobs(n, h, w, seed=0):
    """Smooth random soft masks, each around its own center."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.arange(h)[:, None], torch.arange(w)[None]
    center = torch.rand(n, 2, generator=g) * torch.tensor([h, w])
    radius = 1 + torch.rand(n, generator=g) * min(h, w) / 3
    distance = ((y - center[:, 0, None, None]) ** 2 + (x - center[:, 1, None, None]) ** 2).sqrt()
    noise = torch.randn(n, h, w, generator=g)
    return torch.sigmoid(radius[:, None, None] - distance + noise)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 24), st.integers(2, 24), st.data(), st.integers(0, 10**6))
def test_rendering_equals_the_dense_two_step_rendering(h, w, data, seed):
    content = (data.draw(st.integers(1, 4 * h)), data.draw(st.integers(1, 4 * w)))
    size = (data.draw(st.integers(1, 150)), data.draw(st.integers(1, 150)))
    soft = blobs(3, h, w, seed)
    reference = dense(soft, content, size)
    masks = placed(soft, content, size)
    differing = masks.bool() != (reference > 0.5)
    assert not (differing & ((reference - 0.5).abs() > 1e-5)).any()  # only exact ties may fall either way
    torch.testing.assert_close(masks.soft(), reference, atol=0.0101, rtol=0)  # values below the floor are dropped


def test_at_a_large_size_at_most_one_pixel_in_100_000_differs():
    content, size = (400, 667), (1500, 2501)
    soft = blobs(6, 100, 168)
    differing = (placed(soft, content, size).bool() != (dense(soft, content, size) > 0.5)).float().mean()
    assert differing <= 1e-5


def test_soft_values_are_exact_without_a_floor():
    soft = blobs(4, 12, 20)
    rendered = placed(soft, (45, 77), (90, 140), floor=0.0).soft()
    torch.testing.assert_close(rendered, dense(soft, (45, 77), (90, 140)), atol=1e-6, rtol=0)


def test_codes_areas_and_boxes_describe_the_same_pixels():
    masks = placed(blobs(5, 16, 16), (64, 60), (100, 110))
    pixels = masks.bool()
    assert [rle.decode(code).tolist() for code in masks.rle()] == pixels.int().tolist()
    assert masks.areas().tolist() == pixels.sum((1, 2)).tolist()
    for mask, box in zip(pixels, masks.boxes().tolist(), strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_an_empty_mask_has_no_area_no_polygon_and_a_zero_box():
    masks = placed(torch.zeros(1, 8, 8), (32, 32), (50, 50))
    assert masks.areas().tolist() == [0]
    assert masks.boxes().tolist() == [[0, 0, 0, 0]]
    assert masks.polygons() == [[]]
    assert not masks.bool().any() and not masks.soft().any()


def test_no_masks_at_all_are_legal_everywhere():
    masks = placed(torch.zeros(0, 8, 8), (32, 32), (50, 40))
    assert len(masks) == 0 and masks.rle() == [] and masks.polygons() == []
    assert masks.bool().shape == masks.soft().shape == (0, 50, 40)
    assert masks.boxes().shape == (0, 4) and masks.areas().shape == (0,)
    assert len(masks[torch.zeros(0, dtype=torch.bool)]) == 0


@pytest.mark.parametrize("index", [2, -1, slice(1, 4, 2), [3, 0], torch.tensor([True, False, True, False, True])])
def test_indexing_selects_the_masks_that_indexing_pixels_would(index):
    masks = placed(blobs(5, 10, 12), (40, 48), (33, 47))
    pixels = masks.bool()
    expected = pixels[index][None] if isinstance(index, int) else pixels[index]
    assert torch.equal(masks[index].bool(), expected)
    assert masks[index].rle() == [rle.encode(m.numpy()) for m in expected]


def test_a_wrong_index_is_an_error():
    masks = Masks.from_bool(torch.ones(2, 4, 4))
    with pytest.raises(IndexError):
        masks[2]
    with pytest.raises(DataError, match="shape"):
        masks[torch.tensor([True])]


def test_joined_parts_keep_each_its_place():
    size = (60, 100)
    content, tile = (40, 40), (50, 50)
    soft = blobs(4, 10, 10)
    parts = [
        placed(soft[:2], content, tile, size, (0, 0)),
        placed(soft[2:], content, tile, size, (10, 50)),
    ]
    whole = torch.zeros(4, *size, dtype=torch.bool)
    whole[:2, :50, :50] = parts[0].bool()[:, :50, :50]
    whole[2:, 10:60, 50:100] = dense(soft[2:], content, tile) > 0.5
    joined = Masks.cat(parts)
    assert torch.equal(joined.bool(), whole)
    assert torch.equal(joined[torch.tensor([3, 1])].bool(), whole[[3, 1]])
    torch.testing.assert_close(joined.soft()[2:, 10:, 50:], dense(soft[2:], content, tile), atol=0.0101, rtol=0)
    with pytest.raises(ValueError, match="different images"):
        Masks.cat([parts[0], Masks.from_bool(torch.ones(1, 4, 4))])


def test_a_block_is_a_part_of_the_dense_soft_mask():
    size = (60, 100)
    masks = placed(blobs(3, 10, 10), (40, 40), (50, 50), size, (10, 50), floor=0)
    dense = masks.soft()
    for i in range(3):
        top, bottom, left, right = masks.reach(i)
        assert dense[i].count_nonzero() == dense[i, top:bottom, left:right].count_nonzero()
        for a, b, c, d in ((0, 60, 0, 100), (5, 33, 40, 77), (0, 9, 0, 30), (20, 21, 60, 61)):
            torch.testing.assert_close(masks.block(i, a, b, c, d), dense[i, a:b, c:d])


def test_masks_at_image_size_are_kept_as_they_are():
    pixels = torch.rand(3, 20, 31) > 0.6
    assert torch.equal(Masks.from_bool(pixels).bool(), pixels)
    assert torch.equal(Masks.from_bool(pixels.to(torch.uint8))[1:].bool(), pixels[1:])


def test_polygons_keep_holes_and_parts_and_give_the_pixels_back():
    pixels = torch.zeros(1, 30, 40, dtype=torch.bool)
    pixels[0, 3:20, 4:25] = True
    pixels[0, 8:12, 10:14] = False  # a hole
    pixels[0, 25:28, 30:38] = True  # a second part
    parts = Masks.from_bool(pixels).polygons()[0]
    assert sorted(len(rings) for rings in parts) == [1, 2]
    centers = np.stack(np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5), -1).reshape(-1, 2)
    from matplotlib.path import Path

    inside = np.zeros(30 * 40, dtype=bool)
    for outer, *holes in parts:
        hit = Path(outer).contains_points(centers)
        for hole in holes:
            hit &= ~Path(hole).contains_points(centers)
        inside |= hit
    assert np.array_equal(inside.reshape(30, 40), pixels[0].numpy())


def test_rendering_is_exact_under_autocast():
    masks = placed(blobs(3, 20, 20), (80, 80), (123, 123))
    expected = masks.bool()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(masks[:].bool(), expected)
