"""SOLOv2: Xinlong Wang, Rufeng Zhang, Tao Kong, Lei Li, Chunhua Shen, "SOLOv2: Dynamic and Fast Instance Segmentation",
NeurIPS 2020, https://arxiv.org/abs/2003.10152.

Sections, equations and tables are those of the journal version, "SOLO (journal)": Xinlong Wang, Rufeng Zhang, Chunhua
Shen, Tao Kong, Lei Li, "SOLO: A Simple Framework for Instance Segmentation", TPAMI 2021,
https://arxiv.org/abs/2106.15947. This is its Dynamic SOLO, section 3.2.3, with Decoupled Dynamic SOLO, section 3.2.4,
and SOLOv2+, section 4.3 (auxiliary semantic loss, table 6a; denser grid, table 6b).

An image is divided into grids of S x S cells. The cell that holds an object's center predicts its class and the
kernel of a convolution; that convolution, applied to one feature map F of the whole image, is the object's mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from instseg.models.base import ClassLayout, LossTerms, Step, Target
from instseg.models.config import Depth, Positive
from instseg.models.solo.assign import Assignment
from instseg.models.solo.config import GridConfig
from instseg.models.solo.grids import MASK_STRIDE, CellMasks, GridOutputs, LevelSpec, level_maps, one_map
from instseg.models.solo.loss import grid_loss
from instseg.models.solo.net import GridNet, assign_target
from instseg.nn.blocks import ConvGNReLU, Tower, prediction_conv, prior_bias
from instseg.nn.mask_feature import MaskFeature
from instseg.ops.coords import append_coordinates
from instseg.ops.dynamic_conv import dynamic_conv
from instseg.ops.resize import resize

SEPARATE_CONVS = 7  # depth of the separate mask features, as SOLO's mask branch


class SOLOv2Config(GridConfig):
    """Published values by default; the light models of the zoo change some of them."""

    tower_convs: Depth = 4
    tower_channels: Positive = 512
    mask_hidden: Positive = 128  # channels inside the mask feature branch
    mask_channels: Positive = 256  # E, channels of the mask feature F
    kernel_size: Literal[1, 3] = 1  # k of the dynamic convolution; a kernel has E k k values (table 5a)
    mask_groups: Positive = 1  # A: a mask is the product of A maps, each with a kernel of its own (table 6c)
    mask_feature: Literal["unified", "separate"] = "unified"  # one F for all levels, or one a level (table 5c)
    mask_feature_dcn: bool = False  # deformable convolutions in the mask feature branch, of version dcn
    kernel_coords: bool = True  # the kernel branch sees coordinates (table 5b)
    feature_coords: bool = True  # the mask feature branch sees coordinates (table 5b)
    mask_feature_norm: bool = True  # group norm in the mask feature's 3x3 convolutions; the output's 1x1 has it always
    kernel_conv: Literal[1, 3] = 3  # size of the convolution that predicts the kernels
    semantic_weight: float = 0.0  # of the auxiliary semantic loss of SOLOv2+ (table 6a); 0: no such branch
    multi_label: bool = False  # a pixel of its labels has every class there ("merging the object masks of the same
    # class", section 4.3), or that of the smallest object alone; the same but where objects of two classes overlap
    shared_cells: Literal["all", "mmdet", "last"] = "all"  # objects in one cell: train on all (mean over masks),
    # on all (sum over masks / number of cells, as mmdetection), or on the last one alone

    @model_validator(mode="after")
    def _deformable(self) -> Self:
        if self.mask_feature_dcn and not self.dcn:
            raise ValueError("mask_feature_dcn needs the version of the deformable convolutions: dcn=1 or dcn=2")
        return self


@dataclass(frozen=True)
class SOLOv2Outputs(GridOutputs):
    """Raw outputs for a batch.

    Attributes:
        kernels: for each level (B, A E k k, S, S).
        mask_features: the one F, (B, E, H/4, W/4), not negative; with separate features one a level, half as fine.
        semantic: (B, C, H/4, W/4) logits of the auxiliary branch while training, else None.
    """

    kernels: list[Tensor]
    mask_features: list[Tensor]
    semantic: Tensor | None = None


class SOLOv2Head(nn.Module):
    """Category and kernel branches, shared by all levels. They run at S x S, so their cost does not depend on the
    image's size."""

    def __init__(self, config: SOLOv2Config, map_grids: Sequence[int] | None = None) -> None:
        """map_grids: of the kernels, where they are not those of the classes."""
        super().__init__()
        channels, width, depth = config.fpn_channels, config.tower_channels, config.tower_convs
        dcn, dcn_from = config.tower_dcn(depth)
        self.grids, self.map_grids, self.kernel_coords = config.grids, map_grids or config.grids, config.kernel_coords
        kernel_inputs = channels + 2 if config.kernel_coords else channels
        self.category_tower = Tower(channels, width, depth, dcn=dcn, dcn_from=dcn_from)
        self.category = prediction_conv(width, config.num_classes, bias=prior_bias())
        self.kernel_tower = Tower(kernel_inputs, width, depth, dcn=dcn, dcn_from=dcn_from)
        kernel = config.mask_groups * config.mask_channels * config.kernel_size**2
        self.kernel = prediction_conv(width, kernel) if config.kernel_conv == 3 else nn.Conv2d(width, kernel, 1)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Re-strided levels, each (B, fpn_channels, h, w), to category logits and kernels of each level."""
        categories, kernels = [], []
        for s, t, level in zip(self.grids, self.map_grids, levels, strict=True):
            placed = append_coordinates(level)
            x = resize(placed, (t, t))  # B, 258, S, S: coordinates are resized with the features
            kernels.append(self.kernel(self.kernel_tower(x if self.kernel_coords else x[:, :-2])))
            y = x if s == t else resize(placed, (s, s))
            categories.append(self.category(self.category_tower(y[:, :-2])))
        return categories, kernels


def mask_feature(config: SOLOv2Config) -> nn.Module:
    """The mask feature branch: of one F for all levels, or a tower that is applied to each."""
    channels = config.fpn_channels
    if config.mask_feature == "separate":
        return Tower(channels, config.mask_channels, SEPARATE_CONVS, coord_convs=int(config.feature_coords))
    dcn = config.dcn if config.mask_feature_dcn else 0
    return MaskFeature(
        channels, config.mask_hidden, config.mask_channels, config.feature_coords, dcn, config.mask_feature_norm
    )


def semantic_branch(config: SOLOv2Config) -> nn.Sequential | None:
    """The auxiliary branch of SOLOv2+ (table 6a), which only training runs."""
    if not config.semantic_weight:
        return None
    return nn.Sequential(
        ConvGNReLU(config.fpn_channels, 128),
        ConvGNReLU(128, 128),
        prediction_conv(128, config.num_classes, bias=prior_bias()),
    )


def cell_maps(c: SOLOv2Config, outputs: SOLOv2Outputs, image: int, level: int, cells: Tensor) -> Tensor:
    """The maps (N A, h, w) of cells (N,): of one level with separate features, else numbered over all levels."""
    separate = c.mask_feature == "separate"
    feature = outputs.mask_features[level][image]
    chosen = [k[image].flatten(1) for k in ([outputs.kernels[level]] if separate else outputs.kernels)]
    kernels = torch.cat(chosen, dim=1).T[cells]  # N, A E k k
    if separate and c.kernel_size > 1:  # else the enlargement may follow the convolution: they commute
        feature = resize(feature[None], (2 * feature.shape[1], 2 * feature.shape[2]))[0]
    groups = kernels.reshape(-1, c.mask_channels * c.kernel_size**2)  # N A, E k k
    logits = dynamic_conv(feature, groups, c.kernel_size).float()  # equation (2): M = G * F
    if separate and c.kernel_size == 1:
        logits = resize(logits[None], (2 * logits.shape[1], 2 * logits.shape[2]))[0]
    return logits


def dynamic_loss(
    c: SOLOv2Config,
    outputs: SOLOv2Outputs,
    targets: Sequence[Target],
    assigned: Sequence[Assignment],
    supervised_masks: Mapping[str, CellMasks],
    step: Step,
) -> LossTerms:
    """Equation (4) with the ways of sharing cells; with the semantic branch also ``loss_semantic``."""
    normalizer: Literal["masks", "cells"] = "cells" if c.shared_cells == "mmdet" else "masks"
    terms = grid_loss(c, outputs.cls_logits, one_or_many(c), targets, assigned, supervised_masks, step, normalizer)
    if outputs.semantic is None:
        return terms
    labels_of = class_masks if c.multi_label else semantic_labels
    labels = torch.stack([labels_of(t, outputs.size, c.num_classes) for t in targets])
    semantic = c.semantic_weight * semantic_loss(outputs.semantic, labels, step)
    return LossTerms({**terms.losses, "loss_semantic": semantic}, terms.logs)


def one_or_many(c: SOLOv2Config) -> list[LevelSpec]:
    """All cells have their masks on one map, or with separate features each level's on its own."""
    return level_maps(c.grids) if c.mask_feature == "separate" else one_map(c.grids)


