"""An image is read upright or as stored, as asked, whatever its format and orientation."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Transpose
from tests.data.image_files import chunk, encoded, png16, tiff

from instseg.data.images.read import image_size, read_image

STORED = np.kron(np.random.default_rng(0).integers(0, 256, (3, 5, 3)), np.ones((16, 16, 1))).astype(np.uint8)
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def by_pillow(form: str, **options: object) -> Callable[[int], bytes]:
    return lambda orientation: encoded(Image.fromarray(STORED), form, exif=exif(orientation), **options)


def png_with_late_exif(orientation: int) -> bytes:
    data = encoded(Image.fromarray(STORED))
    end = data.rindex(b"IEND") - 4
    return data[:end] + chunk(b"eXIf", exif(orientation).tobytes()[6:]) + data[end:]


def deep(before: bool) -> Callable[[int], bytes]:
    def write(orientation: int) -> bytes:
        note = chunk(b"eXIf", exif(orientation).tobytes()[6:])
        return png16(STORED.astype(np.uint16) * 257, **{"before" if before else "after": note})

    return write


FILES: dict[str, Callable[[int], bytes]] = {
    "JPEG": by_pillow("JPEG", quality=100, subsampling=0),
    "PNG": by_pillow("PNG"),
    "PNG, behind the pixels": png_with_late_exif,
    "16-bit PNG": deep(before=True),
    "16-bit PNG, behind the pixels": deep(before=False),
    "WebP": by_pillow("WEBP", lossless=True),
    "TIFF": by_pillow("TIFF"),
    "LZW TIFF": by_pillow("TIFF", compression="tiff_lzw"),
    "16-bit TIFF": lambda o: tiff(STORED.astype(np.uint16) * 257, orientation=o),
    "planar 16-bit TIFF": lambda o: tiff(STORED.astype(np.uint16) * 257, orientation=o, planar=True, compression=8),
    "float TIFF": lambda o: tiff(STORED.astype(np.float32) / 255, orientation=o),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", sorted(FILES))
def test_upright_and_as_stored(form: str, orientation: int) -> None:
    data = FILES[form](orientation)
    picture = Image.fromarray(STORED)
    upright = np.asarray(picture.transpose(TURNS[orientation]) if orientation in TURNS else picture)
    for asked, expected in ((True, upright), (False, STORED)):
        found = read_image(data, exif=asked).permute(1, 2, 0).numpy()
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= (3 if form == "JPEG" else 0)
    assert image_size(data) == (upright.shape[:2], STORED.shape[:2])


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    data = by_pillow("JPEG")(orientation)
    assert image_size(data) == (STORED.shape[:2], STORED.shape[:2])
    assert torch.equal(read_image(data), read_image(data, exif=False))


def test_damaged_exif_data_does_not_make_an_image_unreadable() -> None:
    for junk in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nothing of this kind"):
        data = encoded(Image.fromarray(STORED), "JPEG", exif=junk)
        assert read_image(data).shape[1:] == image_size(data)[0] == STORED.shape[:2]


def test_an_unknown_chunk_behind_the_pixels_of_a_png_is_skipped() -> None:
    data = encoded(Image.fromarray(STORED))
    end = data.rindex(b"IEND") - 4
    noted = data[:end] + chunk(b"teSt", bytes(5000)) + chunk(b"tEXt", b"Comment\0upright") + data[end:]
    assert image_size(noted) == (STORED.shape[:2], STORED.shape[:2])
    assert torch.equal(read_image(noted), read_image(io.BytesIO(data)))
