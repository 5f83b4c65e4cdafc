"""Opening images with Pillow, without its limit of 179 megapixels and without its warnings about large images."""

from __future__ import annotations

import io
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from instseg.core.errors import DataError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 1 << 31
_LARGE = 89_478_485  # pixels; where Pillow starts to warn, and where these checks start
_BYTES_PER_PIXEL = 12  # Pillow's own copy, the array, and the tensor
_MOST_PACKED = 5000  # pixels that one byte of a real picture holds at most
_RUNS_PROGRAMS = frozenset({"EPS"})  # would start Ghostscript

_lock = threading.Lock()
_lifted: list[int | None] = []  # the limit that Pillow had, while it is lifted, once for each reader


def open_image(file: IO[bytes]) -> ImageFile:
    """As :func:`PIL.Image.open`, for a seekable binary file, up to :data:`MAX_PIXELS`.

    Raises:
        DataError: too many pixels, more than the memory of the machine holds, or far more than the file can hold.
        PIL.UnidentifiedImageError: not an image.
    """
    from PIL import Image, UnidentifiedImageError

    file.seek(0)
    prefix = file.read(16)
    tried: set[str] = set(_RUNS_PROGRAMS)
    for load in (Image.preinit, _import_common, Image.init):
        load()
        for form in [form for form in Image.ID if form not in tried]:
            tried.add(form)
            factory, accept = Image.OPEN[form]
            try:
                accepted = accept is None or accept(prefix)
                if isinstance(accepted, str) or not accepted:  # a text: Pillow was built without the format
                    continue
                file.seek(0)
                try:
                    image = factory(file, "")
                except Image.DecompressionBombError:
                    file.seek(0)
                    with unlimited():
                        image = factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):  # as Image.open: another format may fit
                continue
            check_size(image.size[1], image.size[0], file)
            return image
    raise UnidentifiedImageError("not an image")


def check_size(height: int, width: int, file: IO[bytes]) -> None:
    """Raises DataError when an image is too large to be read, or its file is too small for what it declares."""
    pixels = height * width
    if height < 1 or width < 1:
        raise DataError("declares an image without pixels; replace or remove it.")
    if pixels <= _LARGE:
        return
    if pixels > MAX_PIXELS:
        raise DataError(f"{width} x {height} pixels are too many (2,147 megapixels at most); cut it into parts.")
    if file.seek(0, io.SEEK_END) * _MOST_PACKED < pixels:
        raise DataError(f"declares {width} x {height} pixels, which a file this small cannot hold; replace it.")
    memory = _memory()
    if memory is not None and pixels * _BYTES_PER_PIXEL > memory:
        raise DataError(
            f"{width} x {height} pixels need about {pixels * _BYTES_PER_PIXEL >> 30} GiB of memory, this machine has "
            f"{memory >> 30} GiB; cut it into parts."
        )


@contextmanager
def unlimited(size: tuple[int, int] | None = None) -> Iterator[None]:
    """Lifts Pillow's limit where an image of this (W, H) is above it, and restores it when no reader needs that."""
    from PIL import Image

    with _lock:
        limit = _lifted[0] if _lifted else Image.MAX_IMAGE_PIXELS
        needed = limit is not None and (size is None or size[0] * size[1] > limit)
        if needed:
            _lifted.append(limit)
            Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        if needed:
            with _lock:
                limit = _lifted.pop()
                if not _lifted:
                    Image.MAX_IMAGE_PIXELS = limit


def _import_common() -> None:
    """The formats of data sets that Pillow does not load at once; all of its formats take far longer."""
    from PIL import Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
