"""The shapes of annotated objects, rasterized when a loss asks for them."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Shapes:
    """The N objects of one image as they were annotated, with the geometry that was applied to them since.

    Nothing is rasterized before it is asked for: a loss that needs masks at a quarter of the input, or in boxes, never
    sees them at input size.
    """

    def __init__(self, masks: Tensor) -> None:
        """masks: (N, h, w) uint8 or bool, or float in [0, 1] for mattes."""
        self._masks = masks

    @classmethod
    def from_masks(cls, masks: Tensor) -> "Shapes":
        """Shapes that are given as masks: (N, h, w) uint8 or bool; float in [0, 1] for mattes."""
        return cls(masks)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the image that the shapes lie in, after its geometry."""
        return int(self._masks.shape[-2]), int(self._masks.shape[-1])

    @property
    def soft(self) -> bool:
        """True where the shapes are mattes: float values, never rounded."""
        return self._masks.is_floating_point()

    def __len__(self) -> int:
        return len(self._masks)

    def __getitem__(self, index: Tensor | Sequence[int]) -> "Shapes":
        return Shapes(self._masks[torch.as_tensor(index)])

    def to(self, device: torch.device | str) -> "Shapes":
        """The same shapes, rasterized on ``device``."""
        return Shapes(self._masks.to(device))

    def full(self) -> Tensor:
        """(N, h, w) uint8; float32 for mattes."""
        return self._masks

    def at_stride(self, stride: int) -> Tensor:
        """(N, ceil(h / stride), ceil(w / stride)) uint8: a pixel is set where at least two of the four central
        pixels of its block are; float32 means of those four for mattes."""
        raise NotImplementedError

    def in_boxes(self, boxes: Tensor, side: int) -> Tensor:
        """(N, side, side) float32: each shape inside its own box (N, 4) xyxy, rasterized there."""
        raise NotImplementedError
