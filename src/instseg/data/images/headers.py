"""What the headers of an image file say: its EXIF orientation, and whether its end is there."""

from __future__ import annotations

import io
import struct
from typing import IO, TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

# EXIF orientations under which the stored rows become columns.
TRANSPOSING = frozenset({5, 6, 7, 8})
_ORIENTATION = 0x0112
_PNG_HEAD = 33  # signature and IHDR
_PNG_NOTES = frozenset({b"eXIf", b"iTXt", b"tEXt", b"zTXt"})
_LONGEST_NOTE = 1 << 24  # bytes


def look(file: IO[bytes], image: Image) -> tuple[int, bool]:
    """What the file of an image says that Pillow has opened but not loaded.

    Returns:
        Its EXIF orientation, 1 to 8, 1 where none is readable. False when it is a PNG or JPEG file that lacks its end,
        or whose end is not found without decoding.
    """
    turn = _orientation(image) or 1
    if image.format in ("JPEG", "MPO"):
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 1024))
        return turn, b"\xff\xd9" in file.read()
    if image.format != "PNG":
        return turn, True
    ended, notes = _png_chunks(file)
    if notes:  # which Pillow finds only after decoding the pixels before them
        from PIL.PngImagePlugin import PngImageFile

        file.seek(0)
        head = file.read(_PNG_HEAD)
        try:
            turn = _orientation(PngImageFile(io.BytesIO(head + notes + b"\0\0\0\0IDAT"))) or turn
        except Exception:  # Pillow raises anything on damaged notes; the pixels may be fine
            return turn, ended
    return turn, ended


def _orientation(image: Image) -> int | None:
    from PIL import Image as pillow

    try:
        # Not the method of the image itself: that of PNG decodes the pixels.
        value = pillow.Image.getexif(image).get(_ORIENTATION)
    except Exception:  # as viewers do: damaged EXIF data is no EXIF data
        return None
    return value if value in range(1, 9) else None


def turned(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """A view of stored (H, W, C) pixels that is upright."""
    if orientation in TRANSPOSING:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def unturned(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """The inverse of :func:`turned`."""
    return turned(pixels, {6: 8, 8: 6}.get(orientation, orientation))


def _png_chunks(file: IO[bytes]) -> tuple[bool, bytes]:
    """Whether a PNG file has its end chunk, and its chunks of EXIF and text that lie behind the pixels."""
    place, size = 8, file.seek(0, io.SEEK_END)
    notes, pixels = b"", False
    while place + 12 <= size:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"IEND":
            return True, notes
        pixels |= kind == b"IDAT"
        if pixels and kind in _PNG_NOTES and length <= _LONGEST_NOTE and place + 12 + length <= size:
            file.seek(place)
            notes += file.read(12 + length)
        place += 12 + length
    return False, notes
