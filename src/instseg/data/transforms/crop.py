"""The window of an image that a training sample shows, decided before any pixel or mask is touched."""

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from instseg.core.crop import CropTransform, turned
from instseg.core.geometry import scaled


def draw_crop(height: int, width: int, factor: float, crop: int | None, rng: np.random.Generator) -> CropTransform:
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


def crop_image(image: Tensor, crop: CropTransform, recolor: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """What a crop shows of an image ``(3, H, W)`` uint8: bilinear without antialiasing, as OpenCV.

    ``recolor`` changes colors and keeps the size; it runs before or after the resize, where there are fewer pixels.
    """
    window = image[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    if recolor is not None and crop.enlarges:
        window = recolor(window)
    shown = _rendered(window, crop)
    return shown if recolor is None or crop.enlarges else recolor(shown)


def _rendered(window: Tensor, crop: CropTransform) -> Tensor:
    if crop.enlarges:
        return _resized(turned(window, crop), crop.out_size).contiguous()
    return turned(_resized(window, crop.size), crop).contiguous()


def _resized(window: Tensor, size: tuple[int, int]) -> Tensor:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    if tuple(window.shape[-2:]) == size:
        return window
    resized: Tensor = F.resize(window, list(size), interpolation=InterpolationMode.BILINEAR, antialias=False)
    return resized
