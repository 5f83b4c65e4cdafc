"""SODAR, "Segmenting Objects by Dynamically Aggregating Neighboring Mask Representations", on SOLO and on SOLOv2.

The host's map of a cell is no mask but a raw representation, and only what is made of it is compared with a target:
a small network, whose weights are predicted for each cell, aggregates the representations of the cell and of its
neighbors with a context feature to the logits of the mask (section IV). Where the paper and the released code
(AggMask) differ, the code is the default; docs/decisions/sodar.md lists the differences and the fields for them.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from instseg.models.base import ImageBatch
from instseg.models.sodar.grid_aggregation import AggregationConfig, AggregationInputs, GridAggregation, MapsOf, Trace
from instseg.models.solo.net import GridNet, MaskFunction
from instseg.models.solo.solo import SOLO, Probability, SOLOConfig, SOLOOutputs
from instseg.models.solo.solov2 import SOLOv2, SOLOv2Config, SOLOv2Outputs
from instseg.nn.aggregation import FeatureContext, MultiLevelContext


class Aggregated(GridNet):
    """What both hosts get: masks that are aggregated from their maps."""

    aggregation: GridAggregation

    @abstractmethod
    def representations(self, outputs: Any, image: int, level: int, cells: Tensor) -> Tensor:
        """The raw maps (U, h, w) of cells (U,) of the mask grid that ``maps[level]`` has, numbered within it: what
        were the host's logits."""

    @abstractmethod
    def _maps_of(self, outputs: Any, image: int, level: int) -> MapsOf:
        """The size of the maps of ``maps[level]``, and what gives them by cells numbered over all levels."""

    def mask_logits(self, outputs: Any, image: int, level: int, cells: Tensor) -> Tensor:
        cells = self.maps[level].first + cells
        return self.aggregation.mask_logits(outputs.aggregation, image, cells, *self._maps_of(outputs, image, level))

    def trace(self, outputs: Any, image: int, cell: int) -> Trace:
        """How the mask of a cell, numbered over all levels, comes about."""
        level = next(i for i, m in enumerate(self.maps) if cell < m.last)
        return self.aggregation.trace(outputs.aggregation, image, cell, *self._maps_of(outputs, image, level))

    @property
    def supervised_masks(self) -> dict[str, MaskFunction]:
        """With the two-stage loss a cell's own representation is taught the mask, too."""
        if not self.config.two_stage_loss:
            return super().supervised_masks
        return {**super().supervised_masks, "loss_representation": self._own_masks}

    def _own_masks(self, outputs: Any, image: int, level: int, cells: Tensor) -> Tensor:
        return self.representations(outputs, image, level, cells).sigmoid()


# --- on SOLO ------------------------------------------------------------------------------------------------------


class SODARConfig(SOLOConfig, AggregationConfig):
    """SODAR on SOLO, as released but for how training starts and which small objects it leaves out."""

    # Representations are no probabilities: a prior in them reaches the masks times every weight. Released: 0.01.
    mask_prior: Probability = 0.5
    weight_tower: bool = False  # the weights have a tower of their own; else the categories' tower is theirs

    @model_validator(mode="after")
    def _pyramid(self) -> Self:
        if not self.pyramid:
            raise ValueError("the context of SODAR needs the pyramid: pyramid=true")
        return self


@dataclass(frozen=True)
class SODAROutputs(SOLOOutputs):
    """Raw outputs for a batch: SOLO's, and what its maps are aggregated with."""

    aggregation: AggregationInputs


class SODAR(Aggregated, SOLO):
    """SOLO whose maps are representations."""

    def __init__(self, config: SODARConfig) -> None:
        super().__init__(config)
        self.aggregation = GridAggregation(config, config.tower_channels, _context(config), config.weight_tower)

    def predict_pyramid(self, pyramid: Sequence[Tensor], sizes: Tensor) -> SODAROutputs:
        levels = self.head_levels(pyramid)
        size = (2 * levels[0].shape[-2], 2 * levels[0].shape[-1])
        features = self.category.features(levels)
        categories = [self.category.output(x) for x in features]
        inputs = self.aggregation(pyramid, levels, features)
        return SODAROutputs(categories, size, sizes, [self.mask_tower(x) for x in levels], inputs)

    def _maps_of(self, outputs: SODAROutputs, image: int, level: int) -> MapsOf:
        feature, first = outputs.features[level], self.aggregation.first_map[level]
        size = (2 * feature.shape[-2], 2 * feature.shape[-1])
        return size, lambda used: self.representations(outputs, image, level, used - first)

    def representations(self, outputs: SODAROutputs, image: int, level: int, cells: Tensor) -> Tensor:
        """The raw maps (U, 2h, 2w) of cells (U,) of a level's mask grid: what were SOLO's logits."""
        return SOLO.mask_logits(self, outputs, image, level, cells)

    def as_published(self, batch: ImageBatch) -> None:
        """Everything that the published code computes for a batch, the aggregation itself excepted: for
        counting operations."""
        pyramid = self.fpn(self.backbone(batch.pixels))
        levels = self.head_levels(pyramid)
        features = self.category.features(levels)
        categories = [self.category.output(f) for f in features]
        self.all_masks(SOLOOutputs(categories, (0, 0), batch.sizes, [self.mask_tower(level) for level in levels]))
        self.aggregation.as_published(pyramid, levels, features)


