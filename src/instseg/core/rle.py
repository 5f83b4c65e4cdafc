"""Run-length codes as COCO writes them: ``{"size": [H, W], "counts": bytes}``, runs down the columns.

Whole masks are coded, merged and compared by pycocotools. What this module adds are codes made of runs and codes read
into the window that a mask lies in, so that nothing of the image's size is ever built.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

RLE: TypeAlias = dict[str, Any]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
UInt8Array: TypeAlias = npt.NDArray[np.uint8]

# A run length of an image takes at most 31 bits: seven digits of five.
_MAX_DIGITS = 7
# Below this many pixels the whole mask is decoded faster than its runs are read here.
_SMALL = 512 * 512
# Pixels of decoded windows that are held at a time.
_GROUP = 1 << 26


def _coco() -> Any:
    from pycocotools import mask  # a compiled module: loaded when the first code is made, not with the package

    return mask


def encode(mask: npt.NDArray[Any]) -> RLE:
    """The code of one mask ``(H, W)``, any dtype, non-zero is foreground."""
    code: RLE = _coco().encode(np.asfortranarray(mask != 0).view(np.uint8))
    return code


def decode(rle: RLE) -> UInt8Array:
    """The mask ``(H, W)`` uint8 0/1 of a code."""
    mask: UInt8Array = _coco().decode(rle)
    return mask


def decode_window(rle: RLE) -> tuple[int, int, BoolArray]:
    """``(top, left, window)``: the mask's own box of the image, boolean ``(h, w)``, ``(0, 0)`` when it is empty.

    Costs time and memory of the box, whatever the image's size.

    Raises:
        ValueError: the code is damaged.
    """
    height = int(rle["size"][0])
    starts, stops = _runs(rle)
    if not len(starts):
        return 0, 0, np.zeros((0, 0), dtype=bool)
    left, right = int(starts[0]) // height, int(stops[-1] - 1) // height + 1
    # A run that continues in the next column has both of its ends there, so the box is as high as the image.
    wraps = bool(((stops - 1) // height > starts // height).any())
    top, bottom = (0, height) if wraps else (int((starts % height).min()), int(((stops - 1) % height).max()) + 1)
    return top, left, _filled(starts, stops, height, (top, left, bottom, right)).view(bool)


def decode_part(rle: RLE, top: int, left: int, bottom: int, right: int) -> UInt8Array:
    """The part of a mask in rows ``top`` to ``bottom`` and columns ``left`` to ``right`` (end exclusive), uint8 0/1.

    Costs time and memory of the part's columns, so that a small object of a large image is cheap.

    Raises:
        ValueError: the code is damaged.
    """
    height, width = rle["size"]
    if height * width <= _SMALL:
        return decode(rle)[top:bottom, left:right]
    starts, stops = _runs(rle)
    first, last = left * height, right * height
    starts, stops = starts.clip(first, last), stops.clip(first, last)
    inside = starts < stops
    return _filled(starts[inside], stops[inside], height, (0, left, height, right))[top:bottom]


def decode_parts(rles: Sequence[RLE], parts: Sequence[tuple[int, int, int, int]]) -> list[UInt8Array]:
    """:func:`decode_part` of each of several codes; ``parts`` are (top, left, bottom, right)."""
    # Copied: a part may be a view of the whole mask.
    return [decode_part(code, *part).copy() for code, part in zip(rles, parts, strict=True)]


def decode_all(rles: Sequence[RLE]) -> Iterator[tuple[int, list[tuple[int, int, BoolArray]]]]:
    """The windows of many codes as :func:`decode_window` returns them, so many at a time as fit into memory.

    Yields:
        The place of the first code of a group, and the windows of the group.
    """
    start = size = 0
    group: list[tuple[int, int, BoolArray]] = []
    for i, code in enumerate(rles):
        group.append(decode_window(code))
        size += group[-1][2].size
        if size > _GROUP:
            yield start, group
            start, size, group = i + 1, 0, []
    if group:
        yield start, group


def _runs(rle: RLE) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the foreground's runs begin and end, counted down the columns."""
    runs = read_runs(rle["counts"])
    if runs is None:
        raise ValueError("damaged run-length code")
    ends = np.cumsum(runs)
    starts, stops = ends[: len(ends) - 1 : 2], ends[1::2]
    filled = stops > starts
    return starts[filled], stops[filled]


