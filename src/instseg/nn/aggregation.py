"""The aggregation of SODAR as a part: raw mask representations of neighboring locations, a context feature and
predicted weights in, mask logits out. It knows neither grids nor the method whose maps it is given.

Tao Wang, Jun Hao Liew, Yu Li, Yunpeng Chen, Jiashi Feng, "SODAR: Segmenting Objects by Dynamically Aggregating
Neighboring Mask Representations", 2022, https://arxiv.org/abs/2202.07402, section IV.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instseg.nn.blocks import prior_bias
from instseg.ops.aggregate import aggregate, layer_shapes, parameter_count, split_parameters

NEAR_ONE = 0.96  # what a map is multiplied with in each layer at the start; tanh does not reach one
SPREAD = 0.001  # standard deviation of the convolution that predicts the weights


def resize_aligned(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) to (B, C, *size), bilinear with the corner pixels' centers on each other."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class MultiLevelContext(nn.Module):
    """Levels of a pyramid, brought to the size of the finest, to the context feature F_c (section IV-d).

    The published code concatenates the enlarged levels before its 1x1 convolution. Here each level passes its part
    of that convolution first and is enlarged then: both are linear, and enlarging keeps a constant, so the result is
    the same at a quarter of the multiply-adds.

    Args:
        in_channels: of each level.
        channels: of the context.
        layers: 2, the released code's: 1x1, group norm, ReLU, 1x1, ReLU; 1, the paper's text: 1x1, ReLU.
        levels: how many, five for P2 to P6.
    """

    def __init__(self, in_channels: int = 256, channels: int = 16, layers: Literal[1, 2] = 2, levels: int = 5) -> None:
        super().__init__()
        self.levels = levels
        hidden = in_channels if layers == 2 else channels
        self.fuse = nn.Conv2d(levels * in_channels, hidden, 1)
        self.tail: nn.Module = nn.ReLU()
        if layers == 2:
            norm = nn.GroupNorm(math.gcd(32, hidden), hidden)
            self.tail = nn.Sequential(norm, nn.ReLU(), nn.Conv2d(hidden, channels, 1), nn.ReLU())

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """[P2, ..., P6] to (B, channels, H/4, W/4), of the finest level's size, not negative."""
        size = (pyramid[0].shape[-2], pyramid[0].shape[-1])
        parts = self.fuse.weight.chunk(self.levels, dim=1)
        total = F.conv2d(pyramid[0], parts[0], self.fuse.bias)
        for level, part in zip(pyramid[1:], parts[1:], strict=True):
            total = total + resize_aligned(F.conv2d(level, part), size)
        y: Tensor = self.tail(total)
        return y

    def as_published(self, pyramid: Sequence[Tensor]) -> Tensor:
        """The same in the order of the published code: for comparison and for counting operations."""
        size = (pyramid[0].shape[-2], pyramid[0].shape[-1])
        y: Tensor = self.tail(self.fuse(torch.cat([resize_aligned(x, size) for x in pyramid], dim=1)))
        return y


