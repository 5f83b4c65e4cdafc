"""SODAR's aggregation on the grids of the SOLO family: which cells' representations make up a mask, with which weights
and which context (section IV). What it is put on is in ``sodar.py``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from instseg.models.config import Fraction, Positive
from instseg.models.solo.config import GridConfig
from instseg.nn.aggregation import Aggregation, MultiLevelContext, resize_aligned
from instseg.nn.blocks import Tower
from instseg.ops.aggregate import gather_maps
from instseg.ops.coords import append_coordinates
from instseg.ops.neighbors import Mapping, Pattern, bilinear_cells, gathered, neighbor_cells, offsets_of
from instseg.ops.resize import resize

# Size of the maps of some cells, and what gives the representations of cells of the mask grids.
MapsOf = tuple[tuple[int, int], Callable[[Tensor], Tensor]]


class AggregationConfig(GridConfig):
    """What both hosts share; published values by default."""

    mask_grids: tuple[Positive, ...] | None = None  # S' of the grids that have representations; None: as grids
    neighbors: Literal[0, "2col", "2row", 4, 8] = 4  # representations beside a cell's own (table VI)
    neighbor_cells: Literal["released", "plus", "paper"] = "released"  # released: 4 neighbors are the corners around
    # the cell, without a center, where every level's mask grid differs from its grid; plus: never; paper: never, and
    # the paper's mapping floor(i S' / S) and order
    deformable: bool = False  # predict offsets of the sampled cells (section IV-c)
    offset_gradient: Fraction = 1.0  # factor on the gradient of the offsets
    aggregation: Literal["dynamic", "static"] = "dynamic"  # weights predicted for each cell, or the same for all
    aggregation_layers: Annotated[int, Field(ge=1, le=4)] = 3
    aggregation_width: Annotated[int, Field(ge=2)] = 4  # channels between them
    aggregation_kernel: Literal[1, 3] = 3
    aggregation_start: Literal["host", "released"] = "host"  # initial weights: a mask is its cell's own representation,
    # as in the host, or PyTorch's default
    context: Literal["with", "without", "only"] = "with"  # the multi-level context; only: no representations
    context_layers: Literal[1, 2] = 2  # 1x1 convolutions of the context; the paper's text has one
    context_channels: Positive = 16
    weight_kernel: Literal[1, 3] = 3  # of the convolution that predicts the weights
    weight_activation: Literal["tanh", "none"] = "tanh"
    two_stage_loss: bool = False  # teach a cell's own representation the mask, too (table VI)

    @property
    def map_grids(self) -> tuple[int, ...]:
        return self.mask_grids or self.grids

    @property
    def pattern(self) -> Pattern:
        """Which cells are gathered."""
        if self.neighbors != 4:
            return "self" if self.neighbors == 0 else "8" if self.neighbors == 8 else self.neighbors
        apart = all(a != b for a, b in zip(self.grids, self.map_grids, strict=True))
        return "corners" if apart and self.neighbor_cells == "released" and not self.deformable else "4"

    @property
    def mapping(self) -> Mapping:
        """How cells of one grid are found on the other."""
        return "paper" if self.neighbor_cells == "paper" else "released"

    @model_validator(mode="after")
    def _aggregation(self) -> Self:
        if len(self.map_grids) != len(self.grids):
            raise ValueError("mask_grids must have one entry for each of grids")
        if self.context == "only" and (self.aggregation == "static" or self.deformable):
            raise ValueError('context="only" gathers no neighbors: it needs aggregation="dynamic", deformable=False')
        if self.two_stage_loss and (self.map_grids != self.grids or self.context == "only"):
            raise ValueError("two_stage_loss needs a representation for each cell: mask_grids=None, context not only")
        return self


@dataclass(frozen=True)
class AggregationInputs:
    """What the masks are aggregated with, for a batch.

    Attributes:
        features: for each level (B, C, S, S): the weights and offsets of a cell are predicted from it.
        context: (B, K, H/4, W/4), not negative, or None.
    """

    features: list[Tensor]
    context: Tensor | None


@dataclass(frozen=True)
class Gathered:
    """The cells whose representations make up those of N cells, numbered over all levels of the mask grids.

    Attributes:
        cells: (N, n), or (N, n, 4) with ``shares``.
        shares: (N, n, 4), what each of the four counts for, or None.
        positions: (N, n, 2) rows and columns on the level's mask grid, fractional where they are deformed.
    """

    cells: Tensor
    shares: Tensor | None
    positions: Tensor


@dataclass(frozen=True)
class Trace:
    """How the mask of one cell comes about (figure 6).

    Attributes:
        level: of the pyramid's head, 0 for the finest.
        cell: row and column on the level's grid of ``grid`` cells a side.
        grid: S.
        map_grid: S' of the grid that has representations.
        names: of the n neighbors, by where they lie from the cell.
        positions: (n, 2) rows and columns on the grid of representations, fractional where they are deformed.
        maps: (n, h, w), the neighbors' raw representations.
        context: (K, h, w) or None.
        logits: (h, w) of the mask.
        effects: (n, h, w) in [-1, 1], and one more for the context where there is one: what the soft mask loses when
            that input is zero.
    """

    level: int
    cell: tuple[int, int]
    grid: int
    map_grid: int
    names: tuple[str, ...]
    positions: Tensor
    maps: Tensor
    context: Tensor | None
    logits: Tensor
    effects: Tensor


_NAMES = {
    (-1, -1): "above left",
    (-1, 0): "above",
    (-1, 1): "above right",
    (0, -1): "left",
    (0, 0): "own cell",
    (0, 1): "right",
    (1, -1): "below left",
    (1, 0): "below",
    (1, 1): "below right",
}
_CORNERS = ((-1, 1), (1, 1), (1, -1), (-1, -1))


def _own_maps(config: AggregationConfig) -> Sequence[int]:
    """Which of the gathered maps the mask starts as the mean of."""
    if config.aggregation_start == "released" or config.context == "only":
        return ()
    if config.pattern == "corners":
        return range(4)
    return (offsets_of(config.pattern, config.mapping).index((0, 0)),)


class GridAggregation(nn.Module):
    """The aggregation of a network of the SOLO family: which cells, their weights, their context."""

    def __init__(self, config: AggregationConfig, in_channels: int, context: nn.Module | None, tower: bool) -> None:
        """in_channels: of the categories' features; tower: predict from a tower on the levels instead."""
        super().__init__()
        self.config = config
        self.context = context
        self.tower = None
        if tower and (config.aggregation == "dynamic" or config.deformable):  # else nothing is predicted
            channels = in_channels = config.fpn_channels
            self.tower = Tower(channels + 2, channels, config.tower_convs)
        self.aggregate = Aggregation(
            in_channels,
            0 if config.context == "only" else gathered(config.pattern),
            0 if config.context == "without" else config.context_channels,
            layers=config.aggregation_layers,
            width=config.aggregation_width,
            kernel_size=config.aggregation_kernel,
            weight_kernel=config.weight_kernel,
            activation=config.weight_activation,
            dynamic=config.aggregation == "dynamic",
            deformable=config.deformable,
            offset_gradient=config.offset_gradient,
            start=_own_maps(config),
        )
        self.first = list(accumulate((s * s for s in config.grids), initial=0))
        self.first_map = list(accumulate((s * s for s in config.map_grids), initial=0))

    def forward(
        self, context_from: Any, levels: Sequence[Tensor], category_features: Sequence[Tensor]
    ) -> AggregationInputs:
        """``context_from``: what the context takes; re-strided ``levels`` (B, E, h, w); the categories' features
        (B, C, S, S), which are not read where the weights have a tower of their own."""
        context = None if self.context is None else self.context(context_from)
        return AggregationInputs(self._features(levels, category_features), context)

    def _features(self, levels: Sequence[Tensor], category_features: Sequence[Tensor]) -> list[Tensor]:
        if self.tower is None:
            return list(category_features)
        placed = (append_coordinates(x) for x in levels)
        return [self.tower(resize(x, (s, s))) for x, s in zip(placed, self.config.grids, strict=True)]

    def as_published(
        self, context_from: Any, levels: Sequence[Tensor], category_features: Sequence[Tensor]
    ) -> AggregationInputs:
        """:meth:`forward` and the weights of all cells, (B, D, S, S) a level in place of the features, in the order
        of the published code: for comparison and for counting operations."""
        context: Callable[[Any], Tensor] | None = self.context
        if isinstance(self.context, MultiLevelContext):
            context = self.context.as_published
        features = self._features(levels, category_features)
        convs = [c for c in (self.aggregate.weights, self.aggregate.offsets) if c is not None]
        dense = [torch.cat([conv(x) for conv in convs], dim=1) if convs else x for x in features]
        return AggregationInputs(dense, None if context is None else context(context_from))

    def gather(self, inputs: AggregationInputs, image: int, cells: Tensor) -> Gathered:
        """Which representations the masks of cells (N,), numbered over all levels, are made of."""
        c = self.config
        near: list[Tensor] = []
        shares: list[Tensor] = []
        positions: list[Tensor] = []
        order: list[Tensor] = []
        for level, at in self._by_level(cells):
            s, t, first = c.grids[level], c.map_grids[level], self.first_map[level]
            inside = cells[at] - self.first[level]
            found = neighbor_cells(inside, s, t, c.pattern, c.mapping)
            if self.aggregate.offsets is None:
                near.append(first + found[..., 0] * t + found[..., 1])
                positions.append(found)
            else:
                # Neighbors beyond the border are on it before they move: zero offsets are the fixed neighbors.
                moved = found + self.aggregate.predict_offsets(inputs.features[level][image], inside)
                four, share = bilinear_cells(moved, t)
                near.append(first + four)
                shares.append(share)
                positions.append(moved.detach().clamp(0, t - 1))
            order.append(at)
        back = torch.cat(order).argsort()
        return Gathered(torch.cat(near)[back], torch.cat(shares)[back] if shares else None, torch.cat(positions)[back])

    def weights(self, inputs: AggregationInputs, image: int, cells: Tensor) -> Tensor | None:
        """The parameters (N, D) of the small networks of cells (N,), numbered over all levels; None when static."""
        if self.aggregate.weights is None:
            return None
        found, order = [], []
        for level, at in self._by_level(cells):
            inside = cells[at] - self.first[level]
            found.append(self.aggregate.predict_weights(inputs.features[level][image], inside))
            order.append(at)
        return torch.cat(found)[torch.cat(order).argsort()]

    def mask_logits(
        self,
        inputs: AggregationInputs,
        image: int,
        cells: Tensor,
        size: tuple[int, int],
        maps: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Mask logits (N, h, w) float32 of cells (N,), numbered over all levels.

        Args:
            inputs: what :meth:`forward` gave.
            image: of the batch.
            cells: all on maps of ``size``.
            size: (h, w).
            maps: gives the representations (U, h, w) of cells (U,), numbered over all levels of the mask grids. Each
                is asked for once, however many cells share it.
        """
        context = None
        if inputs.context is not None:
            context = resize_aligned(inputs.context[image : image + 1], size)[0]
        weights = self.weights(inputs, image, cells)
        if self.config.context == "only":
            alone: Tensor = self.aggregate(None, None, weights, context)
            return alone.float()
        chosen = self.gather(inputs, image, cells)
        used, index = torch.unique(chosen.cells, return_inverse=True)
        logits: Tensor = self.aggregate(maps(used), index, weights, context, chosen.shares)
        return logits.float()

    def trace(
        self, inputs: AggregationInputs, image: int, cell: int, size: tuple[int, int], maps: Callable[[Tensor], Tensor]
    ) -> Trace:
        """How the mask of one cell, numbered over all levels, comes about; the other arguments as in
        :meth:`mask_logits`."""
        cells = torch.tensor([cell], device=next(self.parameters()).device)
        context = None
        if inputs.context is not None:
            context = resize_aligned(inputs.context[image : image + 1], size)[0]
        weights = self.weights(inputs, image, cells)
        maps_in: list[Tensor] = []  # n of (h, w)
        index, positions = None, torch.zeros(0, 2)
        if self.config.context != "only":
            chosen = self.gather(inputs, image, cells)
            used, at = torch.unique(chosen.cells, return_inverse=True)
            maps_in = list(gather_maps(maps(used), at, chosen.shares)[0].float())
            index, positions = torch.arange(len(maps_in), device=cells.device)[None], chosen.positions[0].cpu()

        def logits(maps_in: list[Tensor], context: Tensor | None) -> Tensor:
            found: Tensor = self.aggregate(torch.stack(maps_in) if maps_in else None, index, weights, context)
            return found[0].float().cpu()

        whole = logits(maps_in, context)
        without = [
            logits([torch.zeros_like(m) if i == k else m for i, m in enumerate(maps_in)], context)
            for k in range(len(maps_in))
        ]
        if context is not None:
            without.append(logits(maps_in, torch.zeros_like(context)))
        level = next(i for i, last in enumerate(self.first[1:]) if cell < last)
        s = self.config.grids[level]
        inside = cell - self.first[level]
        beside = offsets_of(self.config.pattern, self.config.mapping) if self.config.pattern != "corners" else _CORNERS
        return Trace(
            level=level,
            cell=(inside // s, inside % s),
            grid=s,
            map_grid=self.config.map_grids[level],
            names=tuple(_NAMES[offset] for offset in beside) if maps_in else (),
            positions=positions,
            maps=torch.stack(maps_in).cpu() if maps_in else torch.zeros(0, *size),
            context=None if context is None else context.float().cpu(),
            logits=whole,
            effects=torch.stack([whole.sigmoid() - other.sigmoid() for other in without]),
        )

    def _by_level(self, cells: Tensor) -> list[tuple[int, Tensor]]:
        """The levels that cells (N,) lie on, and which of them lie on each."""
        found = [
            (level, ((cells >= self.first[level]) & (cells < self.first[level + 1])).nonzero()[:, 0])
            for level in range(len(self.config.grids))
        ]
        return [(level, at) for level, at in found if len(at)]
