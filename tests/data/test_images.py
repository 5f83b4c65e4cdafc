"""Every common kind of image becomes uint8 RGB."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from instseg.core.errors import DataError
from instseg.data.images import image_size, read_image

RGB = np.random.default_rng(0).integers(0, 256, size=(5, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def test_rgb_png_is_read_unchanged_from_path_bytes_and_stream(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(RGB))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    expected = torch.from_numpy(RGB).permute(2, 0, 1)
    for source in (path, str(path), data, io.BytesIO(data)):
        image = read_image(source)
        assert image.dtype == torch.uint8
        assert torch.equal(image, expected)


def test_grey_is_repeated_over_the_channels() -> None:
    image = read_image(encoded(Image.fromarray(RGB[..., 0])))
    assert image.shape == (3, 5, 7)
    assert torch.equal(image[0], image[2])
    assert torch.equal(image[1], torch.from_numpy(RGB[..., 0].copy()))


def test_palette_gives_its_colours() -> None:
    palette = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(read_image(encoded(palette)).permute(1, 2, 0), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    clear = Image.new("RGBA", (4, 3), (200, 10, 10, 0)).convert(mode)
    form = "TIFF" if mode == "PA" else "PNG"
    try:
        data = encoded(clear, form)
    except OSError:
        pytest.skip(f"Pillow does not write {mode}")
    assert read_image(data).min() == 255


def test_opaque_rgba_equals_rgb() -> None:
    opaque = Image.fromarray(np.dstack([RGB, np.full((5, 7), 255, dtype=np.uint8)]))
    assert torch.equal(read_image(encoded(opaque)), torch.from_numpy(RGB).permute(2, 0, 1))


def test_palette_with_transparent_entry_is_laid_over_white() -> None:
    palette = Image.new("P", (4, 3), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    assert read_image(encoded(palette, transparency=0)).min() == 255


def test_cmyk_jpeg_is_rgb_of_about_the_same_colour() -> None:
    colour = Image.new("RGB", (16, 16), (200, 40, 90))
    image = read_image(encoded(colour.convert("CMYK"), "JPEG", quality=95))
    assert image.shape == (3, 16, 16)
    assert (image[:, 8, 8].int() - torch.tensor([200, 40, 90])).abs().max() <= 6


def test_sixteen_bits_of_full_range_keep_their_top_byte() -> None:
    top = np.arange(256, dtype=np.uint16).reshape(16, 16)
    image = read_image(encoded(Image.fromarray(top * 257)))
    assert np.array_equal(image[0].numpy(), top.astype(np.uint8))


def test_twelve_bits_in_a_sixteen_bit_file_are_not_black() -> None:
    values = np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)
    image = read_image(encoded(Image.fromarray(values), "TIFF"))
    assert image.max() == 255
    assert 100 < image.float().mean() < 155


def test_eight_bit_values_in_a_sixteen_bit_file_stay_as_they_are() -> None:
    values = np.arange(0, 256, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(read_image(encoded(Image.fromarray(values)))[1].numpy(), values.astype(np.uint8))


def test_float_tiff_between_zero_and_one_is_scaled() -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    values[0, 0] = np.nan
    image = read_image(encoded(Image.fromarray(values), "TIFF"))
    assert image[0, 2, 3] == 255
    assert image[0, 0, 0] == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    path.write_bytes(encoded(Image.fromarray(RGB), exif=exif))
    shown, stored = image_size(path)
    assert stored == (5, 7)
    assert shown == ((7, 5) if orientation >= 5 else (5, 7))
    assert tuple(read_image(path).shape[1:]) == shown
    assert tuple(read_image(path, exif=False).shape[1:]) == stored


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP"])
def test_truncated_image_is_one_clear_line(form: str, tmp_path: Path) -> None:
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8))
    path = tmp_path / f"torn.{form.lower()}"
    path.write_bytes(encoded(big, form)[:2000])
    with pytest.raises(DataError, match="torn") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_missing_end_is_seen_without_decoding(form: str, tmp_path: Path) -> None:
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8))
    path = tmp_path / "torn"
    data = encoded(big, form)
    path.write_bytes(data)
    assert image_size(path) == ((64, 64), (64, 64))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="truncated"):
        image_size(path)


def test_jpeg_followed_by_appended_data_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    path.write_bytes(encoded(Image.fromarray(RGB), "JPEG") + b"\0" * 5000)
    assert image_size(path)[0] == (5, 7)


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "not an image"), (b"hello", "not an image"), (None, "no such image")]
)
def test_what_is_no_image_is_named(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_image(path)
    assert "x.png" in str(caught.value)
    with pytest.raises(DataError, match=r"x\.png"):
        image_size(path)


def test_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder"):
        read_image(tmp_path)
