"""The window of an image that a training sample shows, decided before any pixel or mask is touched."""

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from instseg.core.crop import CropTransform
from instseg.core.geometry import scaled
from instseg.ops.resize import resize_image, unit_floats


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


def crop_image(
    image: Tensor, crop: CropTransform, recolor: Callable[[Tensor], Tensor] | None = None, antialias: bool = False
) -> Tensor:
    """What a crop shows of an image ``(3, H, W)`` uint8, resized as prediction resizes it.

    Args:
        image: where it is neither resized nor recolored the result is uint8 too, else float32 in [0, 1].
        crop: the window.
        recolor: changes the colors of floats in [0, 1] and keeps the size; it runs before or after the resize, where
            there are fewer pixels.
        antialias: smooth before shrinking, as the model's configuration has it.
    """

    def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
        before = recolor is not None and crop.enlarges
        shown = resize_image(recolor(unit_floats(pixels)) if recolor and before else pixels, size, antialias)
        return recolor(unit_floats(shown)) if recolor and not before else shown

    return crop.maps(image, resized)
