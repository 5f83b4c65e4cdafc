"""SOLO: Xinlong Wang, Tao Kong, Chunhua Shen, Yuning Jiang, Lei Li, "SOLO: Segmenting Objects by Locations", ECCV 2020,
https://arxiv.org/abs/1912.04488.

Sections and equations are those of the journal version, "SOLO (journal)": Xinlong Wang, Rufeng Zhang, Chunhua Shen,
Tao Kong, Lei Li, "SOLO: A Simple Framework for Instance Segmentation", TPAMI 2021, https://arxiv.org/abs/2106.15947.
This is its vanilla SOLO, section 3.2.1.

An image is divided into grids of S x S cells. The cell that holds an object's center predicts its class; channel
``i S + j`` of the mask branch is the mask of cell (i, j).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from instseg.models.base import ImageBatch
from instseg.models.solo.config import GridConfig
from instseg.models.solo.grids import GridOutputs
from instseg.models.solo.net import GridNet
from instseg.nn.blocks import ConvGNReLU, Tower, prediction_conv, prior_bias
from instseg.ops.dynamic_conv import dynamic_conv
from instseg.ops.resize import resize

Probability = Annotated[float, Field(gt=0, lt=1)]


class SOLOConfig(GridConfig):
    """Published values by default."""

    mask_prior: Probability = 0.01  # what the pixels of all masks start at before training

    coord_convs: Annotated[int, Field(ge=0)] = 1  # mask convolutions, from the first, that see coordinates (table 4b)
    align: Literal["interpolate", "adaptive_pool", "region_grid"] = "interpolate"  # feature map to S x S
    pyramid: bool = True  # False: one map at stride 8, merged from C3 to C5, with one grid (table 4a)


@dataclass(frozen=True)
class SOLOOutputs(GridOutputs):
    """Raw outputs for a batch.

    Attributes:
        features: for each level what its output convolution, one channel a cell, is applied to: (B, E, h, w).
    """

    features: list[Tensor]


class CategoryBranch(nn.Module):
    """Aligned features to the class of each cell, shared by all levels."""

    def __init__(self, config: GridConfig, align: str = "interpolate") -> None:
        super().__init__()
        dcn, dcn_from = config.tower_dcn(config.tower_convs)
        self.align, self.grids = align, config.grids
        width = config.tower_channels
        self.tower = Tower(config.fpn_channels, width, config.tower_convs, dcn=dcn, dcn_from=dcn_from)
        self.output = prediction_conv(width, config.num_classes, bias=prior_bias())

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Levels (B, channels, h, w) to logits (B, C, S, S)."""
        return [self.output(x) for x in self.features(levels)]

    def features(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """What the output convolution is applied to, (B, width, S, S)."""
        return [self.tower(aligned(x, s, self.align)) for s, x in zip(self.grids, levels, strict=True)]


def aligned(x: Tensor, s: int, how: str) -> Tensor:
    """(B, E, h, w) to (B, E, s, s): bilinear, the maximum of each cell, or the mean of 2 x 2 samples in each cell."""
    if how == "adaptive_pool":
        return F.adaptive_max_pool2d(x, s)
    if how == "region_grid":
        return F.avg_pool2d(resize(x, (2 * s, 2 * s)), 2)
    return resize(x, (s, s))


class MergedMap(nn.Module):
    """C3 to C5 as one map at stride 8: the feature of single-scale SOLO (table 4a; layers are this project's)."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels[1:])
        self.output = ConvGNReLU(channels, channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[C2, C3, C4, C5] to one map (B, channels, H/8, W/8)."""
        size = (features[1].shape[-2], features[1].shape[-1])
        merged = [resize(lateral(x), size) for lateral, x in zip(self.lateral, features[1:], strict=True)]
        return [self.output(merged[0] + merged[1] + merged[2])]


def mask_tower(config: SOLOConfig) -> Tower:
    """The mask branch but for its last layer, shared by all levels."""
    depth = config.tower_convs
    dcn, dcn_from = config.tower_dcn(depth)
    return Tower(
        config.fpn_channels, config.tower_channels, depth, coord_convs=config.coord_convs, dcn=dcn, dcn_from=dcn_from
    )


def mask_output(config: SOLOConfig, grids: Sequence[int]) -> nn.ModuleList:
    """The last layer of the mask branch: for each level a 1x1 convolution with a channel for each cell."""
    prior = prior_bias(config.mask_prior)
    return nn.ModuleList(prediction_conv(config.tower_channels, s * s, 1, prior) for s in grids)


def cell_maps(feature: Tensor, output: nn.Module, cells: Tensor) -> Tensor:
    """The maps (N, 2h, 2w) of cells (N,) of a level from its ``feature`` (E, h, w). The 1x1 ``output`` convolution is
    applied for those cells only, and before the enlargement to twice the size: the two are linear and commute."""
    assert isinstance(output, nn.Conv2d) and output.bias is not None
    logits = dynamic_conv(feature, output.weight[cells].flatten(1)) + output.bias[cells, None, None]
    return resize(logits.float()[None], (2 * logits.shape[1], 2 * logits.shape[2]))[0]


def all_masks(features: Sequence[Tensor], outputs: nn.ModuleList) -> list[Tensor]:
    """Logits of the masks of all cells as the published code makes them, (B, S S, 2h, 2w) a level."""
    doubled = [resize(x, (2 * x.shape[-2], 2 * x.shape[-1])) for x in features]
    return [output(x) for output, x in zip(outputs, doubled, strict=True)]


class SOLO(GridNet[SOLOOutputs]):
    """The network, its loss and its decoding: three pure steps."""

    config: SOLOConfig

    def __init__(self, config: SOLOConfig) -> None:
        super().__init__(config)
        if not config.pyramid:
            self.fpn = MergedMap(self.backbone.channels, config.fpn_channels)
        self.category = CategoryBranch(config, config.align)
        self.mask_tower = mask_tower(config)
        self.mask_output = mask_output(config, config.grids)

    def stages(self) -> Mapping[str, nn.Module]:
        shared = {"backbone": self.backbone, "pyramid": self.fpn}
        return {**shared, "category branch": self.category, "mask branch": self.mask_tower}

    def predict_pyramid(self, pyramid: Sequence[Tensor], sizes: Tensor) -> SOLOOutputs:
        """[P2, ..., P6] at strides 4 to 64 (one map at stride 8 without a pyramid) to raw outputs."""
        levels = self.head_levels(pyramid) if self.config.pyramid else list(pyramid)
        size = (2 * levels[0].shape[-2], 2 * levels[0].shape[-1])
        return SOLOOutputs(self.category(levels), size, sizes, [self.mask_tower(x) for x in levels])

    def mask_probabilities(
        self, outputs: SOLOOutputs, image: int, level: int, cells: Tensor, size: tuple[int, int] | None = None
    ) -> Tensor:
        soft = cell_maps(outputs.features[level][image], self.mask_output[level], cells).sigmoid()
        return soft if size is None else resize(soft[None], size)[0]

    def as_published(self, batch: ImageBatch) -> None:
        all_masks(self(batch).features, self.mask_output)
