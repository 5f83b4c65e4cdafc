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


def pasted(window, box, size, region=None):
    """A window in a box, densely: ``grid_sample`` at the pixels' centers, zeros around."""
    (height, width), (x0, y0, x1, y1) = size, box.tolist()
    if not (x1 > x0 and y1 > y0):
        return torch.zeros(size)
    y = (torch.arange(height, dtype=torch.float32) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    x = (torch.arange(width, dtype=torch.float32) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(x, y[:, None]), dim=-1)[None]
    out = F.grid_sample(window[None, None], grid, align_corners=False)[0, 0]
    top, bottom, left, right = region or (0, height, 0, width)
    shown = torch.zeros(size)
    shown[top:bottom, left:right] = out[top:bottom, left:right]
    return shown


def assert_same_but_for_ties(found, expected, threshold=0.5):
    differing = found != (expected >= threshold)
    assert not (differing & ((expected - threshold).abs() > 1e-4)).any()


coordinates = st.floats(-40, 140, width=32)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[coordinates] * 4, st.integers(1, 30)), max_size=5), st.integers(1, 90), st.integers(1, 90))
def test_windows_in_boxes_equal_plain_pasting(objects, height, width):
    g = torch.Generator().manual_seed(height)
    boxes = torch.tensor([o[:4] for o in objects], dtype=torch.float32).view(-1, 4)
    windows = [torch.rand(o[4], 28, generator=g) for o in objects]
    masks = Masks.from_windows(windows, boxes, (height, width), floor=0.0)
    assert masks.bool().shape == masks.soft().shape == (len(objects), height, width)
    for i, (window, box) in enumerate(zip(windows, boxes, strict=True)):
        expected = pasted(window, box, (height, width))
        assert_same_but_for_ties(masks.bool()[i], expected)
        # Where a box is far smaller than a pixel, positions themselves are rounded.
        if (box[2:] - box[:2]).min() > 1:
            torch.testing.assert_close(masks.soft()[i], expected, atol=1e-4, rtol=0)


def test_a_window_goes_into_the_image_in_one_step_and_stays_in_the_part_that_is_shown():
    window, box = blobs(1, 28, 28)[0], torch.tensor([[10.3, -4.0, 70.5, 45.25]])
    tile = InputGeometry((60, 64), (90, 128), (200, 300), (100, 150))
    masks = Masks.from_windows(window[None], box, (60, 64), floor=0.0).to_image(tile)
    place = box[0] * torch.tensor([2, 1.5, 2, 1.5]) + torch.tensor([150.0, 100, 150, 100])
    expected = pasted(window, place, (200, 300), (100, 190, 150, 278))
    torch.testing.assert_close(masks.soft()[0], expected, atol=1e-4, rtol=0)
    assert_same_but_for_ties(masks.bool()[0], expected)
    top, bottom, left, right = masks.reach(0)
    assert top == 100 and bottom <= 190 and left > 150 and right <= 278


def test_a_value_at_the_threshold_is_foreground_in_a_window_and_not_on_a_map():
    half = torch.full((1, 4, 4), 0.5)
    assert Masks.from_windows(half, torch.tensor([[2.0, 2, 6, 6]]), (8, 8)).areas().tolist() == [16]
    assert Masks.from_maps(half, (16, 16), 4).areas().tolist() == [0]


def test_the_order_of_windows_of_several_sizes_is_kept():
    windows = [torch.ones(side, side) for side in (7, 28, 7, 14)]
    boxes = torch.tensor([[float(x), 0, x + 4, 3 + x] for x in range(4)])
    masks = Masks.from_windows(windows, boxes, (30, 30))
    assert len(masks.layouts) == 3
    assert masks.boxes().tolist() == boxes.tolist()


def test_no_window_and_boxes_without_extent_are_legal():
    none = Masks.from_windows(torch.zeros(0, 28, 28), torch.zeros(0, 4), (20, 30))
    assert len(none) == 0 and none.rle() == [] and none.soft().shape == (0, 20, 30)
    boxes = torch.tensor([[5.0, 5, 5, 9], [8, 2, 3, 9], [float("nan"), 0, 4, 4], [0, 0, float("inf"), 4]])
    flat = Masks.from_windows(torch.ones(4, 7, 7), boxes, (20, 30))
    assert flat.areas().tolist() == [0, 0, 0, 0] and flat.polygons() == [[]] * 4
    with pytest.raises(ValueError, match="4 windows in 1 boxes"):
        Masks.from_windows(torch.ones(4, 7, 7), boxes[:1], (20, 30))


