"""Writers of image files that Pillow does not write."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]

# Adam7: the first row and column of each pass, and its steps.
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_PNG_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png16(values: Array, *, interlaced: bool = False, before: bytes = b"", after: bytes = b"") -> bytes:
    """A 16-bit PNG of (H, W, C) values; chunks may stand before and after its pixels."""
    height, width, channels = values.shape
    parts = [values[top::down, left::across] for top, left, down, across in _PASSES] if interlaced else [values]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in parts if part.size for row in part)
    head = struct.pack(">IIBBBBB", width, height, 16, _PNG_KINDS[channels], 0, 0, int(interlaced))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + pixels + after + chunk(b"IEND", b"")


def tiff(
    values: Array,
    *,
    order: str = "<",
    photometric: int | None = None,
    compression: int = 1,
    predictor: int = 1,
    planar: bool = False,
    tile: int | None = None,
    extra: int | None = None,
    orientation: int = 1,
    rows_per_strip: int = 3,
    missing: str | None = None,
) -> bytes:
    """A TIFF of (H, W, C) values, in strips or square tiles."""
    height, width, channels = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    planes = [values[..., c : c + 1] for c in range(channels)] if planar else [values]
    blocks = [
        _packed(block, order, compression, predictor)
        for plane in planes
        for block in _blocks(plane, tile, rows_per_strip)
    ]
    starts = [8 + sum(map(len, blocks[:i])) for i in range(len(blocks))]
    photometric = photometric if photometric is not None else (2 if channels >= 3 else 1)
    tags: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [values.dtype.itemsize * 8] * channels,
        259: [compression],
        262: [photometric],
        274: [orientation],
        277: [channels],
        284: [2 if planar else 1],
        317: [predictor],
        339: [kind] * channels,
    }
    if missing is not None:  # four characters
        tags[42113] = [struct.unpack(f"{order}I", missing.encode())[0]]
    if extra is not None:
        tags[338] = [extra]
    lengths = [len(block) for block in blocks]
    if tile:
        tags |= {322: [tile], 323: [tile], 324: starts, 325: lengths}
    else:
        tags |= {273: starts, 278: [rows_per_strip], 279: lengths}
    content = b"".join(blocks)
    place = 8 + len(content)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, place)
    return head + content + _directory(tags, order, place)


def _directory(tags: dict[int, list[int]], order: str, place: int) -> bytes:
    entries, far = struct.pack(f"{order}H", len(tags)), b""
    place += 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        value = struct.pack(f"{order}{len(numbers)}I", *numbers)
        text = tag == 42113
        entries += struct.pack(f"{order}HHI", tag, 2 if text else 4, 4 if text else len(numbers))
        if len(value) > 4:
            entries += struct.pack(f"{order}I", place + len(far))
            far += value
        else:
            entries += value
    return entries + struct.pack(f"{order}I", 0) + far


def _blocks(plane: Array, tile: int | None, rows: int) -> list[Array]:
    if tile is None:
        return [plane[top : top + rows] for top in range(0, len(plane), rows)]
    height, width, _ = plane.shape
    padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
    return [
        padded[top : top + tile, left : left + tile] for top in range(0, height, tile) for left in range(0, width, tile)
    ]


def _packed(block: Array, order: str, compression: int, predictor: int) -> bytes:
    rows, width, channels = block.shape
    size = block.dtype.itemsize
    if predictor == 2:
        whole = np.ascontiguousarray(block).view(f"u{size}")
        block = np.concatenate([whole[:, :1], whole[:, 1:] - whole[:, :-1]], axis=1)
    data = block.astype(block.dtype.newbyteorder(order)).tobytes()
    if predictor == 3:
        planes = np.frombuffer(block.astype(f">f{size}").tobytes(), np.uint8).reshape(rows, width * channels, size)
        flat = planes.swapaxes(1, 2).reshape(rows, -1, channels)
        data = np.concatenate([flat[:, :1], flat[:, 1:] - flat[:, :-1]], axis=1).tobytes()
    return zlib.compress(data) if compression == 8 else data
