"""The window of an image that a training sample shows, decided before any pixel or mask is touched."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from instseg.core import rle as rle_codes
from instseg.core.rle import RLE, decode_part

Box: TypeAlias = tuple[int, int, int, int]

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


def full_view(height: int, width: int) -> CropTransform:
    """The whole image as it is."""
    return CropTransform(0, 0, height, width, (height, width))


def fit_factor(height: int, width: int, short: float, long: float) -> float:
    """The factor that fits an image into ``long`` x ``short``, its ratio kept (the paper's resize)."""
    return min(long / max(height, width), short / min(height, width))


def scaled(side: int, factor: float) -> int:
    """A side after resizing, at least one pixel: ``int(side * factor + 0.5)``, as COCO pipelines round."""
    return max(1, int(side * factor + 0.5))


def crop_view(height: int, width: int, factor: float, crop: int | None, rng: np.random.Generator) -> CropTransform:
    """The image resized by ``factor`` and cut to at most ``crop`` x ``crop`` at a random place.

    The window is a whole number of source pixels, so its own factor differs from ``factor`` by less than one
    source pixel in ``crop``. An image that is smaller than the crop stays whole.
    """
    window: list[tuple[int, int, int]] = []
    for side in (height, width):
        size = scaled(side, factor)
        if crop is None or size <= crop:
            window.append((0, side, size))
            continue
        span = min(side, max(1, math.floor(crop / factor + 0.5)))
        window.append((int(rng.integers(0, side - span + 1)), span, crop))
    (top, span_y, out_y), (left, span_x, out_x) = window
    return CropTransform(top, left, span_y, span_x, (out_y, out_x))


def view_image(image: Tensor, view: CropTransform, recolor: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """The view of an image ``(3, H, W)`` uint8: bilinear without antialiasing, as OpenCV.

    ``recolor`` changes colors and keeps the size; it runs before or after the resize, where there are fewer pixels.
    """
    window = image[:, view.top : view.top + view.height, view.left : view.left + view.width]
    if recolor is not None and view.enlarges:
        window = recolor(window)
    shown = _render(window, view, InterpolationMode.BILINEAR)
    return shown if recolor is None or view.enlarges else recolor(shown)


def view_masks(codes: Sequence[RLE], view: CropTransform) -> tuple[Tensor, Tensor, Tensor]:
    """The view of the masks of an image, decoded one at a time and only inside the window.

    Masks are resized to the nearest pixel, as OpenCV. Objects without a pixel in the view are left out.

    Returns:
        masks (N, h, w) uint8; boxes (N, 4) float32 xyxy, the tight boxes of the cut masks resized with the view (the
        last column counts in full); indices (N,) int64 into ``codes``.
    """
    near = _near(codes, view)
    chunk = max(1, _CHUNK_PIXELS // (view.height * view.width))
    parts = [_view_chunk(codes, near[start : start + chunk], view) for start in range(0, len(near), chunk)]
    if not parts:
        return torch.zeros(0, *view.out_size, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    masks, boxes, index = (torch.cat(part) if len(parts) > 1 else part[0] for part in zip(*parts, strict=True))
    return masks, boxes, index


def view_boxes(boxes: Tensor, view: CropTransform) -> Tensor:
    """Boxes (N, 4) xyxy of the window, resized, mirrored and turned with the view."""
    factor = torch.tensor([view.size[1] / view.width, view.size[0] / view.height], dtype=torch.float32).repeat(2)
    x0, y0, x1, y1 = (boxes.float() * factor).unbind(1)
    height, width = view.size
    if view.mirror:
        x0, x1 = width - x1, width - x0
    if view.mirror_vertical:
        y0, y1 = height - y1, height - y0
    for _ in range(view.turns % 4):  # counter-clockwise: a column x becomes the row width - x
        x0, y0, x1, y1 = y0, width - x1, y1, width - x0
        height, width = width, height
    return torch.stack([x0, y0, x1, y1], dim=1)


def _near(codes: Sequence[RLE], view: CropTransform) -> list[tuple[int, Box]]:
    """The codes whose tight box meets the window, and that box in source pixels."""
    if not codes:
        return []
    boxes = rle_codes.boxes(codes).astype(np.int64)
    x0, y0, x1, y1 = boxes.T
    meets = (x0 < view.left + view.width) & (x1 > view.left) & (y0 < view.top + view.height) & (y1 > view.top)
    return [(i, (a, b, c, d)) for i, (a, b, c, d) in enumerate(boxes.tolist()) if meets[i]]


def _view_chunk(
    codes: Sequence[RLE], near: Sequence[tuple[int, Box]], view: CropTransform
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks, boxes and indices of the view, of some of the codes."""
    window = np.zeros((len(near), view.height, view.width), dtype=np.uint8)
    boxes: list[Box] = []
    kept: list[int] = []
    for i, box in near:
        inside = _cut(codes[i], box, view, window[len(kept)])
        if inside is not None:
            boxes.append(inside)
            kept.append(i)
    masks = _render(torch.from_numpy(window[: len(kept)]), view, InterpolationMode.NEAREST)
    shown = view_boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4), view)
    index = torch.tensor(kept, dtype=torch.int64)
    # Shrinking to the nearest pixel can lose a thin object.
    alive = masks.flatten(1).any(dim=1).bool()  # torch gives uint8 for uint8
    return (masks, shown, index) if bool(alive.all()) else (masks[alive], shown[alive], index[alive])


def _cut(code: RLE, box: Box, view: CropTransform, window: npt.NDArray[np.uint8]) -> Box | None:
    """Write a mask with the tight box ``box`` into the window; gives its tight box in there, None without a pixel."""
    x0, y0 = max(box[0], view.left), max(box[1], view.top)
    x1, y1 = min(box[2], view.left + view.width), min(box[3], view.top + view.height)
    part = decode_part(code, y0, x0, y1, x1)
    window[y0 - view.top : y1 - view.top, x0 - view.left : x1 - view.left] = part
    if (x0, y0, x1, y1) != box:
        columns, rows = np.flatnonzero(part.any(axis=0)), np.flatnonzero(part.any(axis=1))
        if not len(columns):
            return None
        x0, y0, x1, y1 = x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1
    return int(x0) - view.left, int(y0) - view.top, int(x1) - view.left, int(y1) - view.top


def _render(window: Tensor, view: CropTransform, how: InterpolationMode) -> Tensor:
    # Turning and mirroring go where there are fewer pixels; both commute with the resize but for the half pixel
    # by which the nearest neighbor of OpenCV leans to the top left.
    if view.enlarges:
        return _resize(_turn(window, view), view.out_size, how).contiguous()
    return _turn(_resize(window, view.size, how), view).contiguous()


def _resize(window: Tensor, size: tuple[int, int], how: InterpolationMode) -> Tensor:
    if tuple(window.shape[-2:]) == size:
        return window
    if not len(window):
        return window.new_zeros(0, *size)
    resized: Tensor = F.resize(window, list(size), interpolation=how, antialias=False)
    return resized


def _turn(window: Tensor, view: CropTransform) -> Tensor:
    if view.mirror:
        window = F.horizontal_flip(window)
    if view.mirror_vertical:
        window = F.vertical_flip(window)
    return torch.rot90(window, view.turns, (-2, -1)) if view.turns % 4 else window
