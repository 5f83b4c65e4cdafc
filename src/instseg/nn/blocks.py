"""Convolution blocks."""

import math
from typing import Literal

from torch import Tensor, nn

from instseg.nn.deform import DeformConv2d, Version
from instseg.ops.coords import append_coordinates
from instseg.ops.resize import resize


class ConvGNReLU(nn.Module):
    """Convolution without bias, group norm, ReLU, at stride 1 and unchanged size.

    The norm has 32 groups, or the largest common divisor with ``out_channels`` for narrow heads. ``dcn`` makes the
    convolution deformable, ``norm=False`` leaves the norm out.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, dcn: Version = 0, norm: bool = True
    ) -> None:
        super().__init__()
        self.conv: nn.Conv2d | DeformConv2d
        if dcn:
            self.conv = DeformConv2d(in_channels, out_channels, kernel_size, version=dcn)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.gn = nn.GroupNorm(math.gcd(32, out_channels), out_channels) if norm else nn.Identity()
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = nn.functional.relu(self.gn(self.conv(x)))
        return y


class Upsample2x(nn.Module):
    """Bilinear, twice the size."""

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))


class Tower(nn.Sequential):
    """3x3 blocks; the first ``coord_convs`` of them are given coordinate channels.

    Args:
        in_channels: of the input, without coordinates.
        channels: of every block's output.
        depth: number of blocks.
        coord_convs: blocks, from the first, before which coordinates are appended.
        axes: which coordinates.
        dcn: version of the deformable convolutions, 0 for none.
        dcn_from: first block that is deformable; the ones before are plain.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        depth: int,
        *,
        coord_convs: int = 0,
        axes: Literal["xy", "x", "y"] = "xy",
        dcn: Version = 0,
        dcn_from: int = 0,
    ) -> None:
        extra = [len(axes) if i < coord_convs else 0 for i in range(depth)]
        super().__init__(
            *(
                ConvGNReLU((channels if i else in_channels) + extra[i], channels, dcn=dcn if i >= dcn_from else 0)
                for i in range(depth)
            )
        )
        self.coord_convs, self.axes = coord_convs, axes

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self):
            x = block(append_coordinates(x, self.axes) if i < self.coord_convs else x)
        return x


def prediction_conv(in_channels: int, out_channels: int, kernel_size: int = 3, bias: float = 0.0) -> nn.Conv2d:
    """The last convolution of a branch: weights N(0, 0.01), a constant bias."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]  # Conv2d declares its bias optional
    return conv


def prior_bias(probability: float = 0.01) -> float:
    """The bias at which a sigmoid starts at ``probability`` (focal loss paper, section 3.3)."""
    return -math.log((1 - probability) / probability)
