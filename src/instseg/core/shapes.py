"""The shapes of annotated objects, rasterized when a loss asks for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.core import rle as rle_codes
from instseg.core.crop import CropTransform, FloatArray, crop_masks
from instseg.core.geometry import mask_extents
from instseg.core.rle import RLE


@dataclass(frozen=True)
class Outline:
    """One object as it was annotated, in pixels of the image as annotated.

    Attributes:
        code: its mask.
        polygons: its rings, (K, 2) xy each; empty where it was annotated as a mask.
    """

    code: RLE
    polygons: tuple[FloatArray, ...] = ()


class Shapes:
    """The N objects of one image as they were annotated, with the geometry that was applied to them since.

    They are masks (uint8), mattes (float, never rounded) or outlines. Outlines are rasterized when they are asked for:
    a loss that needs them in boxes never sees a mask at input size.
    """

    def __init__(
        self, masks: Tensor | None, outlines: Sequence[Outline] = (), crop: CropTransform | None = None
    ) -> None:
        """Made by :meth:`from_masks` and :meth:`from_outlines`.

        Args:
            masks: (N, h, w) uint8 or bool, or float in [0, 1] for mattes; None for outlines.
            outlines: one for each object, if not masks.
            crop: what was done to them since they were annotated.
        """
        self._masks = masks
        self._outlines = tuple(outlines)
        self._crop = crop
        self._device: torch.device | None = None

    @classmethod
    def from_masks(cls, masks: Tensor) -> "Shapes":
        """Shapes that are given as masks: (N, h, w) uint8 or bool; float in [0, 1] for mattes."""
        return cls(masks)

    @classmethod
    def from_outlines(cls, outlines: Sequence[Outline], crop: CropTransform) -> "Shapes":
        """Shapes as they were annotated, seen through ``crop``. None of them may vanish in it (see
        :func:`instseg.core.crop.crop_masks`)."""
        return cls(None, outlines, crop)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the image that the shapes lie in, after its geometry."""
        if self._crop is not None:
            return self._crop.out_size
        assert self._masks is not None
        return int(self._masks.shape[-2]), int(self._masks.shape[-1])

    @property
    def soft(self) -> bool:
        """True where the shapes are mattes."""
        return self._masks is not None and self._masks.is_floating_point()

    @property
    def rasterized(self) -> bool:
        """False while the shapes are outlines."""
        return self._masks is not None

    def __len__(self) -> int:
        return len(self._outlines) if self._masks is None else len(self._masks)

    def __getitem__(self, index: Tensor | Sequence[int]) -> "Shapes":
        chosen = torch.as_tensor(index)
        if self._crop is None:
            assert self._masks is not None
            return Shapes(self._masks[chosen.to(self._masks.device)])
        positions = torch.arange(len(self._outlines))[chosen.cpu()].tolist()
        masks = None if self._masks is None else self._masks[chosen.to(self._masks.device)]
        return self._with(Shapes(masks, [self._outlines[i] for i in positions], self._crop))

    def __reduce__(self) -> tuple[Callable[..., "Shapes"], tuple[Any, ...]]:
        """A pickled mask travels as the window that holds its object: a crowded picture has hundreds of masks, which
        would fill the shared memory between the workers and the training loop. Outlines travel as they are."""
        if self._crop is not None:
            return Shapes, (None, self._outlines, self._crop)
        assert self._masks is not None
        return unpack_shapes, pack_masks(self._masks)

    def _with(self, shapes: "Shapes") -> "Shapes":
        shapes._device = self._device
        return shapes

    def to(self, device: torch.device | str) -> "Shapes":
        """The same shapes; what they are rasterized to lies on ``device``."""
        masks = None if self._masks is None else self._masks.to(device, non_blocking=torch.device(device).type != "cpu")
        moved = Shapes(masks, self._outlines, self._crop)
        moved._device = torch.device(device)
        return moved

    def pin_memory(self) -> "Shapes":
        """The same shapes in page-locked memory."""
        masks = None if self._masks is None else self._masks.pin_memory()
        return self._with(Shapes(masks, self._outlines, self._crop))

    def full(self) -> Tensor:
        """(N, h, w) uint8; float32 for mattes. Computed once and kept."""
        if self._masks is None:
            assert self._crop is not None
            masks, _, kept = crop_masks([o.code for o in self._outlines], self._crop)
            whole = torch.zeros(len(self), *self.size, dtype=torch.uint8)
            whole[kept] = masks
            self._masks = whole if self._device is None else whole.to(self._device)
        return self._masks

    def at_stride(self, stride: int) -> Tensor:
        """The shapes at a fraction of the input, sides rounded up; beyond the image they are zero.

        Returns:
            (N, ceil(h / stride), ceil(w / stride)) uint8: a pixel is set where at least two of the four central pixels
            of its block are, which is bilinear resizing of the mask rounded half up, as OpenCV does it. For mattes
            float32, the mean of those four.
        """
        masks = self.full()
        if stride == 1:
            return masks if self.soft else masks.to(torch.uint8)
        h, w = masks.shape[-2:]
        padded = F.pad(masks if self.soft else masks.to(torch.uint8), (0, -w % stride, 0, -h % stride))
        a, b = stride // 2 - 1, stride // 2
        rows = padded[:, a::stride] + padded[:, b::stride]
        total = rows[:, :, a::stride] + rows[:, :, b::stride]
        return total / 4 if self.soft else (total >= 2).to(torch.uint8)

    def in_boxes(self, boxes: Tensor, side: int) -> Tensor:
        """Each shape inside a box of its own, as heads on regions learn it.

        Polygons are rasterized there, in a frame of ``side`` x ``side`` that the box fills. Masks and mattes are
        sampled bilinearly at the centers of the frame's cells, zero outside the image, and masks are cut at 0.5.

        Args:
            boxes: (N, 4) float xyxy, in pixels of the image after its geometry.
            side: of the result.

        Returns:
            (N, side, side) float32.
        """
        if len(boxes) != len(self):
            raise ValueError(f"{len(boxes)} boxes for {len(self)} shapes")
        found = torch.zeros(len(self), side, side)
        drawn = [bool(o.polygons) for o in self._outlines] or [False] * len(self)
        for i, box in enumerate(boxes.tolist()):
            if drawn[i]:
                found[i] = torch.from_numpy(self._frame(self._outlines[i], box, side))
        found = found.to(boxes.device)
        rest = torch.tensor([not d for d in drawn], dtype=torch.bool, device=boxes.device)
        if bool(rest.any()):
            masks = self.full().to(boxes.device)[rest].float()
            sampled = _sampled(masks, boxes[rest], side)
            found[rest] = sampled if self.soft else (sampled >= 0.5).float()
        return found

    def _frame(self, outline: Outline, box: Sequence[float], side: int) -> Any:
        assert self._crop is not None
        x0, y0, x1, y1 = box
        scale = side / max(x1 - x0, 0.1), side / max(y1 - y0, 0.1)  # as the references bound empty boxes
        rings = [((self._crop.points(ring) - (x0, y0)) * scale).reshape(-1).tolist() for ring in outline.polygons]
        return rle_codes.decode(rle_codes.from_polygons(rings, side, side))


