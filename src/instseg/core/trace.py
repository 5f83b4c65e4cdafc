"""What a mask is made of."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Trace:
    """How one mask comes about, for drawing.

    Attributes:
        title: of the picture: where on the network's grids the object was found.
        grid: (rows, columns) of the grid of what was aggregated, which lies over the padded input.
        names: of the n inputs, by where they lie from the object's own.
        positions: (n, 2) rows and columns on that grid, fractional where they are deformed.
        maps: (n, h, w), raw.
        context: (K, h, w) or None.
        logits: (h, w) of the mask.
        effects: (n, h, w) in [-1, 1], and one more for the context where there is one: what the soft mask loses when
            that input is zero.
        mask: (h, w), the soft mask.
    """

    title: str
    grid: tuple[int, int]
    names: tuple[str, ...]
    positions: Tensor
    maps: Tensor
    context: Tensor | None
    logits: Tensor
    effects: Tensor
    mask: Tensor
