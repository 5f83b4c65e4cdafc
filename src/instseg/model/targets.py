"""What torchvision's detection models call a target, as a network takes it."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from instseg.core.errors import DataError
from instseg.core.geometry import mask_extents
from instseg.core.shapes import Shapes
from instseg.core.target import SHAPES, Need, Target


def target_of(
    given: Mapping[str, Any],
    size: tuple[int, int],
    classes: int,
    needs: Collection[Need],
    wanted: Collection[Need],
    where: str,
) -> Target:
    """The target of one image.

    Args:
        given: ``labels``, and ``boxes``, ``masks`` and ``semantic`` where there are any.
        size: (h, w) of the image.
        classes: labels run from 0 to ``classes - 1``.
        needs: what the network cannot do without.
        wanted: what it uses where it is there.
        where: what an error calls the target.

    Raises:
        DataError: something is missing, or does not fit the image, the labels or the model.
    """
    labels: Tensor | None = given.get("labels")
    masks: Tensor | None = given.get("masks")
    boxes: Tensor | None = given.get("boxes")
    semantic: Tensor | None = given.get("semantic")
    if labels is None:
        raise DataError(f"{where} has no labels: give (N,) int64.")
    if masks is not None and masks.shape != (len(labels), *size):
        raise DataError(
            f"{where}: masks of shape {tuple(masks.shape)} for {len(labels)} labels and an image of {size}: "
            "give (N, H, W)."
        )
    if masks is None and not SHAPES.isdisjoint(needs):
        raise DataError(f"{where} has no masks, which this method is trained on: give (N, H, W).")
    if masks is None and boxes is None:
        raise DataError(f"{where} has neither boxes nor masks: give boxes (N, 4) xyxy.")
    if boxes is not None and boxes.shape != (len(labels), 4):
        raise DataError(f"{where}: boxes of shape {tuple(boxes.shape)} for {len(labels)} labels: give (N, 4) xyxy.")
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise DataError(
            f"{where}: labels from {int(labels.min())} to {int(labels.max())}, but this model has {classes} classes: "
            f"labels run from 0 to {classes - 1}."
        )
    if semantic is None and "semantic" in needs:
        raise DataError(f"{where} has no semantic map, which this method is trained on: give (H, W) int64.")
    if semantic is not None and semantic.shape != size:
        raise DataError(f"{where}: a semantic map of {tuple(semantic.shape)} for an image of {size}: give (H, W).")
    shapes = None
    if masks is not None and not SHAPES.isdisjoint(wanted):
        shapes = Shapes.from_masks(masks.float() if "mattes" in wanted else _binary(masks))
    if boxes is None:
        assert masks is not None  # checked above
        boxes = mask_extents(_binary(masks).bool())
    return Target(size, labels, boxes.float(), shapes, semantic if "semantic" in wanted else None)


def _binary(masks: Tensor) -> Tensor:
    """(N, H, W) uint8; soft masks are cut at 0.5."""
    return (masks >= 0.5 if masks.is_floating_point() else masks).to(torch.uint8)
