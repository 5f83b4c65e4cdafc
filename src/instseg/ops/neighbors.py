"""Which cells of a grid lie around a cell, also between grids of two sizes: SODAR (https://arxiv.org/abs/2202.07402)
section IV, (a) to (c)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

Pattern = Literal["self", "2col", "2row", "4", "8", "corners"]
Mapping = Literal["released", "paper"]
Grid = tuple[int, int]  # rows, columns

_UP, _LEFT, _HERE, _RIGHT, _DOWN = (-1, 0), (0, -1), (0, 0), (0, 1), (1, 0)
# Rows and columns beside the center, in the order of the released code; the paper's equations (10) and (11) name the
# lower neighbor before the right one.
_OFFSETS: dict[str, tuple[tuple[int, int], ...]] = {
    "self": (_HERE,),
    "2col": (_UP, _HERE, _DOWN),
    "2row": (_LEFT, _HERE, _RIGHT),
    "4": (_UP, _LEFT, _HERE, _RIGHT, _DOWN),
    "8": tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)),
}
_PAPER_4 = (_UP, _LEFT, _HERE, _DOWN, _RIGHT)


@dataclass(frozen=True)
class Locations:
    """Places of several levels, numbered level by level, row by row, at each place anchor by anchor.

    Attributes:
        grids: (rows, columns) of each level.
        anchors: at each place.
    """

    grids: tuple[Grid, ...]
    anchors: int = 1

    @classmethod
    def square(cls, sides: Sequence[int]) -> "Locations":
        """Grids of S x S cells."""
        return cls(tuple((s, s) for s in sides))

    @property
    def first(self) -> list[int]:
        """The first location of each level, and the number of all."""
        return list(accumulate((rows * columns * self.anchors for rows, columns in self.grids), initial=0))

    def level_of(self, location: int) -> int:
        """The level of one location."""
        return next(level for level, last in enumerate(self.first[1:]) if location < last)

    def by_level(self, locations: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """The levels that locations (N,) lie on; for each which of them (k,), and their numbers within it (k,)."""
        found = []
        first = self.first
        for level in range(len(self.grids)):
            at = ((locations >= first[level]) & (locations < first[level + 1])).nonzero()[:, 0]
            if len(at):
                found.append((level, at, locations[at] - first[level]))
        return found


def offsets_of(pattern: Pattern, mapping: Mapping = "released") -> tuple[tuple[int, int], ...]:
    """(row, column) of each gathered cell beside the center; a pattern of corners has none."""
    return _PAPER_4 if pattern == "4" and mapping == "paper" else _OFFSETS[pattern]


def gathered(pattern: Pattern) -> int:
    """n, the number of cells that a pattern gathers."""
    return 4 if pattern == "corners" else len(_OFFSETS[pattern])


def mapped_axis(grid: int, target: int, mapping: Mapping = "released") -> Tensor:
    """Where the rows (or columns) of a grid of S cells lie on one of S' cells: (S,) float32.

    ``released``: ``i (S' - 1) / (S - 1)``, which is then rounded; ``paper``: ``floor(i S' / S)``, equation (8).
    """
    i = torch.arange(grid, dtype=torch.float32)
    if mapping == "paper":
        return (torch.arange(grid) * target // grid).float()
    # The factor in double and the product in float32, as the released code has it: sums of halves depend on it.
    return i * ((target - 1) / max(grid - 1, 1))


def neighbor_cells(cells: Tensor, grid: Grid, target: Grid, pattern: Pattern, mapping: Mapping = "released") -> Tensor:
    """The cells of the ``target`` grid whose maps make up those of cells of the ``grid``: equation (8).

    Args:
        cells: (N,) int64, ``row * columns + column``.
        grid: (rows, columns), S x S in the paper.
        target: (rows, columns) of the grid that has maps, S' x S' in the paper.
        pattern: which neighbors; ``corners``: the four cells around the mapped position, without a center (the
            released "halved mask grid").
        mapping: see :func:`mapped_axis`, and the order of the neighbors.

    Returns:
        (N, n, 2) int64, rows and columns; cells beyond the border are those on it.
    """
    rows = mapped_axis(grid[0], target[0], mapping).to(cells.device)[cells // grid[1]]
    columns = mapped_axis(grid[1], target[1], mapping).to(cells.device)[cells % grid[1]]
    last = torch.tensor([target[0] - 1, target[1] - 1], device=cells.device)
    if pattern == "corners":
        up, down, left, right = rows.floor(), rows.ceil(), columns.floor(), columns.ceil()
        found = torch.stack([up, right, down, right, down, left, up, left], dim=1).view(-1, 4, 2)
        return found.long().clamp(min=0).minimum(last)
    center = torch.stack([rows, columns], dim=1).round().long()
    beside = torch.tensor(offsets_of(pattern, mapping), device=cells.device)
    return (center[:, None] + beside).clamp(min=0).minimum(last)


def bilinear_cells(positions: Tensor, target: Grid) -> tuple[Tensor, Tensor]:
    """Fractional positions on a grid, equation (11), as four whole cells each and their shares.

    Args:
        positions: (..., 2) float rows and columns; those outside the grid are brought to its border.
        target: (rows, columns).

    Returns:
        (..., 4) int64 cells, ``row * columns + column``, and (..., 4) shares that sum to one, differentiable in
        ``positions``.
    """
    # Not clamp alone: it has no gradient at the border itself, where neighbors of border cells start.
    last = positions.new_tensor([target[0] - 1, target[1] - 1])
    within = (positions >= 0) & (positions <= last)
    inside = torch.where(within, positions, positions.detach().clamp(min=0).minimum(last))
    low = inside.detach().floor().minimum((last - 1).clamp(min=0))
    share = inside - low
    # A position that is no number (a diverged run) is some cell, with shares that are no numbers.
    row, column = low.long().clamp(min=0).unbind(dim=-1)
    below, right = (row + 1).clamp(max=target[0] - 1), (column + 1).clamp(max=target[1] - 1)
    dy, dx = share.unbind(dim=-1)
    cells = torch.stack([row, row, below, below], dim=-1) * target[1]
    cells = cells + torch.stack([column, right, column, right], dim=-1)
    return cells, torch.stack([(1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx], dim=-1)
