"""From soft values to pixels and run-length codes, all masks of an image in one call.

Everything happens in blocks on the part of the image that a mask can reach, so that memory grows with the runs of the
result and not with ``M x H x W``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from instseg.core import rle as rle_codes
from instseg.core.geometry import mask_extents
from instseg.core.rendering.taps import FloatArray, IntArray, Layout, Taps, box_taps, reached
from instseg.core.rle import RLE, BoolArray

# Rendered in blocks of this side: what a block needs stays in cache, and its cost per pixel does not grow with the
# mask.
BLOCK = 512
# Pixels of windows' sides whose taps are made at a time.
_SIDES = 1 << 20
# A pixel samples three neighboring cells of an axis, at most.
_REACH = 2
# A window's values reach so far beyond where arithmetic without rounding has them, pixels.
_SLACK = 0.05

Polygon = list[npt.NDArray[np.float64]]
Axes = tuple[Taps, Taps]  # of the rows and of the columns


@dataclass(frozen=True)
class Soft:
    """The kept values of M soft masks of one image, and where they lie.

    Attributes:
        values: (T,) float32, the kept windows one after the other, rows first.
        windows: (M, 4) int64 xyxy, cells of each mask's map: the part that ``values`` holds; outside it is zero.
        foreground: (M, 4) int64 xyxy, the cells that can make a pixel foreground.
        boxes: (M, 4) float32 xyxy in pixels of the image, of masks whose layout is boxed; zeros for others.
        layouts: the distinct layouts.
        which: (M,) int64, the layout of each mask.
        image_size: (H, W).
        threshold: a pixel is foreground above it, of a boxed mask also at it.
    """

    values: Tensor
    windows: Tensor
    foreground: Tensor
    boxes: Tensor
    layouts: tuple[Layout, ...]
    which: Tensor
    image_size: tuple[int, int]
    threshold: float

    @cached_property
    def ends(self) -> IntArray:
        """(M + 1,) where the values of each mask begin in ``values``, and the end of the last."""
        sides = (self.windows[:, 2:] - self.windows[:, :2]).prod(dim=1)
        ends: IntArray = np.concatenate([[0], np.cumsum(sides.numpy())]).astype(np.int64)
        return ends


def parts_of(soft: Tensor, threshold: float, floor: float) -> tuple[Tensor, Tensor]:
    """The parts of soft values (M, h, w) that can be foreground, and those that have to be kept, (M, 4) xyxy each.

    Kept are values of at least ``floor`` and, so that thresholding is exact, whatever shares a pixel with a cell that
    can be foreground.
    """
    # Weights that sum to one but for rounding may lift a value to the threshold.
    cells = (soft > 0) & (soft >= threshold * (1 - 1e-5))
    inner, kept = mask_extents(cells), mask_extents(cells | (soft >= floor))
    if floor > torch.finfo(torch.float32).tiny:  # else everything but zeros is kept already
        low = (inner[:, :2] - _REACH).clamp(min=0)
        high = torch.minimum(inner[:, 2:] + _REACH, inner.new_tensor([soft.shape[2], soft.shape[1]]))
        around = torch.cat([torch.minimum(kept[:, :2], low), torch.maximum(kept[:, 2:], high)], dim=1)
        kept = torch.where(inner.any(dim=1, keepdim=True), around, kept)
    return inner, kept


def encode(soft: Soft) -> list[RLE]:
    """The code of each mask at image size."""
    values = soft.values.cpu().numpy()
    ends, windows, which = soft.ends, soft.windows.numpy(), soft.which.tolist()
    extents = extents_of(soft, soft.foreground)
    height = soft.image_size[0]
    edges: list[IntArray] = []
    for ids in _chunks(extents):
        for i, axes in zip(ids, _axes(soft, ids, extents[ids]), strict=True):
            if soft.threshold <= 0 and soft.layouts[which[i]].boxed:  # also what lies outside reaches it
                edges.append(np.array([0, height * soft.image_size[1]]))
                continue
            top, bottom, left, right = extents[i].tolist()
            x0, y0, x1, y1 = windows[i].tolist()
            cells = values[ends[i] : ends[i + 1]].reshape(y1 - y0, x1 - x0)
            strips: list[IntArray] = []
            inside = np.zeros((0, 0), dtype=bool)
            for rows, columns, block in _blocks(cells, axes, bottom - top, right - left):
                if rows.start == 0:
                    inside = np.zeros((columns.stop - columns.start, bottom - top + 1), dtype=bool)
                compare = np.greater_equal if soft.layouts[which[i]].boxed else np.greater
                compare(block, np.float32(soft.threshold), out=inside[:, rows])
                if rows.stop == bottom - top:
                    strips.append(_edges(inside, top, left + columns.start, height))
            edges.append(_joined(strips))
    return rle_codes.from_edges(edges, soft.image_size)


def dense(soft: Soft) -> Tensor:
    """(M, H, W) float32 on the values' device."""
    out = soft.values.new_zeros(len(soft.which), *soft.image_size)
    extents = extents_of(soft, soft.windows)
    for ids in _chunks(extents):
        for i, axes in zip(ids, _axes(soft, ids, extents[ids]), strict=True):
            _paint(soft, i, axes, extents[i], out[i], 0, 0)
    return out


