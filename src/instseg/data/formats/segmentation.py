"""The ``segmentation`` of one COCO annotation, checked and turned into a run-length code."""

from typing import Any

import numpy as np
import numpy.typing as npt

from instseg.core import rle as rle_codes
from instseg.core.rle import RLE
from instseg.data.runs import read_runs

# Annotation tools draw up to a pixel over the border.
_BORDER = 1.0
# Further out than this many image sides the rasteriser would need memory without bound.
_FAR = 10.0


class BadSegmentation(Exception):
    """A segmentation that cannot be used: ``kind`` as in :class:`~instseg.data.records.Problem`, and why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def read_segmentation(segmentation: Any, height: int, width: int) -> tuple[RLE, bool]:
    """The run-length code at image size, and whether a polygon was cut at the image's border.

    Args:
        segmentation: a list of polygons ``[x0, y0, x1, y1, ...]``, or an RLE whose counts are compressed
            (text) or plain (a list).
        height: of the image, pixels.
        width: of the image, pixels.

    Raises:
        BadSegmentation: anything else; an RLE of another size or with runs that do not fill it; a polygon
            with fewer than three points, with NaN, or wholly outside the image.
    """
    if isinstance(segmentation, dict):
        return _read_rle(segmentation, height, width), False
    if isinstance(segmentation, list) and segmentation:
        return _read_polygons(segmentation, height, width)
    raise BadSegmentation("no_mask", "has no mask (its segmentation is empty or missing); draw one or remove it.")


def _read_polygons(polygons: list[Any], height: int, width: int) -> tuple[RLE, bool]:
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for polygon in polygons:
        points = _points(polygon)
        low, high = np.minimum(low, points.min(axis=0)), np.maximum(high, points.max(axis=0))
    extent = f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g} in an image of {width} x {height}"
    if low[0] >= width or low[1] >= height or high[0] <= 0 or high[1] <= 0:
        raise BadSegmentation("polygon_outside", f"polygon lies outside the image ({extent}); correct or remove it.")
    if max(-low.min(), high.max()) > _FAR * max(height, width):
        raise BadSegmentation("polygon_outside", f"polygon reaches far outside the image ({extent}); correct it.")
    cut = bool(low.min() < -_BORDER or high[0] > width + _BORDER or high[1] > height + _BORDER)
    return rle_codes.from_polygons(polygons, height, width), cut


def _points(polygon: Any) -> npt.NDArray[np.float64]:
    """(K, 2) xy."""
    try:
        values = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError):
        raise BadSegmentation("polygon_points", "polygon holds something that is not a number; correct it.") from None
    if values.ndim != 1:
        raise BadSegmentation("polygon_points", "polygon is not a flat list [x0, y0, x1, y1, ...]; correct it.")
    if len(values) < 6 or len(values) % 2:
        found = f"{len(values)} coordinates"
        raise BadSegmentation("polygon_points", f"polygon has fewer than three points ({found}); correct or remove it.")
    if not np.isfinite(values).all():
        raise BadSegmentation("polygon_nan", "polygon has a coordinate that is NaN or infinite; correct or remove it.")
    return values.reshape(-1, 2)


def _read_rle(segmentation: dict[str, Any], height: int, width: int) -> RLE:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, str | list):
        raise BadSegmentation("rle_counts", 'RLE is not {"size": [H, W], "counts": ...}; encode the mask again.')
    if size != [height, width]:
        found = f"is of size {size}, the image of [{height}, {width}]"
        raise BadSegmentation("rle_size", f"RLE {found} (height, width); encode the mask at the image's size.")
    filled = _plain_total(counts) if isinstance(counts, list) else _packed_total(counts)
    if filled != height * width:
        found = "cannot be read" if filled is None else f"fill {filled} of {height * width} pixels"
        raise BadSegmentation("rle_counts", f"RLE counts {found}; encode the mask again.")
    return rle_codes.from_json(segmentation)


def _plain_total(counts: list[Any]) -> int | None:
    if any(not isinstance(count, int) or isinstance(count, bool) or count < 0 for count in counts):
        return None
    total: int = sum(counts)
    return total


def _packed_total(counts: str) -> int | None:
    runs = read_runs(counts)
    return None if runs is None else int(runs.sum())
