"""Resizing as the methods of this project do it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) to (B, C, *size): bilinear, ``align_corners=False``, no antialiasing. The same tensor when the
    size already fits."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def resize_image(image: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """An image (C, H, W), uint8 or float in [0, 1], at another size: float32 in [0, 1], bilinear. The same tensor when
    the size already fits.

    Training and prediction both resize with it, so that a network sees the same pixels in both.

    Args:
        image: of any memory layout, which does not show in the result.
        size: (h, w) of the result.
        antialias: smooth before shrinking.
    """
    if tuple(image.shape[-2:]) == size:
        return image
    layout = torch.contiguous_format if antialias else torch.channels_last  # in which each is faster, on a CPU
    x = image[None].to(torch.float32, memory_format=layout)
    x = x if image.dtype == torch.uint8 else x * 255.0
    y = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=antialias)
    return y[0].div_(255.0).contiguous()


def unit_floats(image: Tensor) -> Tensor:
    """An image, uint8 or float in [0, 1], as float32 in [0, 1]; times 255 it is exactly what it was as uint8."""
    return image / 255 if image.dtype == torch.uint8 else image.float()
