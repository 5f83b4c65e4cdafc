"""Samples wider than 8 bits as uint8: one rule for every file format, array and tensor.

White is ``full_scale`` where one is given. Otherwise it is the smallest of 8, 10, 12, 14 and 16 bits that holds the
largest sample of the image (that sample itself above 16 bits), because a sensor's 12 bits in a 16-bit file would
come out nearly black as 16 bits. Floats whose largest value is below 2 have 1 as white, those above follow the rule of
the integers. Missing data are black: NaN, infinite floats, and what a TIFF declares as such. Alpha has the same white
as the colors, or the next of these steps that holds it; what is transparent shows white. Negative samples are refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from instseg.core.errors import DataError

AnyArray = npt.NDArray[Any]
UInt8Array = npt.NDArray[np.uint8]

FULL_SCALES = (255, 1023, 4095, 16383, 65535)
# Resampling leaves [0, 1] by a little; a float image of [0, 255] reaches far beyond 2.
_UNIT_FLOATS_BELOW = 2.0
_BLOCK = 1 << 20  # samples that are scaled at once


@dataclass(frozen=True)
class Samples:
    """The samples of an image as its file stores them.

    Attributes:
        values: (H, W, C) of any integer or float dtype; C is 1 for gray, 3 for RGB, 4 for CMYK, and one more with
            alpha, which comes last.
        alpha: whether the last channel is alpha.
        premultiplied: whether the colors are multiplied by alpha.
        inverted: whether 0 is white.
        transparent: (C,) the one color that is transparent, if any.
    """

    values: AnyArray
    alpha: bool = False
    premultiplied: bool = False
    inverted: bool = False
    transparent: tuple[int, ...] | None = None

    @property
    def colors(self) -> AnyArray:
        return self.values[..., :-1] if self.alpha else self.values


def holding(top: float) -> float:
    """The smallest of 8, 10, 12, 14 and 16 bits that holds a value, or the value itself."""
    return float(next((scale for scale in FULL_SCALES if top <= scale), top))


def largest(values: AnyArray) -> float:
    """The largest finite sample. Raises DataError when a sample is negative."""
    low, top = _range(values)
    if low < 0 and (values.dtype.kind == "i" or low < -0.01 * max(top, 1.0)):
        raise DataError(f"holds negative samples (down to {low:g}); shift them so that black is 0.")
    return max(top, 0.0)


def white_of(values: AnyArray, full_scale: float | None) -> float:
    """The sample value that is shown as white."""
    top = largest(values)
    if values.dtype.kind == "f" and top < _UNIT_FLOATS_BELOW:
        return 1.0
    return full_scale or holding(top)


def decides_scale(values: AnyArray, top: float) -> bool:
    """Whether samples say something about the full scale of a data set: floats of [0, 1] do not."""
    return values.dtype.kind != "f" or top >= _UNIT_FLOATS_BELOW


def to_eight_bits(values: AnyArray, full_scale: float | None = None) -> UInt8Array:
    """Samples of any integer, bool or float dtype as uint8 of the same shape. Raises DataError for negative ones."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    return _scaled(values, white_of(values, full_scale))


def to_rgb(samples: Samples, full_scale: float | None = None) -> UInt8Array:
    """(H, W, 3) uint8."""
    colors = samples.colors
    white = white_of(colors, full_scale)
    opaque = _opaque(samples, white) if samples.alpha else None
    if opaque is not None and (samples.values[..., -1] != opaque).any():
        out = _over_white(samples, white, opaque)
    else:
        out = _scaled(colors, white)
        out = 255 - out if samples.inverted else out
    if samples.transparent is not None:
        out[(colors == np.array(samples.transparent)).all(axis=2)] = 255
    if out.shape[2] == 4:
        from PIL import Image

        return np.array(Image.frombuffer("CMYK", out.shape[1::-1], np.ascontiguousarray(out)).convert("RGB"))
    return np.repeat(out, 3, axis=2) if out.shape[2] == 1 else out


def _range(values: AnyArray) -> tuple[float, float]:
    if values.dtype.kind != "f":
        return float(values.min(initial=0)), float(values.max(initial=0))
    low = top = 0.0
    for _, rows in _blocks(values):
        finite = rows[np.isfinite(rows)]
        low, top = float(finite.min(initial=low)), float(finite.max(initial=top))
    return low, top


def _scaled(values: AnyArray, white: float) -> UInt8Array:
    if values.dtype == np.uint16:  # by a table, which is exact and fast
        table = np.rint(np.arange(1 << 16) * (255.0 / white)).clip(0, 255).astype(np.uint8)
        narrow: UInt8Array = table[values]
        return narrow
    out = np.empty(values.shape, dtype=np.uint8)
    for place, rows in _blocks(values):
        out[place] = np.rint(_share(rows, white) * 255)
    return out


def _opaque(samples: Samples, white: float) -> float:
    """The value of alpha at which nothing shines through."""
    return 1.0 if white == 1.0 else max(white, holding(largest(samples.values[..., -1])))


def _over_white(samples: Samples, white: float, opaque: float) -> UInt8Array:
    values, colors = samples.values, samples.colors
    out = np.empty(colors.shape, dtype=np.uint8)
    for place, rows in _blocks(values):
        share, alpha = _share(rows[..., :-1], white), _share(rows[..., -1:], opaque)
        if samples.inverted:
            share = 1 - share
        over = share + (1 - alpha) if samples.premultiplied else 1 - (1 - share) * alpha
        out[place] = np.rint(over.clip(0, 1) * 255)
    return out


def _share(rows: AnyArray, white: float) -> npt.NDArray[np.float64]:
    """Samples as a share of white, in [0, 1]."""
    numbers = rows.astype(np.float64)
    if rows.dtype.kind == "f":
        numbers = np.nan_to_num(numbers, nan=0.0, posinf=0.0, neginf=0.0)
    share: npt.NDArray[np.float64] = (numbers / white).clip(0, 1)
    return share


def _blocks(values: AnyArray) -> Iterator[tuple[slice, AnyArray]]:
    """Groups of rows, so that memory for intermediate floats is bounded."""
    step = max(1, _BLOCK // max(1, int(np.prod(values.shape[1:]))))
    for first in range(0, len(values), step):
        place = slice(first, first + step)
        yield place, values[place]
