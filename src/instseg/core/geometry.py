"""Where a network input lies in the image that the user gave; boxes of both."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InputGeometry:
    """What part of an image a network input shows.

    Attributes:
        content: (h, w) of the input without its padding, pixels of the network input.
        size: (H, W) of the region of the image that it shows, pixels of the image.
        image_size: (H, W) of the whole image.
        offset: (top, left) of the region in the image; not zero for a tile.
    """

    content: tuple[int, int]
    size: tuple[int, int]
    image_size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)

    def boxes_to_image(self, boxes: Tensor) -> Tensor:
        """Boxes (M, 4) xyxy in pixels of the input, in pixels of the image, clipped to the part that is shown."""
        (height, width), (top, left) = self.size, self.offset
        corner = boxes.new_tensor([left, top]).repeat(2)
        return self.scaled_boxes(boxes).clamp(corner, corner + boxes.new_tensor([width, height]).repeat(2))

    def scaled_boxes(self, boxes: Tensor) -> Tensor:
        """The same without clipping."""
        (h, w), (height, width), (top, left) = self.content, self.size, self.offset
        factor = boxes.new_tensor([width / w, height / h]).repeat(2)
        return boxes * factor + boxes.new_tensor([left, top]).repeat(2)


def scale_boxes(boxes: Tensor, size: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) xyxy of an image of ``size`` (H, W) in the pixels of the same image resized to ``target``."""
    factor = boxes.new_tensor([target[1] / size[1], target[0] / size[0]]).repeat(2)
    return boxes * factor


def mask_extents(foreground: Tensor) -> Tensor:
    """Tight boxes (N, 4) int64 xyxy of boolean masks (N, h, w), end exclusive; zeros where a mask is empty."""
    if foreground.numel() == 0:
        return torch.zeros(len(foreground), 4, dtype=torch.int64, device=foreground.device)
    ends = []
    for hit in (foreground.any(dim=1), foreground.any(dim=2)):  # columns, rows
        first = hit.byte().argmax(dim=1)
        last = hit.shape[1] - hit.flip(1).byte().argmax(dim=1)
        ends.append((first, torch.where(hit.any(dim=1), last, first)))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], dim=1)


def fit_factor(height: int, width: int, short: float, long: float) -> float:
    """The factor that fits an image into ``long`` x ``short``, its ratio kept."""
    return min(long / max(height, width), short / min(height, width))


def scaled(side: int, factor: float) -> int:
    """A side after resizing, at least one pixel: ``int(side * factor + 0.5)``, as COCO pipelines round."""
    return max(1, int(side * factor + 0.5))
