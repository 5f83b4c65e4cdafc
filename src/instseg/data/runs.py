"""COCO run-length codes read without their masks: checked, and decoded only where they are looked at."""

import numpy as np
import numpy.typing as npt

from instseg.core import rle as rle_codes
from instseg.core.rle import RLE

# A run length of an image takes at most 31 bits: seven digits of five.
_MAX_DIGITS = 7
# Below this many pixels the whole mask is decoded faster than its runs are read here.
_SMALL = 512 * 512


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


def decode_window(rle: RLE, top: int, left: int, bottom: int, right: int) -> npt.NDArray[np.uint8]:
    """The part of a mask in rows ``top`` to ``bottom`` and columns ``left`` to ``right`` (end exclusive), uint8 0/1.

    Costs time and memory of the window's columns, so that a small object of a large image is cheap.
    """
    height, width = rle["size"]
    if height * width <= _SMALL:
        return rle_codes.decode(rle)[top:bottom, left:right]
    runs = read_runs(rle["counts"])
    if runs is None:
        raise ValueError("damaged run-length code")
    edges = np.cumsum(runs).clip(left * height, right * height) - left * height
    ends = edges[1::2]
    starts = edges[0::2][: len(ends)]
    filled = starts < ends
    # Runs go down the columns: plus one where the object begins, minus one behind its end.
    change = np.zeros((right - left) * height + 1, dtype=np.int8)
    change[starts[filled]] += 1
    change[ends[filled]] -= 1
    columns = np.cumsum(change[:-1], dtype=np.int8).view(np.uint8).reshape(right - left, height)
    return columns.T[top:bottom]
