"""Images above Pillow's limit are read, quietly; what cannot be real is refused before memory is taken."""

import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.image_files import chunk, encoded, tiff

from instseg.core.errors import DataError
from instseg.data.images import pillow
from instseg.data.images.read import image_size, read_image

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
FORMS = ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "JPEG2000", "PPM", "MPO"]


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Pillow refuses twice as many pixels, and warns above."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    return 50


@pytest.mark.parametrize("form", FORMS)
def test_images_above_the_limit_are_read_without_a_warning(form: str, low_limit: int) -> None:
    data = encoded(Image.fromarray(RGB), form)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(data)[0] == (20, 30)
        assert read_image(data).shape == (3, 20, 30)
    assert low_limit == Image.MAX_IMAGE_PIXELS


def test_the_limit_of_the_users_program_is_the_same_after_reading_in_threads(low_limit: int) -> None:
    files = [encoded(Image.fromarray(RGB), form, compression="tiff_lzw") for form in ("TIFF", "PNG")] * 40
    files += [tiff(RGB.astype(np.uint16), compression=8), b"no image"] * 10

    def read(data: bytes) -> bool:
        try:
            return read_image(data).shape == (3, 20, 30)
        except DataError:
            return data == b"no image"

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, files))
    assert low_limit == Image.MAX_IMAGE_PIXELS


def png_head(width: int, height: int, more: int = 0) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100)) + bytes(more)) + chunk(b"IEND", b"")


def test_more_than_two_gigapixels_are_refused_with_what_to_do() -> None:
    for function in (read_image, image_size):
        with pytest.raises(DataError, match=r"50000 x 50000 pixels are too many .* cut it into parts"):
            function(png_head(50_000, 50_000))
        with pytest.raises(DataError, match=r"too many|fewer pixels"):
            function(tiff(RGB.astype(np.uint16)).replace(struct.pack("<I", 30), struct.pack("<I", 1 << 30)))


def test_a_small_file_that_declares_a_huge_picture_is_refused() -> None:
    with pytest.raises(DataError, match="40000 x 40000 pixels, which a file this small cannot hold"):
        read_image(png_head(40_000, 40_000))


def test_a_picture_above_the_memory_of_the_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow, "_memory", lambda: 1 << 30)
    with pytest.raises(DataError, match=r"10000 x 10000 pixels need about 1 GiB of memory, .* cut it into parts"):
        read_image(png_head(10_000, 10_000, 100_000))


def test_failing_to_allocate_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("instseg.data.images.read.rgb_pixels", full)
    with pytest.raises(DataError, match="does not fit into memory"):
        read_image(encoded(Image.fromarray(RGB)))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG", "BMP"])
def test_an_image_of_196_megapixels_is_read(form: str) -> None:
    image = Image.new("L", (14_000, 14_000))
    image.paste(255, (7_000, 0, 14_000, 14_000))
    found = read_image(encoded(image, form))
    assert found.shape == (3, 14_000, 14_000)
    assert torch.equal(found[:, 0, 6_900], torch.zeros(3, dtype=torch.uint8))
    assert found[:, -1, -1].tolist() == [255, 255, 255]
