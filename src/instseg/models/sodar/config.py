"""The fields of SODAR's aggregation."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from instseg.models.config import Fraction, Positive
from instseg.models.solo.config import GridConfig
from instseg.ops.neighbors import Mapping, Pattern


class AggregationConfig(BaseModel):
    """What every host of the aggregation shares, whatever its locations; published values by default."""

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

    @property
    def pattern(self) -> Pattern:
        """Which locations are gathered around one, on one grid."""
        patterns: dict[int | str, Pattern] = {0: "self", "2col": "2col", "2row": "2row", 4: "4", 8: "8"}
        return patterns[self.neighbors]

    @property
    def mapping(self) -> Mapping:
        """How cells of one grid are found on the other."""
        return "paper" if self.neighbor_cells == "paper" else "released"

    @model_validator(mode="after")
    def _aggregation(self) -> Self:
        if self.context == "only" and (self.aggregation == "static" or self.deformable):
            raise ValueError('context="only" gathers no neighbors: it needs aggregation="dynamic", deformable=False')
        return self


class GridAggregationConfig(GridConfig, AggregationConfig):
    """The aggregation on the grids of the SOLO family, with mask interpolation (section IV-b)."""

    mask_grids: tuple[Positive, ...] | None = None  # S' of the grids that have representations; None: as grids
    two_stage_loss: bool = False  # teach a cell's own representation the mask, too (table VI)

    @property
    def map_grids(self) -> tuple[int, ...]:
        """S' of each level."""
        return self.mask_grids or self.grids

    @property
    def pattern(self) -> Pattern:
        """Which cells are gathered; the corners where every level's grids differ."""
        apart = all(a != b for a, b in zip(self.grids, self.map_grids, strict=True))
        corners = self.neighbors == 4 and self.neighbor_cells == "released" and apart and not self.deformable
        return "corners" if corners else super().pattern

    @model_validator(mode="after")
    def _map_grids(self) -> Self:
        if len(self.map_grids) != len(self.grids):
            raise ValueError("mask_grids must have one entry for each of grids")
        if self.two_stage_loss and (self.map_grids != self.grids or self.context == "only"):
            raise ValueError("two_stage_loss needs a representation for each cell: mask_grids=None, context not only")
        return self
