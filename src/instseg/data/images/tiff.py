"""TIFF files with samples wider than 8 bits, of which Pillow drops the low byte, or which it does not read at all.

Adobe, "TIFF Revision 6.0", 1992; predictor 3: Adobe, "TIFF Technical Note 3", 2005. Strips and tiles are decompressed
by the libtiff in Pillow, to which they are shown as rows of bytes.
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from instseg.core.errors import DataError
from instseg.data.images.pillow import unlimited
from instseg.data.images.samples import AnyArray, Samples, UInt8Array

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIPS, _PER_PIXEL, _ROWS, _STRIP_BYTES, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _FORMAT = 322, 323, 324, 325, 338, 339
_ORIENTATION, _MISSING = 274, 42113
_CHANNELS = {0: 1, 1: 1, 2: 3, 5: 4}  # of each photometric interpretation: white is 0, black is 0, RGB, CMYK
_RAW = 1
# No codec of TIFF packs more bytes into one: a file that declares more is damaged.
_MOST_PACKED = 5000


@dataclass(frozen=True)
class Layout:
    """What the first directory of a TIFF file says.

    Attributes:
        size: (H, W) as stored.
        dtype: of the samples, in the byte order of the file.
        channels: samples a pixel.
        photometric, compression, predictor, orientation: as TIFF numbers them.
        extra: the meaning of the samples beyond the colors.
        planes: 1 when the samples of a pixel lie side by side, else one for each channel.
        block: (h, w) of a strip or tile.
        tiled: whether the blocks are tiles, which are all full.
        blocks: offset and length of each block in the file.
        missing: the sample value that stands for missing data, if any, as GDAL writes it.
    """

    size: tuple[int, int]
    dtype: np.dtype[Any]
    channels: int
    photometric: int
    compression: int
    predictor: int
    orientation: int
    extra: tuple[int, ...]
    planes: int
    block: tuple[int, int]
    tiled: bool
    blocks: tuple[tuple[int, int], ...]
    missing: float | None = None


def wide_layout(file: IO[bytes]) -> Layout | None:
    """The layout of a TIFF file with wide samples; None when it is another file, or one that is left to Pillow."""
    file.seek(0)
    head = file.read(8)
    if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    if b"+" in head[2:4]:
        head += file.read(8)
    tags = ImageFileDirectory_v2(head)
    file.seek(tags.next)
    tags.load(file)
    bits, form = set(_numbers(tags, _BITS, (1,))), set(_numbers(tags, _FORMAT, (1,)))
    photometric = _number(tags, _PHOTOMETRIC, 1)
    wide = max(bits) > 8 or not form <= {1, 4}
    if not wide or len(bits) > 1 or len(form) > 1 or bits.isdisjoint({8, 16, 32, 64}) or photometric not in _CHANNELS:
        return None
    kind = {1: "u", 2: "i", 3: "f", 4: "u"}.get(form.pop())
    width = bits.pop() // 8
    if kind is None or (kind == "f" and width == 1):
        raise DataError("holds samples of a kind that has no picture; save it with integer or float samples.")
    order = "<" if head[:1] == b"I" else ">"
    return _layout(file, tags, np.dtype(f"{order}{kind}{width}"), photometric)


def _layout(file: IO[bytes], tags: Any, dtype: np.dtype[Any], photometric: int) -> Layout:
    height, width = _number(tags, _HEIGHT, 0), _number(tags, _WIDTH, 0)
    tiled = _TILES in tags
    block = (_number(tags, _TILE_HEIGHT, 0), _number(tags, _TILE_WIDTH, 0))
    if not tiled:
        block = (min(_number(tags, _ROWS, height), height), width)
    if min(height, width, *block) < 1:
        raise DataError("declares an image without pixels; replace or remove it.")
    offsets = _numbers(tags, _TILES if tiled else _STRIPS, ())
    lengths = _numbers(tags, _TILE_BYTES if tiled else _STRIP_BYTES, ())
    channels = _number(tags, _PER_PIXEL, 1)
    compression = _number(tags, _COMPRESSION, _RAW)
    planes = channels if _number(tags, _PLANAR, 1) == 2 else 1
    if not lengths and compression == _RAW and len(offsets) == 1:
        lengths = (height * width * channels * dtype.itemsize,)
    wanted = -(-height // block[0]) * -(-width // block[1]) * planes
    if len(offsets) < wanted or len(lengths) < wanted:
        raise DataError("broken or truncated image (it lacks strips); replace or remove it.")
    blocks = tuple(zip(offsets[:wanted], lengths[:wanted], strict=True))
    needed = height * width * channels * dtype.itemsize
    end = file.seek(0, io.SEEK_END)
    if any(start < 0 or size < 0 or start + size > end for start, size in blocks):
        raise DataError("broken or truncated image (its strips end behind the file); replace or remove it.")
    if needed > sum(size for _, size in blocks) * (1 if compression == _RAW else _MOST_PACKED):
        raise DataError("broken or truncated image (its strips hold fewer pixels than declared); replace or remove it.")
    predictor, orientation = _number(tags, _PREDICTOR, 1), _number(tags, _ORIENTATION, 1)
    extra = _numbers(tags, _EXTRA, ())
    return Layout((height, width), dtype, channels, photometric, compression, predictor, orientation, extra, planes,
                  block, tiled, blocks, _missing(tags))  # fmt: skip


def read_samples(file: IO[bytes], layout: Layout) -> Samples:
    """The samples of the first page, not turned."""
    colors = _CHANNELS[layout.photometric]
    beyond = layout.channels - colors
    meaning = layout.extra[0] if layout.extra else None
    if beyond < 0:
        raise DataError("broken image (it declares fewer samples than its colors need); replace or remove it.")
    alpha = beyond > 0 and (meaning in (1, 2) or (meaning is None and beyond == 1 and colors == 3))
    if beyond and not alpha and colors == 1:
        raise DataError(f"holds {layout.channels} channels that are not RGB; save the image as gray or RGB.")
    per_plane = layout.channels // layout.planes
    count = len(layout.blocks) // layout.planes
    planes = [
        _decoded(file, layout, layout.blocks[i * count : (i + 1) * count], per_plane) for i in range(layout.planes)
    ]
    values = np.concatenate(planes, axis=2) if len(planes) > 1 else planes[0]
    kept = values[..., : colors + alpha]
    if layout.missing is not None:
        kept[kept == layout.missing] = 0
    return Samples(kept, alpha, alpha and meaning == 1, layout.photometric == 0)


def _decoded(file: IO[bytes], layout: Layout, blocks: Sequence[tuple[int, int]], channels: int) -> AnyArray:
    """(H, W, channels) of one plane, in native byte order."""
    height, width = layout.size
    across, down = -(-width // layout.block[1]), -(-height // layout.block[0])
    rows = down * layout.block[0] if layout.tiled else height
    packed = []
    for start, size in blocks:
        file.seek(start)
        packed.append(file.read(size))
    line = layout.block[1] * channels * layout.dtype.itemsize  # bytes of a row of a block
    if layout.compression == _RAW:
        data = _uncompressed(packed, layout, rows, line, across)
    else:
        data = _decompressed(packed, layout, rows, line, across)
    values = _unpredicted(data, layout, channels)  # rows, across, w, channels
    return values.reshape(rows, across * layout.block[1], channels)[:height, :width]


def _uncompressed(packed: list[bytes], layout: Layout, rows: int, line: int, across: int) -> UInt8Array:
    """(rows, across, line) bytes."""
    data: UInt8Array = np.zeros((rows, across, line), dtype=np.uint8)
    for i, block in enumerate(packed):
        top, left = i // across * layout.block[0], i % across
        part = data[top : top + layout.block[0], left]
        if len(block) < part.size:
            raise DataError("broken or truncated image (a strip is short); replace or remove it.")
        part[:] = np.frombuffer(block, dtype=np.uint8, count=part.size).reshape(part.shape)
    return data


def _decompressed(packed: list[bytes], layout: Layout, rows: int, line: int, across: int) -> UInt8Array:
    """(rows, across, line) bytes: the blocks are put into a gray 8-bit TIFF of the same compression."""
    from PIL.TiffImagePlugin import COMPRESSION_INFO, TiffImageFile

    starts = np.cumsum([8] + [len(block) for block in packed]).tolist()
    tags = [(_WIDTH, [across * line]), (_HEIGHT, [rows]), (_BITS, [8]), (_COMPRESSION, [layout.compression])]
    tags += [(_PHOTOMETRIC, [1]), (_PER_PIXEL, [1])]
    lengths = [len(block) for block in packed]
    if layout.tiled:
        tags += [(_TILE_WIDTH, [line]), (_TILE_HEIGHT, [layout.block[0]])]
        tags += [(_TILES, starts[:-1]), (_TILE_BYTES, lengths)]
    else:
        tags += [(_STRIPS, starts[:-1]), (_ROWS, [layout.block[0]]), (_STRIP_BYTES, lengths)]
    file = b"II*\0" + struct.pack("<I", starts[-1]) + b"".join(packed) + _directory(sorted(tags), starts[-1])
    if layout.compression not in COMPRESSION_INFO:
        raise DataError(f"uses TIFF compression {layout.compression}, which is not read; save it with deflate or none.")
    with TiffImageFile(io.BytesIO(file)) as image, unlimited(image.size):
        image.load()
        return np.array(image, dtype=np.uint8).reshape(rows, across, line)


def _directory(tags: list[tuple[int, list[int]]], start: int) -> bytes:
    """A directory of unsigned 32-bit numbers."""
    entries, far = struct.pack("<H", len(tags)), b""
    place = start + 2 + 12 * len(tags) + 4
    for tag, numbers in tags:
        value = struct.pack(f"<{len(numbers)}I", *numbers)
        entries += struct.pack("<HHI", tag, 4, len(numbers))
        if len(value) > 4:
            entries += struct.pack("<I", place + len(far))
            far += value
        else:
            entries += value
    return entries + struct.pack("<I", 0) + far


def _unpredicted(data: UInt8Array, layout: Layout, channels: int) -> AnyArray:
    """Bytes (rows, across, line) to samples (rows, across, w, channels) in native byte order."""
    rows, across, width = *data.shape[:2], layout.block[1]
    dtype = layout.dtype
    if layout.predictor == 3:
        sums = np.cumsum(data.reshape(rows, across, -1, channels), axis=2, dtype=np.uint8)
        parts = sums.reshape(rows, across, dtype.itemsize, width * channels).swapaxes(2, 3)
        values = np.ascontiguousarray(parts).view(f">f{dtype.itemsize}")
    elif layout.predictor == 2:
        whole = np.dtype(f"{dtype.byteorder}u{dtype.itemsize}") if dtype.itemsize > 1 else np.dtype(np.uint8)
        steps = data.view(whole).reshape(rows, across, width, channels)
        sums_: npt.NDArray[Any] = np.cumsum(steps, axis=2, dtype=whole.newbyteorder("="))
        return sums_.view(dtype.newbyteorder("="))
    elif layout.predictor == 1:
        values = data.view(dtype)
    else:
        raise DataError(f"uses predictor {layout.predictor}, which TIFF does not define; replace or remove it.")
    return values.astype(values.dtype.newbyteorder("="), copy=False).reshape(rows, across, width, channels)


def _missing(tags: Any) -> float | None:
    try:
        return float(str(tags.get(_MISSING, "")).strip("\0 "))
    except ValueError:
        return None


def _numbers(tags: Any, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    value = tags.get(tag, default)
    values = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(v, int) for v in values):
        raise DataError(f"broken image (TIFF tag {tag} is not a number); replace or remove it.")
    return values or default


def _number(tags: Any, tag: int, default: int) -> int:
    return _numbers(tags, tag, (default,))[0]
