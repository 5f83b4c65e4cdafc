"""Samples side by side, and how they travel from a worker process to the training loop."""

from dataclasses import dataclass

import torch
from torch import Tensor

from instseg.core.shapes import Shapes
from instseg.core.target import Target


@dataclass
class Sample:
    """One image ready for the network, with what the network asks for.

    Attributes:
        image: (3, h, w) RGB; uint8 where it was neither resized nor recolored, else float32 in [0, 1], not rounded.
        boxes: (N, 4) float32 xyxy in pixels of ``image``: tight boxes of the cut masks, resized with them; the
            annotated boxes, cut, where no shapes are asked for.
        labels: (N,) int64, contiguous, from 0.
        shapes: the N shapes, each with at least one pixel; None where none are asked for. N may be 0.
        semantic: (h, w) int64, the class of each pixel, 255 is ignored; None without such a map.
        image_id: as in the annotation file; -1 before the data set has numbered the sample.
        index: position in the data set; -1 likewise.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    shapes: Shapes | None = None
    semantic: Tensor | None = None
    image_id: int = -1
    index: int = -1

    @property
    def masks(self) -> Tensor:
        """(N, h, w) uint8, or float32 of mattes. Raises ValueError where no shapes were asked for."""
        return self.target().masks

    def target(self) -> Target:
        """What a network learns from the sample."""
        size = (int(self.image.shape[-2]), int(self.image.shape[-1]))
        return Target(size, self.labels, self.boxes, self.shapes, self.semantic)


@dataclass
class Batch:
    """Samples of different sizes, side by side.

    Attributes:
        images: list of (3, h, w) uint8, or float32 in [0, 1].
        targets: one an image.
        image_ids: as in the annotation file.
    """

    images: list[Tensor]
    targets: list[Target]
    image_ids: list[int]

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; a DataLoader with ``pin_memory=True`` calls it."""
        return Batch([i.pin_memory() for i in self.images], [t.pin_memory() for t in self.targets], self.image_ids)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; copies from pinned memory do not wait."""
        images = [image.to(device, non_blocking=True) for image in self.images]
        return Batch(images, [t.to(device) for t in self.targets], self.image_ids)


def collate(samples: list[Sample]) -> Batch:
    """A batch of samples, as a DataLoader's ``collate_fn``."""
    return Batch([s.image for s in samples], [s.target() for s in samples], [s.image_id for s in samples])
