"""SODAR on SOLO and on SOLOv2: Tao Wang, Jun Hao Liew, Yu Li, Yunpeng Chen, Jiashi Feng, "SODAR: Segmenting Objects by
Dynamically Aggregating Neighboring Mask Representations", 2022, https://arxiv.org/abs/2202.07402.

The host's map of a cell is not a mask but a raw representation, and only what is made of it is compared with a target:
a small network, whose weights are predicted for each cell, aggregates the representations of the cell and of its
neighbors with a context feature to the logits of the mask (section IV). The branches are the host's own, and the names
of its tensors. Where the paper and the released code (AggMask) differ, the code is the default;
docs/decisions/sodar.md lists the differences and the fields for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import get_annotations
from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from instseg.models.base import ClassLayout, ImageBatch, LossTerms, Step, Target, Trace
from instseg.models.sodar.aggregation import AggregationInputs, MapsOf, NeighborAggregation
from instseg.models.sodar.config import GridAggregationConfig
from instseg.models.solo import solo, solov2
from instseg.models.solo.assign import Assignment
from instseg.models.solo.decode import ImageMasks
from instseg.models.solo.grids import MASK_STRIDE, CellMasks
from instseg.models.solo.loss import grid_loss
from instseg.models.solo.net import GridNet
from instseg.nn.aggregation import MultiLevelContext
from instseg.nn.blocks import Tower
from instseg.ops.neighbors import Locations
from instseg.ops.resize import resize


def _context(config: GridAggregationConfig) -> MultiLevelContext | None:
    """F_c of P2 to P6."""
    if config.context == "without":
        return None
    return MultiLevelContext(config.fpn_channels, config.context_channels, config.context_layers)


def _weight_tower(config: GridAggregationConfig) -> Tower | None:
    """Levels with coordinates to what weights and offsets are predicted from; None where nothing is predicted."""
    if config.aggregation == "static" and not config.deformable:
        return None
    return Tower(config.fpn_channels + 2, config.fpn_channels, config.tower_convs)


def _locations(config: GridAggregationConfig) -> tuple[Locations, Locations]:
    """The cells that have classes, and those that have representations."""
    return Locations.square(config.grids), Locations.square(config.map_grids)


def _supervised(config: GridAggregationConfig, masks: CellMasks, representations: CellMasks) -> dict[str, CellMasks]:
    """With the two-stage loss a cell's own representation is taught the mask, too (table VI)."""
    own = {"loss_representation": representations} if config.two_stage_loss else {}
    return {"loss_mask": masks, **own}


def _host_fields(
    own: type[GridAggregationConfig], config: Mapping[str, Any], named: Mapping[str, Any]
) -> dict[str, Any]:
    """The host's fields but for those that SODAR itself, or the name in the zoo, decides: a name says which grids are
    finer or coarser than the host's. The backbone is the host's, whatever the name says: its weights are kept."""
    decided = {*get_annotations(own), *named} - {"backbone", "max_instances"}
    fields = {key: value for key, value in config.items() if key in own.model_fields and key not in decided}
    fields["max_instances"] = max(config["max_instances"], named.get("max_instances", 0))
    grids = named.get("mask_grids") or named.get("grids") or config["grids"]
    if len(grids) != len(config["grids"]):  # other levels: which object belongs to which is the name's own, too
        fields = {key: value for key, value in fields.items() if key not in ("grids", "scale_ranges")}
    return fields


def _soft(logits: Tensor, size: tuple[int, int] | None) -> Tensor:
    soft = logits.sigmoid()
    return soft if size is None else resize(soft[None], size)[0]


# --- on SOLO ------------------------------------------------------------------------------------------------------


