"""Decoupled SOLO and its light version: Xinlong Wang, Rufeng Zhang, Chunhua Shen, Tao Kong, Lei Li, "SOLO: A Simple
Framework for Instance Segmentation", TPAMI 2021, https://arxiv.org/abs/2106.15947 ("SOLO (journal)"), section 3.2.2.

The S x S masks of a level are products of S maps for columns and S maps for rows, equation (1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from instseg.models.solo.config import GridConfig
from instseg.models.solo.grids import GridOutputs
from instseg.models.solo.net import GridNet
from instseg.models.solo.solo import CategoryBranch
from instseg.nn.blocks import Tower, prediction_conv, prior_bias
from instseg.ops.resize import resize


class DecoupledSOLOConfig(GridConfig):
    """Published values by default."""

    coord_convs: Annotated[int, Field(ge=0)] = 1  # mask convolutions, from the first, that see coordinates (table 4b)
    align: Literal["interpolate", "adaptive_pool", "region_grid"] = "interpolate"  # feature map to S x S
    shared_tower: bool = False  # one mask tower for columns and rows, as the light models


@dataclass(frozen=True)
class DecoupledSOLOOutputs(GridOutputs):
    """Raw outputs for a batch.

    Attributes:
        x: for each level (B, S, 2h, 2w) logits, a map a column.
        y: the same for rows.
    """

    x: list[Tensor]
    y: list[Tensor]


class DecoupledSOLO(GridNet[DecoupledSOLOOutputs]):
    """The network, its loss and its decoding: three pure steps."""

    config: DecoupledSOLOConfig

    def __init__(self, config: DecoupledSOLOConfig) -> None:
        super().__init__(config)
        depth, width = config.tower_convs, config.tower_channels
        dcn, dcn_from = config.tower_dcn(depth)

        def mask_tower(axes: Literal["xy", "x", "y"]) -> Tower:
            return Tower(
                config.fpn_channels,
                width,
                depth,
                coord_convs=config.coord_convs,
                axes=axes,
                dcn=dcn,
                dcn_from=dcn_from,
            )

        self.category = CategoryBranch(config, config.align)
        if config.shared_tower:
            self.mask_tower = mask_tower("xy")
        else:  # each tower sees only its own coordinate
            self.mask_tower_x, self.mask_tower_y = mask_tower("x"), mask_tower("y")
        self.mask_output_x = nn.ModuleList(prediction_conv(width, s, 3, prior_bias()) for s in config.grids)
        self.mask_output_y = nn.ModuleList(prediction_conv(width, s, 3, prior_bias()) for s in config.grids)

    def stages(self) -> Mapping[str, nn.Module]:
        shared = {"backbone": self.backbone, "pyramid": self.fpn, "category branch": self.category}
        if self.config.shared_tower:
            return {**shared, "mask branch": self.mask_tower}
        return {**shared, "mask branch, columns": self.mask_tower_x, "mask branch, rows": self.mask_tower_y}

    def predict_pyramid(self, pyramid: Sequence[Tensor], sizes: Tensor) -> DecoupledSOLOOutputs:
        """[P2, ..., P6] at strides 4 to 64 to raw outputs."""
        levels = self.head_levels(pyramid)
        categories = self.category(levels)
        x_maps, y_maps = [], []
        for level, x_output, y_output in zip(levels, self.mask_output_x, self.mask_output_y, strict=True):
            double = (2 * level.shape[-2], 2 * level.shape[-1])
            if self.config.shared_tower:
                x_feature = y_feature = resize(self.mask_tower(level), double)
            else:
                x_feature = resize(self.mask_tower_x(level), double)
                y_feature = resize(self.mask_tower_y(level), double)
            x_maps.append(x_output(x_feature))
            y_maps.append(y_output(y_feature))
        size = (x_maps[0].shape[-2], x_maps[0].shape[-1])
        return DecoupledSOLOOutputs(categories, size, sizes, x_maps, y_maps)

    def mask_probabilities(
        self,
        outputs: DecoupledSOLOOutputs,
        image: int,
        level: int,
        cells: Tensor,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Products of the column and row maps of some cells; with ``size`` both are resized before."""
        s = self.config.grids[level]

        def factor(maps: Tensor, which: Tensor) -> Tensor:
            """Each map is resized once, however many cells use it."""
            if size is None:
                return maps[which].float().sigmoid()
            used, back = torch.unique(which, return_inverse=True)
            return resize(maps[used].float().sigmoid()[None], size)[0][back]

        # Equation (1): m_k = x_j y_i with k = i S + j.
        return factor(outputs.x[level][image], cells % s) * factor(outputs.y[level][image], cells // s)


def light() -> dict[str, object]:
    """Fields of the light models: one short mask tower, small inputs (short side 512)."""
    return {
        "shared_tower": True,
        "tower_convs": 4,
        "scale_ranges": ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048)),
        "input_short": 512,
        "input_long": 852,
    }
