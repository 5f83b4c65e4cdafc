"""One axis resampled by a few taps a pixel equals what torch computes densely."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.core.rendering.taps import Taps, box_taps, map_taps, reached


def applied(taps: Taps, values: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy((taps.weight * values.numpy()[taps.cell]).sum(axis=0))


def half_pixel(values: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(values[None, None], size=size, mode="linear")[0, 0]


def aligned_bilinear(values: torch.Tensor, factor: int) -> torch.Tensor:
    """CondInst's enlargement: one more cell, corners aligned, shifted by half a factor."""
    padded = torch.cat([values, values[-1:]])
    large = F.interpolate(padded[None, None], size=factor * len(values) + 1, mode="linear", align_corners=True)[0, 0]
    return torch.cat([large[:1].expand(factor // 2), large])[: factor * len(values)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 200), st.booleans(), st.data())
def test_two_steps_are_at_most_three_taps(
    cells: int, stride: int, size: int, aligned: bool, data: st.DataObject
) -> None:
    content = data.draw(st.integers(1, cells * stride))
    values = torch.rand(cells, generator=torch.Generator().manual_seed(cells))
    taps = map_taps(cells, stride, content, size, aligned)
    assert taps.cell.shape == taps.weight.shape and taps.cell.shape[0] <= 3 and taps.cell.shape[1] == size
    assert taps.cell.min() >= 0 and taps.cell.max() < cells and (np.diff(taps.cell, axis=1) >= 0).all()
    large = aligned_bilinear(values, stride) if aligned else half_pixel(values, cells * stride)
    torch.testing.assert_close(applied(taps, values), half_pixel(large[:content], size), atol=2e-6, rtol=0)


def test_a_map_of_the_images_own_size_is_left_as_it_is() -> None:
    values = torch.rand(9)
    assert torch.equal(applied(map_taps(9, 1, 9, 9), values), values)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 200), st.floats(-50, 150), st.floats(0.01, 150))
def test_a_window_is_sampled_as_grid_sample_does(cells: int, size: int, begin: float, extent: float) -> None:
    low, high = np.float32([begin]), np.float32([begin + extent])
    values = torch.rand(cells, generator=torch.Generator().manual_seed(cells))
    taps = box_taps(low, high, np.array([cells]), np.array([0]), np.array([size]))
    position = (torch.arange(size) + 0.5 - low[0]) / (high[0] - low[0]) * 2 - 1
    grid = torch.stack([position, torch.zeros(size)], dim=1)[None, None]
    expected = F.grid_sample(values[None, None, None], grid, align_corners=False)[0, 0, 0]
    torch.testing.assert_close(applied(taps, values), expected, atol=2e-5, rtol=0)


def test_the_taps_of_many_windows_follow_one_another() -> None:
    low, high, cells = np.float32([1, 2.5, 0]), np.float32([4, 30, 7]), np.array([3, 28, 5])
    start, stop = np.array([0, 4, 2]), np.array([6, 4, 9])  # the second asks for no pixel
    together = box_taps(low, high, cells, start, stop)
    alone = [box_taps(*(a[i : i + 1] for a in (low, high, cells, start, stop))) for i in range(3)]
    for name in ("cell", "weight"):
        assert np.array_equal(getattr(together, name), np.concatenate([getattr(a, name) for a in alone], axis=1))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 150), st.data())
def test_pixels_outside_the_reach_of_cells_take_nothing_from_them(cells: int, size: int, data: st.DataObject) -> None:
    content = data.draw(st.integers(1, cells * 4))
    low = data.draw(st.integers(0, cells - 1))
    high = data.draw(st.integers(low + 1, cells))
    taps = map_taps(cells, 4, content, size)
    (start,), (stop,) = reached(taps, np.array([low]), np.array([high]))
    takes = ((taps.cell >= low) & (taps.cell < high) & (taps.weight != 0)).any(axis=0)
    assert np.array_equal(np.flatnonzero(takes), np.arange(start, stop))
