"""Resizing and down-sampling as the methods of this project do it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) to (B, C, *size): bilinear, ``align_corners=False``, no antialiasing. The same tensor when the
    size already fits."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def downsample_masks(masks: Tensor, stride: int) -> Tensor:
    """Ground-truth masks (N, H, W) uint8 or bool at 1/stride: uint8 (N, ceil(H/stride), ceil(W/stride)).

    A target pixel is set when at least two of the four central pixels of its block are: equal to bilinear resizing
    of the 0/1 mask and rounding half up, as OpenCV does it on uint8, for sides divisible by the stride (other
    sides are padded with zeros first). An odd stride of 1 returns the masks themselves.
    """
    if stride == 1:
        return masks.to(torch.uint8)
    h, w = masks.shape[-2:]
    padded = F.pad(masks.to(torch.uint8), (0, -w % stride, 0, -h % stride))
    a, b = stride // 2 - 1, stride // 2
    rows = padded[:, a::stride] + padded[:, b::stride]
    return ((rows[:, :, a::stride] + rows[:, :, b::stride]) >= 2).to(torch.uint8)
