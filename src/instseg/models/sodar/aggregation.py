"""SODAR's aggregation on the locations of any network: whose representations make up a mask, with which weights and
which context. The grids of the SOLO family, in ``sodar.py``, are one use of it.

Tao Wang, Jun Hao Liew, Yu Li, Yunpeng Chen, Jiashi Feng, "SODAR: Segmenting Objects by Dynamically Aggregating
Neighboring Mask Representations", 2022, https://arxiv.org/abs/2202.07402, section IV.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instseg.models.base import Trace
from instseg.models.sodar.config import AggregationConfig
from instseg.nn.aggregation import Aggregation, MultiLevelContext, resize_aligned
from instseg.ops.aggregate import gather_maps
from instseg.ops.coords import append_coordinates
from instseg.ops.neighbors import Locations, bilinear_cells, gathered, neighbor_cells, offsets_of
from instseg.ops.resize import resize

# Makes the representations (U, h, w) of locations (U,), each once however many instances share it.
MapsOf = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AggregationInputs:
    """What the masks of a batch are aggregated with.

    Attributes:
        features: for each level (B, E, rows, columns): the weights and offsets of an instance are predicted from it.
        context: (B, K, h, w), not negative, or None.
        sources: the locations that instances are found at.
        targets: the locations that have representations, on as many levels and with as many anchors.
    """

    features: list[Tensor]
    context: Tensor | None
    sources: Locations
    targets: Locations


@dataclass(frozen=True)
class Gathered:
    """The locations whose representations make up the masks of N instances.

    Attributes:
        cells: (N, n), or (N, n, 4) with ``shares``.
        shares: (N, n, 4), what each of the four counts for, or None.
        positions: (N, n, 2) rows and columns on the level's grid of representations, fractional where deformed.
    """

    cells: Tensor
    shares: Tensor | None
    positions: Tensor


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


class NeighborAggregation(nn.Module):
    """Which representations are gathered, the weights that they are aggregated with, and their context.

    Args:
        config: the aggregation's fields.
        in_channels: E of the features that weights and offsets are predicted from.
        context: makes the context feature; None for none.
        tower: makes those features from levels with coordinates appended; None takes them as they are given.
        anchors: instances that one location can hold.
    """

    def __init__(
        self,
        config: AggregationConfig,
        in_channels: int,
        context: MultiLevelContext | None,
        tower: nn.Module | None = None,
        anchors: int = 1,
    ) -> None:
        super().__init__()
        self.config = config
        self.context = context
        self.tower = tower
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
            anchors=anchors,
            offset_gradient=config.offset_gradient,
            start=_own_maps(config),
        )

    def forward(
        self, context_from: Sequence[Tensor], features: Sequence[Tensor], sources: Locations, targets: Locations
    ) -> AggregationInputs:
        """What the masks of a batch are aggregated with.

        Args:
            context_from: the maps that the context is made of, finest first.
            features: for each level (B, E, h, w): with a tower its inputs, which are resized to the level's grid,
                else what the weights are predicted from.
            sources: the locations that instances are found at.
            targets: the locations that have representations.
        """
        context = None if self.context is None else self.context(context_from)
        return AggregationInputs(self._features(features, sources), context, sources, targets)

    def _features(self, features: Sequence[Tensor], sources: Locations) -> list[Tensor]:
        if self.tower is None:
            return list(features)
        placed = (append_coordinates(x) for x in features)
        return [self.tower(resize(x, grid)) for x, grid in zip(placed, sources.grids, strict=True)]

    def as_published(
        self, context_from: Sequence[Tensor], features: Sequence[Tensor], sources: Locations, targets: Locations
    ) -> AggregationInputs:
        """:meth:`forward` and the weights of all locations, (B, D, rows, columns) a level in place of the features, in
        the order of the published code: for comparison and for counting operations."""
        context = None if self.context is None else self.context.as_published(context_from)
        features = self._features(features, sources)
        convs = [c for c in (self.aggregate.weights, self.aggregate.offsets) if c is not None]
        dense = [torch.cat([conv(x) for conv in convs], dim=1) if convs else x for x in features]
        return AggregationInputs(dense, context, sources, targets)

    def gather(self, inputs: AggregationInputs, image: int, cells: Tensor) -> Gathered:
        """N(M_ij) of equation (3): whose representations the masks of instances at ``cells`` (N,) are made of."""
        near, shares, positions, order = [], [], [], []
        anchors = inputs.targets.anchors
        for level, at, inside in inputs.sources.by_level(cells):
            grid, target = inputs.sources.grids[level], inputs.targets.grids[level]
            anchor = (inside % anchors)[:, None]
            found = neighbor_cells(inside // anchors, grid, target, self.config.pattern, self.config.mapping)
            first = inputs.targets.first[level]
            if self.aggregate.offsets is None:
                near.append(first + (found[..., 0] * target[1] + found[..., 1]) * anchors + anchor)
                positions.append(found)
            else:  # equation (11); zero offsets are the fixed neighbors
                moved = found + self.aggregate.predict_offsets(inputs.features[level][image], inside)
                four, share = bilinear_cells(moved, target)
                near.append(first + four * anchors + anchor[..., None])
                shares.append(share)
                within = moved.detach().clamp(min=0)
                positions.append(within.minimum(within.new_tensor([target[0] - 1, target[1] - 1])))
            order.append(at)
        back = torch.cat(order).argsort()
        return Gathered(torch.cat(near)[back], torch.cat(shares)[back] if shares else None, torch.cat(positions)[back])

    def weights(self, inputs: AggregationInputs, image: int, cells: Tensor) -> Tensor | None:
        """Equation (5): the parameters (N, D) of the small networks of instances at ``cells`` (N,); None when
        static."""
        if self.aggregate.weights is None:
            return None
        found, order = [], []
        for level, at, inside in inputs.sources.by_level(cells):
            found.append(self.aggregate.predict_weights(inputs.features[level][image], inside))
            order.append(at)
        return torch.cat(found)[torch.cat(order).argsort()]

    def context_at(self, inputs: AggregationInputs, image: int, size: tuple[int, int]) -> Tensor | None:
        """F_c (K, *size) of one image."""
        if inputs.context is None:
            return None
        return resize_aligned(inputs.context[image : image + 1], size)[0]

    def mask_logits(
        self, inputs: AggregationInputs, image: int, cells: Tensor, size: tuple[int, int], maps_of: MapsOf
    ) -> Tensor:
        """Equation (6): mask logits (N, h, w) float32 of instances at ``cells`` (N,) of ``sources``.

        Args:
            inputs: what :meth:`forward` returned.
            image: of the batch.
            cells: all on maps of ``size``.
            size: (h, w).
            maps_of: makes the representations of locations of ``targets``.
        """
        context = self.context_at(inputs, image, size)
        weights = self.weights(inputs, image, cells)
        if self.config.context == "only":
            alone: Tensor = self.aggregate(None, None, weights, context)
            return alone.float()
        chosen = self.gather(inputs, image, cells)
        used, index = torch.unique(chosen.cells, return_inverse=True)
        logits: Tensor = self.aggregate(maps_of(used), index, weights, context, chosen.shares)
        return logits.float()

    def trace(
        self, inputs: AggregationInputs, image: int, cell: int, size: tuple[int, int], maps_of: MapsOf, mask: Tensor
    ) -> Trace:
        """How the mask of the instance at one location comes about (figure 6); ``mask`` as in
        :class:`~instseg.models.base.Trace`, the other arguments as in :meth:`mask_logits`."""
        cells = torch.tensor([cell], device=mask.device)
        context = self.context_at(inputs, image, size)
        weights = self.weights(inputs, image, cells)
        maps_in: list[Tensor] = []  # n of (h, w)
        index, positions = None, torch.zeros(0, 2)
        if self.config.context != "only":
            chosen = self.gather(inputs, image, cells)
            used, at = torch.unique(chosen.cells, return_inverse=True)
            maps_in = list(gather_maps(maps_of(used), at, chosen.shares)[0].float())
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
        level = inputs.sources.level_of(cell)
        beside = offsets_of(self.config.pattern, self.config.mapping) if self.config.pattern != "corners" else _CORNERS
        return Trace(
            title=_title(inputs, level, cell),
            grid=inputs.targets.grids[level],
            names=tuple(_NAMES[offset] for offset in beside) if maps_in else (),
            positions=positions,
            maps=torch.stack(maps_in).cpu() if maps_in else torch.zeros(0, *size),
            context=None if context is None else context.float().cpu(),
            logits=whole,
            effects=torch.stack([whole.sigmoid() - other.sigmoid() for other in without]),
            mask=mask.float().cpu(),
        )


def _title(inputs: AggregationInputs, level: int, cell: int) -> str:
    """Where on the grids an instance was found."""
    (rows, columns), (map_rows, map_columns) = inputs.sources.grids[level], inputs.targets.grids[level]
    row, column = divmod((cell - inputs.sources.first[level]) // inputs.sources.anchors, columns)
    where = f"row {row + 1}, column {column + 1} of the {rows} x {columns} grid"
    apart = (rows, columns) != (map_rows, map_columns)
    return where + (f", {map_rows} x {map_columns} representations" if apart else "")
