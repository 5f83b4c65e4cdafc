"""Files with samples wider than 8 bits, at full depth. Pillow reads those of several channels as 8 bits."""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from instseg.core.errors import DataError
from instseg.data.images.pillow import unlimited
from instseg.data.images.samples import AnyArray, Samples, UInt8Array

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PNM_HEAD = re.compile(rb"P([2356])" + _SPACE + rb"(\d+)" + _SPACE + rb"(\d+)" + _SPACE + rb"(\d+)\s")
_PNM_HEAD_BYTES = 4096
_J2K_HEAD_BYTES = 1 << 16
_PNG_GRAY, _PNG_RGB, _PNG_GRAY_ALPHA, _PNG_RGBA = 0, 2, 4, 6


def wide_samples(file: IO[bytes], image: ImageFile) -> Samples | None:
    """The samples of an opened image, as its file has them; None for one of at most 8 bits, which is not loaded.

    Raises DataError for a file whose samples Pillow does not read at full depth.
    """
    if image.format == "PNG":
        return _png(file, image)
    if image.format == "PPM" and (found := _pnm(file)):
        return found
    if image.format == "JPEG2000" and not image.mode.startswith("I"):
        return _jpeg2000(file, image)
    if image.mode.startswith(("I", "F")):
        return Samples(_loaded(image)[..., None])
    if image.format == "SGI" and declares_wide(image):
        return _high_bytes(image, 16)
    return None


def declares_wide(image: ImageFile) -> bool:
    """Whether an image that Pillow has opened but not decoded may have samples wider than 8 bits in its file."""
    if image.format == "JPEG2000":
        return True
    for decoder, _, _, options in image.tile:
        settings = options if isinstance(options, tuple) and options else (options,)
        if isinstance(settings[0], str) and (";16" in settings[0] or ";32" in settings[0]):
            return True
        if decoder == "SGI16" or (decoder == "sgi_rle" and settings[-1] == 2):
            return True
        if decoder.startswith("ppm") and settings[-1] > 255:
            return True
    return False


def _loaded(image: ImageFile) -> AnyArray:
    with unlimited(image.size):
        image.load()
    return np.asarray(image)


def _png(file: IO[bytes], image: ImageFile) -> Samples | None:
    file.seek(24)
    depth, kind = file.read(2)
    if depth != 16:
        return None
    clear = image.info.get("transparency")
    if kind == _PNG_GRAY:
        gray = _loaded(image)[..., None]
        return Samples(gray.astype(np.uint16), transparent=(clear,) if isinstance(clear, int) else None)
    if kind == _PNG_GRAY_ALPHA:  # two samples of two bytes are as large as a pixel of RGBA
        bytes_ = _decoded(file, "RGBA", "RGBA").astype(np.uint16)
        return Samples(bytes_[..., ::2] << 8 | bytes_[..., 1::2], alpha=True)
    mode = "RGBA" if kind == _PNG_RGBA else "RGB"
    # The first byte of a sample is what Pillow keeps; read as little-endian, that is the second one.
    values = _decoded(file, mode, f"{mode};16B").astype(np.uint16) << 8
    values |= _decoded(file, mode, f"{mode};16L")
    return Samples(values, alpha=kind == _PNG_RGBA, transparent=clear if isinstance(clear, tuple) else None)


def _decoded(file: IO[bytes], mode: str, layout: str) -> UInt8Array:
    """The (H, W, C) bytes that Pillow keeps of a PNG file when its pixels are said to have this layout."""
    from PIL.PngImagePlugin import PngImageFile

    file.seek(0)
    with PngImageFile(file) as image:
        image._mode = mode
        tile: Any = image.tile[0]  # a plain tuple before Pillow 11
        tile = tile._replace(args=layout) if hasattr(tile, "_replace") else (*tile[:3], layout)
        image.tile = [tile]
        image.info.pop("transparency", None)
        return np.asarray(_loaded(image), dtype=np.uint8)


def _pnm(file: IO[bytes]) -> Samples | None:
    """PGM and PPM, whose header says which value is white; it becomes that of 16 bits."""
    file.seek(0)
    head = _PNM_HEAD.match(file.read(_PNM_HEAD_BYTES))
    if head is None:
        return None
    kind, width, height, white = (int(text) for text in head.groups())
    if not 255 < white < 65536:
        return None
    channels = 3 if kind in (3, 6) else 1
    count = height * width * channels
    file.seek(head.end())
    if kind in (5, 6):
        content = file.read(2 * count)
        values = np.frombuffer(content, dtype=">u2", count=min(count, len(content) // 2)).astype(np.uint16)
    else:
        words = re.sub(rb"#[^\r\n]*", b"", file.read()).split()[:count]
        values = np.array(words, dtype="S5").astype(np.uint32).clip(0, 65535).astype(np.uint16)
    if len(values) < count:
        raise DataError("broken or truncated image (samples are missing); replace or remove it.")
    if white < 65535:
        values = np.rint(values * (65535 / white)).clip(0, 65535).astype(np.uint16)
    return Samples(values.reshape(height, width, channels))


def _jpeg2000(file: IO[bytes], image: ImageFile) -> Samples | None:
    file.seek(0)
    head = file.read(_J2K_HEAD_BYTES)
    start = head.find(b"\xff\x4f\xff\x51")
    bits = (head[start + 42] & 0x7F) + 1 if 0 <= start < len(head) - 42 else 8
    if bits <= 8 or image.mode not in ("LA", "RGB", "RGBA"):
        return None
    return _high_bytes(image, bits)


def _high_bytes(image: ImageFile, bits: int) -> Samples:
    """An image of which Pillow keeps the high bytes: they suffice when the samples use all of their bits."""
    high = _loaded(image)
    high = high[..., None] if high.ndim == 2 else high
    alpha = image.mode.endswith("A")
    if (high[..., :-1] if alpha else high).max(initial=0) < 64:
        raise DataError(
            f"holds {bits}-bit samples that use at most {bits - 2} bits, which are not read from {image.format}; save "
            "it as 16-bit PNG or TIFF."
        )
    return Samples(high.astype(np.uint16) * np.uint16(257), alpha)
