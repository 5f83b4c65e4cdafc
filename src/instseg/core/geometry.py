"""Where a model's own mask lies in the image that the user gave."""

from dataclasses import dataclass
from functools import lru_cache

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
        (h, w), (height, width), (top, left) = self.content, self.size, self.offset
        factor = boxes.new_tensor([width / w, height / h]).repeat(2)
        limit = boxes.new_tensor([width, height]).repeat(2)
        return (boxes * factor).clamp(min=0).minimum(limit) + boxes.new_tensor([left, top]).repeat(2)


@dataclass(frozen=True)
class Placement:
    """How a soft mask of the model's resolution is brought into an image: the two bilinear steps of SOLO.

    The map is enlarged by ``upsample`` to the padded network input, cut to ``content`` (the input without its
    padding), resized to ``size``, and put into the image with its corner at ``offset``. Both resizes are bilinear
    with ``align_corners=False`` and without antialiasing, on soft values; the threshold comes last.

    Attributes:
        grid: (h, w) of the map.
        upsample: network input pixels per map cell.
        content: (h, w) of the network input without padding.
        size: (H, W) that the content covers in the image, pixels.
        offset: (top, left) of that region in the image, pixels; not zero for a tile.
    """

    grid: tuple[int, int]
    upsample: int
    content: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, view: InputGeometry, grid: tuple[int, int], upsample: int) -> "Placement":
        """Maps of ``grid`` (h, w) at 1/``upsample`` of the padded input that shows ``view``."""
        return cls(grid, upsample, view.content, view.size, view.offset)

    @classmethod
    def identity(cls, height: int, width: int) -> "Placement":
        """The placement of a mask that is already at image size."""
        return cls((height, width), 1, (height, width), (height, width))

    @property
    def is_identity(self) -> bool:
        return self.upsample == 1 and self.grid == self.content == self.size

    def weights(self, axis: int) -> Tensor:
        """The two steps along one axis (0 rows, 1 columns) as one matrix ``(size, grid)``; a row has at most three
        non-zero entries.

        Bilinear resizing and cropping are linear and separable, so ``W_y @ soft @ W_x.T`` is exactly the dense
        two-step result.
        """
        return _two_step_weights(self.grid[axis], self.upsample, self.content[axis], self.size[axis])

    def reach(self, axis: int, low: int, high: int) -> tuple[int, int]:
        """The pixels along one axis, from and to (exclusive), that map cells ``low`` to ``high`` take part in."""
        first, last, _, _ = self._spans(axis)
        return int(first[low:high].min()), int(last[low:high].max())

    def taps(self, axis: int, low: int, high: int) -> tuple[int, int]:
        """The map cells along one axis, from and to (exclusive), that pixels ``low`` to ``high`` sample."""
        _, _, first, last = self._spans(axis)
        return int(first[low]), int(last[high - 1])

    def _spans(self, axis: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _spans(self.grid[axis], self.upsample, self.content[axis], self.size[axis])


@lru_cache(maxsize=64)
def _two_step_weights(grid: int, upsample: int, content: int, size: int) -> Tensor:
    first = bilinear_weights(grid, grid * upsample, 1.0 / upsample)[:content]
    if content == size:
        return first
    # A row of the second step picks two neighbors, so it is applied by index: (size, content) is never built.
    low, high, part = _source(content, size, content / size)
    return first[low] * (1 - part)[:, None] + first[high] * part[:, None]


@lru_cache(maxsize=64)
def _spans(grid: int, upsample: int, content: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and last (exclusive) pixel that each cell reaches, first and last (exclusive) cell that each pixel
    samples. A cell that reaches none (it lies in the padding) gets an empty span at the end."""
    used = _two_step_weights(grid, upsample, content, size) != 0
    by_cell = used.any(dim=0)
    first_pixel = torch.where(by_cell, used.byte().argmax(dim=0), size)
    last_pixel = torch.where(by_cell, size - used.flip(0).byte().argmax(dim=0), 0)
    return first_pixel, last_pixel, used.byte().argmax(dim=1), grid - used.flip(1).byte().argmax(dim=1)


def bilinear_weights(source: int, target: int, step: float) -> Tensor:
    """Bilinear resampling of one axis as a matrix ``(target, source)``, ``align_corners=False``.

    ``step`` is the distance between two targets in source pixels.
    """
    low, high, part = _source(source, target, step)
    weights = torch.zeros(target, source)
    rows = torch.arange(target)
    weights[rows, low] = 1 - part
    weights[rows, high] += part
    return weights


def _source(source: int, target: int, step: float) -> tuple[Tensor, Tensor, Tensor]:
    # In float32 and in this order, because that is how torch places its samples.
    position = (
        (torch.arange(target, dtype=torch.float32) + 0.5) * torch.tensor(step, dtype=torch.float32) - 0.5
    ).clamp_(0)
    low = position.long().clamp_(max=source - 1)
    return low, (low + 1).clamp_(max=source - 1), position - low


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
