"""Coordinate channels (CoordConv)."""

from typing import Literal

import torch
from torch import Tensor


def coordinate_axis(n: int, like: Tensor) -> Tensor:
    """``n`` values from -1 to 1, both ends included, in the type and on the device of ``like``.

    Written as a scaled ``arange`` because ``linspace`` with a symbolic size is baked into an exported graph.
    """
    return torch.arange(n, device=like.device, dtype=like.dtype) * (2.0 / max(n - 1, 1)) - 1.0


def append_coordinates(features: Tensor, axes: Literal["xy", "x", "y"] = "xy") -> Tensor:
    """``[features, x, y]``: (B, C, h, w) to (B, C + len(axes), h, w). x runs along the columns, y along the rows."""
    b, _, h, w = features.shape
    parts = [features]
    if "x" in axes:
        parts.append(coordinate_axis(w, features).view(1, 1, 1, w).expand(b, 1, h, w))
    if "y" in axes:
        parts.append(coordinate_axis(h, features).view(1, 1, h, 1).expand(b, 1, h, w))
    return torch.cat(parts, dim=1)