def semantic_labels(target: Target, size: tuple[int, int], num_classes: int) -> Tensor:
    """(H/4, W/4) int64: at each fourth pixel the class of the smallest object there, else ``num_classes``."""
    full = target.masks >= 0.5
    masks = _fourth_pixels(full)
    labels = torch.full(size, num_classes, device=masks.device)
    corner = labels[: masks.shape[1], : masks.shape[2]]
    areas = full.flatten(1).sum(dim=1)
    for i in areas.argsort(descending=True, stable=True).tolist():
        corner[masks[i]] = target.labels[i]
    return labels


def class_masks(target: Target, size: tuple[int, int], num_classes: int) -> Tensor:
    """(C, H/4, W/4) float, 0 or 1: at each fourth pixel every class that has an object there (section 4.3)."""
    masks = _fourth_pixels(target.masks >= 0.5)
    merged = torch.zeros(num_classes, *size, device=masks.device)
    corner = merged[:, : masks.shape[1], : masks.shape[2]]
    for mask, label in zip(masks, target.labels.tolist(), strict=True):
        corner[label][mask] = 1.0
    return merged


def _fourth_pixels(masks: Tensor) -> Tensor:
    return masks[:, MASK_STRIDE // 2 :: MASK_STRIDE, MASK_STRIDE // 2 :: MASK_STRIDE]


class SOLOv2(GridNet[SOLOv2Outputs]):
    """The network, its loss and its decoding: three pure steps."""

    config: SOLOv2Config

    def __init__(self, config: SOLOv2Config) -> None:
        super().__init__(config)
        self.maps = one_or_many(config)
        self.mask_feature = mask_feature(config)
        self.head = SOLOv2Head(config)
        self.semantic = semantic_branch(config)

    def class_layers(self) -> Mapping[str, ClassLayout]:
        return class_layers(self.semantic)

    def stages(self) -> Mapping[str, nn.Module]:
        shared = {"backbone": self.backbone, "pyramid": self.fpn}
        return {**shared, "head": self.head, "mask feature": self.mask_feature}

    def predict_pyramid(self, pyramid: Sequence[Tensor], sizes: Tensor) -> SOLOv2Outputs:
        """[P2, ..., P6] at strides 4 to 64 to raw outputs."""
        levels = self.head_levels(pyramid)
        categories, kernels = self.head(levels)
        unified = self.config.mask_feature == "unified"
        features = [self.mask_feature(pyramid)] if unified else [self.mask_feature(x) for x in levels]
        semantic = self.semantic(pyramid[0]) if self.training and self.semantic is not None else None
        size = (pyramid[0].shape[-2], pyramid[0].shape[-1])
        return SOLOv2Outputs(categories, size, sizes, kernels, features, semantic)

    def mask_probabilities(
        self, outputs: SOLOv2Outputs, image: int, level: int, cells: Tensor, size: tuple[int, int] | None = None
    ) -> Tensor:
        logits, groups = cell_maps(self.config, outputs, image, level, cells), self.config.mask_groups
        if groups == 1:
            soft = logits.sigmoid()
        else:  # equation (3): the product of sigmoids, in logarithms
            soft = F.logsigmoid(logits).view(len(cells), groups, *logits.shape[1:]).sum(dim=1).exp()
        return soft if size is None else resize(soft[None], size)[0]

    def assign(self, target: Target, padded: tuple[int, int]) -> Assignment:
        return assign_shared(self.config, target, padded)

    def loss(self, outputs: SOLOv2Outputs, targets: Sequence[Target], step: Step) -> LossTerms:
        padded = (outputs.size[0] * MASK_STRIDE, outputs.size[1] * MASK_STRIDE)
        assigned = [self.assign(target, padded) for target in targets]
        supervised = {"loss_mask": partial(self.mask_probabilities, outputs)}
        return dynamic_loss(self.config, outputs, targets, assigned, supervised, step)


def assign_shared(c: SOLOv2Config, target: Target, padded: tuple[int, int]) -> Assignment:
    """The positive cells of one image; objects that share a cell are all trained on, or the last alone."""
    found = assign_target(c, target, padded)
    return found.owned() if c.shared_cells == "last" else found


def class_layers(semantic: nn.Module | None) -> dict[str, ClassLayout]:
    """The tensors with rows for each class, with the ``semantic`` branch or without."""
    layers = ["head.category", *(["semantic.2"] if semantic is not None else [])]
    return {f"{layer}.{kind}": ClassLayout() for layer in layers for kind in ("weight", "bias")}


def semantic_loss(logits: Tensor, labels: Tensor, step: Step | None = None) -> Tensor:
    """Focal loss (alpha 0.25, gamma 2) of (B, C, h, w) logits, divided by the number of object pixels. ``labels``
    are classes (B, h, w), C on the ground, or masks of the classes (B, C, h, w), whose pixels count once for each."""
    from torchvision.ops import sigmoid_focal_loss  # takes seconds to import

    one_hot = labels.dim() == 3
    targets = F.one_hot(labels, logits.shape[1] + 1)[..., :-1].permute(0, 3, 1, 2).float() if one_hot else labels
    loss: Tensor = sigmoid_focal_loss(logits.float(), targets, alpha=0.25, gamma=2.0, reduction="sum")
    return loss / (step or Step()).shared(targets.sum())


def light(size: Literal[448, 512] = 448) -> dict[str, object]:
    """Fields of the light models: narrow towers, small inputs. The one for 512 pixels has deformable convolutions."""
    fields: dict[str, object] = {"tower_channels": 256, "mask_channels": 128, "input_short": size}
    if size == 448:
        ranges = ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896))
        return {**fields, "tower_convs": 2, "scale_ranges": ranges, "input_long": 768}
    ranges = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))
    deformable = {"dcn": 1, "dcn_towers": "last"}
    return {**fields, **deformable, "tower_convs": 3, "scale_ranges": ranges, "input_long": 852}
