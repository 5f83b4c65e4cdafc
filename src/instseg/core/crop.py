"""The geometry that augmentation applies to an image, and what it makes of boxes, polygons and masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.core import rle as rle_codes
from instseg.core.rle import RLE, UInt8Array, decode_parts

Box: TypeAlias = tuple[int, int, int, int]
Resize: TypeAlias = Callable[[Tensor, tuple[int, int]], Tensor]
FloatArray: TypeAlias = npt.NDArray[np.float64]

# Masks are cut and resized in groups of at most this many source pixels together.
_CHUNK_PIXELS = 1 << 25


@dataclass(frozen=True)
class CropTransform:
    """A window of the source image, resized to ``size``, then mirrored and turned.

    Attributes:
        top, left, height, width: the window in source pixels, inside the image.
        size: (h, w) to which the window is resized, before it is turned.
        mirror: left to right.
        mirror_vertical: top to bottom.
        turns: quarter turns counter-clockwise, after the mirroring.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]
    mirror: bool = False
    mirror_vertical: bool = False
    turns: int = 0

    @property
    def out_size(self) -> tuple[int, int]:
        """(h, w) of the result."""
        return self.size if self.turns % 2 == 0 else (self.size[1], self.size[0])

    @property
    def enlarges(self) -> bool:
        return self.size[0] * self.size[1] > self.height * self.width

    def boxes(self, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) xyxy of the window, resized, mirrored and turned with it."""
        factor = torch.tensor([self.size[1] / self.width, self.size[0] / self.height], dtype=torch.float32).repeat(2)
        x0, y0, x1, y1 = (boxes.float() * factor).unbind(1)
        height, width = self.size
        if self.mirror:
            x0, x1 = width - x1, width - x0
        if self.mirror_vertical:
            y0, y1 = height - y1, height - y0
        for _ in range(self.turns % 4):  # counter-clockwise: a column x becomes the row width - x
            x0, y0, x1, y1 = y0, width - x1, y1, width - x0
            height, width = width, height
        return torch.stack([x0, y0, x1, y1], dim=1)

    def points(self, points: FloatArray) -> FloatArray:
        """Points (K, 2) xy of the source image, float64, in pixels of the result; they are not clipped."""
        x = (points[:, 0] - self.left) * (self.size[1] / self.width)
        y = (points[:, 1] - self.top) * (self.size[0] / self.height)
        height, width = self.size
        x = width - x if self.mirror else x
        y = height - y if self.mirror_vertical else y
        for _ in range(self.turns % 4):
            x, y = y, width - x
            height, width = width, height
        return np.stack([x, y], axis=1)

    def maps(self, maps: Tensor, resize: Resize | None = None) -> Tensor:
        """Maps (N, H, W) of the source image, cut, resized (None: to the nearest pixel), mirrored and turned."""
        return rendered(maps[:, self.top : self.top + self.height, self.left : self.left + self.width], self, resize)


def full_crop(height: int, width: int) -> CropTransform:
    """The whole image as it is."""
    return CropTransform(0, 0, height, width, (height, width))


def crop_masks(codes: Sequence[RLE], crop: CropTransform) -> tuple[Tensor, Tensor, Tensor]:
    """The masks of an image as a crop shows them, decoded one at a time and only inside the window.

    Masks are resized to the nearest pixel, as OpenCV. Objects without a pixel in it are left out.

    Returns:
        masks (N, h, w) uint8; boxes (N, 4) float32 xyxy, the tight boxes of the cut masks resized with the crop (the
        last column counts in full); indices (N,) int64 into ``codes``.
    """
    near = _near(codes, crop)
    chunk = max(1, _CHUNK_PIXELS // (crop.height * crop.width))
    parts = [_chunk(codes, near[start : start + chunk], crop) for start in range(0, len(near), chunk)]
    if not parts:
        return torch.zeros(0, *crop.out_size, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    masks, boxes, index = (torch.cat(part) if len(parts) > 1 else part[0] for part in zip(*parts, strict=True))
    return masks, boxes, index


def rendered(window: Tensor, crop: CropTransform, resize: Resize | None = None) -> Tensor:
    """The cut window (N, height, width) of maps, resized, mirrored and turned.

    Turning and mirroring go where there are fewer pixels; both commute with the resize but for the half pixel by which
    the nearest neighbor of OpenCV leans to the top left.
    """
    resize = resize or _nearest
    if crop.enlarges:
        return resize(turned(window, crop), crop.out_size).contiguous()
    return turned(resize(window, crop.size), crop).contiguous()


def turned(window: Tensor, crop: CropTransform) -> Tensor:
    """Maps (N, h, w) mirrored and turned as ``crop`` says."""
    if crop.mirror:
        window = window.flip(-1)
    if crop.mirror_vertical:
        window = window.flip(-2)
    return torch.rot90(window, crop.turns, (-2, -1)) if crop.turns % 4 else window


def _nearest(window: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(window.shape[-2:]) == size:
        return window
    if not len(window):
        return window.new_zeros(0, *size)
    whole = window if window.dtype == torch.uint8 else window.double()  # not every type can be resized
    return F.interpolate(whole[None], size=size, mode="nearest")[0].to(window.dtype)


def _near(codes: Sequence[RLE], crop: CropTransform) -> list[tuple[int, Box]]:
    """The codes whose tight box meets the window, and that box in source pixels."""
    if not codes:
        return []
    boxes = rle_codes.boxes(codes).astype(np.int64)
    x0, y0, x1, y1 = boxes.T
    meets = (x0 < crop.left + crop.width) & (x1 > crop.left) & (y0 < crop.top + crop.height) & (y1 > crop.top)
    return [(i, (a, b, c, d)) for i, (a, b, c, d) in enumerate(boxes.tolist()) if meets[i]]


def _chunk(codes: Sequence[RLE], near: Sequence[tuple[int, Box]], crop: CropTransform) -> tuple[Tensor, Tensor, Tensor]:
    """Masks, boxes and indices of some of the codes."""
    window = np.zeros((len(near), crop.height, crop.width), dtype=np.uint8)
    left, top, right, bottom = crop.left, crop.top, crop.left + crop.width, crop.top + crop.height
    cut: list[Box] = [(max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)) for _, (x0, y0, x1, y1) in near]
    parts = decode_parts([codes[i] for i, _ in near], [(y0, x0, y1, x1) for x0, y0, x1, y1 in cut])
    boxes: list[Box] = []
    kept: list[int] = []
    for (i, box), place, part in zip(near, cut, parts, strict=True):
        inside = _pasted(part, place, box, crop, window[len(kept)])
        if inside is not None:
            boxes.append(inside)
            kept.append(i)
    masks = rendered(torch.from_numpy(window[: len(kept)]), crop)
    shown = crop.boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    index = torch.tensor(kept, dtype=torch.int64)
    # Shrinking to the nearest pixel can lose a thin object.
    alive = masks.flatten(1).any(dim=1).bool()  # torch gives uint8 for uint8
    return (masks, shown, index) if bool(alive.all()) else (masks[alive], shown[alive], index[alive])


def _pasted(part: UInt8Array, place: Box, box: Box, crop: CropTransform, window: npt.NDArray[np.uint8]) -> Box | None:
    """Write the part of a mask at ``place`` into the window; the mask's tight box in there, None without a pixel.

    ``box`` is the tight box of the whole mask.
    """
    x0, y0, x1, y1 = place
    window[y0 - crop.top : y1 - crop.top, x0 - crop.left : x1 - crop.left] = part
    if place != box:
        columns, rows = np.flatnonzero(part.any(axis=0)), np.flatnonzero(part.any(axis=1))
        if not len(columns):
            return None
        x0, y0, x1, y1 = x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1
    return int(x0) - crop.left, int(y0) - crop.top, int(x1) - crop.left, int(y1) - crop.top
