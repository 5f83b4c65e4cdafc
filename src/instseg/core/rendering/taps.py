"""Sparse resampling of one axis: for each pixel the few cells of a map that it samples, and their weights.

Bilinear resizing and cropping are linear and separable, so one list of taps for the rows and one for the columns say
exactly what the dense steps compute. Sample positions are taken in float32 and in torch's order, because that is how
torch places its own.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class Taps(NamedTuple):
    """K taps of each of n pixels along one axis.

    Attributes:
        cell: (K, n) int64, neighboring cells in ascending order.
        weight: (K, n) float32; zero where a pixel has fewer taps, or a tap lies outside a window.
    """

    cell: IntArray
    weight: FloatArray


@dataclass(frozen=True)
class Layout:
    """How soft values lie in an image.

    A whole map is enlarged by ``stride`` to the padded network input, cut to ``content`` (the input without its
    padding), resized to ``size`` (bilinear, half-pixel centers, no antialiasing), and put into the image at
    ``offset``. A boxed window lies in a box of its own, and is sampled at the pixels' centers in one step.

    Attributes:
        grid: (h, w) of the map or window.
        stride: pixels of the network input for each cell.
        content: (h, w) of the network input without padding.
        size: (H, W) of the part of the image that the input shows.
        offset: (top, left) of that part; not zero for a tile.
        aligned: the first step aligns corners and shifts by half a stride, as CondInst's ``aligned_bilinear``.
        boxed: the values are windows in boxes.
    """

    grid: tuple[int, int]
    stride: int
    content: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)
    aligned: bool = False
    boxed: bool = False

    @property
    def in_pixels(self) -> bool:
        """Whether the values are pixels of the image already."""
        return self.stride == 1 and self.grid == self.content == self.size and not self.boxed

    @cached_property
    def rows(self) -> Taps:
        """Of a whole map, from the first row of ``size`` to the last."""
        return map_taps(self.grid[0], self.stride, self.content[0], self.size[0], self.aligned)

    @cached_property
    def columns(self) -> Taps:
        """Of a whole map, from the first column of ``size`` to the last."""
        return map_taps(self.grid[1], self.stride, self.content[1], self.size[1], self.aligned)


def map_taps(cells: int, stride: int, content: int, size: int, aligned: bool = False) -> Taps:
    """The taps of ``size`` pixels on a map of ``cells``: enlarged by ``stride``, cut to ``content``, resized.

    Two for one step, three for two.
    """
    enlarged = np.arange(content, dtype=np.float32)
    if aligned:
        first = _lerp(np.maximum(enlarged - np.float32(stride // 2), 0) * np.float32(1 / stride), cells)
    else:
        first = _lerp(_half_pixel(content, 1 / stride), cells)
    if content == size:
        return first
    # A pixel of the second step picks two neighbors of the first, whose cells are the same or one apart.
    position = _half_pixel(size, content / size)
    low = np.minimum(position.astype(np.int64), content - 1)
    high, part = np.minimum(low + 1, content - 1), position - low.astype(np.float32)
    begin, (near, far) = first.cell[0][low], first.weight[:, low]
    same, (near2, far2) = first.cell[0][high] == begin, first.weight[:, high]
    rest = 1 - part
    weight = np.stack(
        [
            near * rest + np.where(same, near2, 0) * part,
            far * rest + np.where(same, far2, near2) * part,
            np.where(same, 0, far2) * part,
        ]
    )
    return Taps(np.minimum(begin + np.arange(3)[:, None], cells - 1), weight.astype(np.float32))


def box_taps(low: FloatArray, high: FloatArray, cells: IntArray, start: IntArray, stop: IntArray) -> Taps:
    """The taps of windows in boxes, as ``grid_sample(align_corners=False)`` has them with zeros around: two each.

    Args:
        low, high: (M,) float32, where each box begins and ends, pixels.
        cells: (M,) of each window.
        start, stop: (M,) the pixels that are asked for.

    Returns:
        The taps of all windows one after the other, ``stop - start`` pixels each.
    """
    count = stop - start
    first = np.cumsum(count) - count
    pixel = (np.arange(int(count.sum())) + np.repeat(start - first, count)).astype(np.float32)
    begin, extent, side = np.repeat(low, count), np.repeat(high - low, count), np.repeat(cells, count)
    unit = (pixel + np.float32(0.5) - begin) / extent * np.float32(2) - np.float32(1)  # -1 to 1 in the box
    position = ((unit + np.float32(1)) * side.astype(np.float32) - np.float32(1)) / np.float32(2)
    position = np.clip(position, -2, side + 1).astype(np.float32)
    near = np.floor(position).astype(np.int64)
    part = position - near.astype(np.float32)
    index = np.stack([near, near + 1])
    inside = (index >= 0) & (index < side)
    weight = np.where(inside, np.stack([1 - part, part]), np.float32(0)).astype(np.float32)
    return Taps(np.clip(index, 0, np.maximum(side - 1, 0)), weight)


def reached(taps: Taps, low: IntArray, high: IntArray) -> tuple[IntArray, IntArray]:
    """The pixels, from and to (exclusive), in which the cells ``low`` to ``high`` (each (M,)) take part.

    An empty span where they lie in the padding.
    """
    last = taps.cell[0] + (taps.weight[1:] != 0).sum(axis=0)
    start, stop = np.searchsorted(last, low, "left"), np.searchsorted(taps.cell[0], high, "left")
    return start.astype(np.int64), np.maximum(start, stop).astype(np.int64)


def _half_pixel(count: int, step: float) -> FloatArray:
    """Sample positions of ``count`` pixels that lie ``step`` source pixels apart, ``align_corners=False``."""
    pixel = np.arange(count, dtype=np.float32)
    position: FloatArray = np.maximum((pixel + np.float32(0.5)) * np.float32(step) - np.float32(0.5), 0)
    return position


def _lerp(position: FloatArray, cells: int) -> Taps:
    """Two taps at positions from 0; past the last cell its value holds."""
    low = np.minimum(position.astype(np.int64), cells - 1)
    part = (position - low.astype(np.float32)).astype(np.float32)
    far = np.where(low + 1 < cells, part, np.float32(0))
    near = 1 - part + (part - far)
    return Taps(np.stack([low, np.minimum(low + 1, cells - 1)]), np.stack([near, far]).astype(np.float32))
