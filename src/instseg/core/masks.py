"""Soft masks at the resolution at which they were found, rendered into the image on demand and never all at once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from instseg.core import rle as rle_codes
from instseg.core.errors import DataError
from instseg.core.geometry import InputGeometry
from instseg.core.rendering import render
from instseg.core.rendering.render import Polygon, Soft
from instseg.core.rendering.taps import Layout
from instseg.core.rle import RLE, BoolArray


class Masks:
    """M soft masks with their places in an image of ``image_size`` (H, W).

    A mask is a whole map of a network, a small window in a box, or already has the image's size; one ``Masks`` may
    hold all three. Of each only the part is kept in which it is at least ``floor``, or that its foreground needs.
    Everything else is rendered when asked for, block by block, so that memory grows neither with ``M x H x W`` nor with
    ``M x h x w``. A pixel is foreground where the rendered value is above ``threshold``, in a window also where it
    equals it; the result is that of the dense rendering (enlarge, cut the padding, resize, threshold), pixel by pixel.
    """

    def __init__(self, kept: Soft) -> None:
        """Made by :meth:`from_maps`, :meth:`from_windows`, :meth:`from_mattes`, :meth:`from_bool`,
        :meth:`from_pieces` and :meth:`cat`."""
        self._kept = kept
        self._rles: list[RLE] | None = None

    @classmethod
    def from_maps(
        cls,
        soft: Tensor,
        size: tuple[int, int],
        stride: int,
        threshold: float = 0.5,
        floor: float = 0.01,
        *,
        aligned: bool = False,
    ) -> "Masks":
        """Masks from maps at a fraction of a network input.

        Args:
            soft: (M, h, w) float in [0, 1]; they are enlarged by ``stride`` (bilinear) and cut to ``size``.
            size: (H, W) of the input without padding.
            stride: pixels of the input for each cell.
            threshold: a pixel is foreground above it, in [0, 1].
            floor: soft values below it are kept only inside the window of larger ones; :meth:`soft` is exact to
                ``floor``, everything that is thresholded is exact.
            aligned: enlarge with aligned corners, shifted by half a stride, as CondInst does; else with half-pixel
                centers, as SOLO does.
        """
        layout = Layout((int(soft.shape[1]), int(soft.shape[2])), stride, size, size, aligned=aligned)
        soft = soft.detach().float()
        return cls._of([soft], [layout], size, threshold, floor)

    @classmethod
    def from_windows(
        cls,
        windows: Tensor | Sequence[Tensor],
        boxes: Tensor,
        size: tuple[int, int],
        threshold: float = 0.5,
        floor: float = 0.01,
    ) -> "Masks":
        """Masks from windows in boxes: bilinear at the pixels' centers, zero outside, foreground from ``threshold``.

        Args:
            windows: (M, h, w) float in [0, 1], or M windows (h, w) of several sizes.
            boxes: (M, 4) float xyxy, the box that each window fills, in pixels of the input; may reach over it. One
                without extent holds no pixel.
            size: (H, W) of the input without padding.
            threshold: a pixel is foreground at it and above, in [0, 1]; at 0 that is every pixel.
            floor: as in :meth:`from_maps`.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for i, window in enumerate(windows):
            groups.setdefault((int(window.shape[0]), int(window.shape[1])), []).append(i)
        if isinstance(windows, Tensor):
            stacks = [windows] if len(windows) else []
        else:
            stacks = [torch.stack([windows[i] for i in ids]) for ids in groups.values()]
        layouts = [Layout(grid, 1, size, size, boxed=True) for grid in groups]
        order = [i for ids in groups.values() for i in ids]
        if len(boxes) != len(order):
            raise ValueError(f"{len(order)} windows in {len(boxes)} boxes")
        placed = boxes.detach().float().cpu()[order]
        found = cls._of([s.detach().float() for s in stacks], layouts, size, threshold, floor, placed)
        return found if order == sorted(order) else found[torch.tensor(order).argsort()]

    @classmethod
    def from_mattes(cls, soft: Tensor, threshold: float = 0.5) -> "Masks":
        """Masks that are already at image size: (M, H, W) float in [0, 1], kept as they are."""
        height, width = int(soft.shape[1]), int(soft.shape[2])
        soft = soft.detach().float()
        least = torch.finfo(torch.float32).tiny  # whatever is not zero
        return cls._of([soft], [_pixels((height, width))], (height, width), threshold, least)

    @classmethod
    def from_bool(cls, masks: Tensor) -> "Masks":
        """Masks that are already at image size: (M, H, W) bool or uint8."""
        return cls.from_mattes(masks.bool())

    @classmethod
    def from_pieces(
        cls,
        pieces: Sequence[tuple[int, int, Tensor]],
        size: tuple[int, int],
        threshold: float = 0.5,
        floor: float = 0.01,
    ) -> "Masks":
        """Masks in pixels of an image of ``size`` (H, W), of which only a part is given: for each ``(top, left, soft)``
        with ``soft`` (h, w) float, zero elsewhere."""
        parts = [cls._of([s[None]], [_pixels(size)], size, threshold, floor)._kept for _, _, s in pieces]
        if not parts:
            return cls._of([torch.zeros(0, *size)], [_pixels(size)], size, threshold, floor)
        shift = torch.tensor([[left, top, left, top] for top, left, _ in pieces])
        joined = cls.cat([cls(part) for part in parts])._kept
        return cls(replace(joined, windows=joined.windows + shift, foreground=joined.foreground + shift))

    @classmethod
    def _of(
        cls,
        stacks: Sequence[Tensor],
        layouts: Sequence[Layout],
        size: tuple[int, int],
        threshold: float,
        floor: float,
        boxes: Tensor | None = None,
    ) -> "Masks":
        """Dense values (M_k, h_k, w_k) of each layout; of each mask a part is kept."""
        values: list[Tensor] = []
        windows: list[Tensor] = []
        foreground: list[Tensor] = []
        for soft in stacks:
            inner, kept_part = render.parts_of(soft, threshold, floor)
            foreground.append(inner.cpu())
            windows.append(kept_part.cpu())
            values += [soft[i, y0:y1, x0:x1].reshape(-1) for i, (x0, y0, x1, y1) in enumerate(windows[-1].tolist())]
        device = stacks[0].device if stacks else torch.device("cpu")
        none = torch.zeros(0, 4, dtype=torch.int64)
        count = len(values)
        which = [torch.full((len(soft),), k, dtype=torch.int64) for k, soft in enumerate(stacks)]
        kept = Soft(
            torch.cat(values) if values else torch.zeros(0, device=device),
            torch.cat(windows) if windows else none,
            torch.cat(foreground) if foreground else none,
            torch.zeros(count, 4) if boxes is None else boxes,
            tuple(layouts),
            torch.cat(which) if which else torch.zeros(0, dtype=torch.int64),
            size,
            threshold,
        )
        return cls(kept)

    @classmethod
    def cat(cls, parts: Sequence["Masks"]) -> "Masks":
        """The masks of several parts of one image, in order. Raises ValueError when images or thresholds differ."""
        if len({(p.image_size, p.threshold) for p in parts}) != 1:
            raise ValueError("masks of different images or thresholds cannot be joined")
        kept = [p._kept for p in parts]
        layouts = list(dict.fromkeys(layout for k in kept for layout in k.layouts))
        position = {layout: n for n, layout in enumerate(layouts)}
        which = [torch.tensor([position[layout] for layout in k.layouts] or [0])[k.which] for k in kept]
        joined = cls(
            Soft(
                torch.cat([k.values for k in kept]),
                torch.cat([k.windows for k in kept]),
                torch.cat([k.foreground for k in kept]),
                torch.cat([k.boxes for k in kept]),
                tuple(layouts),
                torch.cat(which),
                parts[0].image_size,
                parts[0].threshold,
            )
        )
        known = [part._rles for part in parts]
        if all(codes is not None for codes in known):
            joined._rles = [code for codes in known for code in codes or ()]
        return joined

    def to_image(self, geometry: InputGeometry) -> "Masks":
        """Masks in pixels of a network input, in the image that it shows.

        A map takes two steps (enlarged, then resized), a window in a box one: its box is scaled and moved.
        """
        kept = self._kept
        if any(p.offset != (0, 0) or p.size != geometry.content for p in kept.layouts):
            raise ValueError(f"masks that do not cover an input of {geometry.content} cannot be brought to its image")
        layouts = tuple(replace(p, size=geometry.size, offset=geometry.offset) for p in kept.layouts)
        return Masks(
            replace(kept, layouts=layouts, boxes=geometry.scaled_boxes(kept.boxes), image_size=geometry.image_size)
        )

    def at_size(self, size: tuple[int, int]) -> "Masks":
        """The same masks for the image at another size (H, W); each must cover the whole image, not a tile of it."""
        return self.to_image(InputGeometry(self.image_size, size, size))

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the image, pixels."""
        return self._kept.image_size

    @property
    def threshold(self) -> float:
        """A pixel is foreground above it; in a window also at it."""
        return self._kept.threshold

    @property
    def values(self) -> Tensor:
        """(T,) float32, all soft values that are kept."""
        return self._kept.values

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """How the soft values lie in the image, each way once."""
        return self._kept.layouts

    @property
    def device(self) -> torch.device:
        return self.values.device

    def __len__(self) -> int:
        return len(self._kept.which)

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> "Masks":
        """One mask (an int returns ``Masks`` of length one), a slice, a boolean (M,) or an index tensor."""
        chosen, kept = select(len(self), index), self._kept
        ids, ends = chosen.tolist(), kept.ends.tolist()
        values = [kept.values[ends[i] : ends[i + 1]] for i in ids]
        part = Masks(
            replace(
                kept,
                values=torch.cat(values) if values else kept.values[:0],
                windows=kept.windows[chosen],
                foreground=kept.foreground[chosen],
                boxes=kept.boxes[chosen],
                which=kept.which[chosen],
            )
        )
        if self._rles is not None:
            part._rles = [self._rles[i] for i in ids]
        return part

    def __repr__(self) -> str:
        return f"Masks({len(self)} of {self.image_size[0]}x{self.image_size[1]} pixels)"

    def to(self, device: torch.device | str) -> "Masks":
        """The same masks with their soft values on ``device``."""
        moved = Masks(replace(self._kept, values=self.values.to(device)))
        moved._rles = self._rles
        return moved

    def cpu(self) -> "Masks":
        return self.to("cpu")

    def reach(self, i: int) -> tuple[int, int, int, int]:
        """Rows and columns (top, bottom, left, right) of the image that the kept values of mask ``i`` reach."""
        top, bottom, left, right = render.extents_of(self._kept, self._kept.windows, [i])[0].tolist()
        return top, bottom, left, right

    def block(self, i: int, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Soft values (h, w) of mask ``i`` on a block of the image, pixels, end exclusive."""
        return render.block_of(self._kept, i, top, bottom, left, right)

    def windows(self) -> Iterator[tuple[int, int, int, BoolArray]]:
        """Each mask's own box: ``(index, top, left, window)``, window a boolean array (h, w), possibly (0, 0)."""
        for first, group in rle_codes.decode_all(self.rle()):
            for i, (top, left, window) in enumerate(group, first):
                yield i, top, left, window

    def rle(self) -> list[RLE]:
        """COCO compressed run-length codes at image size. Computed once and kept."""
        if self._rles is None:
            self._rles = render.encode(self._kept)
        return self._rles

    def bool(self) -> Tensor:
        """(M, H, W) bool on the CPU: M bytes a pixel. :meth:`windows` and :meth:`rle` need far less."""
        out = torch.zeros(len(self), *self.image_size, dtype=torch.bool)
        for i, top, left, window in self.windows():
            out[i, top : top + window.shape[0], left : left + window.shape[1]] = torch.from_numpy(window)
        return out

    def soft(self) -> Tensor:
        """(M, H, W) float32 in [0, 1] on the masks' device: four bytes a pixel and mask."""
        return render.dense(self._kept)

    def areas(self) -> Tensor:
        """(M,) int64, foreground pixels at image size."""
        return torch.from_numpy(rle_codes.area(self.rle())).long()

    def boxes(self) -> Tensor:
        """(M, 4) float32 xyxy in image pixels, the tight extent of the foreground; x1 is the last column plus one.
        Zeros for an empty mask."""
        return torch.from_numpy(rle_codes.boxes(self.rle())).float()

    def polygons(self) -> list[list[Polygon]]:
        """For each mask its parts, for each part its rings ``(K, 2)`` xy in image pixels, closed: the outer ring
        first, then the holes. A pixel belongs to a part when its center lies inside the outer ring and in no hole."""
        return [parts for _, group in rle_codes.decode_all(self.rle()) for parts in render.polygons(group)]


def _pixels(size: tuple[int, int]) -> Layout:
    """Values that are pixels of an image of ``size``."""
    return Layout(size, 1, size, size)


def select(length: int, index: Any) -> Tensor:
    """Any index as an int64 tensor of positions. Raises IndexError outside ``length``, DataError for a boolean
    of the wrong length."""
    if isinstance(index, int):
        if not -length <= index < length:
            raise IndexError(f"index {index} of {length} instances")
        return torch.tensor([index % length])
    if isinstance(index, slice):
        return torch.arange(length)[index]
    chosen = torch.as_tensor(index).cpu()
    if chosen.dtype == torch.bool:
        if chosen.shape != (length,):
            raise DataError(f"a boolean index of shape {tuple(chosen.shape)} cannot filter {length} instances.")
        return chosen.nonzero()[:, 0]
    chosen = chosen.reshape(-1).long()
    if len(chosen) and not (-length <= int(chosen.min()) and int(chosen.max()) < length):
        raise IndexError(f"indices between {int(chosen.min())} and {int(chosen.max())} of {length} instances")
    return chosen % max(length, 1)