class SODARConfig(solo.SOLOConfig, GridAggregationConfig):
    """SODAR on SOLO, as released but for how training starts and which small objects it leaves out."""

    # Representations are no probabilities: a prior in them reaches the masks times every weight. Released: 0.01.
    mask_prior: solo.Probability = 0.5
    weight_tower: bool = False  # the weights have a tower of their own; else the categories' tower is theirs

    @model_validator(mode="after")
    def _pyramid(self) -> Self:
        if not self.pyramid:
            raise ValueError("the context of SODAR needs the pyramid: pyramid=true")
        return self


@dataclass(frozen=True)
class SODAROutputs(solo.SOLOOutputs):
    """Raw outputs for a batch: SOLO's, and what its maps are aggregated with."""

    aggregation: AggregationInputs


class SODAR(GridNet[SODAROutputs]):
    """SOLO's branches, whose maps are representations."""

    config: SODARConfig

    def __init__(self, config: SODARConfig) -> None:
        super().__init__(config)
        self.category = solo.CategoryBranch(config, config.align)
        self.mask_tower = solo.mask_tower(config)
        self.mask_output = solo.mask_output(config, config.map_grids)
        context, tower = _context(config), _weight_tower(config) if config.weight_tower else None
        channels = config.tower_channels if tower is None else config.fpn_channels
        self.aggregation = NeighborAggregation(config, channels, context, tower)

    @classmethod
    def host(cls) -> type[nn.Module]:
        """As :class:`~instseg.models.base.Extends`."""
        return solo.SOLO

    @classmethod
    def host_fields(cls, config: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """As :class:`~instseg.models.base.Extends`. A host without a pyramid (SOLO's table 4a) has one
        level, this one all."""
        fields = _host_fields(SODARConfig, config, named)
        single = () if config["pyramid"] else ("pyramid", "grids", "scale_ranges")
        return {key: value for key, value in fields.items() if key not in single}

    def stages(self) -> Mapping[str, nn.Module]:
        shared = {"backbone": self.backbone, "pyramid": self.fpn, "category branch": self.category.tower}
        return {**shared, "mask branch": self.mask_tower, "aggregation": self.aggregation}

    def predict_pyramid(self, pyramid: Sequence[Tensor], sizes: Tensor) -> SODAROutputs:
        """[P2, ..., P6] at strides 4 to 64 to raw outputs."""
        levels = self.head_levels(pyramid)
        size = (2 * levels[0].shape[-2], 2 * levels[0].shape[-1])
        features = self.category.features(levels)
        categories = [self.category.output(x) for x in features]
        predicted_from = levels if self.config.weight_tower else features
        maps = [self.mask_tower(x) for x in levels]
        inputs = self.aggregation(pyramid, predicted_from, *_locations(self.config))
        return SODAROutputs(categories, size, sizes, maps, inputs)

    def representations(self, outputs: SODAROutputs, image: int, level: int, cells: Tensor) -> Tensor:
        """The raw maps (U, 2h, 2w) of cells (U,) of a level's mask grid: what are SOLO's logits."""
        return solo.cell_maps(outputs.features[level][image], self.mask_output[level], cells)

    def mask_logits(self, outputs: SODAROutputs, image: int, level: int, cells: Tensor) -> Tensor:
        """Equation (6) for cells (N,) of a level: (N, 2h, 2w)."""
        cells = self.maps[level].first + cells
        return self.aggregation.mask_logits(outputs.aggregation, image, cells, *self._maps_of(outputs, image, level))

    def _maps_of(self, outputs: SODAROutputs, image: int, level: int) -> tuple[tuple[int, int], MapsOf]:
        feature, first = outputs.features[level], outputs.aggregation.targets.first[level]
        size = (2 * feature.shape[-2], 2 * feature.shape[-1])
        return size, lambda used: self.representations(outputs, image, level, used - first)

    def mask_probabilities(
        self, outputs: SODAROutputs, image: int, level: int, cells: Tensor, size: tuple[int, int] | None = None
    ) -> Tensor:
        return _soft(self.mask_logits(outputs, image, level, cells), size)

    def loss(self, outputs: SODAROutputs, targets: Sequence[Target], step: Step) -> LossTerms:
        padded = (outputs.size[0] * MASK_STRIDE, outputs.size[1] * MASK_STRIDE)
        assigned = [self.assign(target, padded) for target in targets]
        masks = partial(self.mask_probabilities, outputs)
        supervised = _supervised(self.config, masks, lambda *cells: self.representations(outputs, *cells).sigmoid())
        return grid_loss(self.config, outputs.cls_logits, self.maps, targets, assigned, supervised, step)

    def explain(self, outputs: SODAROutputs, image: int, source: int) -> Trace:
        """As :class:`~instseg.models.base.Explains`."""
        level = outputs.aggregation.sources.level_of(source)
        masks = ImageMasks(image, outputs.size, self.maps, partial(self.mask_probabilities, outputs))
        mask = masks(torch.tensor([source], device=outputs.cls_logits[0].device))[0]
        maps_of = self._maps_of(outputs, image, level)
        return self.aggregation.trace(outputs.aggregation, image, source, *maps_of, mask)

    def as_published(self, batch: ImageBatch) -> None:
        """Everything that the published code computes for a batch, the aggregation itself excepted."""
        pyramid = self.fpn(self.backbone(batch.pixels))
        levels = self.head_levels(pyramid)
        features = self.category.features(levels)
        for feature in features:
            self.category.output(feature)
        solo.all_masks([self.mask_tower(level) for level in levels], self.mask_output)
        predicted_from = levels if self.config.weight_tower else features
        self.aggregation.as_published(pyramid, predicted_from, *_locations(self.config))


# --- on SOLOv2 ----------------------------------------------------------------------------------------------------

# The host as AggMask has it: towers half as wide, the mask feature twice as wide and without norms inside.
RELEASED_SOLOV2: dict[str, Any] = {
    "tower_channels": 256,
    "mask_hidden": 256,
    "mask_feature_norm": False,
    "kernel_conv": 1,
}


class SODARSOLOv2Config(solov2.SOLOv2Config, GridAggregationConfig):
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
class SODARSOLOv2Outputs(solov2.SOLOv2Outputs):
    """Raw outputs for a batch: SOLOv2's, and what its maps are aggregated with."""

    aggregation: AggregationInputs = field(kw_only=True)


class SODARSOLOv2(GridNet[SODARSOLOv2Outputs]):
    """SOLOv2's branches, whose maps are representations."""

    config: SODARSOLOv2Config

    def __init__(self, config: SODARSOLOv2Config) -> None:
        super().__init__(config)
        self.maps = solov2.one_or_many(config)
        self.mask_feature = solov2.mask_feature(config)
        self.head = solov2.SOLOv2Head(config, config.map_grids)
        self.semantic = solov2.semantic_branch(config)
        if config.context != "without" and config.context_source == "mask_feature":
            context: MultiLevelContext | None = MultiLevelContext(config.mask_channels, config.context_channels, 1, 1)
        else:
            context = _context(config)
        self.aggregation = NeighborAggregation(config, config.fpn_channels, context, _weight_tower(config))

    @classmethod
    def host(cls) -> type[nn.Module]:
        """As :class:`~instseg.models.base.Extends`."""
        return solov2.SOLOv2

    @classmethod
    def host_fields(cls, config: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """As :class:`~instseg.models.base.Extends`. The branches are SOLOv2's own, not the released ones; of several
        maps a mask (SOLO's table 6c) or features of each level (table 5c) there is one."""
        fields = _host_fields(SODARSOLOv2Config, config, named)
        return {**fields, "base": "solov2", "mask_groups": 1, "mask_feature": "unified"}

    def class_layers(self) -> Mapping[str, ClassLayout]:
        return solov2.class_layers(self.semantic)

    def stages(self) -> Mapping[str, nn.Module]:
        shared = {"backbone": self.backbone, "pyramid": self.fpn}
        return {**shared, "head": self.head, "mask feature": self.mask_feature, "aggregation": self.aggregation}

    def predict_pyramid(self, pyramid: Sequence[Tensor], sizes: Tensor) -> SODARSOLOv2Outputs:
        """[P2, ..., P6] at strides 4 to 64 to raw outputs."""
        levels = self.head_levels(pyramid)
        categories, kernels = self.head(levels)
        features = [self.mask_feature(pyramid)]
        semantic = self.semantic(pyramid[0]) if self.training and self.semantic is not None else None
        size = (pyramid[0].shape[-2], pyramid[0].shape[-1])
        predicted_from = levels if self.aggregation.tower is not None else []
        inputs = self.aggregation(self._context_from(pyramid, features), predicted_from, *_locations(self.config))
        return SODARSOLOv2Outputs(categories, size, sizes, kernels, features, semantic, aggregation=inputs)

    def _context_from(self, pyramid: Sequence[Tensor], features: Sequence[Tensor]) -> Sequence[Tensor]:
        return pyramid if self.config.context_source == "pyramid" else features

    def representations(self, outputs: SODARSOLOv2Outputs, image: int, level: int, cells: Tensor) -> Tensor:
        """The raw maps (U, H/4, W/4) of cells (U,) of the mask grids: what are SOLOv2's logits."""
        return solov2.cell_maps(self.config, outputs, image, level, cells)

    def mask_logits(self, outputs: SODARSOLOv2Outputs, image: int, level: int, cells: Tensor) -> Tensor:
        """Equation (6) for cells (N,) of all levels: (N, H/4, W/4)."""
        return self.aggregation.mask_logits(outputs.aggregation, image, cells, *self._maps_of(outputs, image))

    def _maps_of(self, outputs: SODARSOLOv2Outputs, image: int) -> tuple[tuple[int, int], MapsOf]:
        return outputs.size, lambda used: self.representations(outputs, image, 0, used)

    def mask_probabilities(
        self, outputs: SODARSOLOv2Outputs, image: int, level: int, cells: Tensor, size: tuple[int, int] | None = None
    ) -> Tensor:
        return _soft(self.mask_logits(outputs, image, level, cells), size)

    def assign(self, target: Target, padded: tuple[int, int]) -> Assignment:
        return solov2.assign_shared(self.config, target, padded)

    def loss(self, outputs: SODARSOLOv2Outputs, targets: Sequence[Target], step: Step) -> LossTerms:
        padded = (outputs.size[0] * MASK_STRIDE, outputs.size[1] * MASK_STRIDE)
        assigned = [self.assign(target, padded) for target in targets]
        masks = partial(self.mask_probabilities, outputs)
        supervised = _supervised(self.config, masks, lambda *cells: self.representations(outputs, *cells).sigmoid())
        return solov2.dynamic_loss(self.config, outputs, targets, assigned, supervised, step)

    def explain(self, outputs: SODARSOLOv2Outputs, image: int, source: int) -> Trace:
        """As :class:`~instseg.models.base.Explains`."""
        cells = torch.tensor([source], device=outputs.cls_logits[0].device)
        mask = self.mask_probabilities(outputs, image, 0, cells)[0]
        return self.aggregation.trace(outputs.aggregation, image, source, *self._maps_of(outputs, image), mask)

    def as_published(self, batch: ImageBatch) -> None:
        """Everything that the published code computes for a batch, the aggregation itself excepted."""
        pyramid = self.fpn(self.backbone(batch.pixels))
        levels = self.head_levels(pyramid)
        categories, kernels = self.head(levels)
        features = [self.mask_feature(pyramid)]
        found = solov2.SOLOv2Outputs(categories, (0, 0), batch.sizes, kernels, features)
        targets = _locations(self.config)[1]
        solov2.cell_maps(self.config, found, 0, 0, torch.arange(targets.first[-1], device=batch.pixels.device))
        predicted_from = levels if self.aggregation.tower is not None else []
        self.aggregation.as_published(self._context_from(pyramid, features), predicted_from, *_locations(self.config))
