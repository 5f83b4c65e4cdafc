"""Deformable convolution without a compiled extension of ours."""

import torch
import torch.nn.functional as F
from torch import Tensor


def deform_conv2d(
    x: Tensor, offsets: Tensor, weight: Tensor, modulation: Tensor | None, stride: int, padding: int
) -> Tensor:
    """A convolution without bias whose taps are moved and, with ``modulation``, weighted.

    Args:
        x: (B, C, h, w).
        offsets: (B, 2 k k, h', w') pixels, (dy, dx) of each tap, rows first.
        weight: (O, C / groups, k, k); the number of groups follows from it.
        modulation: (B, k k, h', w') in [0, 1], or None.
        stride, padding: of the convolution without offsets.

    Returns:
        (B, O, h', w'). Taps outside the map read zero. On CUDA torchvision's kernel; elsewhere bilinear sampling and
        a matrix product, which on a CPU take half its time forward and a sixth backward, and can be exported.
    """
    if x.device.type == "cuda":
        import torchvision.ops  # takes seconds

        y: Tensor = torchvision.ops.deform_conv2d(x, offsets, weight, None, stride, padding, 1, modulation)
        return y
    b, c, h, w = x.shape
    k, (rows, columns) = weight.shape[-1], offsets.shape[-2:]
    moves = offsets.reshape(b, k * k, 2, rows, columns)
    tap = torch.arange(k, device=x.device)[:, None, None] - padding
    at_y = torch.arange(rows, device=x.device)[:, None] * stride + tap.repeat_interleave(k, dim=0)
    at_x = torch.arange(columns, device=x.device) * stride + tap.repeat(k, 1, 1)
    # grid_sample's coordinates: -1 and 1 are the outer edges of the map.
    grid = torch.stack([(2 * (moves[:, :, 1] + at_x) + 1) / w - 1, (2 * (moves[:, :, 0] + at_y) + 1) / h - 1], dim=-1)
    sampled = F.grid_sample(x, grid.reshape(b, k * k * rows, columns, 2), align_corners=False)
    sampled = sampled.view(b, c, k * k, rows * columns)
    if modulation is not None:
        sampled = sampled * modulation.reshape(b, 1, k * k, rows * columns)
    groups = c // weight.shape[1]
    filters = weight.reshape(groups, weight.shape[0] // groups, -1)  # groups, O', C' k k
    product = filters @ sampled.reshape(b, groups, -1, rows * columns)
    return product.reshape(b, weight.shape[0], rows, columns)
