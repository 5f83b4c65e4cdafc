"""Soft masks at model resolution, rendered into the image on demand and never all at once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from instseg.core import rle as rle_codes
from instseg.core.errors import DataError
from instseg.core.geometry import InputGeometry, Placement, mask_extents
from instseg.core.rle import RLE, BoolArray

# Rendered in blocks of this side: the matrices of a block stay in cache, and its cost per pixel does not grow with
# the mask.
BLOCK = 512

Polygon = list[npt.NDArray[np.float64]]


class Masks:
    """M soft masks with their placement in an image of ``image_size`` (H, W).

    Each mask keeps only the window of the model's own map in which it is at least ``floor``; outside it is zero.
    Everything else is rendered when asked for, one mask's own box at a time, so memory grows neither with
    ``M x H x W`` nor with ``M x h x w``. A pixel is foreground where the rendered value is above ``threshold``;
    the result equals the dense rendering (enlarge, cut the padding, resize, threshold) pixel by pixel.
    """

    def __init__(
        self,
        values: Tensor,
        windows: Tensor,
        cores: Tensor,
        placements: Sequence[Placement],
        which: Tensor,
        image_size: tuple[int, int],
        threshold: float = 0.5,
    ) -> None:
        """Made by :meth:`from_soft`, :meth:`from_bool` and :meth:`cat`.

        Args:
            values: (T,) float32, the windows' soft values one after the other, rows first.
            windows: (M, 4) int64 xyxy on the map, the part of it that ``values`` holds.
            cores: (M, 4) int64 xyxy on the map, where the soft value is above ``threshold``.
            placements: the distinct placements.
            which: (M,) int64, the placement of each mask.
            image_size: (H, W) of the image.
            threshold: a pixel is foreground above it, in [0, 1).
        """
        self.values = values
        self.window_boxes = windows.cpu()
        self.foreground_boxes = cores.cpu()
        self.placements = tuple(placements)
        self.which = which.cpu()
        self.image_size = image_size
        self.threshold = threshold
        sizes = (self.window_boxes[:, 2] - self.window_boxes[:, 0]) * (
            self.window_boxes[:, 3] - self.window_boxes[:, 1]
        )
        self._ends = torch.cumsum(sizes, 0).tolist()
        self._rles: list[RLE] | None = None

    @classmethod
    def from_soft(
        cls,
        soft: Tensor,
        placement: Placement,
        image_size: tuple[int, int] | None = None,
        threshold: float = 0.5,
        floor: float = 0.01,
    ) -> "Masks":
        """Masks from dense maps.

        Args:
            soft: (M, h, w) float in [0, 1], at the resolution of ``placement.grid``.
            placement: where the maps lie in the image.
            image_size: (H, W) of the image; by default what the placement covers.
            threshold: a pixel is foreground above it.
            floor: soft values below it are kept only inside the window of larger ones; :meth:`soft` is exact to
                ``floor``, everything that is thresholded is exact.
        """
        if tuple(soft.shape[1:]) != placement.grid:
            raise ValueError(f"maps of {tuple(soft.shape[1:])} do not fit a placement of {placement.grid}")
        soft = soft.detach().float()
        windows = mask_extents(soft >= floor)
        cores = mask_extents(soft > threshold)
        values = [soft[i, y0:y1, x0:x1].reshape(-1) for i, (x0, y0, x1, y1) in enumerate(windows.tolist())]
        which = torch.zeros(len(soft), dtype=torch.int64)
        flat = torch.cat(values) if values else soft.new_zeros(0)
        return cls(flat, windows, cores, (placement,), which, image_size or placement.size, threshold)

    @classmethod
    def from_maps(
        cls, soft: Tensor, size: tuple[int, int], stride: int, threshold: float = 0.5, floor: float = 0.01
    ) -> "Masks":
        """Masks from maps at a fraction of a network input.

        Args:
            soft: (M, h, w) float in [0, 1]; they are enlarged by ``stride`` (bilinear) and cut to ``size``.
            size: (H, W) of the input without padding.
            stride: pixels of the input a map cell.
            threshold, floor: as in :meth:`from_soft`.
        """
        placement = Placement((int(soft.shape[1]), int(soft.shape[2])), stride, size, size)
        return cls.from_soft(soft, placement, size, threshold, floor)

    @classmethod
    def from_bool(cls, masks: Tensor) -> "Masks":
        """Masks that are already at image size: (M, H, W) bool or uint8."""
        height, width = masks.shape[-2:]
        return cls.from_soft(masks.bool().float(), Placement.identity(height, width))

    @classmethod
    def cat(cls, parts: Sequence["Masks"]) -> "Masks":
        """The masks of several parts of one image, in order. Raises ValueError when images or thresholds differ."""
        if len({(p.image_size, p.threshold) for p in parts}) != 1:
            raise ValueError("masks of different images or thresholds cannot be joined")
        placements = list(dict.fromkeys(p for part in parts for p in part.placements))
        position = {placement: k for k, placement in enumerate(placements)}
        which = [torch.tensor([position[p] for p in part.placements] or [0])[part.which] for part in parts]
        joined = cls(
            torch.cat([p.values for p in parts]),
            torch.cat([p.window_boxes for p in parts]),
            torch.cat([p.foreground_boxes for p in parts]),
            placements,
            torch.cat(which),
            parts[0].image_size,
            parts[0].threshold,
        )
        known = [part._rles for part in parts]
        if all(codes is not None for codes in known):
            joined._rles = [code for codes in known for code in codes or ()]
        return joined

    def to_image(self, geometry: "InputGeometry") -> "Masks":
        """Masks in pixels of a network input, in the image that it shows."""
        if any(p.offset != (0, 0) or p.size != geometry.content for p in self.placements):
            raise ValueError(f"masks that do not cover an input of {geometry.content} cannot be brought to its image")
        placements = [replace(p, size=geometry.size, offset=geometry.offset) for p in self.placements]
        return Masks(
            self.values,
            self.window_boxes,
            self.foreground_boxes,
            placements,
            self.which,
            geometry.image_size,
            self.threshold,
        )

    def at_size(self, size: tuple[int, int]) -> "Masks":
        """The same masks for the image at another size (H, W); each must cover the whole image, not a tile of it."""
        if any(p.offset != (0, 0) or p.size != self.image_size for p in self.placements):
            raise ValueError("masks of a part of the image cannot be brought to another size")
        placements = [replace(p, size=size) for p in self.placements]
        return Masks(
            self.values, self.window_boxes, self.foreground_boxes, placements, self.which, size, self.threshold
        )

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> "Masks":
        """One mask (an int gives ``Masks`` of length one), a slice, a boolean (M,) or an index tensor."""
        chosen = select(len(self), index)
        ids = chosen.tolist()
        values = [self._flat(i) for i in ids]
        part = Masks(
            torch.cat(values) if values else self.values[:0],
            self.window_boxes[chosen],
            self.foreground_boxes[chosen],
            self.placements,
            self.which[chosen],
            self.image_size,
            self.threshold,
        )
        if self._rles is not None:
            part._rles = [self._rles[i] for i in ids]
        return part

    def __repr__(self) -> str:
        return f"Masks({len(self)} of {self.image_size[0]}x{self.image_size[1]} pixels)"

    @property
    def device(self) -> torch.device:
        return self.values.device

    def to(self, device: torch.device | str) -> "Masks":
        """The same masks with their soft values on ``device``."""
        moved = Masks(
            self.values.to(device),
            self.window_boxes,
            self.foreground_boxes,
            self.placements,
            self.which,
            self.image_size,
            self.threshold,
        )
        moved._rles = self._rles
        return moved

    def cpu(self) -> "Masks":
        return self.to("cpu")

    def _flat(self, i: int) -> Tensor:
        return self.values[self._ends[i - 1] if i else 0 : self._ends[i]]

    def window(self, i: int) -> Tensor:
        """The kept soft values (h, w) of mask ``i``, at ``window_boxes[i]`` of its map."""
        x0, y0, x1, y1 = self.window_boxes[i].tolist()
        return self._flat(i).view(y1 - y0, x1 - x0)

    def _extent(self, i: int, box: Tensor) -> tuple[int, int, int, int]:
        """Rows and columns (top, bottom, left, right) of the placed region that values in ``box`` can reach."""
        placement = self.placements[int(self.which[i])]
        x0, y0, x1, y1 = box.tolist()
        if x1 <= x0 or y1 <= y0:
            return 0, 0, 0, 0
        if placement.is_identity:
            return y0, y1, x0, x1
        top, bottom = placement.reach(0, y0, y1)
        left, right = placement.reach(1, x0, x1)
        # Cells that lie in the padding reach nothing.
        return (top, bottom, left, right) if top < bottom and left < right else (0, 0, 0, 0)

    def _render(self, i: int, rows: slice, columns: slice) -> Tensor:
        """Soft values of mask ``i`` on a block of the placed region."""
        placement = self.placements[int(self.which[i])]
        x0, y0, x1, y1 = self.window_boxes[i].tolist()
        values = self.window(i)
        if placement.is_identity:
            out = values.new_zeros(rows.stop - rows.start, columns.stop - columns.start)
            top, left = max(rows.start, y0), max(columns.start, x0)
            bottom, right = min(rows.stop, y1), min(columns.stop, x1)
            if top < bottom and left < right:
                inside = values[top - y0 : bottom - y0, left - x0 : right - x0]
                out[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start] = inside
            return out
        # Only the map cells that this block samples take part.
        (first_y, last_y), (first_x, last_x) = (
            placement.taps(axis, block.start, block.stop) for axis, block in ((0, rows), (1, columns))
        )
        first_y, last_y = max(first_y, y0), min(last_y, y1)
        first_x, last_x = max(first_x, x0), min(last_x, x1)
        if first_y >= last_y or first_x >= last_x:
            return values.new_zeros(rows.stop - rows.start, columns.stop - columns.start)
        down = placement.weights(0)[rows, first_y:last_y]
        across = placement.weights(1)[columns, first_x:last_x]
        cells = values[first_y - y0 : last_y - y0, first_x - x0 : last_x - x0]
        if cells.device.type == "cpu":
            return torch.from_numpy(_sampled(_sampled(cells.numpy(), down.numpy()).T, across.numpy()).T)
        with torch.autocast(cells.device.type, enabled=False):
            return down.to(cells.device) @ cells @ across.to(cells.device).T

    def reach(self, i: int) -> tuple[int, int, int, int]:
        """Rows and columns (top, bottom, left, right) of the image that the kept values of mask ``i`` reach."""
        top, bottom, left, right = self._extent(i, self.window_boxes[i])
        dy, dx = self.placements[int(self.which[i])].offset
        return top + dy, bottom + dy, left + dx, right + dx

    def block(self, i: int, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Soft values (h, w) of mask ``i`` on a block of the image, pixels, end exclusive."""
        out = self.values.new_zeros(bottom - top, right - left)
        dy, dx = self.placements[int(self.which[i])].offset
        first, last, low, high = self.reach(i)
        extent = max(first, top) - dy, min(last, bottom) - dy, max(low, left) - dx, min(high, right) - dx
        for rows, columns in self._blocks(*extent):
            y, x = rows.start + dy - top, columns.start + dx - left
            rendered = self._render(i, rows, columns)
            out[y : y + rendered.shape[0], x : x + rendered.shape[1]] = rendered
        return out

    def _blocks(self, top: int, bottom: int, left: int, right: int) -> Iterator[tuple[slice, slice]]:
        for y in range(top, bottom, BLOCK):
            for x in range(left, right, BLOCK):
                yield slice(y, min(y + BLOCK, bottom)), slice(x, min(x + BLOCK, right))

    def windows(self) -> Iterator[tuple[int, int, int, BoolArray]]:
        """Each mask's own box: ``(index, top, left, window)``, window a boolean array (h, w), possibly (0, 0)."""
        masks = self.cpu()
        for i in range(len(masks)):
            top, bottom, left, right = masks._extent(i, masks.foreground_boxes[i])
            out = np.zeros((bottom - top, right - left), dtype=bool)
            for rows, columns in masks._blocks(top, bottom, left, right):
                block = masks._render(i, rows, columns).numpy() > masks.threshold
                out[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = block
            dy, dx = masks.placements[int(masks.which[i])].offset
            yield i, top + dy, left + dx, out

    def rle(self) -> list[RLE]:
        """COCO compressed run-length codes at image size. Computed once and kept."""
        if self._rles is None:
            self._rles = [
                rle_codes.encode_window(window, top, left, self.image_size) for _, top, left, window in self.windows()
            ]
        return self._rles

    def bool(self) -> Tensor:
        """(M, H, W) bool on the CPU: M bytes a pixel. :meth:`windows` and :meth:`rle` need far less."""
        out = torch.zeros(len(self), *self.image_size, dtype=torch.bool)
        for i, top, left, window in self.windows():
            out[i, top : top + window.shape[0], left : left + window.shape[1]] = torch.from_numpy(window)
        return out

    def soft(self) -> Tensor:
        """(M, H, W) float32 in [0, 1] on the masks' device: four bytes a pixel and mask."""
        out = self.values.new_zeros(len(self), *self.image_size)
        for i in range(len(self)):
            dy, dx = self.placements[int(self.which[i])].offset
            for rows, columns in self._blocks(*self._extent(i, self.window_boxes[i])):
                target = out[i, rows.start + dy : rows.stop + dy, columns.start + dx : columns.stop + dx]
                target.copy_(self._render(i, rows, columns))
        return out

    def areas(self) -> Tensor:
        """(M,) int64, foreground pixels at image size."""
        return torch.from_numpy(rle_codes.area(self.rle())).long()

    def boxes(self) -> Tensor:
        """(M, 4) float32 xyxy in image pixels, the tight extent of the foreground; x1 is the last column plus one.
        Zeros for an empty mask."""
        return torch.from_numpy(rle_codes.boxes(self.rle())).float()

    def polygons(self) -> list[list[Polygon]]:
        """For each mask its parts, for each part its rings ``(K, 2)`` xy in image pixels, closed: the outer ring
        first, then the holes. A pixel belongs to a part when its center lies inside the outer ring and in no hole."""
        return [_trace(window, top, left) for _, top, left, window in self.windows()]


def select(length: int, index: Any) -> Tensor:
    """Any index as an int64 tensor of positions. Raises IndexError outside ``length``, DataError for a boolean
    of the wrong length."""
    if isinstance(index, int):
        if not -length <= index < length:
            raise IndexError(f"index {index} of {length} instances")
        return torch.tensor([index % length])
    if isinstance(index, slice):
        return torch.arange(length)[index]
    chosen = torch.as_tensor(index).cpu()
    if chosen.dtype == torch.bool:
        if chosen.shape != (length,):
            raise DataError(f"a boolean index of shape {tuple(chosen.shape)} cannot filter {length} instances.")
        return chosen.nonzero()[:, 0]
    chosen = chosen.reshape(-1).long()
    if len(chosen) and not (-length <= int(chosen.min()) and int(chosen.max()) < length):
        raise IndexError(f"indices between {int(chosen.min())} and {int(chosen.max())} of {length} instances")
    return chosen % max(length, 1)


def _sampled(cells: npt.NDArray[np.float32], weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """``weights @ cells`` for weights (P, k) with at most three neighboring non-zero entries a row.

    NumPy's element-wise arithmetic stays on one core. Matrix products wait for all threads of their library at every
    small mask, which made rendering five times slower on a machine that had anything else to do.
    """
    first = (weights != 0).argmax(axis=1)
    rows = np.arange(len(weights))
    out: npt.NDArray[np.float32] = weights[rows, first][:, None] * cells[first]
    for step in (1, 2):
        tap = np.minimum(first + step, weights.shape[1] - 1)
        weight = np.where(first + step < weights.shape[1], weights[rows, tap], np.float32(0))
        if weight.any():
            out += weight[:, None] * cells[tap]
    return out


def _trace(window: BoolArray, top: int, left: int) -> list[Polygon]:
    if not window.any():
        return []
    from contourpy import FillType, contour_generator

    padded = np.pad(window, 1).astype(np.float64)
    traced = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    parts: list[Polygon] = []
    for points, offsets in zip(*traced, strict=True):
        xy = np.asarray(points) + np.array(
            [left - 0.5, top - 0.5]
        )  # a pixel's center is half a pixel in, the pad one out
        parts.append([xy[a:b] for a, b in pairwise(offsets)])
    return parts