class Aggregation(nn.Module):
    """n maps and K context channels to one map, equation (4), by a small network whose weights are predicted for each
    instance, equations (5) and (6).

    Args:
        in_channels: of the feature that the weights are predicted from.
        maps: n.
        context_channels: K, 0 for none.
        layers, width, kernel_size: of the small network; the paper's has three 3x3 layers, four channels wide.
        weight_kernel: size of the convolution that predicts the weights.
        activation: on the predicted weights and biases.
        dynamic: False gives all instances the same weights, ordinary parameters (table VI, "agg-S").
        deformable: predict where between the locations each map is sampled, too (section IV-c).
        anchors: instances that one location can hold, each with weights of its own; locations are numbered
            ``place * anchors + anchor``.
        offset_gradient: factor on the gradient of those offsets.
        start: maps whose mean the small network gives before any training, but for small random differences between
            instances: the method starts as the host that it is put on. Without any the released initialization,
            PyTorch's default, from which small models hardly move.
    """

    def __init__(
        self,
        in_channels: int,
        maps: int,
        context_channels: int = 16,
        *,
        layers: int = 3,
        width: int = 4,
        kernel_size: int = 3,
        weight_kernel: int = 3,
        activation: Literal["tanh", "none"] = "tanh",
        dynamic: bool = True,
        deformable: bool = False,
        anchors: int = 1,
        offset_gradient: float = 1.0,
        start: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.maps, self.kernel_size, self.anchors = maps, kernel_size, anchors
        self.activation, self.offset_gradient = activation, offset_gradient
        self.shapes = layer_shapes(maps + context_channels, layers, width)
        self.weights: nn.Conv2d | None = None
        self.offsets: nn.Conv2d | None = None
        self.static: nn.ModuleList | None = None
        if dynamic:
            count = parameter_count(self.shapes, kernel_size)
            self.weights = nn.Conv2d(in_channels, anchors * count, weight_kernel, padding=weight_kernel // 2)
        else:
            self.static = nn.ModuleList(nn.Conv2d(i, o, kernel_size, padding=kernel_size // 2) for i, o in self.shapes)
            for conv in self.static:
                assert isinstance(conv, nn.Conv2d) and conv.bias is not None
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                nn.init.constant_(conv.bias, prior_bias() if conv.out_channels == 1 else 0.0)
        if start:
            self._start_as_mean_of(list(start))
        if deformable:  # zeros: training starts from the fixed neighbors
            self.offsets = nn.Conv2d(in_channels, anchors * 2 * maps, weight_kernel, padding=weight_kernel // 2)
            for parameter in self.offsets.parameters():
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def _start_as_mean_of(self, maps: list[int]) -> None:
        count = parameter_count(self.shapes, self.kernel_size)
        flat = torch.zeros(1, count)
        layers, middle = split_parameters(flat, self.shapes, self.kernel_size), self.kernel_size // 2
        tap = math.atanh(NEAR_ONE) if self.activation == "tanh" and self.static is None else NEAR_ONE
        # Past a ReLU a value needs two channels, one for its positive and one for its negative part.
        for channel, sign in enumerate((1, -1)[: self.shapes[0][1]]):
            share = NEAR_ONE / len(maps)
            entry = math.atanh(share) if self.activation == "tanh" and self.static is None else share
            layers[0][0][0, channel, maps, middle, middle] = sign * entry
            for weight, _ in layers[1:-1]:
                weight[0, channel, channel, middle, middle] = tap
            if len(layers) > 1:
                layers[-1][0][0, 0, channel, middle, middle] = sign * tap
        if self.weights is not None:
            nn.init.normal_(self.weights.weight, std=SPREAD)
            assert self.weights.bias is not None
            self.weights.bias.copy_(flat[0].repeat(self.anchors))
            return
        assert self.static is not None
        for conv, (weight, bias) in zip(self.static, layers, strict=True):
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            conv.weight.normal_(std=SPREAD).add_(weight[0])
            conv.bias.copy_(bias[0])

    def predict_weights(self, feature: Tensor, cells: Tensor) -> Tensor:
        """Equation (5): the parameters (N, D) of the small networks of ``cells`` (N,), ``row width + column`` of
        ``feature`` (C, height, width), times the anchors plus the anchor; only where they are dynamic."""
        assert self.weights is not None
        found = self._predict(self.weights, feature, cells)
        return found.tanh() if self.activation == "tanh" else found

    def predict_offsets(self, feature: Tensor, cells: Tensor) -> Tensor:
        """Equations (9) and (10): offsets (N, n, 2), rows and columns in units of cells; only where the neighbors are
        deformable."""
        assert self.offsets is not None
        found = self._predict(self.offsets, feature, cells).float().view(-1, self.maps, 2)
        f = self.offset_gradient
        return found if f == 1 else f * found + (1 - f) * found.detach()

    def _predict(self, conv: nn.Conv2d, feature: Tensor, cells: Tensor) -> Tensor:
        if self.anchors == 1:
            return conv_at(conv, feature, cells)
        found = conv_at(conv, feature, cells // self.anchors)
        which = torch.arange(len(cells), device=cells.device)
        return found.view(len(cells), self.anchors, -1)[which, cells % self.anchors]

    def forward(
        self,
        maps: Tensor | None,
        index: Tensor | None,
        weights: Tensor | None,
        context: Tensor | None = None,
        shares: Tensor | None = None,
    ) -> Tensor:
        """Equation (6): mask logits (N, h, w); ``weights`` from :meth:`predict_weights`, the rest as in
        :func:`instseg.ops.aggregate.aggregate`. Raw representations have no bounds: under float16 autocast, whose
        range ends at 65504, this runs in float32."""
        if weights is not None:
            layers = split_parameters(weights, self.shapes, self.kernel_size)
        else:
            assert self.static is not None
            parameters: list[Tensor] = list(self.static.parameters())  # weights and biases in turn
            layers = list(zip(parameters[::2], parameters[1::2], strict=True))
        device = layers[0][0].device.type
        if not torch.is_autocast_enabled(device) or torch.get_autocast_dtype(device) != torch.float16:
            return aggregate(maps, index, layers, context, shares)
        with torch.autocast(device, enabled=False):
            wide = [(w.float(), b.float()) for w, b in layers]
            maps, context = (x if x is None else x.float() for x in (maps, context))
            return aggregate(maps, index, wide, context, shares)


def conv_at(conv: nn.Conv2d, feature: Tensor, cells: Tensor) -> Tensor:
    """A convolution of ``feature`` (C, h, w) at chosen places ``cells`` (N,) only: (N, out)."""
    k = conv.kernel_size[0]
    width = feature.shape[2] + k - 1
    columns = F.pad(feature, (k // 2, k // 2, k // 2, k // 2)).flatten(1).T  # places, C
    steps = torch.arange(k, device=cells.device)
    rows = (cells // feature.shape[2])[:, None] + steps
    where = rows[:, :, None] * width + ((cells % feature.shape[2])[:, None] + steps)[:, None, :]
    patches = columns[where.flatten(1)].flatten(1)  # N, k k C
    return F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