def _filled(
    starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64], height: int, box: tuple[int, int, int, int]
) -> UInt8Array:
    """The pixels of ``box`` (top, left, bottom, right), which holds all runs; as high as the image where one wraps."""
    top, left, bottom, right = box
    h, w = bottom - top, right - left
    begin = (starts // height - left) * h + starts % height - top
    # Runs go down the columns: plus one where the object begins, minus one behind its end.
    change = np.zeros(h * w + 1, dtype=np.int8)
    change[begin] += 1
    change[begin + stops - starts] -= 1
    return np.cumsum(change[:-1], dtype=np.int8).view(np.uint8).reshape(w, h).T


def read_runs(counts: str | bytes) -> npt.NDArray[np.int64] | None:
    """The run lengths of compressed counts, zeros first; None when the text is no COCO run-length code.

    pycocotools trusts what it is given, and a damaged code makes it write outside its memory.
    """
    try:
        raw = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        return None
    digits = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 0x20:
        return None
    ends = np.flatnonzero(digits < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_DIGITS:
        return None
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    values = np.add.reduceat((digits & 0x1F) << (5 * place), starts)
    values = np.where(digits[ends] & 0x10, values - (1 << (5 * lengths)), values)
    # From the fourth on, a number is the difference to the run before last.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values if values.min() >= 0 else None


def from_edges(edges: Sequence[npt.NDArray[np.int64]], size: tuple[int, int]) -> list[RLE]:
    """The codes of masks of ``size`` (H, W) of which is known where their runs begin and end, in turn, counted down
    the columns."""
    height, width = size
    codes: list[RLE] = []
    for first, last in _groups([len(e) + 1 for e in edges]):
        counts: list[npt.NDArray[np.int64]] = []
        for e in edges[first:last]:
            runs = np.diff(e, prepend=0, append=height * width)
            counts.append(runs if runs[-1] or len(runs) == 1 else runs[:-1])
        codes += [{"size": [height, width], "counts": text} for text in _pack(counts)]
    return codes


def _groups(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """From and to (exclusive) of neighbors that together have some ten thousand numbers."""
    start = total = 0
    for i, length in enumerate(lengths):
        total += length
        if total > 1 << 16 or i + 1 == len(lengths):
            yield start, i + 1
            start, total = i + 1, 0


def _pack(counts: Sequence[npt.NDArray[np.int64]]) -> list[bytes]:
    """COCO's text form of lists of run lengths; :func:`read_runs` undoes it."""
    lengths = np.array([len(c) for c in counts])
    values = np.concatenate(counts)
    place = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    later = np.flatnonzero(place > 2)
    packed = values.copy()
    packed[later] -= values[later - 2]
    # A number takes as many digits of five bits as its sign and value need.
    digits = np.ones(len(values), dtype=np.int64)
    for more in range(1, _MAX_DIGITS):
        bound = 1 << (5 * more - 1)
        wider = (packed < -bound) | (packed >= bound)
        if not wider.any():
            break
        digits += wider
    ends = np.cumsum(digits)
    order = np.arange(int(ends[-1])) - np.repeat(ends - digits, digits)
    text = (np.repeat(packed, digits) >> (5 * order)) & 0x1F
    text[order + 1 < np.repeat(digits, digits)] |= 0x20
    raw = (text + 48).astype(np.uint8).tobytes()
    stops = ends[np.cumsum(lengths) - 1].tolist()
    return [raw[a:b] for a, b in pairwise([0, *stops])]


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


def to_json_all(rles: Sequence[RLE]) -> list[dict[str, Any]]:
    """:func:`to_json` of each code."""
    return [to_json(code) for code in rles]


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