def test_maps_with_aligned_corners_equal_condinsts_dense_steps():
    soft = blobs(3, 10, 14)
    padded = F.pad(soft[None], (0, 1, 0, 1), mode="replicate")
    large = F.interpolate(padded, size=(41, 57), mode="bilinear", align_corners=True)
    large = F.pad(large, (2, 0, 2, 0), mode="replicate")[:, :, :38, :51]
    expected = F.interpolate(large, size=(75, 99), mode="bilinear")[0]
    masks = Masks.from_maps(soft, (38, 51), 4, floor=0.0, aligned=True)
    torch.testing.assert_close(masks.soft(), large[0], atol=1e-6, rtol=0)
    masks = masks.to_image(InputGeometry((38, 51), (75, 99), (75, 99)))
    torch.testing.assert_close(masks.soft(), expected, atol=1e-6, rtol=0)


def test_mattes_are_kept_as_they_are_and_resized_without_rounding():
    soft = torch.rand(2, 20, 30) * (torch.rand(2, 20, 30) > 0.3)
    masks = Masks.from_mattes(soft)
    assert torch.equal(masks.soft(), soft) and torch.equal(masks.bool(), soft > 0.5)
    large = masks.to_image(InputGeometry((20, 30), (50, 44), (50, 44)))
    expected = F.interpolate(soft[None], size=(50, 44), mode="bilinear")[0]
    torch.testing.assert_close(large.soft(), expected, atol=1e-6, rtol=0)


def test_maps_windows_and_mattes_share_one_object():
    size = (40, 60)
    maps, windows, mattes = blobs(2, 10, 15), blobs(3, 14, 14, seed=1), blobs(2, 40, 60, seed=2)
    boxes = torch.tensor([[3.0, 3, 30, 30], [20.5, 10, 58, 33], [-5, -5, 12, 50]])
    kinds = [
        Masks.from_maps(maps, size, 4),
        Masks.from_windows(windows, boxes, size),
        Masks.from_mattes(mattes),
    ]
    order = torch.tensor([5, 2, 0, 6, 3, 1, 4])
    for view in (InputGeometry(size, size, size), InputGeometry(size, (55, 91), (300, 200), (20, 80))):
        joined = Masks.cat([kind.to_image(view) for kind in kinds])
        alone = torch.cat([kind.to_image(view).bool() for kind in kinds])
        assert torch.equal(joined.bool(), alone)
        assert torch.equal(joined[order].bool(), alone[order])
        assert torch.equal(Masks.cat(kinds).to_image(view).bool(), alone)
        soft = joined.soft()
        for i in range(7):
            torch.testing.assert_close(joined.block(i, 15, 38, 25, 57), soft[i, 15:38, 25:57])


def test_pieces_lie_where_they_are_put():
    masks = Masks.from_pieces([(3, 4, torch.full((2, 5), 0.9)), (0, 0, torch.full((1, 1), 0.2))], (10, 12))
    assert masks.boxes().tolist() == [[4, 3, 9, 5], [0, 0, 0, 0]]
    assert masks.soft()[1, 0, 0] == pytest.approx(0.2)
    assert len(Masks.from_pieces([], (10, 12))) == 0


def test_a_mask_that_fills_the_frame_is_one_run_and_larger_than_a_block():
    size = (1100, 1300)
    for masks in (
        Masks.from_maps(torch.ones(1, 275, 325), size, 4),
        Masks.from_windows(torch.ones(1, 28, 28), torch.tensor([[-100.0, -100, 1400, 1200]]), size),
        Masks.from_bool(torch.ones(1, *size)),
    ):
        assert masks.rle() == [rle.from_counts([0, size[0] * size[1]], *size)]


def test_thousands_of_tiny_windows_take_memory_of_their_runs():
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(2000, 2, generator=g) * 9990
    boxes = torch.cat([corner, corner + 3 + 7 * torch.rand(2000, 2, generator=g)], dim=1)
    masks = Masks.from_windows(torch.ones(2000, 4, 4), boxes, (10_000, 10_000))
    found = masks.boxes()
    assert (masks.areas() > 0).all()
    # A pixel belongs to a window of ones when its center lies in the box; only the corners are rounded off.
    expected = torch.cat([(boxes[:, :2] - 0.5).ceil(), (boxes[:, 2:] + 0.5).floor()], dim=1)
    assert (found - expected).abs().max() <= 1
