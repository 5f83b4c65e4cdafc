"""What torchvision's detection models call a target, as a network takes it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from instseg.core.errors import DataError
from instseg.core.geometry import mask_extents
from instseg.core.shapes import Shapes
from instseg.core.target import SHAPES, Need, Target

Size = tuple[int, int]
# Key -> what it should be.
FORMS = {
    "labels": "(N,) int64",
    "boxes": "(N, 4) float xyxy",
    "masks": "(N, H, W) uint8 or bool",
    "semantic": "(H, W) int64",
}
_ORDERED = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64}


def sizes_of(images: Sequence[Tensor]) -> list[Size]:
    """(h, w) of each image. Raises DataError unless each is an image (3, H, W)."""
    if not isinstance(images, Sequence | Tensor):
        raise DataError(f"images of type {type(images).__name__}: give a list of tensors (3, H, W).")
    for i, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise DataError(f"image {i} is of type {type(image).__name__}: give a tensor (3, H, W).")
        if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
            raise DataError(f"image {i} is of shape {tuple(image.shape)}: give (3, H, W).")
    return [(int(image.shape[-2]), int(image.shape[-1])) for image in images]


def targets_of(
    given: Sequence[Mapping[str, Any]],
    sizes: Sequence[Size],
    classes: int,
    needs: Collection[Need],
    wanted: Collection[Need],
    device: torch.device | str | None = None,
) -> list[Target]:
    """The targets of a batch.

    They are checked where they are given, with one wait for each device, before anything is copied.

    Args:
        given: for each image ``labels``, and ``boxes``, ``masks`` and ``semantic`` where there are any.
        sizes: (h, w) of the images.
        classes: labels run from 0 to ``classes - 1``.
        needs: what the network cannot do without.
        wanted: what it uses where it is there.
        device: where they go; None leaves them where they are.

    Raises:
        DataError: something is missing, of another form, or does not fit the image, the labels or the model.
    """
    if not isinstance(given, Sequence):
        raise DataError(f"targets of type {type(given).__name__}: give a list of dictionaries, one an image.")
    if not len(given) and not len(sizes):
        raise DataError("no images and no targets: give at least one of each.")
    if len(sizes) != len(given):
        raise DataError(f"{len(sizes)} images but {len(given)} targets: give one target an image.")
    named = [(f"target {i}", target) for i, target in enumerate(given)]
    for (where, target), size in zip(named, sizes, strict=True):
        _check_forms(target, size, needs, where)
    _check_values(named, classes)
    made = [_made(target, size, wanted) for target, size in zip(given, sizes, strict=True)]
    return made if device is None else [target.to(device) for target in made]


def _check_forms(given: Mapping[str, Any], size: Size, needs: Collection[Need], where: str) -> None:
    """What can be seen without looking at a value."""
    if not isinstance(given, Mapping):
        raise DataError(f"{where} is of type {type(given).__name__}: give a dictionary with {', '.join(FORMS)}.")
    there = {key: given[key] for key in FORMS if given.get(key) is not None}
    for key, value in there.items():
        if not isinstance(value, Tensor):
            raise DataError(f"{where}: {key} of type {type(value).__name__}: give a tensor {FORMS[key]}.")
        if value.layout != torch.strided:
            raise DataError(f"{where}: {key} of layout {value.layout}: give a dense tensor {FORMS[key]}.")
        whole = key in ("labels", "semantic")
        if (
            value.is_complex()
            or (key == "boxes" and value.dtype == torch.bool)
            or (whole and value.numel() and (value.is_floating_point() or value.dtype == torch.bool))
        ):
            raise DataError(f"{where}: {key} of {str(value.dtype).removeprefix('torch.')}: give {FORMS[key]}.")
    if "labels" not in there:
        raise DataError(f"{where} has no labels: give {FORMS['labels']}.")
    labels, masks, boxes = there["labels"], there.get("masks"), there.get("boxes")
    if labels.ndim != 1:
        raise DataError(f"{where}: labels of shape {tuple(labels.shape)}: give {FORMS['labels']}.")
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
    semantic = there.get("semantic")
    if semantic is None and "semantic" in needs:
        raise DataError(f"{where} has no semantic map, which this method is trained on: give (H, W) int64.")
    if semantic is not None and semantic.shape != size:
        raise DataError(f"{where}: a semantic map of {tuple(semantic.shape)} for an image of {size}: give (H, W).")


def _check_values(named: Sequence[tuple[str, Mapping[str, Any]]], classes: int) -> None:
    """Labels, boxes, masks and maps of classes hold what they can hold."""
    asked: dict[torch.device, list[tuple[str, str, Tensor]]] = {}
    for where, target in named:
        for key in FORMS:
            value = target.get(key)
            if value is not None and value.numel() and value.dtype != torch.bool:
                bounds = torch.stack(_bounds(key, value.detach())).float()
                asked.setdefault(value.device, []).append((where, key, bounds))
    for items in asked.values():
        found = torch.stack([bounds for *_, bounds in items]).tolist()
        for (where, key, _), (low, high) in zip(items, found, strict=True):
            fault = _fault(key, low, high, classes)
            if fault is not None:
                raise DataError(f"{where}: {fault}")


def _bounds(key: str, value: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers that show whether a tensor's values are possible; NaN stays NaN in them."""
    if key == "boxes":  # the least side, and the largest number
        boxes = value.float()
        return (boxes[:, 2:] - boxes[:, :2]).amin(), boxes.abs().amax()
    if value.dtype not in _ORDERED:  # few operators know the wide unsigned and the narrow floating types
        value = value.float() if value.is_floating_point() else value.long()
    least, largest = value.aminmax()
    return least, largest


def _fault(key: str, low: float, high: float, classes: int) -> str | None:
    if key == "labels" and not (low >= 0 and high < classes):
        return (
            f"labels from {low:.0f} to {high:.0f}, but this model has {classes} classes: labels run from 0 to "
            f"{classes - 1}."
        )
    if key == "boxes" and not high < float("inf"):
        return "boxes that are not finite: correct them, or leave the objects out."
    if key == "boxes" and low < 0:
        return "boxes that end before they begin: give (N, 4) xyxy, not xywh."
    if key == "masks" and not (low >= 0 and high <= 1):
        return f"masks with values from {low:g} to {high:g}: give 0 and 1, or mattes between them."
    if key == "semantic" and not (low >= 0 and high <= 255):
        return f"a semantic map with values from {low:.0f} to {high:.0f}: give classes from 0 on, and 255 for ignored."
    return None


def _made(given: Mapping[str, Any], size: Size, wanted: Collection[Need]) -> Target:
    masks: Tensor | None = given.get("masks")
    boxes: Tensor | None = given.get("boxes")
    semantic: Tensor | None = given.get("semantic") if "semantic" in wanted else None
    shapes = None
    if masks is not None and not SHAPES.isdisjoint(wanted):
        shapes = Shapes.from_masks(masks.float() if "mattes" in wanted else _binary(masks))
    if boxes is None:
        assert masks is not None  # checked above
        boxes = mask_extents(_binary(masks).bool())
    return Target(size, given["labels"].long(), boxes.float(), shapes, None if semantic is None else semantic.long())


def _binary(masks: Tensor) -> Tensor:
    """(N, H, W) uint8; soft masks are cut at 0.5."""
    return (masks.float() >= 0.5 if masks.is_floating_point() else masks).to(torch.uint8)
