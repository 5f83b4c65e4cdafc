"""SOLOv2, "Dynamic SOLO": SOLO (journal) section 3.2.3.

An image is divided into grids of S x S cells. The cell that holds an object's centre predicts its class and the
kernel of a convolution; that convolution, applied to one feature map F of the whole image, is the object's mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from instseg.core.geometry import Placement, View
from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.losses.dice import dice_loss
from instseg.losses.focal import category_focal_loss
from instseg.models.config import Fraction, ModelConfig, Positive
from instseg.models.grid import Assignment, assign_cells
from instseg.nn.backbone import Backbone
from instseg.nn.blocks import prediction_conv, prior_bias, tower
from instseg.nn.fpn import FPN
from instseg.nn.mask_feature import MaskFeature
from instseg.ops.coords import append_coordinates
from instseg.ops.dynamic_conv import dynamic_conv
from instseg.ops.mask_iou import mask_iou
from instseg.ops.matrix_nms import matrix_nms
from instseg.ops.point_nms import point_nms
from instseg.ops.resize import downsample_masks, resize

# Strides of the (re-strided) levels that enter the head; also the least area of a mask, in pixels of F.
STRIDES = (8, 8, 16, 32, 32)
MASK_STRIDE = 4
# Soft masks of one chunk of candidates held at a time, in values: bounds memory whatever the number of candidates.
CHUNK_VALUES = 32_000_000


class SOLOv2Config(ModelConfig):
    """Published values by default; the light models of the zoo change some of them."""

    fpn_channels: Positive = 256
    tower_convs: Positive = 4
    tower_channels: Positive = 512
    mask_hidden: Positive = 128  # channels inside the mask feature branch
    mask_channels: Positive = 256  # E, channels of the mask feature F
    kernel_size: Literal[1, 3] = 1  # k of the dynamic convolution; a kernel has E k k values

    grids: tuple[Positive, ...] = (40, 36, 24, 16, 12)  # S of each level, fine to coarse; one to five levels
    scale_ranges: tuple[tuple[float, float], ...] = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
    centre_region: Fraction = 0.2  # side of the positive region around the centre of mass, share of the box
    shared_cells: Literal["all", "mmdet", "last"] = "all"  # objects in one cell: train on all (mean over masks),
    # on all (sum over masks / number of cells, as mmdetection), or on the last one alone

    mask_weight: float = 3.0
    category_weight: float = 1.0
    focal_alpha: Fraction = 0.25
    focal_gamma: float = 2.0

    score_threshold: Fraction = 0.1  # candidates score above it, before masks
    mask_threshold: Fraction = 0.5
    nms_kernel: Literal["gaussian", "linear"] = "gaussian"
    nms_sigma: Annotated[float, Field(gt=0)] = 2.0  # multiplier; the paper's 0.5 divides
    nms_pre: Positive = 500  # candidates that enter Matrix NMS
    class_agnostic: bool = False  # masks of different classes suppress each other
    keep_threshold: Fraction = 0.05  # objects score at least this after Matrix NMS

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if not 1 <= len(self.grids) <= len(STRIDES) or len(self.grids) != len(self.scale_ranges):
            raise ValueError(f"grids and scale_ranges must have one entry for each of 1 to {len(STRIDES)} levels")
        return self


@dataclass(frozen=True)
class SOLOv2Outputs:
    """Raw outputs for a batch.

    Attributes:
        categories: for each level (B, C, S, S) logits.
        kernels: for each level (B, E k k, S, S).
        mask_feature: F, (B, E, H/4, W/4), not negative.
    """

    categories: list[Tensor]
    kernels: list[Tensor]
    mask_feature: Tensor


class SOLOv2Head(nn.Module):
    """Category and kernel branches, shared by all levels. They run at S x S, so their cost does not depend on the
    image's size."""

    def __init__(self, config: SOLOv2Config) -> None:
        super().__init__()
        channels, width, depth = config.fpn_channels, config.tower_channels, config.tower_convs
        self.grids = config.grids
        self.category_tower = tower(channels, width, depth)
        self.category = prediction_conv(width, config.num_classes, bias=prior_bias())
        self.kernel_tower = tower(channels + 2, width, depth)
        self.kernel = prediction_conv(width, config.mask_channels * config.kernel_size**2)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Re-strided levels, each (B, fpn_channels, h, w), to category logits and kernels of each level."""
        categories, kernels = [], []
        for s, level in zip(self.grids, levels, strict=True):
            x = resize(append_coordinates(level), (s, s))  # B, 258, S, S: coordinates are resized with the features
            kernels.append(self.kernel(self.kernel_tower(x)))
            categories.append(self.category(self.category_tower(x[:, :-2])))
        return categories, kernels


class SOLOv2(nn.Module):
    """The network, its loss and its decoding: three pure steps."""

    def __init__(self, config: SOLOv2Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone, config.frozen_stages, config.norm_eval)
        self.fpn = FPN(self.backbone.channels, config.fpn_channels)
        self.mask_feature = MaskFeature(config.fpn_channels, config.mask_hidden, config.mask_channels)
        self.head = SOLOv2Head(config)

    def forward(self, x: Tensor) -> SOLOv2Outputs:
        """(B, 3, H, W), normalised, sides multiples of 32."""
        return self.predict_pyramid(self.fpn(self.backbone(x)))

    def predict_pyramid(self, pyramid: Sequence[Tensor]) -> SOLOv2Outputs:
        """[P2, ..., P6] at strides 4 to 64 to raw outputs."""
        p2, p3, p4, p5, p6 = pyramid
        levels = [resize(p2, tuple(p3.shape[-2:])), p3, p4, p5, resize(p6, tuple(p5.shape[-2:]))]  # type: ignore[arg-type]
        categories, kernels = self.head(levels[: len(self.config.grids)])
        return SOLOv2Outputs(categories, kernels, self.mask_feature(pyramid))

    # --- training: section 3.3 ------------------------------------------------------------------------------------

    def assign(self, target: dict[str, Tensor], padded: tuple[int, int]) -> Assignment:
        """The positive cells of one image; ``target`` as in :meth:`loss`, ``padded`` (H, W) of the batch."""
        c = self.config
        assignment = assign_cells(target["boxes"], target["masks"], padded, c.grids, c.scale_ranges, c.centre_region)
        return assignment.owned() if c.shared_cells == "last" else assignment

    def loss(self, outputs: SOLOv2Outputs, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Equation (4): the focal loss of the categories and three times the dice loss of the masks.

        Args:
            outputs: of a batch of B images.
            targets: for each image ``boxes`` (N, 4) float xyxy and ``masks`` (N, h, w) uint8 or bool in pixels of
                the network input without padding, ``labels`` (N,) int64.

        Returns:
            ``loss_category`` and ``loss_mask``, float32 scalars, weighted. Without any object the mask loss is a
            zero that still reaches every parameter.
        """
        c = self.config
        _, _, h, w = outputs.mask_feature.shape
        kernels = torch.cat([k.flatten(2) for k in outputs.kernels], dim=2)  # B, D, K
        logits = torch.cat([p.flatten(2) for p in outputs.categories], dim=2).transpose(1, 2)  # B, K, C
        mask_losses: list[Tensor] = []
        labels: list[Tensor] = []
        for i, target in enumerate(targets):
            assignment = self.assign(target, (h * MASK_STRIDE, w * MASK_STRIDE))
            # Row -1 of the padded labels is background.
            padded_labels = torch.cat([target["labels"], target["labels"].new_tensor([c.num_classes])])
            labels.append(padded_labels[assignment.owner])
            if len(assignment.cells):
                mask_losses.append(self._mask_losses(outputs.mask_feature[i], kernels[i], assignment, target["masks"]))
        cell_labels = torch.cat(labels)
        positives = int((cell_labels < c.num_classes).sum())
        if mask_losses:
            items = torch.cat(mask_losses)
            loss_mask = items.sum() / (positives if c.shared_cells == "mmdet" else len(items))
        else:
            loss_mask = 0.0 * (kernels.float().sum() + outputs.mask_feature.float().sum())
        loss_category = category_focal_loss(logits.flatten(0, 1), cell_labels, positives, c.focal_alpha, c.focal_gamma)
        return {"loss_category": c.category_weight * loss_category, "loss_mask": c.mask_weight * loss_mask}

    def _mask_losses(self, feature: Tensor, kernels: Tensor, assignment: Assignment, masks: Tensor) -> Tensor:
        """Dice losses (P,) of one image. Only positive cells are gathered: no target of S S x H x W exists."""
        _, h, w = feature.shape
        small = downsample_masks(masks, MASK_STRIDE)[:, :h, :w]
        targets = small.new_zeros(len(small), h, w)
        targets[:, : small.shape[1], : small.shape[2]] = small
        logits = dynamic_conv(feature, kernels.T[assignment.cells], self.config.kernel_size)  # P, H/4, W/4
        return dice_loss(logits.float().sigmoid(), targets[assignment.objects])

    # --- inference: section 3.3.3 and 3.3.4 -----------------------------------------------------------------------

    def decode(self, outputs: SOLOv2Outputs, views: Sequence[View]) -> list[Instances]:
        """The objects of each image, masks at the resolution of F. ``views`` say where each input lies in its
        image."""
        scores = torch.cat([point_nms(p.float().sigmoid()).flatten(2) for p in outputs.categories], dim=2)  # B, C, K
        kernels = torch.cat([k.flatten(2) for k in outputs.kernels], dim=2)  # B, D, K
        return [
            self._decode_image(scores[i].T, kernels[i].T, outputs.mask_feature[i], view) for i, view in enumerate(views)
        ]

    def _decode_image(self, scores: Tensor, kernels: Tensor, feature: Tensor, view: View) -> Instances:
        c = self.config
        cells, labels = (scores > c.score_threshold).nonzero(as_tuple=True)
        scores, kernels = scores[cells, labels], kernels[cells]
        strides = torch.cat([torch.full((s * s,), t) for s, t in zip(c.grids, STRIDES, strict=False)]).to(cells.device)

        # Area and maskness of every candidate in chunks, so that memory does not grow with their number.
        area, maskness = scores.new_zeros(len(scores)), scores.new_zeros(len(scores))
        chunk = max(1, CHUNK_VALUES // feature[0].numel())
        for i in range(0, len(scores), chunk):
            soft = self._soft_masks(feature, kernels[i : i + chunk])  # N, H/4, W/4
            inside = soft > c.mask_threshold
            area[i : i + chunk] = inside.sum(dim=(1, 2))
            maskness[i : i + chunk] = (soft * inside).sum(dim=(1, 2)) / area[i : i + chunk].clamp(min=1)
        scores = scores * maskness
        kept = (area > strides[cells]).nonzero()[:, 0]
        kept = kept[scores[kept].argsort(descending=True, stable=True)][: c.nms_pre]

        soft = soft[kept] if 0 < len(cells) <= chunk else self._soft_masks(feature, kernels[kept])
        scores, labels = scores[kept], labels[kept]
        iou = mask_iou(soft > c.mask_threshold)
        scores = matrix_nms(scores, labels, iou, c.nms_kernel, c.nms_sigma, c.class_agnostic)
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= c.keep_threshold]
        capped = len(order) > c.max_instances
        order = order[: c.max_instances]
        placement = Placement.of(view, (feature.shape[1], feature.shape[2]), MASK_STRIDE)
        masks = Masks.from_soft(soft[order], placement, view.image_size, c.mask_threshold)
        return Instances(scores[order], labels[order], masks, capped)

    def _soft_masks(self, feature: Tensor, kernels: Tensor) -> Tensor:
        return dynamic_conv(feature, kernels, self.config.kernel_size).float().sigmoid()


def light(**changes: object) -> dict[str, object]:
    """Fields of the light models (448 pixels): narrow towers, small inputs."""
    return {
        "tower_convs": 2,
        "tower_channels": 256,
        "mask_channels": 128,
        "scale_ranges": ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896)),
        "input_short": 448,
        "input_long": 768,
        **changes,
    }
