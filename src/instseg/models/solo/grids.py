"""What the networks of the SOLO family share in their outputs: grids of cells, and the maps on which masks live."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

from torch import Tensor

from instseg.ops.resize import resize

MASK_STRIDE = 4  # of the maps on which masks are compared and kept


@dataclass(frozen=True)
class LevelSpec:
    """Cells whose masks are predicted on maps of one resolution: those of a level, or of all levels.

    Attributes:
        stride: of the maps, pixels of the network input.
        first, last: its cells, numbered over all levels, ``last`` excluded.
    """

    stride: int
    first: int
    last: int


@dataclass(frozen=True)
class GridOutputs:
    """Raw outputs for a batch.

    Attributes:
        cls_logits: for each level (B, C, S, S).
        size: (H/4, W/4), the maps that masks are compared on.
        sizes: (B, 2) int64, (h, w) of each image without padding.
    """

    cls_logits: list[Tensor]
    size: tuple[int, int]
    sizes: Tensor


class CellMasks(Protocol):
    """Makes the soft masks of chosen cells of a batch."""

    def __call__(self, image: int, level: int, cells: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Soft masks (N, h, w) float32 of cells (N,) of ``maps[level]``, numbered within it, in one image; resized to
        ``size`` where one is given."""
        ...


def level_maps(grids: Sequence[int], strides: Sequence[int] = (4, 4, 8, 16, 16)) -> list[LevelSpec]:
    """Each level's cells have maps of their own, at half the stride of what enters the head."""
    ends = list(accumulate((s * s for s in grids), initial=0))
    return [LevelSpec(t, a, b) for t, (a, b) in zip(strides, pairwise(ends), strict=False)]


def one_map(grids: Sequence[int]) -> list[LevelSpec]:
    """The cells of all levels have their masks on one map."""
    return [LevelSpec(MASK_STRIDE, 0, sum(s * s for s in grids))]


def head_levels(pyramid: Sequence[Tensor], count: int) -> list[Tensor]:
    """The first ``count`` of the re-strided levels, strides 8, 8, 16, 32, 32: P2 halved, P3 to P5, P6 enlarged."""
    p2, p3, p4, p5, p6 = pyramid
    levels = [resize(p2, (p3.shape[-2], p3.shape[-1])), p3, p4, p5, resize(p6, (p5.shape[-2], p5.shape[-1]))]
    return levels[:count]
