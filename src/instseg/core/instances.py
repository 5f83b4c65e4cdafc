"""The objects of one image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from instseg.core.geometry import InputGeometry
from instseg.core.masks import Masks, select


class Instances:
    """The objects found in one image, best first.

    Attributes:
        scores: (M,) float32 in [0, 1], descending.
        labels: (M,) int64, contiguous, from 0.
        masks: M masks, placed in the image; None for a detector of boxes.
        image_size: (H, W) of the image, pixels.
        truncated: more objects passed the score threshold than the model's cap lets through.
    """

    def __init__(
        self,
        scores: Tensor,
        labels: Tensor,
        masks: Masks | None = None,
        truncated: bool = False,
        *,
        boxes: Tensor | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        """
        Args:
            boxes: (M, 4) float xyxy as predicted; by default the extents of the masks.
            image_size: may be left out where there are masks.

        Raises:
            ValueError: numbers that differ, or neither masks nor boxes with ``image_size``.
        """
        if masks is None and (boxes is None or image_size is None):
            raise ValueError("objects need masks, or boxes and the size of their image")
        parts = {"scores": scores, "labels": labels, "masks": masks, "boxes": boxes}
        counts = {name: len(part) for name, part in parts.items() if part is not None}
        if len(set(counts.values())) != 1:
            raise ValueError(", ".join(f"{n} {name}" for name, n in counts.items()))
        size = image_size if masks is None else masks.image_size
        assert size is not None
        if image_size is not None and size != image_size:
            raise ValueError(f"masks of {size} for an image of {image_size}")
        self.scores, self.labels, self.masks, self.truncated = scores, labels, masks, truncated
        self.predicted_boxes = boxes
        self.image_size: tuple[int, int] = size

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> "Instances":
        chosen = select(len(self), index)
        there = chosen.to(self.scores.device)
        boxes = None if self.predicted_boxes is None else self.predicted_boxes[there]
        masks = None if self.masks is None else self.masks[chosen]
        return self._with(self.scores[there], self.labels[there], masks, boxes)

    def __repr__(self) -> str:
        kind = "boxes" if self.masks is None else "masks"
        return f"Instances({len(self)} {kind} in {self.image_size[0]}x{self.image_size[1]} pixels)"

    def best(self, count: int) -> "Instances":
        """The first ``count``; ``truncated`` where there are more."""
        kept = self[:count]
        kept.truncated = self.truncated or len(self) > count
        return kept

    def to(self, device: torch.device | str) -> "Instances":
        """The same objects with their tensors on ``device``."""
        boxes = None if self.predicted_boxes is None else self.predicted_boxes.to(device)
        masks = None if self.masks is None else self.masks.to(device)
        return self._with(self.scores.to(device), self.labels.to(device), masks, boxes)

    def _with(self, scores: Tensor, labels: Tensor, masks: Masks | None, boxes: Tensor | None) -> "Instances":
        return Instances(scores, labels, masks, self.truncated, boxes=boxes, image_size=self.image_size)

    @property
    def boxes(self) -> Tensor:
        """(M, 4) float32 xyxy: as predicted, or the tight extent of each mask (SOLO as a detector)."""
        if self.predicted_boxes is not None:
            return self.predicted_boxes
        assert self.masks is not None
        return self.masks.boxes()

    def to_image(self, geometry: InputGeometry) -> "Instances":
        """Objects in pixels of a network input, in pixels of the image that it shows.

        Boxes are scaled and clipped to the part of the image that the input shows.
        """
        boxes = None if self.predicted_boxes is None else geometry.boxes_to_image(self.predicted_boxes)
        masks = None if self.masks is None else self.masks.to_image(geometry)
        return Instances(self.scores, self.labels, masks, self.truncated, boxes=boxes, image_size=geometry.image_size)

    @classmethod
    def cat(cls, parts: Sequence["Instances"]) -> "Instances":
        """The objects of several results for one image, in order. Raises ValueError where images differ, or only some
        have masks or predicted boxes."""
        if len({p.image_size for p in parts}) != 1:
            raise ValueError("objects of different images cannot be joined")
        masks = [p.masks for p in parts if p.masks is not None]
        boxes = [p.predicted_boxes for p in parts if p.predicted_boxes is not None]
        if len(masks) not in (0, len(parts)) or len(boxes) not in (0, len(parts)):
            raise ValueError("some of the results have masks or boxes and others have none")
        return cls(
            torch.cat([p.scores for p in parts]),
            torch.cat([p.labels for p in parts]),
            Masks.cat(masks) if masks else None,
            any(p.truncated for p in parts),
            boxes=torch.cat(boxes) if boxes else None,
            image_size=parts[0].image_size,
        )