def block_of(soft: Soft, i: int, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Soft values (h, w) of mask ``i`` on a block of the image, pixels, end exclusive."""
    out = soft.values.new_zeros(bottom - top, right - left)
    extents = extents_of(soft, soft.windows, [i])
    low, high = np.array([top, left]), np.array([bottom, right])
    extents[:, ::2], extents[:, 1::2] = np.maximum(extents[:, ::2], low), np.minimum(extents[:, 1::2], high)
    if (extents[0, ::2] < extents[0, 1::2]).all():
        _paint(soft, i, _axes(soft, [i], extents)[0], extents[0], out, top, left)
    return out


def extents_of(soft: Soft, boxes: Tensor, ids: Sequence[int] | None = None) -> IntArray:
    """Rows and columns (M, 4) (top, bottom, left, right) of the image that the cells in ``boxes`` (M, 4) can reach;
    zeros where they reach nothing. Of the masks ``ids``, by default all."""
    index = np.arange(len(boxes)) if ids is None else np.asarray(ids, dtype=np.int64)
    cells, which = boxes.numpy()[index], soft.which.numpy()[index]
    out = np.zeros((len(index), 4), dtype=np.int64)
    for k, layout in enumerate(soft.layouts):
        here = np.flatnonzero(which == k)
        if not len(here):
            continue
        x0, y0, x1, y1 = cells[here].T
        if layout.boxed:
            spans = _box_spans(soft.boxes.numpy()[index[here]], cells[here], layout)
        elif layout.in_pixels:
            spans = y0, y1, x0, x1
        else:
            spans = *reached(layout.rows, y0, y1), *reached(layout.columns, x0, x1)
        dy, dx = layout.offset
        reach = np.stack(spans, axis=1) + np.array([dy, dy, dx, dx])
        filled = (x0 < x1) & (y0 < y1) & (reach[:, 0] < reach[:, 1]) & (reach[:, 2] < reach[:, 3])
        out[here] = np.where(filled[:, None], reach, 0)
    return out


def _box_spans(boxes: FloatArray, cells: IntArray, layout: Layout) -> tuple[IntArray, ...]:
    """Rows and columns (from, to) of the shown part of the image that the cells of windows in boxes reach."""
    exact = boxes.astype(np.float64)
    side = exact[:, 2:] - exact[:, :2]
    sound = np.isfinite(exact).all(axis=1) & (side > 0).all(axis=1)
    spans: list[IntArray] = []
    for axis in (0, 1):
        begin, step = exact[:, 1 - axis] - layout.offset[axis], side[:, 1 - axis] / layout.grid[axis]
        low = begin + (cells[:, 1 - axis] - 0.5) * step - 0.5 - _SLACK
        high = begin + (cells[:, 3 - axis] + 0.5) * step - 0.5 + _SLACK
        for value in (np.ceil(low), np.floor(high) + 1):
            spans.append(np.where(sound, np.clip(value, 0, layout.size[axis]), 0).astype(np.int64))
    return tuple(spans)


def _chunks(extents: IntArray) -> list[list[int]]:
    """The masks in groups whose taps are made together."""
    sides = np.cumsum(extents[:, 1] - extents[:, 0] + extents[:, 3] - extents[:, 2])
    groups = sides // _SIDES
    bounds = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(extents)]
    return [list(range(a, b)) for a, b in pairwise(bounds)]


def _axes(soft: Soft, ids: Sequence[int], extents: IntArray) -> list[Axes]:
    """The taps of each mask on its extent (top, bottom, left, right), as places in its kept window."""
    which = soft.which.numpy()[ids]
    windows = soft.windows.numpy()[ids]
    out: list[Axes] = [(_NONE, _NONE)] * len(ids)
    for k, layout in enumerate(soft.layouts):
        here = np.flatnonzero(which == k)
        places: list[int] = here.tolist()
        if layout.boxed and places:
            boxes = soft.boxes.numpy()[ids][here]
            sides = [np.full(len(here), side, dtype=np.int64) for side in layout.grid]
            top, bottom, left, right = extents[here].T
            rows = box_taps(boxes[:, 1], boxes[:, 3], sides[0], top, bottom)
            columns = box_taps(boxes[:, 0], boxes[:, 2], sides[1], left, right)
            firsts = [np.concatenate([[0], np.cumsum(n)]).tolist() for n in (bottom - top, right - left)]
            for n, i in enumerate(places):
                x0, y0, x1, y1 = windows[i].tolist()
                out[i] = (
                    _inside(rows, firsts[0][n], firsts[0][n + 1], y0, y1),
                    _inside(columns, firsts[1][n], firsts[1][n + 1], x0, x1),
                )
        elif places:
            rows, columns = (_NONE, _NONE) if layout.in_pixels else (layout.rows, layout.columns)
            dy, dx = layout.offset
            for i in places:
                top, bottom, left, right = extents[i].tolist()
                x0, y0, x1, y1 = windows[i].tolist()
                out[i] = (
                    _inside(rows, top - dy, bottom - dy, y0, y1),
                    _inside(columns, left - dx, right - dx, x0, x1),
                )
    return out


_NONE = Taps(np.zeros((0, 0), dtype=np.int64), np.zeros((0, 0), dtype=np.float32))


def _inside(taps: Taps, start: int, stop: int, low: int, high: int) -> Taps:
    """The taps of pixels ``start`` to ``stop`` on the cells ``low`` to ``high``: those outside get no weight."""
    if not len(taps.cell):  # pixels as they are: tap and cell are one
        return Taps(np.arange(start - low, stop - low)[None], taps.weight)
    index = taps.cell[:, start:stop] - low
    last = high - low - 1
    weight = np.where((index >= 0) & (index <= last), taps.weight[:, start:stop], np.float32(0))
    return Taps(np.clip(index, 0, last), weight)


def _blocks(cells: Any, axes: Axes, height: int, width: int) -> Iterator[tuple[slice, slice, Any]]:
    """Rows, columns and values (columns, rows) of blocks of a mask's extent, strip of columns by strip of columns.

    ``cells`` (h, w) is an array, or a tensor of any device; values are of the same kind.
    """
    (rows, down), (columns, across) = axes
    sampled: Callable[..., Any] = _sampled if isinstance(cells, np.ndarray) else _sampled_tensor
    for left in range(0, width, BLOCK):
        x = slice(left, min(left + BLOCK, width))
        first, last = int(columns[0, x.start]), int(columns[-1, x.stop - 1]) + 1
        for top in range(0, height, BLOCK):
            y = slice(top, min(top + BLOCK, height))
            if not len(down):
                yield y, x, cells[int(rows[0, y.start]) : int(rows[0, y.stop - 1]) + 1, first:last].T
                continue
            # Only the cells that this block samples take part.
            part = sampled(cells[:, first:last], rows[:, y], down[:, y])
            yield y, x, sampled(part.T, columns[:, x] - first, across[:, x])


def _sampled(cells: FloatArray, index: IntArray, weight: FloatArray) -> FloatArray:
    """(n, w) from cells (h, w): the taps of each pixel, weighted and summed.

    NumPy's element-wise arithmetic stays on one core. Matrix products wait for all threads of their library at every
    small mask, which made rendering five times slower on a machine that had anything else to do.
    """
    cells = np.ascontiguousarray(cells)
    out: FloatArray = cells[index[0]]
    out *= weight[0][:, None]
    for place, share in zip(index[1:], weight[1:], strict=True):
        if share.any():
            more = cells[place]
            more *= share[:, None]
            out += more
    return out


def _sampled_tensor(cells: Tensor, index: IntArray, weight: FloatArray) -> Tensor:
    places, shares = (torch.from_numpy(np.ascontiguousarray(a)).to(cells.device) for a in (index, weight))
    return torch.stack([cells[p] * s[:, None] for p, s in zip(places, shares, strict=True)]).sum(dim=0)


def _paint(soft: Soft, i: int, axes: Axes, extent: IntArray, out: Tensor, top: int, left: int) -> None:
    """Writes mask ``i`` on ``extent`` into a picture whose corner is ``top``, ``left`` of the image."""
    x0, y0, x1, y1 = soft.windows[i].tolist()
    ends = soft.ends
    kept = soft.values[int(ends[i]) : int(ends[i + 1])].view(y1 - y0, x1 - x0)
    cells = kept.numpy() if kept.device.type == "cpu" else kept
    a, b, c, d = extent.tolist()
    for rows, columns, block in _blocks(cells, axes, b - a, d - c):
        y, x = rows.start + a - top, columns.start + c - left
        target = out[y : y + rows.stop - rows.start, x : x + columns.stop - columns.start]
        target.copy_(torch.as_tensor(block.T, device=out.device))


def _edges(inside: BoolArray, top: int, left: int, height: int) -> IntArray:
    """Where runs begin and end, in turn, counted down the image's columns.

    Args:
        inside: (w, h + 1) bool, columns first, False in the last row.
        top, left: of its corner in the image.
        height: of the image.
    """
    flat = inside.reshape(-1)
    change = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if len(flat) and flat[0]:
        change = np.concatenate([[0], change])
    column, row = np.divmod(change, inside.shape[1])
    edges: IntArray = (column + left) * height + row + top
    return edges


def _joined(strips: Sequence[IntArray]) -> IntArray:
    """One list of edges. A run that reaches the image's last row continues at the first row of the next column."""
    edges = np.concatenate(strips) if strips else np.zeros(0, dtype=np.int64)
    if len(edges) < 4:
        return edges
    apart = edges[1:-1:2] != edges[2::2]
    return edges if apart.all() else edges[np.concatenate([[True], np.repeat(apart, 2), [True]])]


def polygons(windows: Sequence[tuple[int, int, BoolArray]]) -> list[list[Polygon]]:
    """For each ``(top, left, window)`` its parts, for each part its rings; see :meth:`Masks.polygons`."""
    from contourpy import FillType, contour_generator

    out: list[list[Polygon]] = []
    for top, left, window in windows:
        parts: list[Polygon] = []
        if window.any():
            padded = np.pad(window, 1).astype(np.float64)
            traced = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
            # A pixel's center is half a pixel in, the pad one out.
            corner = np.array([left - 0.5, top - 0.5])
            for points, offsets in zip(*traced, strict=True):
                xy = np.asarray(points) + corner
                parts.append([xy[a:b] for a, b in pairwise(offsets)])
        out.append(parts)
    return out
