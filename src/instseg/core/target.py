"""What training knows of one image."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from instseg.core.shapes import Shapes

# What a network asks of the training data besides boxes and labels: "masks", pixels at input size, made in the loader
# processes; "outlines", polygons or codes that the loss rasterizes itself; "mattes", float masks, never rounded;
# "semantic", a map of classes.
Need: TypeAlias = Literal["masks", "outlines", "mattes", "semantic"]
SHAPES: frozenset[Need] = frozenset({"masks", "outlines", "mattes"})
MASKS: frozenset[Need] = frozenset({"masks"})
IGNORED = 255  # of a semantic map


@dataclass(frozen=True)
class Target:
    """What is in one image, in pixels of the network input.

    Attributes:
        size: (h, w) of the image without padding.
        labels: (N,) int64, from 0.
        boxes: (N, 4) float xyxy.
        shapes: the N objects' shapes; None where the method asks for none or the data has none.
        semantic: (h, w) int64, the class of each pixel, 255 is ignored; None without such a map.
    """

    size: tuple[int, int]
    labels: Tensor
    boxes: Tensor
    shapes: Shapes | None = None
    semantic: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def masks(self) -> Tensor:
        """(N, h, w) uint8, or float32 for mattes. Raises ValueError where the target has no shapes."""
        if self.shapes is None:
            raise ValueError("this target has no shapes: the network's `needs` must name them")
        return self.shapes.full()

    def to(self, device: torch.device | str) -> "Target":
        """The same on ``device``; copies from pinned memory to a GPU do not wait."""
        wait_not = torch.device(device).type != "cpu"  # on the CPU values could be read before they have arrived
        return Target(
            self.size,
            self.labels.to(device, non_blocking=wait_not),
            self.boxes.to(device, non_blocking=wait_not),
            None if self.shapes is None else self.shapes.to(device),
            None if self.semantic is None else self.semantic.to(device, non_blocking=wait_not),
        )

    def pin_memory(self) -> "Target":
        """The same in page-locked memory."""
        return Target(
            self.size,
            self.labels.pin_memory(),
            self.boxes.pin_memory(),
            None if self.shapes is None else self.shapes.pin_memory(),
            None if self.semantic is None else self.semantic.pin_memory(),
        )
