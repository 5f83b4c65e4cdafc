"""SOLOv2, "Dynamic SOLO": SOLO (journal) section 3.2.3, with Decoupled Dynamic SOLO and SOLOv2+ of section 4.5.

An image is divided into grids of S x S cells. The cell that holds an object's center predicts its class and the
kernel of a convolution; that convolution, applied to one feature map F of the whole image, is the object's mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from instseg.models.base import LossTerms, Step, Target
from instseg.models.config import Depth, Positive
from instseg.models.solo.config import GridConfig
from instseg.models.solo.net import MASK_STRIDE, GridNet, GridOutputs, LevelSpec
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

    def __init__(self, config: SOLOv2Config) -> None:
        super().__init__()
        channels, width, depth = config.fpn_channels, config.tower_channels, config.tower_convs
        dcn, dcn_from = config.tower_dcn(depth)
        self.grids, self.map_grids, self.kernel_coords = config.grids, config.map_grids, config.kernel_coords
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


class SOLOv2(GridNet[SOLOv2Outputs]):
    """The network, its loss and its decoding: three pure steps."""

    def __init__(self, config: SOLOv2Config) -> None:
        super().__init__(config)
        channels = config.fpn_channels
        self.shares_cells = config.shared_cells != "last"
        self.mask_feature: nn.Module
        if config.mask_feature == "unified":
            dcn = config.dcn if config.mask_feature_dcn else 0
            self.mask_feature = MaskFeature(
                channels,
                config.mask_hidden,
                config.mask_channels,
                config.feature_coords,
                dcn,
                config.mask_feature_norm,
            )
            self.maps = [LevelSpec(MASK_STRIDE, 0, sum(s * s for s in config.grids))]
        else:
            self.mask_feature = Tower(
                channels, config.mask_channels, SEPARATE_CONVS, coord_convs=int(config.feature_coords)
            )
        self.head = SOLOv2Head(config)
        if config.semantic_weight:
            self.semantic = nn.Sequential(
                ConvGNReLU(channels, 128),
                ConvGNReLU(128, 128),
                prediction_conv(128, config.num_classes, bias=prior_bias()),
            )

    def predict_pyramid(self, pyramid: Sequence[Tensor], sizes: Tensor) -> SOLOv2Outputs:
        """[P2, ..., P6] at strides 4 to 64 to raw outputs."""
        levels = self.head_levels(pyramid)
        categories, kernels = self.head(levels)
        unified = self.config.mask_feature == "unified"
        features = [self.mask_feature(pyramid)] if unified else [self.mask_feature(x) for x in levels]
        semantic = self.semantic(pyramid[0]) if self.training and self.config.semantic_weight else None
        size = (pyramid[0].shape[-2], pyramid[0].shape[-1])
        return SOLOv2Outputs(categories, size, sizes, kernels, features, semantic)

    def mask_probabilities(
        self, outputs: SOLOv2Outputs, image: int, level: int, cells: Tensor, size: tuple[int, int] | None = None
    ) -> Tensor:
        """The dynamic convolution of some cells; with ``mask_groups`` the product of their A maps."""
        logits, groups = self.mask_logits(outputs, image, level, cells), self.config.mask_groups
        if groups == 1:
            soft = logits.sigmoid()
        else:  # the product of sigmoids, in logarithms
            soft = F.logsigmoid(logits).view(len(cells), groups, *logits.shape[1:]).sum(dim=1).exp()
        return soft if size is None else resize(soft[None], size)[0]

    def mask_logits(self, outputs: SOLOv2Outputs, image: int, level: int, cells: Tensor) -> Tensor:
        """The maps (N A, h, w) of some cells."""
        c = self.config
        feature = outputs.mask_features[level][image]
        one_map = len(self.maps) == 1
        # Cells of one level, or of all levels in a row.
        chosen = [k[image].flatten(1) for k in (outputs.kernels if one_map else [outputs.kernels[level]])]
        kernels = torch.cat(chosen, dim=1).T[cells]  # N, A E k k
        if not one_map and c.kernel_size > 1:  # else the enlargement may follow the convolution: they commute
            feature = resize(feature[None], (2 * feature.shape[1], 2 * feature.shape[2]))[0]
        groups = kernels.reshape(-1, c.mask_channels * c.kernel_size**2)  # N A, E k k
        logits = dynamic_conv(feature, groups, c.kernel_size).float()
        if not one_map and c.kernel_size == 1:
            logits = resize(logits[None], (2 * logits.shape[1], 2 * logits.shape[2]))[0]
        return logits

    # --- training: section 3.3 ------------------------------------------------------------------------------------

    def mask_normalizer(self, losses: int, cells: int) -> int:
        return cells if self.config.shared_cells == "mmdet" else losses

    def loss(self, outputs: SOLOv2Outputs, targets: Sequence[Target], step: Step) -> LossTerms:
        """As :meth:`GridNet.loss`; with the semantic branch also ``loss_semantic``."""
        terms = super().loss(outputs, targets, step)
        if outputs.semantic is not None:
            labels = torch.stack([self._semantic_labels(t, outputs.size) for t in targets])
            terms.losses["loss_semantic"] = self.config.semantic_weight * semantic_loss(outputs.semantic, labels)
        return terms

    def _semantic_labels(self, target: Target, size: tuple[int, int]) -> Tensor:
        """(H/4, W/4) int64: at each fourth pixel the class of the smallest object there, else ``num_classes``."""
        masks = target.masks[:, MASK_STRIDE // 2 :: MASK_STRIDE, MASK_STRIDE // 2 :: MASK_STRIDE].bool()
        labels = torch.full(size, self.config.num_classes, device=masks.device)
        corner = labels[: masks.shape[1], : masks.shape[2]]
        areas = target.masks.flatten(1).sum(dim=1, dtype=torch.int64)
        for i in areas.argsort(descending=True, stable=True).tolist():
            corner[masks[i]] = target.labels[i]
        return labels


def semantic_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal loss (alpha 0.25, gamma 2) of (B, C, h, w) logits, divided by the number of object pixels; ``labels``
    (B, h, w) is C on the ground."""
    targets = F.one_hot(labels, logits.shape[1] + 1)[..., :-1].permute(0, 3, 1, 2).float()
    loss: Tensor = sigmoid_focal_loss(logits.float(), targets, alpha=0.25, gamma=2.0, reduction="sum")
    return loss / targets.sum().clamp(min=1)


def light(size: Literal[448, 512] = 448) -> dict[str, object]:
    """Fields of the light models: narrow towers, small inputs. The one for 512 pixels has deformable convolutions."""
    fields: dict[str, object] = {"tower_channels": 256, "mask_channels": 128, "input_short": size}
    if size == 448:
        ranges = ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896))
        return {**fields, "tower_convs": 2, "scale_ranges": ranges, "input_long": 768}
    ranges = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))
    deformable = {"dcn": 1, "dcn_towers": "last"}
    return {**fields, **deformable, "tower_convs": 3, "scale_ranges": ranges, "input_long": 852}
