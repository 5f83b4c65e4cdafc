"""Run-length codes as COCO writes them: ``{"size": [H, W], "counts": bytes}``, runs down the columns.

The codes themselves are made and read by pycocotools. What this module adds is a code for a mask of which only a
window is known, so that nothing of the image's size is ever built.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

RLE: TypeAlias = dict[str, Any]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
UInt8Array: TypeAlias = npt.NDArray[np.uint8]


def _coco() -> Any:
    from pycocotools import mask  # a compiled module: loaded when the first code is made, not with the package

    return mask


def encode(mask: npt.NDArray[Any]) -> RLE:
    """The code of one mask ``(H, W)``, any dtype, non-zero is foreground."""
    code: RLE = _coco().encode(np.asfortranarray(mask != 0).view(np.uint8))
    return code


def encode_window(window: npt.NDArray[Any], top: int, left: int, size: tuple[int, int]) -> RLE:
    """The code of a mask of ``size`` (H, W) that is ``window`` (h, w) at row ``top``, column ``left``, zero elsewhere.

    Costs time and memory of the window, whatever the image's size.
    """
    height, width = size
    h, w = window.shape
    if h == 0 or w == 0:
        return from_counts([height * width], height, width)
    # Runs go down the columns: pad every column with a zero at either end and look where the value changes.
    columns = np.zeros((w, h + 2), dtype=np.int8)
    columns[:, 1:-1] = (window != 0).T
    change = np.diff(columns, axis=1)
    x0, y0 = np.nonzero(change == 1)
    x1, y1 = np.nonzero(change == -1)
    starts = (x0 + left) * height + y0 + top
    ends = (x1 + left) * height + y1 + top
    # A run that reaches the image's last row continues at the first row of the next column.
    split = np.ones(len(starts), dtype=bool)
    split[1:] = starts[1:] != ends[:-1]
    starts, ends = starts[split], ends[np.append(split[1:], True)[: len(ends)]]
    edges = np.empty(2 * len(starts), dtype=np.int64)
    edges[0::2], edges[1::2] = starts, ends
    counts = np.diff(edges, prepend=0)
    tail = height * width - (int(edges[-1]) if len(edges) else 0)
    runs: list[int] = counts.tolist()
    return from_counts([*runs, tail] if tail or not runs else runs, height, width)


def decode(rle: RLE) -> UInt8Array:
    """The mask ``(H, W)`` uint8 0/1 of a code."""
    mask: UInt8Array = _coco().decode(rle)
    return mask


def decode_window(rle: RLE) -> tuple[int, int, BoolArray]:
    """``(top, left, window)``: the mask's own box of the image, boolean ``(h, w)``, ``(0, 0)`` when it is empty.

    Costs time and memory of the box, whatever the image's size.
    """
    height = int(rle["size"][0])
    ends = np.cumsum(_unpack(rle["counts"]))
    starts, stops = ends[: len(ends) - 1 : 2], ends[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts]
    if not len(starts):
        return 0, 0, np.zeros((0, 0), dtype=bool)
    left, right = int(starts[0]) // height, int(stops[-1] - 1) // height + 1
    rows, last = starts % height, (stops - 1) % height
    # A run that goes on in the next column has both of its ends there, so the box is as high as the image.
    wraps = bool(((stops - 1) // height > starts // height).any())
    top, bottom = (0, height) if wraps else (int(rows.min()), int(last.max()) + 1)
    h, w = bottom - top, right - left
    begin = (starts // height - left) * h + rows - top
    change = np.zeros(h * w + 1, dtype=np.int8)
    change[begin] += 1
    change[begin + stops - starts] -= 1
    return top, left, np.cumsum(change[:-1], dtype=np.int8).view(bool).reshape(w, h).T


def _unpack(counts: bytes | str) -> npt.NDArray[np.int64]:
    """The run lengths behind COCO's text form; undoes :func:`_pack`."""
    code = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, dtype=np.uint8).astype(np.int64) - 48
    last = (code & 0x20) == 0
    first = np.flatnonzero(np.append(True, last[:-1]))
    place = np.arange(len(code)) - np.repeat(first, np.diff(np.append(first, len(code))))
    values = np.add.reduceat((code & 0x1F) << 5 * place, first)
    negative = (code[last] & 0x10) != 0
    values -= negative * (np.int64(1) << 5 * (place[last] + 1))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def area(rles: Sequence[RLE]) -> npt.NDArray[np.float64]:
    """Number of foreground pixels of each code."""
    # One by one: pycocotools keeps the length of a list in a uint8, and NumPy 2 refuses more than 255.
    return np.array([_coco().area(code) for code in rles], dtype=np.float64)


def boxes(rles: Sequence[RLE]) -> npt.NDArray[np.float64]:
    """Tight boxes ``(N, 4)`` xyxy in pixels; ``x1`` is the last column plus one. Zeros for an empty mask."""
    xywh = np.asarray(_coco().toBbox(list(rles)), dtype=np.float64).reshape(len(rles), 4)
    xywh[:, 2:] += xywh[:, :2]
    return xywh


def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> RLE:
    """One code for an object given as polygons ``[x0, y0, x1, y1, ...]``, its parts merged."""
    code: RLE = merge(_coco().frPyObjects([list(p) for p in polygons], height, width))
    return code


def from_counts(counts: Sequence[int], height: int, width: int) -> RLE:
    """The compressed code of uncompressed run lengths."""
    code: RLE = _coco().frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)
    return code


def merge(rles: Sequence[RLE]) -> RLE:
    """The union of masks of one size."""
    code: RLE = _coco().merge(list(rles))
    return code


def iou(detections: Sequence[RLE], truths: Sequence[RLE], crowd: Sequence[bool]) -> npt.NDArray[np.float64]:
    """Mask IoU ``(D, G)``; against a crowd the union is the detection's own area, as in COCO."""
    if not detections or not truths:
        return np.zeros((len(detections), len(truths)))
    table = _coco().iou(list(detections), list(truths), [int(c) for c in crowd])
    return np.asarray(table, dtype=np.float64)


def to_json(rle: RLE) -> dict[str, Any]:
    """The code with its counts as text, for JSON."""
    counts = rle["counts"]
    return {"size": [int(v) for v in rle["size"]], "counts": counts.decode() if isinstance(counts, bytes) else counts}


def from_json(obj: dict[str, Any]) -> RLE:
    """A code read from JSON, compressed (text) or not (a list of run lengths)."""
    height, width = (int(v) for v in obj["size"])
    counts = obj["counts"]
    if isinstance(counts, list):
        return from_counts(counts, height, width)
    return {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}
