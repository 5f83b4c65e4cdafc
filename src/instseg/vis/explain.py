"""A picture of how a mask is aggregated from neighboring representations: SODAR figure 6."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from instseg.core.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.floating[Any]]
UInt8Array = npt.NDArray[np.uint8]
Window = tuple[float, float, float, float]  # x0, x1, y0, y1 in pixels of the network input

_INK, _PLACE, _MASK = "#1f2937", "#facc15", "#22d3ee"
_SIDE = 2.0  # inches of a panel
_WIDTH = 7.6  # inches that the lines of text need
_AROUND = 0.75  # margin around the object, share of its box
_STRONG = 0.5  # change of the soft mask that has the full color
_LEAST = 64  # pixels, least side of what is shown


def draw_aggregation(title: str, image: UInt8Array, content: tuple[int, int], trace: Trace) -> Figure:
    """Two rows: what goes in, and what it does.

    Above: the image with the mask's outline and the places whose representations are gathered, each representation,
    and the mean of the context. Below: the soft mask, and under each input what the mask gains from it.

    Args:
        title: one line.
        image: (H, W, 3) uint8, what the network was shown, with its padding.
        content: (h, w) of it without padding.
        trace: of the object's mask.
    """
    from matplotlib.figure import Figure

    mask, maps, names, effects = trace.mask.numpy(), trace.maps.numpy(), trace.names, trace.effects.numpy()
    context = None if trace.context is None else trace.context.numpy()
    columns = 1 + len(maps) + (context is not None)
    figure = Figure(figsize=(max(_SIDE * columns + 0.3, _WIDTH), 2 * _SIDE + 0.95), dpi=110, facecolor="white")
    axes = figure.subplots(2, columns, squeeze=False)
    size, window = image.shape[:2], _window(mask, image.shape[:2], content)

    def show(ax: Axes, values: Any, text: str, **how: Any) -> None:
        ax.imshow(values, extent=(0, size[1], size[0], 0), interpolation="nearest", **how)
        _outline(ax, mask, size)
        _frame(ax, text, window)

    show(axes[0][0], image, "gathered cells")
    _places(axes[0][0], trace.positions.numpy(), trace.grid, size, names)
    show(axes[1][0], mask, "mask", cmap="gray", vmin=0, vmax=1)
    limit = _limit(_inside(maps, window, size))
    for i, name in enumerate(names):
        show(axes[0][i + 1], maps[i], name, cmap="PuOr_r", vmin=-limit, vmax=limit)
    if context is not None:
        show(axes[0][-1], context.mean(axis=0), "context, mean", cmap="viridis")
    for i, text in enumerate([*names, "context"][: len(effects)]):
        show(axes[1][i + 1], effects[i], f"effect of {text}", cmap="RdBu_r", vmin=-_STRONG, vmax=_STRONG)
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, color=_INK, parse_math=False)
    figure.text(
        0.01,
        0.012,
        "Above: raw representations, orange high, violet low. Below: what the mask gains (red) or loses (blue) "
        "through each. Cyan: the mask at 0.5.",
        fontsize=7,
        color=_INK,
    )
    figure.subplots_adjust(left=0.01, right=0.99, top=0.87, bottom=0.055, wspace=0.06, hspace=0.16)
    return figure


def _window(mask: FloatArray, size: tuple[int, ...], content: tuple[int, int]) -> Window:
    """A square around the object, inside the content where it fits."""
    rows, columns = np.nonzero(mask > 0.5)
    scale = size[0] / mask.shape[0]
    if not len(rows):
        return 0, content[1], 0, content[0]
    y0, y1, x0, x1 = rows.min() * scale, (rows.max() + 1) * scale, columns.min() * scale, (columns.max() + 1) * scale
    side = max(_LEAST, (1 + 2 * _AROUND) * max(y1 - y0, x1 - x0))
    side = min(side, max(content))

    def place(low: float, high: float, extent: int) -> tuple[float, float]:
        start = (low + high - side) / 2
        start = min(max(start, 0), max(extent - side, 0))
        return start, start + side

    return *place(x0, x1, content[1]), *place(y0, y1, content[0])


def _inside(maps: FloatArray, window: Window, size: tuple[int, ...]) -> FloatArray:
    """The part of maps (n, h, w) that is seen."""
    x0, x1, y0, y1 = window
    down, across = maps.shape[1] / size[0], maps.shape[2] / size[1]
    rows = slice(int(y0 * down), int(np.ceil(y1 * down)))
    return maps[:, rows, int(x0 * across) : int(np.ceil(x1 * across))]


def _limit(values: FloatArray) -> float:
    """The range of a diverging scale: all but the most extreme values."""
    return max(float(np.quantile(np.abs(values), 0.99)), 1e-6) if values.size else 1.0


def _outline(ax: Axes, mask: FloatArray, size: tuple[int, ...]) -> None:
    if mask.min() < 0.5 < mask.max():
        step = size[0] / mask.shape[0]
        x, y = ((np.arange(n) + 0.5) * step for n in mask.shape[::-1])
        ax.contour(x, y, mask, levels=[0.5], colors=[_MASK], linewidths=0.9)


def _places(
    ax: Axes, positions: FloatArray, grid: tuple[int, int], size: tuple[int, ...], names: Sequence[str]
) -> None:
    """The gathered cells, drawn as squares of the grid; fractional positions lie between cells."""
    from matplotlib.patches import Rectangle

    height, width = size[0] / grid[0], size[1] / grid[1]
    for (row, column), name in zip(positions, names, strict=True):
        corner = (float(column) * width, float(row) * height)
        ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=_PLACE, linewidth=0.9))
        dot = "o" if name == "own cell" else "."
        ax.plot(corner[0] + width / 2, corner[1] + height / 2, dot, color=_PLACE, markersize=3.5, markeredgewidth=0)


def _frame(ax: Axes, text: str, window: Window) -> None:
    x0, x1, y0, y1 = window
    ax.set_xlim(x0, x1)
    ax.set_ylim(y1, y0)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(text, fontsize=8, color=_INK, pad=3)
    for side in ax.spines.values():
        side.set_visible(False)
