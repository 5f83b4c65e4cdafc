"""The ``segmentation`` of one COCO annotation, checked and turned into a run-length code."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from instseg.core import rle as rle_codes
from instseg.core.rle import RLE, read_runs
from instseg.data.records import Severity

# Annotation tools draw up to a pixel over the border.
_BORDER = 1.0
# Further out than this many image sides the rasterizer would need memory without bound.
_FAR = 10.0


class BadSegmentation(Exception):
    """A segmentation that cannot be used: ``kind`` as in :class:`~instseg.data.records.Problem`, and why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message

    @property
    def severity(self) -> Severity:
        """A mask of another size belongs to another image: using the rest would train on wrong masks."""
        return "error" if self.kind == "rle_size" else "left_out"


class NoSegmentation(BadSegmentation):
    """There is none at all, which is right for a data set of boxes."""

    def __init__(self) -> None:
        super().__init__("no_mask", "has no mask (its segmentation is empty or missing); draw one or remove it.")


@dataclass(frozen=True)
class Segmentation:
    """A usable mask.

    Attributes:
        rle: at the size of the image.
        cut: a polygon was cut at the image's border.
        lost: parts of fewer than three points, which are left out.
        polygons: its rings, (K, 2) float64 xy each, where it is given as polygons.
    """

    rle: RLE
    cut: bool = False
    lost: int = 0
    polygons: tuple[npt.NDArray[np.float64], ...] = ()


def read_segmentation(segmentation: Any, height: int, width: int) -> Segmentation:
    """The mask of an annotation.

    Args:
        segmentation: polygons ``[[x0, y0, x1, y1, ...], ...]``, also one of them without the outer list, or as lists
            of points; an RLE whose counts are compressed (text) or plain (a list), or a list of RLEs; any of these as
            the text of their JSON.
        height: of the image, pixels.
        width: of the image, pixels.

    Raises:
        BadSegmentation: anything else; an RLE of another size or with runs that do not fill it; no part with three
            points; a coordinate that is not a number; everything outside the image.
    """
    found = shape_of(segmentation)
    if isinstance(found, dict):
        return Segmentation(_read_rle(found, height, width))
    if isinstance(found[0], dict):
        return Segmentation(rle_codes.merge([_read_rle(part, height, width) for part in found]))
    return _read_polygons(found, height, width)


def shape_of(segmentation: Any) -> dict[str, Any] | list[Any]:
    """An RLE, a list of RLEs, or a list of polygons, each a flat list; what it holds is not looked at.

    Raises:
        BadSegmentation: empty, missing, or of none of these forms.
    """
    if isinstance(segmentation, str) and segmentation.strip()[:1] in ("[", "{"):  # from a table
        try:
            segmentation = json.loads(segmentation)
        except (ValueError, RecursionError):
            raise BadSegmentation("no_mask", "has a text for a mask; export the mask again.") from None
    if isinstance(segmentation, dict) and segmentation:
        return segmentation
    if not isinstance(segmentation, list) or not segmentation:
        raise NoSegmentation
    if all(isinstance(part, dict) for part in segmentation):
        return segmentation if "counts" in segmentation[0] else [[c for p in segmentation for c in _point(p)]]
    if all(_is_number(value) for value in segmentation):
        return [segmentation]  # one polygon without the outer list
    parts = [part for part in segmentation if part not in ([], None)]
    if not parts:
        raise NoSegmentation
    if len(parts) >= 3 and all(isinstance(part, list) and len(part) == 2 and _is_number(part[0]) for part in parts):
        return [[value for point in parts for value in point]]  # one polygon as a list of points
    return [_flat(part) for part in parts]


def _flat(part: Any) -> Any:
    """A polygon given as a list of points as one flat list; anything else as it is."""
    if isinstance(part, list) and part and all(isinstance(point, list) and len(point) == 2 for point in part):
        return [value for point in part for value in point]
    return part


def _point(point: dict[str, Any]) -> list[Any]:
    return [point.get("x"), point.get("y")]


def _read_polygons(polygons: list[Any], height: int, width: int) -> Segmentation:
    usable = []
    fault: BadSegmentation | None = None
    for polygon in polygons:
        try:
            usable.append(_points(polygon))
        except BadSegmentation as bad:
            if bad.kind != "polygon_points":
                raise
            fault = bad
    if not usable:
        assert fault is not None
        raise fault
    low = np.min([points.min(axis=0) for points in usable], axis=0)
    high = np.max([points.max(axis=0) for points in usable], axis=0)
    extent = f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g} in an image of {width} x {height}"
    if low[0] >= width or low[1] >= height or high[0] <= 0 or high[1] <= 0:
        raise BadSegmentation("polygon_outside", f"polygon lies outside the image ({extent}); correct or remove it.")
    if max(-low.min(), high.max()) > _FAR * max(height, width):
        raise BadSegmentation("polygon_outside", f"polygon reaches far outside the image ({extent}); correct it.")
    cut = bool(low.min() < -_BORDER or high[0] > width + _BORDER or high[1] > height + _BORDER)
    flat = [points.ravel().tolist() for points in usable]
    return Segmentation(rle_codes.from_polygons(flat, height, width), cut, len(polygons) - len(usable), tuple(usable))


def _points(polygon: Any) -> npt.NDArray[np.float64]:
    """(K, 2) xy."""
    try:
        values = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
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
    size, counts = rle_size(segmentation.get("size")), segmentation.get("counts")
    if size is None or not isinstance(counts, str | list):
        raise BadSegmentation("rle_counts", 'RLE is not {"size": [H, W], "counts": ...}; encode the mask again.')
    check_rle_size(size, height, width)
    plain = _whole(counts) if isinstance(counts, list) else None
    filled = sum(plain) if plain is not None else _packed_total(counts)
    if filled != height * width:
        found = "cannot be read" if filled is None else f"fill {filled} of {height * width} pixels"
        raise BadSegmentation("rle_counts", f"RLE counts {found}; encode the mask again.")
    return rle_codes.from_json({"size": size, "counts": plain if plain is not None else counts})


def rle_size(size: Any) -> list[int] | None:
    """[H, W] of an RLE, also where they are whole floats or text; None for anything else."""
    return _whole(size) if isinstance(size, list) and len(size) == 2 else None


def check_rle_size(size: list[int], height: int, width: int) -> None:
    """Raises BadSegmentation when an RLE of ``size`` [H, W] does not belong to an image of that size."""
    if size != [height, width]:
        found = f"is of size {size}, the image of [{height}, {width}]"
        raise BadSegmentation("rle_size", f"RLE {found} (height, width); encode the mask at the image's size.")


def _whole(values: list[Any]) -> list[int] | None:
    """Whole numbers from 0, also where they are floats (as pandas writes them) or text; None for anything else."""
    whole = []
    for value in values:
        if (isinstance(value, str) and value.strip().isdecimal()) or (isinstance(value, float) and value.is_integer()):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
            return None
        whole.append(value)
    return whole


def _packed_total(counts: Any) -> int | None:
    runs = read_runs(counts) if isinstance(counts, str) else None
    return None if runs is None else int(runs.sum())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