def _sampled(masks: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Bilinear samples (N, side, side) of masks (N, h, w) at the centers of ``side`` x ``side`` cells of each box."""
    if not len(masks):
        return masks.new_zeros(0, side, side)
    h, w = masks.shape[-2:]
    at = (torch.arange(side, device=masks.device) + 0.5) / side
    x0, y0, x1, y1 = boxes.to(masks).unbind(1)
    x = x0[:, None] + at * (x1 - x0)[:, None]  # N, side
    y = y0[:, None] + at * (y1 - y0)[:, None]
    grid = torch.stack(
        [(2 * x / w - 1)[:, None].expand(-1, side, -1), (2 * y / h - 1)[:, :, None].expand(-1, -1, side)], dim=-1
    )
    return F.grid_sample(masks[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]


def pack_masks(masks: Tensor) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """Masks (N, h, w) as their shape, the window of each (N, 4) int32 xyxy, and the windows' values (T,): uint8, or
    float32 of mattes."""
    soft = masks.is_floating_point()
    windows = mask_extents(masks > 0 if soft else masks.bool())
    values = [masks[i, y0:y1, x0:x1].reshape(-1) for i, (x0, y0, x1, y1) in enumerate(windows.tolist())]
    kind = torch.float32 if soft else torch.uint8
    flat = torch.cat(values).to(kind) if values else torch.zeros(0, dtype=kind)
    return tuple(masks.shape), windows.int(), flat


def unpack_masks(shape: tuple[int, ...], windows: Tensor, values: Tensor) -> Tensor:
    """Masks (N, h, w) that :func:`pack_masks` packed."""
    masks = torch.zeros(shape, dtype=values.dtype)
    end = 0
    for i, (x0, y0, x1, y1) in enumerate(windows.tolist()):
        start, end = end, end + (y1 - y0) * (x1 - x0)
        masks[i, y0:y1, x0:x1] = values[start:end].view(y1 - y0, x1 - x0)
    return masks


def unpack_shapes(shape: tuple[int, ...], windows: Tensor, values: Tensor) -> Shapes:
    """The shapes whose masks :func:`pack_masks` packed."""
    return Shapes(unpack_masks(shape, windows, values))