# --- on SOLOv2 ----------------------------------------------------------------------------------------------------

# The host as AggMask has it: towers half as wide, the mask feature twice as wide and without norms inside.
RELEASED_SOLOV2: dict[str, Any] = {
    "tower_channels": 256,
    "mask_hidden": 256,
    "mask_feature_norm": False,
    "kernel_conv": 1,
}


class SODARSOLOv2Config(SOLOv2Config, AggregationConfig):
    """SODAR* (on SOLOv2), as released but for how training starts and which small objects it leaves out."""

    base: Literal["released", "solov2"] = "released"  # the host as AggMask has it, or SOLOv2's own branches; fields
    # that are given count more
    shared_cells: Literal["all", "mmdet", "last"] = "last"
    weight_kernel: Literal[1, 3] = 1
    weight_activation: Literal["tanh", "none"] = "none"
    context_source: Literal["pyramid", "mask_feature"] = "pyramid"  # what the context is a convolution of

    @model_validator(mode="before")
    @classmethod
    def _base(cls, given: Any) -> Any:
        released = isinstance(given, dict) and given.get("base", "released") == "released"
        return {**RELEASED_SOLOV2, **given} if released else given

    @model_validator(mode="after")
    def _host(self) -> Self:
        if self.mask_groups != 1 or self.mask_feature != "unified":
            raise ValueError("SODAR aggregates single maps on one feature: mask_groups=1 and mask_feature=unified")
        return self


@dataclass(frozen=True)
class SODARSOLOv2Outputs(SOLOv2Outputs):
    """Raw outputs for a batch: SOLOv2's, and what its maps are aggregated with."""

    aggregation: AggregationInputs = field(kw_only=True)


class SODARSOLOv2(Aggregated, SOLOv2):
    """SOLOv2 whose maps are representations."""

    def __init__(self, config: SODARSOLOv2Config) -> None:
        super().__init__(config)
        context: nn.Module | None
        if config.context != "without" and config.context_source == "mask_feature":
            context = FeatureContext(config.mask_channels, config.context_channels)
        else:
            context = _context(config)
        self.aggregation = GridAggregation(config, config.fpn_channels, context, tower=True)

    def predict_pyramid(self, pyramid: Sequence[Tensor], sizes: Tensor) -> SODARSOLOv2Outputs:
        found = super().predict_pyramid(pyramid, sizes)
        inputs = self.aggregation(self._context_from(pyramid, found), self.head_levels(pyramid), [])
        return SODARSOLOv2Outputs(**vars(found), aggregation=inputs)

    def _context_from(self, pyramid: Sequence[Tensor], outputs: SOLOv2Outputs) -> Any:
        return pyramid if self.config.context_source == "pyramid" else outputs.mask_features[0]

    def _maps_of(self, outputs: SODARSOLOv2Outputs, image: int, level: int) -> MapsOf:
        size = (outputs.mask_features[0].shape[-2], outputs.mask_features[0].shape[-1])
        return size, lambda used: self.representations(outputs, image, level, used)

    def representations(self, outputs: SOLOv2Outputs, image: int, level: int, cells: Tensor) -> Tensor:
        """The raw maps (U, H/4, W/4) of cells (U,) of the mask grids: what were SOLOv2's logits."""
        return SOLOv2.mask_logits(self, outputs, image, level, cells)

    def as_published(self, batch: ImageBatch) -> None:
        """Everything that the published code computes for a batch, the aggregation itself excepted: for
        counting operations."""
        pyramid = self.fpn(self.backbone(batch.pixels))
        found = SOLOv2.predict_pyramid(self, pyramid, batch.sizes)
        self.representations(found, 0, 0, torch.arange(self.aggregation.first_map[-1], device=batch.pixels.device))
        self.aggregation.as_published(self._context_from(pyramid, found), self.head_levels(pyramid), [])


def _context(config: AggregationConfig) -> nn.Module | None:
    if config.context == "without":
        return None
    return MultiLevelContext(config.fpn_channels, config.context_channels, config.context_layers)
