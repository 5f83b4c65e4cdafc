"""Convolution blocks."""

import math

from torch import Tensor, nn

from instseg.ops.resize import resize


class ConvGNReLU(nn.Module):
    """Convolution without bias, group norm, ReLU, at stride 1 and unchanged size.

    The norm has 32 groups, or the largest common divisor with ``out_channels`` for narrow heads.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.gn = nn.GroupNorm(math.gcd(32, out_channels), out_channels)
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = nn.functional.relu(self.gn(self.conv(x)))
        return y


class Upsample2x(nn.Module):
    """Bilinear, twice the size."""

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))


def tower(in_channels: int, channels: int, depth: int) -> nn.Sequential:
    """``depth`` 3x3 blocks, the first from ``in_channels``."""
    return nn.Sequential(*(ConvGNReLU(in_channels if i == 0 else channels, channels) for i in range(depth)))


def prediction_conv(in_channels: int, out_channels: int, kernel_size: int = 3, bias: float = 0.0) -> nn.Conv2d:
    """The last convolution of a branch: weights N(0, 0.01), a constant bias."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]  # Conv2d declares its bias optional
    return conv


def prior_bias(probability: float = 0.01) -> float:
    """The bias at which a sigmoid starts at ``probability`` (focal loss paper, section 3.3)."""
    return -math.log((1 - probability) / probability)
