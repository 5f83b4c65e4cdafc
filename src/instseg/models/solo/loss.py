"""The loss of the SOLO family: Wang et al., "SOLO: A Simple Framework for Instance Segmentation", TPAMI 2021,
https://arxiv.org/abs/2106.15947 ("SOLO (journal)"), section 3.3.2."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from instseg.losses.focal import category_focal_loss
from instseg.losses.mask import MASK_LOSSES, mask_loss
from instseg.models.base import LossTerms, Step, Target
from instseg.models.solo.assign import Assignment
from instseg.models.solo.config import GridConfig
from instseg.models.solo.grids import CellMasks, LevelSpec


def grid_loss(
    config: GridConfig,
    cls_logits: Sequence[Tensor],
    maps: Sequence[LevelSpec],
    targets: Sequence[Target],
    assignments: Sequence[Assignment],
    supervised_masks: Mapping[str, CellMasks],
    step: Step,
    normalizer: Literal["masks", "cells"] = "masks",
) -> LossTerms:
    """Equations (4) to (7): the focal loss of the categories and the weighted loss of the masks.

    Args:
        config: the losses' weights and kinds.
        cls_logits: for each level (B, C, S, S).
        maps: which cells have their masks on maps of which stride.
        targets: of each of the B images, with masks.
        assignments: of each image, its positive cells.
        supervised_masks: what is compared with the targets: names of losses and what makes their masks.
        step: what the losses are normalized over.
        normalizer: what the sum of a mask loss is divided by: the number of masks, or of positive cells.

    Returns:
        ``loss_category`` and each of ``supervised_masks``, float32 scalars, weighted.
    """
    logits = torch.cat([p.flatten(2) for p in cls_logits], dim=2).transpose(1, 2)  # B, K, C
    losses: dict[str, list[Tensor]] = {name: [] for name in supervised_masks}
    labels: list[Tensor] = []
    for image, (target, assignment) in enumerate(zip(targets, assignments, strict=True)):
        # Row -1 of the padded labels is background.
        padded_labels = torch.cat([target.labels, target.labels.new_tensor([config.num_classes])])
        labels.append(padded_labels[assignment.matched_gt])
        for name, found in _mask_losses(config.mask_loss, image, maps, target, assignment, supervised_masks):
            losses[name].append(found)
    cell_labels = torch.cat(labels)
    positives = (cell_labels < config.num_classes).sum().float()
    masks = {name: torch.cat([logits.new_zeros(0, dtype=torch.float32), *parts]) for name, parts in losses.items()}
    counts = [positives.new_tensor(len(items)) if normalizer == "masks" else positives for items in masks.values()]
    focal = category_focal_loss(logits.flatten(0, 1), cell_labels, 0, config.focal_alpha, config.focal_gamma)
    shared = step.shared(torch.stack([positives + 1 / step.processes, *counts]))  # one exchange
    named = {"loss_category": config.category_weight * focal / shared[0]}
    weight = MASK_LOSSES[config.mask_loss][1] if config.mask_weight is None else config.mask_weight  # lambda
    for (name, items), count in zip(masks.items(), shared[1:], strict=True):  # equation (5)
        named[name] = weight * items.sum() / count
    return LossTerms(named, {"positives": shared[0] * step.processes - 1})  # of all that are normalized together


def _mask_losses(
    kind: str,
    image: int,
    maps: Sequence[LevelSpec],
    target: Target,
    assignment: Assignment,
    supervised_masks: Mapping[str, CellMasks],
) -> list[tuple[str, Tensor]]:
    """For each map that has positives in one image the names and values (P,) of their losses. Only positive cells are
    gathered: no target of S S x H x W exists."""
    found = []
    smaller: dict[int, Tensor] = {}
    for level, m in enumerate(maps):
        inside = (assignment.cells >= m.first) & (assignment.cells < m.last)
        if not bool(inside.any()):
            continue
        for name, masks_of in supervised_masks.items():
            p = masks_of(image, level, assignment.cells[inside] - m.first)
            if m.stride not in smaller:
                assert target.shapes is not None  # they have been assigned by their masks
                smaller[m.stride] = _padded(target.shapes.at_stride(m.stride), (p.shape[1], p.shape[2]))
            q = smaller[m.stride][assignment.objects[inside]]
            found.append((name, mask_loss(kind, p, q)))
    return found


def _padded(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (N, h, w) in the upper left corner of maps of ``size``, cut where they are larger."""
    out = masks.new_zeros(len(masks), *size)
    part = masks[:, : size[0], : size[1]]
    out[:, : part.shape[1], : part.shape[2]] = part
    return out
