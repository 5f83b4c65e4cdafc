"""Colors that tell neighbors apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]

# Twelve hues of about one lightness, strong on dark and on bright ground, in an order in which successive ones differ
# most.
PALETTE: UInt8Array = np.array(
    [
        (255, 82, 82),
        (41, 182, 246),
        (255, 202, 40),
        (171, 92, 242),
        (102, 214, 92),
        (255, 132, 48),
        (64, 105, 255),
        (20, 205, 175),
        (245, 84, 184),
        (178, 214, 40),
        (122, 138, 250),
        (240, 150, 130),
    ],
    dtype=np.uint8,
)


def class_colors(labels: npt.NDArray[np.int64]) -> UInt8Array:
    """(N, 3) the same color for the same label; beyond twelve classes hues are shifted, so that none is used twice."""
    base = PALETTE[labels % len(PALETTE)].astype(np.float64)
    turn = (labels // len(PALETTE))[:, None]
    shade = np.where(turn % 2 == 1, base * 0.62, base + (255 - base) * 0.35)
    return np.where(turn == 0, base, shade).astype(np.uint8)


def instance_colors(boxes: npt.NDArray[np.float64]) -> UInt8Array:
    """(N, 3) colors for objects with boxes (N, 4) xyxy, so that objects that touch or lie close have different ones.

    Greedy: every object takes, of the colors that no neighbor has, the one used least so far. A neighbor is one
    whose box, grown by a third of its size, meets the object's own.
    """
    count = len(boxes)
    chosen = np.full(count, -1, dtype=np.int64)
    used = np.zeros(len(PALETTE), dtype=np.int64)
    grow = (boxes[:, 2:] - boxes[:, :2]) / 3 + 2
    low, high = boxes[:, :2] - grow, boxes[:, 2:] + grow
    for i in range(count):
        meets = ((low[:i] <= high[i]) & (high[:i] >= low[i])).all(axis=1)
        taken = np.zeros(len(PALETTE), dtype=np.int64)
        np.add.at(taken, chosen[:i][meets], 1)
        # the order of the palette breaks ties, so a picture with few objects shows its first colors
        chosen[i] = np.lexsort((np.arange(len(PALETTE)), used, taken))[0]
        used[chosen[i]] += 1
    return PALETTE[chosen] if count else np.zeros((0, 3), dtype=np.uint8)


def darker(colors: UInt8Array, factor: float) -> list[tuple[int, int, int]]:
    """RGB colors (N, 3) times `factor`."""
    return [(int(red * factor), int(green * factor), int(blue * factor)) for red, green, blue in colors.tolist()]


def inks_on(colors: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Black or white, whichever reads better on each color (luma of ITU-R BT.601)."""
    lumas = [0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in colors]
    return [(20, 20, 20) if luma > 150 else (255, 255, 255) for luma in lumas]
