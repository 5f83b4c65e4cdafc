"""Which cells of a grid lie around a cell, also between grids of two sizes: SODAR section IV, (a) to (c)."""

from typing import Literal

import torch
from torch import Tensor

Pattern = Literal["self", "2col", "2row", "4", "8", "corners"]
Mapping = Literal["released", "paper"]

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


def offsets_of(pattern: Pattern, mapping: Mapping = "released") -> tuple[tuple[int, int], ...]:
    """(row, column) of each gathered cell beside the center; a pattern of corners has none."""
    return _PAPER_4 if pattern == "4" and mapping == "paper" else _OFFSETS[pattern]


def gathered(pattern: Pattern) -> int:
    """n, the number of cells that a pattern gathers."""
    return 4 if pattern == "corners" else len(_OFFSETS[pattern])


def mapped_axis(grid: int, target: int, mapping: Mapping = "released") -> Tensor:
    """Where the rows (or columns) of a grid of S cells lie on one of S' cells: (S,) float32.

    ``released``: ``i (S' - 1) / (S - 1)``, which is then rounded; ``paper``: ``floor(i S' / S)`` (section IV-b).
    """
    i = torch.arange(grid, dtype=torch.float32)
    if mapping == "paper":
        return (torch.arange(grid) * target // grid).float()
    # The factor in double and the product in float32, as the released code has it: sums of halves depend on it.
    return i * ((target - 1) / max(grid - 1, 1))


def neighbor_cells(cells: Tensor, grid: int, target: int, pattern: Pattern, mapping: Mapping = "released") -> Tensor:
    """The cells of the S' x S' grid whose maps make up those of cells of the S x S grid.

    Args:
        cells: (N,) int64, ``row S + column``.
        grid: S.
        target: S', of the grid that has maps.
        pattern: which neighbors; ``corners``: the four cells around the mapped position, without a center (the
            released "halved mask grid").
        mapping: see :func:`mapped_axis`, and the order of the neighbors.

    Returns:
        (N, n, 2) int64, rows and columns; cells beyond the border are those on it.
    """
    axis = mapped_axis(grid, target, mapping).to(cells.device)
    rows, columns = axis[cells // grid], axis[cells % grid]
    if pattern == "corners":
        up, down, left, right = rows.floor(), rows.ceil(), columns.floor(), columns.ceil()
        found = torch.stack([up, right, down, right, down, left, up, left], dim=1).view(-1, 4, 2)
        return found.long().clamp(0, target - 1)
    center = torch.stack([rows, columns], dim=1).round().long()
    beside = torch.tensor(offsets_of(pattern, mapping), device=cells.device)
    return (center[:, None] + beside).clamp(0, target - 1)


def bilinear_cells(positions: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Fractional positions on a grid as four whole cells each and their shares.

    Args:
        positions: (..., 2) float rows and columns; those outside the grid are brought to its border.
        target: S'.

    Returns:
        (..., 4) int64 cells, ``row S' + column``, and (..., 4) shares that sum to one, differentiable in
        ``positions``.
    """
    # Not clamp alone: it has no gradient at the border itself, where neighbors of border cells start.
    within = (positions >= 0) & (positions <= target - 1)
    inside = torch.where(within, positions, positions.detach().clamp(0, target - 1))
    low = inside.detach().floor().clamp(max=max(target - 2, 0))
    share = inside - low
    # A position that is no number (a diverged run) is some cell, with shares that are no numbers.
    row, column = low.long().clamp(min=0).unbind(dim=-1)
    below, right = (row + 1).clamp(max=target - 1), (column + 1).clamp(max=target - 1)
    dy, dx = share.unbind(dim=-1)
    cells = torch.stack([row, row, below, below], dim=-1) * target
    cells = cells + torch.stack([column, right, column, right], dim=-1)
    return cells, torch.stack([(1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx], dim=-1)
