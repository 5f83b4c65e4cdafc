"""Image files of every common kind as uint8 RGB."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from instseg.core.errors import DataError
from instseg.data.images.headers import TRANSPOSING, look, turned, unturned
from instseg.data.images.pillow import check_size, open_image, unlimited
from instseg.data.images.samples import Samples, UInt8Array, decides_scale, holding, largest, to_rgb
from instseg.data.images.tiff import read_samples, wide_layout
from instseg.data.images.wide import wide_samples

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})

_SCALE_FILES = 64  # of a data set that are looked at for its full scale,
_SCALE_SAMPLES = 1 << 28  # until so many samples have been decoded


@dataclass(frozen=True)
class ImageRule:
    """How the files of a data set become pixels. A checkpoint keeps it, so that prediction reads as training did.

    Attributes:
        exif: turn images as their EXIF orientation says.
        full_scale: the sample value that is shown as white in files with samples wider than 8 bits; None decides
            by each image.
    """

    exif: bool = True
    full_scale: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {"exif": self.exif, "full_scale": self.full_scale}

    @classmethod
    def from_json(cls, content: dict[str, Any] | None) -> ImageRule:
        """The rule that :meth:`to_json` wrote; None, from a checkpoint without one, is the default rule."""
        content = content or {}
        full = content.get("full_scale")
        return cls(bool(content.get("exif", True)), None if full is None else float(full))


def read_image(source: ImageSource, *, exif: bool = True, full_scale: float | None = None) -> Tensor:
    """An image as the viewer shows it: ``(3, H, W)`` uint8 RGB.

    Gray is repeated over the channels, palettes and CMYK become RGB, transparency is laid over white. Of several
    frames or pages the first is read.

    Samples wider than 8 bits, of gray, RGB and CMYK with or without alpha, follow one rule. White is ``full_scale``;
    without one it is the smallest of 8, 10, 12, 14 and 16 bits that holds the largest color sample of the image, or
    that sample itself above 16 bits. Floats whose largest value is below 2 have 1 as white, others follow the same
    rule. Missing data (NaN, infinite floats, and what a TIFF declares as such) are black. A file that declares its own
    white (PGM, PPM, JPEG 2000) is brought to 16 bits first.

    Args:
        source: a path, the bytes of a file, or a binary file object, which is read from its start.
        exif: turn the image as its EXIF or TIFF orientation says; otherwise it is returned as stored.
        full_scale: the sample value that is shown as white in a file with samples wider than 8 bits.

    Raises:
        DataError: the file is missing, not an image, truncated, has negative samples, or has more pixels than
            2,147 megapixels or the memory of the machine.
    """
    with _explained(source_name(source)), _opened(source) as file:
        return to_tensor(_read(file, exif, full_scale))


def image_size(source: ImageSource) -> tuple[tuple[int, int], tuple[int, int]]:
    """``((H, W), (H, W))`` of an image from its header: as shown, with its EXIF orientation, and as stored.

    Raises:
        DataError: as :func:`read_image`, except that truncated pixels are found only where the end of a
            PNG or JPEG file is missing.
    """
    with _explained(source_name(source)), _opened(source) as file:
        layout = wide_layout(file)
        if layout is not None:
            check_size(*layout.size, file)
            (height, width), turn = layout.size, layout.orientation
        else:
            with open_image(file) as image:
                turn, ended = look(file, image)
                height, width = _stored_size(image)
            if not ended:
                _read(file, False, None)  # the end may lie before much appended data
    return ((width, height) if turn in TRANSPOSING else (height, width)), (height, width)


def find_full_scale(paths: Sequence[Path]) -> float | None:
    """The full scale of a data set, from at most 64 of its images, evenly chosen, fewer where they are large.

    Returns:
        The smallest of 8, 10, 12, 14 and 16 bits that holds the largest sample of the images with samples wider than
        8 bits, or that sample itself; None where no image has them, or only floats in [0, 1].
    """
    top: float | None = None
    decoded = 0
    step = max(1.0, len(paths) / _SCALE_FILES)
    count = min(_SCALE_FILES, len(paths))
    # In an order that is spread over the whole set however early it ends.
    for i in np.argsort(np.arange(count) * 0.618034 % 1).tolist():
        if decoded > _SCALE_SAMPLES:
            break
        path = paths[int(i * step)]
        try:
            with _explained(str(path)), _opened(path) as file:
                found = _wide(file)
                if found is None:
                    continue
                decoded += found.values.size
                highest = largest(found.colors)
                if decides_scale(found.colors, highest):
                    top = max(top or 0.0, highest)
        except DataError:  # reading the image says what is wrong with it
            continue
    return None if top is None else holding(top)


def source_name(source: object) -> str:
    """What an error message calls an image source."""
    if isinstance(source, bytes | bytearray | memoryview):
        return "image bytes"
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    name = getattr(source, "filename", None) or getattr(source, "name", None)  # PIL images, file objects
    return str(name) if isinstance(name, str | os.PathLike) else "image stream"


def to_tensor(pixels: UInt8Array) -> Tensor:
    """(H, W, 3) uint8 to a tensor (3, H, W) with memory of its own."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def rgb_pixels(image: Image) -> UInt8Array:
    """(H, W, 3) uint8, read-only, of any Pillow mode with samples of at most 8 bits."""
    from PIL import Image

    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _read(file: IO[bytes], exif: bool, full_scale: float | None) -> UInt8Array:
    """(H, W, 3), possibly a view that is turned."""
    layout = wide_layout(file)
    if layout is not None:
        check_size(*layout.size, file)
        pixels = to_rgb(read_samples(file, layout), full_scale)
        return turned(pixels, layout.orientation) if exif else pixels
    with open_image(file) as image:
        (turn, _), form = look(file, image), image.format
        wide = wide_samples(file, image)
        pixels = to_rgb(wide, full_scale) if wide is not None else _narrow(image)
    if form == "TIFF":  # Pillow has turned it
        return pixels if exif else unturned(pixels, turn)
    return turned(pixels, turn) if exif else pixels


