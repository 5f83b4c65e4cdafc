"""Samples side by side, and how they travel from a worker process to the training loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instseg.core.geometry import mask_extents


@dataclass
class Sample:
    """One image ready for the network.

    Attributes:
        image: (3, h, w) uint8 RGB.
        boxes: (N, 4) float32 xyxy in pixels of ``image``: tight boxes of the cut masks, resized with them.
        labels: (N,) int64, contiguous, from 0.
        masks: (N, h, w) uint8 0/1, each with at least one pixel; N may be 0.
        image_id: as in the annotation file.
        index: position in the data set.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor
    image_id: int
    index: int


@dataclass
class Batch:
    """Samples of different sizes, side by side.

    A pickled batch carries of each mask only the window that holds its object: a crowded picture has hundreds of
    masks, which would fill the shared memory between the workers and the training loop.

    Attributes:
        images: list of (3, h, w) uint8.
        targets: one dict an image: ``boxes``, ``labels``, ``masks`` as in :class:`Sample`.
        image_ids: as in the annotation file.
    """

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    image_ids: list[int]

    def __len__(self) -> int:
        return len(self.images)

    def __reduce__(self) -> tuple[Callable[..., "Batch"], tuple[Any, ...]]:
        packed = [pack_masks(target["masks"]) for target in self.targets]
        others = [{key: value for key, value in target.items() if key != "masks"} for target in self.targets]
        return _restore, (self.images, others, packed, self.image_ids)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; a DataLoader with ``pin_memory=True`` calls it."""
        targets = [{key: value.pin_memory() for key, value in target.items()} for target in self.targets]
        return Batch([image.pin_memory() for image in self.images], targets, self.image_ids)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; copies from pinned memory do not wait."""
        targets = [
            {key: value.to(device, non_blocking=True) for key, value in target.items()} for target in self.targets
        ]
        images = [image.to(device, non_blocking=True) for image in self.images]
        return Batch(images, targets, self.image_ids)


def collate(samples: list[Sample]) -> Batch:
    """A batch of samples, as a DataLoader's ``collate_fn``."""
    targets = [{"boxes": s.boxes, "labels": s.labels, "masks": s.masks} for s in samples]
    return Batch([s.image for s in samples], targets, [s.image_id for s in samples])


def pack_masks(masks: Tensor) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """Masks (N, h, w) as their shape, the window of each (N, 4) int32 xyxy, and the windows' values (T,) uint8."""
    windows = mask_extents(masks.bool())
    values = [masks[i, y0:y1, x0:x1].reshape(-1) for i, (x0, y0, x1, y1) in enumerate(windows.tolist())]
    flat = torch.cat(values).to(torch.uint8) if values else torch.zeros(0, dtype=torch.uint8)
    return tuple(masks.shape), windows.int(), flat


def unpack_masks(shape: tuple[int, ...], windows: Tensor, values: Tensor) -> Tensor:
    """Masks (N, h, w) uint8 that :func:`pack_masks` packed."""
    masks = torch.zeros(shape, dtype=torch.uint8)
    end = 0
    for i, (x0, y0, x1, y1) in enumerate(windows.tolist()):
        start, end = end, end + (y1 - y0) * (x1 - x0)
        masks[i, y0:y1, x0:x1] = values[start:end].view(y1 - y0, x1 - x0)
    return masks


def _restore(
    images: list[Tensor],
    others: list[dict[str, Tensor]],
    packed: list[tuple[tuple[int, ...], Tensor, Tensor]],
    image_ids: list[int],
) -> Batch:
    targets = [{**other, "masks": unpack_masks(*masks)} for other, masks in zip(others, packed, strict=True)]
    return Batch(images, targets, image_ids)
