"""Every common kind of image becomes uint8 RGB."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.image_files import encoded

from instseg.core.errors import DataError
from instseg.data.images.read import image_size, read_image

RGB = np.random.default_rng(0).integers(0, 256, size=(5, 7, 3), dtype=np.uint8)


def test_rgb_png_is_read_unchanged_from_path_bytes_and_stream(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(RGB))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    expected = torch.from_numpy(RGB).permute(2, 0, 1)
    for source in (path, str(path), data, io.BytesIO(data)):
        image = read_image(source)
        assert image.dtype == torch.uint8
        assert torch.equal(image, expected)


def test_gray_is_repeated_over_the_channels() -> None:
    image = read_image(encoded(Image.fromarray(RGB[..., 0])))
    assert image.shape == (3, 5, 7)
    assert torch.equal(image[0], image[2])
    assert torch.equal(image[1], torch.from_numpy(RGB[..., 0].copy()))


def test_palette_gives_its_colors() -> None:
    palette = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(read_image(encoded(palette)).permute(1, 2, 0), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    clear = Image.new("RGBA", (4, 3), (200, 10, 10, 0)).convert(mode)
    assert read_image(encoded(clear)).min() == 255


def test_opaque_rgba_equals_rgb() -> None:
    opaque = Image.fromarray(np.dstack([RGB, np.full((5, 7), 255, dtype=np.uint8)]))
    assert torch.equal(read_image(encoded(opaque)), torch.from_numpy(RGB).permute(2, 0, 1))


def test_palette_with_transparent_entry_is_laid_over_white() -> None:
    palette = Image.new("P", (4, 3), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    assert read_image(encoded(palette, transparency=0)).min() == 255


def test_cmyk_jpeg_is_rgb_of_about_the_same_color() -> None:
    color = Image.new("RGB", (16, 16), (200, 40, 90))
    image = read_image(encoded(color.convert("CMYK"), "JPEG", quality=95))
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


CUT = {
    "PNG": {},
    "JPEG": {},
    "TIFF": {},
    "BMP": {},
    "GIF": {},
    "WEBP": {"lossless": True},
    "JPEG2000": {},
    "PPM": {},
}


@pytest.mark.parametrize("form", sorted(CUT))
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
def test_a_cut_off_download_is_one_clear_line(form: str, share: float, tmp_path: Path) -> None:
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8))
    path = tmp_path / f"torn.{form.lower()}"
    data = encoded(big, form, **CUT[form])
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match="torn") as caught:
        read_image(path)
    assert "\n" not in str(caught.value) and "remove it" in str(caught.value)


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


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("tail", [b"\n", b"\0" * 5000, bytes(range(256)) * 40])
def test_an_image_followed_by_other_data_is_whole(form: str, tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "phone"
    data = encoded(Image.fromarray(RGB), form)
    path.write_bytes(data + tail)
    assert image_size(path) == ((5, 7), (5, 7))
    assert torch.equal(read_image(path), read_image(data))


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


def test_sources_of_every_kind_are_read(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(RGB))
    path = tmp_path / "a.png"
    path.write_bytes(data)

    class Named:  # any os.PathLike
        def __fspath__(self) -> str:
            return str(path)

    class Pipe:  # cannot seek
        def read(self, size: int = -1) -> bytes:
            return data

    written = io.BytesIO()
    written.write(data)  # its position is behind the image
    for source in (Named(), bytearray(data), memoryview(data), Pipe(), written):
        assert torch.equal(read_image(source), read_image(data))
        assert image_size(source)[0] == (5, 7)
    assert not written.closed


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (io.StringIO("text"), 'returns text; open it with mode "rb"'),
        (None, "NoneType is not an image file; pass a path"),
        (5, "int is not an image file"),
        ("x" * 300, "cannot be read"),
    ],
)
def test_what_cannot_be_a_file_says_what_to_pass(source: object, says: str) -> None:
    for function in (read_image, image_size):
        with pytest.raises(DataError, match=says) as caught:
            function(source)
        assert "\n" not in str(caught.value)


def test_a_closed_file_is_named() -> None:
    file = io.BytesIO(encoded(Image.fromarray(RGB)))
    file.close()
    with pytest.raises(DataError, match="closed; open it again"):
        read_image(file)


def test_a_gif_whose_first_frame_is_partial_is_white_around_it() -> None:
    data = bytearray(encoded(Image.new("P", (16, 12), 1), "GIF"))
    frame = data.index(b",")
    data[6:10] = struct.pack("<HH", 20, 15)  # the picture
    data[frame + 1 : frame + 5] = struct.pack("<HH", 2, 1)  # where its first frame lies
    image = read_image(bytes(data))
    assert image.shape == (3, 15, 20)
    assert image[:, 0].min() == image[:, :, :2].min() == image[:, 13:].min() == image[:, :, 18:].min() == 255
    assert image[:, 1:13, 2:18].max() < 255


def test_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ((200, 10, 10), (10, 200, 10))]
    for form in ("GIF", "WEBP", "PNG", "MPO"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        assert read_image(data)[0, 0, 0] > 190 > read_image(data)[1, 0, 0]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000", "PPM", "MPO", "ICO", "TGA"])
def test_every_format_is_read_as_pillow_shows_it_and_its_file_object_stays_open(form: str) -> None:
    file = io.BytesIO(encoded(Image.fromarray(RGB).resize((32, 32)), form))
    assert image_size(file) == ((32, 32), (32, 32))
    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert np.array_equal(read_image(file).permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))
    assert not file.closed


@pytest.mark.parametrize("mode", ["1", "L", "LAB", "YCbCr", "CMYK"])
def test_tiff_of_every_color_space_is_rgb(mode: str) -> None:
    color = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    assert read_image(encoded(color, "TIFF")).min() >= 254


def test_an_image_without_pixels_is_refused() -> None:
    data = encoded(Image.fromarray(RGB), "BMP")
    empty = data[:18] + struct.pack("<ii", 0, 5) + data[26:]
    for function in (read_image, image_size):
        with pytest.raises(DataError, match="replace or remove it"):
            function(empty)


def test_one_pixel_is_an_image() -> None:
    assert read_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3)))).flatten().tolist() == [1, 2, 3]


def test_a_file_that_would_start_another_program_is_refused() -> None:
    with pytest.raises(DataError, match="not an image"):
        read_image(encoded(Image.fromarray(RGB), "EPS"))
