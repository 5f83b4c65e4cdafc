"""Whatever the threshold and the floor: what is thresholded is the dense rendering, thresholded."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.core import rle
from instseg.core.geometry import InputGeometry
from instseg.core.masks import Masks

THRESHOLDS = st.sampled_from([0.0, 1e-6, 0.003, 0.005, 0.01, 0.0123, 0.3, 0.5, 0.999, 1.0])
FLOORS = st.sampled_from([0.0, 0.01, 0.2, 0.5, 1.0])


def values(data, shape, threshold):
    """Random values around the threshold, with many ties, zeros and ones."""
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    kind = data.draw(st.sampled_from(["any", "faint", "ties", "one"]))
    soft = torch.rand(shape, generator=draw)
    if kind == "faint":
        return 0.02 * soft**3
    if kind == "ties":
        return torch.tensor([0.0, threshold, threshold, 1.0])[(4 * soft).long().clamp(max=3)]
    return torch.full(shape, threshold) if kind == "one" else soft**4


def says_the_same_everywhere(masks, pixels):
    """Every thresholded view of the masks against their pixels."""
    assert torch.equal(masks.bool(), pixels)
    assert [rle.decode(code).tolist() for code in masks.rle()] == pixels.int().tolist()
    assert masks.areas().tolist() == pixels.sum((1, 2)).tolist()
    for mask, box, parts in zip(pixels, masks.boxes().tolist(), masks.polygons(), strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert box == ([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else [0, 0, 0, 0])
        assert bool(parts) == bool(mask.any())
        rings = [ring for part in parts for ring in part]
        assert all(np.abs(ring[:, 0]).max() <= mask.shape[1] for ring in rings)
    for i in range(len(pixels)):
        assert torch.equal(masks[i].bool(), pixels[i : i + 1])


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), THRESHOLDS, FLOORS, st.booleans(), st.data())
def test_maps_at_any_threshold_are_their_soft_values_above_it(h, w, threshold, floor, resized, data):
    soft = values(data, (3, h, w), threshold)
    content = (data.draw(st.integers(1, 4 * h)), data.draw(st.integers(1, 4 * w)))
    size = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))) if resized else content
    masks = Masks.from_maps(soft, content, 4, threshold, floor).to_image(InputGeometry(content, size, size))
    whole = Masks.from_maps(soft, content, 4, threshold, 0.0).to_image(InputGeometry(content, size, size))
    says_the_same_everywhere(masks, whole.soft() > np.float32(threshold))
    up = F.interpolate(soft[None], size=(4 * h, 4 * w), mode="bilinear")[:, :, : content[0], : content[1]]
    dense = F.interpolate(up, size=size, mode="bilinear")[0]
    differing = masks.bool() != (dense > threshold)
    assert not (differing & ((dense - threshold).abs() > 1e-6)).any()  # rounding alone may decide a tie


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), THRESHOLDS, FLOORS, st.data())
def test_windows_at_any_threshold_are_their_soft_values_from_it_on(h, w, threshold, floor, data):
    soft = values(data, (2, h, w), threshold)
    corners = torch.tensor(data.draw(st.lists(st.floats(-5, 20, width=32), min_size=4, max_size=4))).view(2, 2)
    boxes = torch.cat([corners, corners + torch.tensor([[7.3, 5.5], [0.0, 4.0]])], dim=1)
    masks = Masks.from_windows(soft, boxes, (19, 23), threshold, floor)
    whole = Masks.from_windows(soft, boxes, (19, 23), threshold, 0.0)
    says_the_same_everywhere(masks, whole.soft() >= np.float32(threshold))


@settings(max_examples=60, deadline=None)
@given(THRESHOLDS, st.data())
def test_mattes_and_pieces_at_any_threshold_are_their_soft_values_above_it(threshold, data):
    soft = values(data, (2, 6, 7), threshold)
    says_the_same_everywhere(Masks.from_mattes(soft, threshold), soft > np.float32(threshold))
    image = torch.zeros(2, 12, 15)
    image[0, 2:8, 3:10], image[1, 6:12, 8:15] = soft
    pieces = Masks.from_pieces([(2, 3, soft[0]), (6, 8, soft[1])], (12, 15), threshold)
    says_the_same_everywhere(pieces, image > np.float32(threshold))


@pytest.mark.parametrize("threshold", [0.0, 0.002, 0.004999])
def test_a_faint_object_is_found_below_the_floor(threshold):
    soft = torch.full((1, 8, 8), 0.005)
    assert Masks.from_maps(soft, (32, 32), 4, threshold).areas().tolist() == [32 * 32]
    box = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    inside = Masks.from_windows(soft, box, (32, 32), 0.005)
    assert inside.areas().tolist() == (inside.soft() >= np.float32(0.005)).sum((1, 2)).tolist() != [0]


def test_a_faint_neighbor_of_a_bright_cell_counts_at_the_border():
    """Between 1 and 0.0099 the middle lies above one half; without the faint cell it would not."""
    soft = torch.tensor([0.0099, 1.0, 1.0, 0.0099]).expand(1, 4, 4)
    masks = Masks.from_maps(soft, (4, 4), 1).at_size((4, 6))
    dense = F.interpolate(soft[None], size=(4, 6), mode="bilinear")[0]
    assert dense[0, 0, 1] == pytest.approx(0.50495)
    assert torch.equal(masks.bool(), dense > 0.5)


def test_at_threshold_one_no_map_is_foreground_but_a_full_window_is():
    assert not Masks.from_maps(torch.ones(1, 4, 4), (16, 16), 4, 1.0).bool().any()
    full = Masks.from_windows(torch.ones(1, 4, 4), torch.tensor([[0.0, 0.0, 8.0, 8.0]]), (16, 16), 1.0)
    assert full.areas().tolist() == (full.soft() >= 1).sum((1, 2)).tolist()
    assert full.areas()[0] > 0


def test_empty_masks_stay_empty_at_threshold_zero_and_none_are_legal():
    assert Masks.from_maps(torch.zeros(2, 4, 4), (16, 16), 4, 0.0).areas().tolist() == [0, 0]
    assert Masks.from_maps(torch.zeros(0, 4, 4), (16, 16), 4, 0.0).bool().shape == (0, 16, 16)
    assert Masks.from_windows(torch.zeros(0, 4, 4), torch.zeros(0, 4), (16, 16), 0.0).rle() == []
