"""What every method's decoding gives for one image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instseg.core.masks import Masks, select


@dataclass(frozen=True)
class Instances:
    """The objects found in one image, best first.

    Attributes:
        scores: (M,) float32 in [0, 1], descending.
        labels: (M,) int64, contiguous, from 0.
        masks: M masks, placed in the image as the user gave it.
        capped: more objects passed the score threshold than the model's cap lets through.
    """

    scores: Tensor
    labels: Tensor
    masks: Masks
    capped: bool = False

    def __post_init__(self) -> None:
        if not len(self.scores) == len(self.labels) == len(self.masks):
            raise ValueError(f"{len(self.scores)} scores, {len(self.labels)} labels, {len(self.masks)} masks")

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> "Instances":
        chosen = select(len(self), index)
        on_device = chosen.to(self.scores.device)
        return Instances(self.scores[on_device], self.labels[on_device], self.masks[chosen], self.capped)

    def to(self, device: torch.device | str) -> "Instances":
        return Instances(self.scores.to(device), self.labels.to(device), self.masks.to(device), self.capped)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.masks.image_size

    @property
    def boxes(self) -> Tensor:
        """(M, 4) float32 xyxy, the tight extent of each mask (SOLO as a detector)."""
        return self.masks.boxes()
