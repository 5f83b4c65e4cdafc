"""Image files of every common kind as uint8 RGB."""

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from instseg.core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = str | Path | bytes | IO[bytes]
UInt8Array: TypeAlias = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})

# EXIF orientations under which the stored rows become columns.
_TRANSPOSING = frozenset({5, 6, 7, 8})
_ORIENTATION_TAG = 0x0112
# Sensors deliver 10, 12 or 14 bits in a 16-bit file; reading those as 16 bits would give a black picture.
_FULL_SCALES = (255, 1023, 4095, 16383, 65535)


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
    def from_json(cls, content: dict[str, Any] | None) -> "ImageRule":
        """The rule that :meth:`to_json` wrote; None, from a checkpoint without one, is the default rule."""
        content = content or {}
        full = content.get("full_scale")
        return cls(bool(content.get("exif", True)), None if full is None else float(full))


def read_image(source: ImageSource, *, exif: bool = True, full_scale: float | None = None) -> Tensor:
    """An image as the viewer shows it: ``(3, H, W)`` uint8 RGB.

    Grey is repeated over the channels, palettes and CMYK become RGB, transparency is laid over white. Samples
    wider than 8 bits are scaled by the smallest of 8, 10, 12, 14 and 16 bits that holds the largest value of
    the image; floats of at most 1 are scaled by 255. Of several frames or pages the first is read.

    Args:
        source: a path, the bytes of a file, or a binary file object.
        exif: turn the image as its EXIF orientation says.
        full_scale: the sample value that is shown as white in a file with samples wider than 8 bits, by default
            found in the image.

    Raises:
        DataError: the file is missing, not an image, truncated, or larger than Pillow's safety limit.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = source_name(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened) if exif else opened
            pixels = rgb_pixels(image, full_scale)
    except FileNotFoundError:
        raise DataError(f"{name}: no such image; check the path.") from None
    except IsADirectoryError:
        raise DataError(f"{name}: is a folder, not an image; give a file.") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image that Pillow can read; replace or remove it.") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: {error}; cut it into smaller images.") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{name}: broken or truncated image ({_one_line(error)}); replace or remove it.") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def image_size(source: ImageSource) -> tuple[tuple[int, int], tuple[int, int]]:
    """``((H, W), (H, W))`` of an image from its header: as shown, with its EXIF orientation, and as stored.

    Raises:
        DataError: as :func:`read_image`, except that truncated pixels are found only where the end of a
            PNG or JPEG file is missing.
    """
    from PIL import Image

    name = source_name(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            width, height = image.size
            form = image.format
            # Pillow looks for the EXIF block of a PNG behind its pixels too, which would decode them.
            known = form != "PNG" or "exif" in image.info
            turned = known and image.getexif().get(_ORIENTATION_TAG, 1) in _TRANSPOSING
    except FileNotFoundError:
        raise DataError(f"{name}: no such image; check the path.") from None
    except Exception as error:  # the header parsers of Pillow's plugins raise anything
        raise DataError(f"{name}: not a readable image ({_one_line(error)}); replace or remove it.") from None
    if isinstance(source, str | Path) and not _has_end(Path(source), form):
        raise DataError(f"{name}: truncated image (the end of the {form} file is missing); replace or remove it.")
    stored = (height, width)
    return ((width, height) if turned else stored), stored


def find_full_scale(paths: Sequence[Path]) -> float | None:
    """The full scale of a data set: the smallest of 8, 10, 12, 14 and 16 bits that holds the largest sample of its
    images, of which at most 64 are looked at; None where none has samples wider than 8 bits."""
    from PIL import Image

    top = None
    step = max(1, len(paths) / 64)
    for path in (paths[int(i * step)] for i in range(min(64, len(paths)))):
        try:
            with Image.open(path) as image:
                if image.mode.startswith("I"):
                    top = max(top or 0.0, float(np.asarray(image).max(initial=0)))
        except Exception:  # reading the image says what is wrong with it
            continue
    return None if top is None else float(next((scale for scale in _FULL_SCALES if top <= scale), top))


def source_name(source: ImageSource) -> str:
    """What an error message calls an image source."""
    if isinstance(source, bytes):
        return "image bytes"
    return str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "image stream"))


def _has_end(path: Path, form: str | None) -> bool:
    """False when the last KiB of a PNG or JPEG file lacks its end marker (some cameras append data)."""
    marker = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}.get(form or "")
    if marker is None:
        return True
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 1024))
        if marker in file.read():
            return True
    return form == "JPEG" and _jpeg_decodes(path)  # the marker may lie before much appended data


def _jpeg_decodes(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def rgb_pixels(image: "Image", full_scale: float | None = None) -> UInt8Array:
    """(H, W, 3) uint8 of any Pillow mode."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        grey = to_eight_bits(np.asarray(image), full_scale)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def to_eight_bits(values: npt.NDArray[np.generic], full_scale: float | None = None) -> UInt8Array:
    samples = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(0)
    top = float(samples.max(initial=0.0))
    if full_scale is not None:
        full = full_scale
        samples = samples.clip(0, full)
    elif values.dtype.kind == "f" and top <= 1.0:
        full = 1.0
    else:
        full = float(next((scale for scale in _FULL_SCALES if top <= scale), top))
    return np.rint(samples * (255.0 / full)).astype(np.uint8)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
