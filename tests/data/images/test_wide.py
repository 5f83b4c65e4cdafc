"""Samples wider than 8 bits: one rule for every format, mode and channel count."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.image_files import Array, chunk, encoded, png16, tiff

from instseg.core.errors import DataError
from instseg.data.images.read import ImageRule, find_full_scale, image_size, read_image

RNG = np.random.default_rng(0)
# 12 bits, as a sensor delivers them, in 16
TWELVE = RNG.integers(0, 4096, (11, 19, 4)).astype(np.uint16)
TWELVE[0, 0] = 4095


def shown(values: Array, white: float) -> torch.Tensor:
    """(H, W, 1 or 3) as it should look: (3, H, W) uint8."""
    eight = np.rint(np.clip(values.astype(np.float64) / white, 0, 1) * 255).astype(np.uint8)
    return torch.from_numpy(np.repeat(eight, 3 // eight.shape[2], axis=2).transpose(2, 0, 1).copy())


def over_white(values: Array, white: float) -> torch.Tensor:
    share = values.astype(np.float64) / white
    return shown(1 - (1 - share[..., :-1]) * share[..., -1:], 1)


def pnm(values: Array, white: int) -> bytes:
    height, width, channels = values.shape
    head = f"P{6 if channels == 3 else 5}\n# a comment\n{width} {height}\n{white}\n"
    return head.encode() + values.astype(">u2").tobytes()


def pnm_text(values: Array, white: int) -> bytes:
    height, width, channels = values.shape
    numbers = " # a comment\n".join(str(v) for v in values.ravel().tolist())
    return f"P{3 if channels == 3 else 2} {width} {height} {white}\n{numbers}\n".encode()


WRITERS = {
    "PNG": png16,
    "interlaced PNG": lambda v: png16(v, interlaced=True),
    "TIFF": tiff,
    "big-endian TIFF": lambda v: tiff(v, order=">"),
    "planar TIFF": lambda v: tiff(v, planar=True),
    "deflated TIFF": lambda v: tiff(v, compression=8, predictor=2),
    "big-endian deflated TIFF": lambda v: tiff(v, order=">", compression=8, predictor=2),
    "tiled TIFF": lambda v: tiff(v, tile=16),
    "tiled planar TIFF": lambda v: tiff(v, tile=16, compression=8, predictor=2, planar=True, order=">"),
    "PNM": lambda v: pnm(v, 65535),
    "PNM as text": lambda v: pnm_text(v, 65535),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", sorted(WRITERS))
def test_twelve_bits_in_sixteen_are_shown_over_the_whole_range(form: str, channels: int) -> None:
    values = TWELVE[..., :channels]
    data = WRITERS[form](values)
    assert torch.equal(read_image(data), shown(values, 4095))
    assert torch.equal(read_image(data, full_scale=16383), shown(values, 16383))
    assert torch.equal(read_image(data, full_scale=1000), shown(values, 1000))  # above white is white
    assert image_size(data) == ((11, 19), (11, 19))


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize(
    "write",
    [
        png16,
        lambda v: png16(v, interlaced=True),
        lambda v: tiff(v, extra=2),
        lambda v: tiff(v, extra=2, planar=True, order=">"),
    ],
    ids=["PNG", "interlaced PNG", "TIFF", "planar TIFF"],
)
def test_alpha_of_sixteen_bits_is_laid_over_white_at_full_depth(write, channels: int) -> None:
    values = TWELVE[..., -channels:]
    assert torch.equal(read_image(write(values)), over_white(values, 4095))


def test_alpha_may_use_more_bits_than_the_colors() -> None:
    values = TWELVE.copy()
    values[..., 3] = 65535
    assert torch.equal(read_image(png16(values)), shown(values[..., :3], 4095))


def test_premultiplied_alpha_of_sixteen_bits_is_not_multiplied_again() -> None:
    values = np.full((4, 5, 4), 32768, np.uint16)  # white at half opacity
    values[0, 0] = 65535
    assert (read_image(tiff(values, extra=1)) >= 254).all()


def test_the_transparent_color_of_a_sixteen_bit_png_is_white() -> None:
    values = TWELVE[..., :3].copy()
    values[2, 3] = (1, 2, 3)
    data = png16(values, before=chunk(b"tRNS", bytes([0, 1, 0, 2, 0, 3])))
    image = read_image(data)
    assert image[:, 2, 3].tolist() == [255, 255, 255]
    assert torch.equal(image[:, 5:], shown(values[5:], 4095))
    gray = png16(values[..., :1], before=chunk(b"tRNS", bytes([0, 1])))
    assert read_image(gray)[:, 2, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize("dtype", ["u2", "u4", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("compression", [1, 8])
def test_tiff_of_every_sample_type_and_byte_order(dtype: str, order: str, channels: int, compression: int) -> None:
    values = TWELVE[..., :channels].astype(dtype)
    predictor = 1 if compression == 1 else 3 if dtype in ("f4", "f8") else 2
    data = tiff(values, order=order, compression=compression, predictor=predictor)
    assert torch.equal(read_image(data), shown(values, 4095))


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "raw"])
def test_gray_tiff_of_pillow_in_every_compression(compression: str) -> None:
    data = encoded(Image.fromarray(TWELVE[..., 0]), "TIFF", compression=compression)
    assert torch.equal(read_image(data), shown(TWELVE[..., :1], 4095))


def test_tiff_whose_zero_is_white_is_inverted() -> None:
    data = tiff(TWELVE[..., :1], photometric=0)
    assert torch.equal(read_image(data), 255 - shown(TWELVE[..., :1], 4095))


def test_cmyk_tiff_of_sixteen_bits_is_rgb() -> None:
    cmyk = np.zeros((4, 5, 4), np.uint16)
    cmyk[..., 1] = 65535  # magenta
    assert read_image(tiff(cmyk, photometric=5))[:, 0, 0].tolist() == [255, 0, 255]


def test_first_page_of_a_deep_tiff_is_read() -> None:
    pages = [Image.fromarray(TWELVE[..., i]) for i in range(3)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert torch.equal(read_image(data), shown(TWELVE[..., :1], 4095))


def test_channels_without_a_meaning_are_refused() -> None:
    with pytest.raises(DataError, match="4 channels that are not RGB; save the image as gray or RGB"):
        read_image(tiff(TWELVE, photometric=1))


def test_negative_samples_are_refused_with_what_to_do() -> None:
    values = TWELVE[..., :1].astype(np.int16)
    values[3, 3] = -1000
    with pytest.raises(DataError, match=r"negative samples \(down to -1000\); shift them"):
        read_image(tiff(values))


def test_floats_of_a_unit_range_keep_one_as_white_though_some_overshoot() -> None:
    values = np.linspace(-0.004, 1.1, 12, dtype=np.float32).reshape(3, 4, 1)
    assert torch.equal(read_image(tiff(values)), shown(values, 1))
    assert torch.equal(read_image(tiff(values), full_scale=4095), shown(values, 1))


@pytest.mark.parametrize("top", [255, 65535])
def test_floats_above_one_follow_the_rule_of_the_integers(top: int) -> None:
    values = np.linspace(0, top, 12, dtype=np.float32).reshape(3, 4, 1)
    assert torch.equal(read_image(tiff(values)), shown(values, top))


def test_missing_floats_are_black() -> None:
    values = np.ones((3, 4, 1), np.float32)
    values[0, :3, 0] = (np.nan, np.inf, -np.inf)
    assert read_image(tiff(values))[0, 0].tolist() == [0, 0, 0, 255]


@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_what_a_tiff_declares_as_missing_is_black(dtype: str) -> None:
    values = TWELVE[..., :1].astype(dtype)
    values[2, 3] = -999
    image = read_image(tiff(values, missing="-999"))
    assert image[:, 2, 3].tolist() == [0, 0, 0]
    assert torch.equal(image[:, 5:], shown(values[5:], 4095))


def test_a_file_that_declares_its_white_keeps_it() -> None:
    values = np.full((3, 4, 3), 500, np.uint16)
    assert (read_image(pnm(values, 1000)) == 128).all()  # 500 of 1000, though 10 bits hold it
    assert torch.equal(read_image(pnm_text(values, 1000)), read_image(pnm(values, 1000)))


def test_jpeg_2000_of_sixteen_bits_follows_the_rule() -> None:
    data = encoded(Image.fromarray(TWELVE[..., 0]), "JPEG2000")
    assert torch.equal(read_image(data), shown(TWELVE[..., :1], 4095))


def test_half_floats_are_read() -> None:
    values = np.linspace(0, 1, 12, dtype=np.float16).reshape(3, 4, 1)
    assert torch.equal(read_image(tiff(values)), shown(values, 1))


def test_samples_above_sixteen_bits_have_the_largest_as_white() -> None:
    values = np.array([0, 1 << 30, 1 << 31, (1 << 32) - 2], np.uint32).reshape(2, 2, 1)
    assert torch.equal(read_image(tiff(values)), shown(values, (1 << 32) - 2))


def test_damaged_deep_files_are_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "torn.tif"
    for data in (tiff(TWELVE), tiff(TWELVE, compression=8), png16(TWELVE), pnm(TWELVE[..., :3], 65535)):
        for length in (len(data) // 2, len(data) - 300):
            path.write_bytes(data[:length])
            with pytest.raises(DataError, match=r"torn\.tif: .*(replace|remove)") as caught:
                read_image(path)
            assert "\n" not in str(caught.value)


def test_a_data_set_has_one_full_scale(tmp_path: Path) -> None:
    dark = np.full((4, 5, 3), 200, np.uint16)
    paths = [tmp_path / name for name in ("dark.png", "bright.tif", "eight.png", "unit.tif", "broken.png")]
    for path, data in zip(
        paths,
        (png16(dark), tiff(TWELVE[..., :1]), encoded(Image.new("RGB", (5, 4))), tiff(np.ones((2, 2, 1), "f4")), b"x"),
        strict=True,
    ):
        path.write_bytes(data)
    assert find_full_scale(paths) == 4095
    assert find_full_scale(paths[:1]) == 255
    assert find_full_scale(paths[2:]) is None
    assert find_full_scale([]) is None
    # alone, the dark image would be as bright as the bright one
    assert read_image(paths[0]).max() == 200
    assert read_image(paths[0], full_scale=4095).max() == 12


def test_the_full_scale_is_found_in_a_sample_of_a_large_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png16(TWELVE[..., :3]))
    opened = []
    real = io.BytesIO

    def counted(*args: object) -> io.BytesIO:
        opened.append(1)
        return real(path.read_bytes())

    monkeypatch.setattr("builtins.open", counted)
    assert find_full_scale([path] * 1000) == 4095
    assert len(opened) == 64


def test_the_rule_survives_a_checkpoint() -> None:
    rule = ImageRule(exif=False, full_scale=4095.0)
    assert ImageRule.from_json(rule.to_json()) == rule
    assert ImageRule.from_json(None) == ImageRule() == ImageRule(exif=True, full_scale=None)
