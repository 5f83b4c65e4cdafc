"""Deformable convolution, versions 1 and 2."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instseg.ops.deform import deform_conv2d

Version = Literal[0, 1, 2]
"""0 is a plain convolution."""


class DeformConv2d(nn.Module):
    """A convolution without bias whose taps are moved by predicted offsets (version 1) and weighted by a predicted
    modulation (version 2).

    The predictor is a convolution of the same kernel, stride and padding that starts at zero; its channels are
    (dy, dx) of each tap, rows first, then for version 2 the modulation before its sigmoid. At the start version 1
    is the plain convolution, and version 2 half of it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        version: Version,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.version, self.stride, self.padding, self.groups = version, stride, kernel_size // 2, groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        channels = (version + 1) * kernel_size**2
        self.conv_offset = nn.Conv2d(in_channels, channels, kernel_size, stride, self.padding)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]  # Conv2d declares its bias optional

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, out_channels, h', w'); sampled in float32 also under autocast."""
        moves = self.conv_offset(x)
        if x.device.type == "meta":  # where only shapes and multiply-adds count
            return F.conv2d(x, self.weight, None, self.stride, self.padding, groups=self.groups)
        with torch.autocast(x.device.type, enabled=False):
            moves = moves.float()
            taps = 2 * self.weight.shape[-1] ** 2
            modulation = moves[:, taps:].sigmoid() if self.version == 2 else None
            weight = self.weight.float()
            return deform_conv2d(x.float(), moves[:, :taps], weight, modulation, self.stride, self.padding)