def _wide(file: IO[bytes]) -> Samples | None:
    layout = wide_layout(file)
    if layout is not None:
        check_size(*layout.size, file)
        return read_samples(file, layout)
    with open_image(file) as image:
        return wide_samples(file, image)


def _narrow(image: ImageFile) -> UInt8Array:
    covered = image.tile[0][1] if image.format == "GIF" and image.tile else None
    with unlimited(image.size):
        image.load()
        pixels = rgb_pixels(image)
    if covered not in (None, (0, 0, *image.size)):  # a first frame that is smaller than the picture
        left, top, right, bottom = covered
        pixels = pixels.copy()
        pixels[:top] = pixels[bottom:] = 255
        pixels[:, :left] = pixels[:, right:] = 255
    return pixels


def _stored_size(image: ImageFile) -> tuple[int, int]:
    tags = getattr(image, "tag_v2", None)
    if image.format == "TIFF" and tags:  # the size that Pillow states is turned, or not, by its version
        return int(tags[257]), int(tags[256])
    return image.size[1], image.size[0]


@contextmanager
def _opened(source: ImageSource) -> Iterator[IO[bytes]]:
    """A seekable binary file. One that the caller opened stays open."""
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            if file.seekable():
                yield file
            else:
                yield io.BytesIO(file.read())
    elif isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source)
    elif not hasattr(source, "read"):
        raise DataError(f"{type(source).__name__} is not an image file; pass a path, bytes, or a binary file object.")
    elif getattr(source, "closed", False):
        raise DataError("the file object is closed; open it again.")
    else:
        content: Any = None
        seekable = getattr(source, "seekable", None)
        if seekable is None or not seekable():
            content = source.read()
        elif isinstance(source, io.TextIOBase):
            content = ""
        if isinstance(content, str):
            raise DataError('the file object returns text; open it with mode "rb".')
        yield source if content is None else io.BytesIO(content)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Every error as a DataError of one line."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{name}: no such image; check the path.") from None
    except IsADirectoryError:
        raise DataError(f"{name}: is a folder, not an image; give a file.") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image that Pillow can read; replace or remove it.") from None
    except MemoryError:
        raise DataError(f"{name}: does not fit into memory; cut it into parts.") from None
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{name}: cannot be read ({error.strerror}); check the file.") from error
        raise DataError(f"{name}: broken or truncated image ({_one_line(error)}); replace or remove it.") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
