"""Images in memory become uint8 RGB by the rule of the files, or are refused with what to do."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from instseg.core.categories import Categories
from instseg.core.errors import DataError
from instseg.data.images.read import ImageRule, read_image
from instseg.evaluation.evaluate import evaluate
from instseg.model.predicting import predict
from instseg.predict.predict_files import predict_sources
from instseg.sources.pixels import from_memory

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
TWELVE = np.random.default_rng(1).integers(0, 4096, (5, 7, 4)).astype(np.uint16)
TWELVE[0, 0] = 4095


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def shown(values: np.ndarray, white: float) -> torch.Tensor:
    """(H, W, 1 or 3) as it should look: (3, H, W) uint8."""
    eight = np.rint(np.clip(values.astype(np.float64) / white, 0, 1) * 255).astype(np.uint8)
    return torch.from_numpy(np.repeat(eight, 3 // eight.shape[2], axis=2).transpose(2, 0, 1).copy())


def over_white(values: np.ndarray, white: float) -> torch.Tensor:
    share = values.astype(np.float64) / white
    return shown(1 - (1 - share[..., :-1]) * share[..., -1:], 1)


def as_array(values: np.ndarray) -> np.ndarray:
    return values


def as_tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


both = pytest.mark.parametrize("form", [as_array, as_tensor])
Form = Callable[[np.ndarray], Any]


@both
@pytest.mark.parametrize("channels", [1, 3])
def test_bool_images_are_black_and_white(form: Form, channels: int) -> None:
    values = np.random.default_rng(0).random((5, 7, channels)) > 0.5
    assert torch.equal(from_memory(form(values)), shown(values, 1))


def test_bilevel_pil_images_are_black_and_white() -> None:
    values = np.random.default_rng(0).random((5, 7)) > 0.5
    assert torch.equal(from_memory(Image.fromarray(values)), shown(values[..., None], 1))


@both
@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int32", "uint64", "int64"])
@pytest.mark.parametrize("channels", [1, 3])
def test_wide_integers_follow_the_rule_of_files(form: Form, dtype: str, channels: int) -> None:
    values = TWELVE[..., :channels].astype(dtype)
    assert torch.equal(from_memory(form(values)), shown(values, 4095))
    assert torch.equal(from_memory(form(values), ImageRule(full_scale=16383)), shown(values, 16383))


@both
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_laid_over_white_at_any_depth(form: Form, channels: int) -> None:
    deep = TWELVE[..., -channels:]
    assert torch.equal(from_memory(form(deep)), over_white(deep, 4095))
    unit = deep / np.float32(4095)
    assert (from_memory(form(unit)).int() - over_white(deep, 4095).int()).abs().max() <= 1
    eight = (deep >> 4).astype(np.uint8)
    assert (from_memory(form(eight)).int() - over_white(eight, 255).int()).abs().max() <= 1


@both
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_of_a_unit_range_are_scaled(form: Form, dtype: str) -> None:
    values = np.linspace(0, 1, 35).reshape(5, 7, 1).astype(dtype)
    assert torch.equal(from_memory(form(values)), shown(values, 1))


def test_bfloat16_tensors_are_read() -> None:
    assert (from_memory(torch.full((3, 5, 7), 0.5, dtype=torch.bfloat16)) == 128).all()


@both
def test_negative_values_are_refused_with_what_to_do(form: Form) -> None:
    values = TWELVE[..., :3].astype(np.int16) - 5000
    with pytest.raises(DataError, match=r"(array|tensor) holds negative samples .* shift them so that black is 0"):
        from_memory(form(values))


ARRAYS: dict[str, Any] = {
    "mirrored": RGB[::-1, ::-1, ::-1][:, :, ::-1][::-1, ::-1],
    "transposed": np.ascontiguousarray(RGB.transpose(2, 0, 1)).transpose(1, 2, 0),
    "strided": np.repeat(np.repeat(RGB, 2, axis=0), 3, axis=1)[::2, ::3],
    "other byte order": RGB.astype(">u2"),
    "unmasked": np.ma.array(RGB),
    "big-endian floats": (RGB / 255).astype(">f4"),
}


@pytest.mark.parametrize("kind", sorted(ARRAYS))
def test_the_memory_layout_of_an_array_does_not_matter(kind: str) -> None:
    assert torch.equal(from_memory(ARRAYS[kind]), shown(RGB, 255))


def test_a_matrix_is_gray() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        assert torch.equal(from_memory(np.matrix(RGB[..., 0])), shown(RGB[..., :1], 255))


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 1, 3), (5, 7), (1, 1)])
def test_a_read_only_array_is_copied_without_a_warning(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 9, np.uint8)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = from_memory(array)
    image += 1
    assert (array == 9).all()


def test_views_of_tensors_are_read() -> None:
    image = torch.from_numpy(RGB).permute(2, 0, 1)
    assert torch.equal(from_memory(image), image)
    assert torch.equal(from_memory(image.flip(2)), image.flip(2))
    assert torch.equal(from_memory(image[:, ::2, ::2]), image[:, ::2, ::2])
    assert torch.equal(from_memory((image / 255).requires_grad_()), image)
    assert torch.equal(from_memory(image[:1].expand(3, -1, -1)), image[:1].expand(3, -1, -1))


@pytest.mark.parametrize(
    ("image", "hint"),
    [
        (np.zeros((1, 40, 50), np.uint8), "must be transposed: array.transpose"),
        (np.zeros((3, 40, 50), np.uint8), "must be transposed: array.transpose"),
        (np.zeros((4, 5, 5), np.uint8), "(H, W, 3) RGB"),
        (np.zeros((0, 5), np.uint8), "shape (0, 5)"),
        (np.zeros(5, np.uint8), "shape (5,)"),
        (np.zeros((4, 5, 3), np.complex64), "complex64"),
        (np.zeros((4, 5, 3), "datetime64[s]"), "datetime64"),
        (np.full((4, 5, 3), np.inf), "scale it to [0, 1]"),
        (np.ma.masked_equal(np.arange(20, dtype=np.uint8).reshape(4, 5), 3), "array.filled(0)"),
        (torch.zeros(40, 50, 3), "must be permuted: tensor.permute(2, 0, 1)"),
        (torch.zeros(0, 5), "shape (0, 5)"),
        (torch.zeros(()), "shape ()"),
        (torch.zeros(1, 3, 4, 5), "one image a tensor"),
        (torch.full((3, 4, 5), float("nan")), "scale it to [0, 1]"),
        (torch.zeros(4, 5).to_sparse(), "dense"),
        (torch.zeros(3, 4, 5, device="meta"), "dense"),
        (torch.zeros(3, 4, 5, dtype=torch.complex64), "dense"),
        (Image.new("RGB", (0, 5)), "0 x 5 pixels is empty"),
        (None, "NoneType is not an image"),
        ([1, 2], "list is not an image"),
    ],
)
def test_what_is_not_an_image_is_one_line_with_a_hint(image: Any, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        from_memory(image)
    assert hint in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_pil_images_of_sixteen_bits_follow_the_rule(mode: str) -> None:
    gray = TWELVE[..., 0]
    order = ">" if mode.endswith("B") else "<"
    image = Image.frombytes(mode, (7, 5), gray.astype(f"{order}u2").tobytes())
    assert torch.equal(from_memory(image), shown(gray[..., None], 4095))
    assert torch.equal(from_memory(image, ImageRule(full_scale=16383)), shown(gray[..., None], 16383))


def test_pil_images_of_integers_and_floats_follow_the_rule() -> None:
    gray = TWELVE[..., :1]
    assert torch.equal(from_memory(Image.fromarray(gray[..., 0].astype(np.int32))), shown(gray, 4095))
    unit = gray[..., 0] / np.float32(4095)
    assert torch.equal(from_memory(Image.fromarray(unit)), shown(unit[..., None], 1))


@pytest.mark.parametrize("mode", ["LAB", "YCbCr", "HSV", "CMYK", "RGBX", "RGBA", "RGBa", "LA", "La", "P", "PA"])
def test_pil_images_of_every_mode_are_rgb(mode: str) -> None:
    white = Image.new("RGBA", (7, 5), (255, 255, 255, 255))
    between = {"La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")
    image = white.convert(between).convert(mode)
    assert from_memory(image).min() >= 254


def test_a_pil_image_that_is_not_decoded_yet_keeps_its_low_bits() -> None:
    data = b"P6 7 5 65535\n" + TWELVE[..., :3].astype(">u2").tobytes()
    file = io.BytesIO(data)
    image = Image.open(file)
    assert torch.equal(from_memory(image), shown(TWELVE[..., :3], 4095))
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (16, 16, 16)  # still usable, as Pillow reads it


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("rule", [ImageRule(exif=True), ImageRule(exif=False)])
def test_a_pil_image_is_turned_as_its_file_would_be(form: str, rule: ImageRule) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(RGB), form, exif=exif)
    assert torch.equal(from_memory(Image.open(io.BytesIO(data)), rule), read_image(data, exif=rule.exif))


def test_a_pil_image_is_not_changed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(Image.fromarray(RGB), exif=exif)))
    from_memory(image)
    assert image.size == (7, 5) and image.getexif()[0x0112] == 6


def test_a_closed_or_torn_pil_image_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "torn.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path.write_bytes(encoded(Image.fromarray(noise))[:5000])
    with Image.open(path) as torn, pytest.raises(DataError, match=r"torn\.png: .* open it again, or pass its path"):
        from_memory(torn)
    with pytest.raises(DataError, match=r"torn\.png: .* open it again, or pass its path"):
        from_memory(torn)


def test_files_in_memory_are_read_by_the_rule(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(RGB), exif=exif)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), path):
        assert from_memory(source).shape == (3, 7, 5)
        assert from_memory(source, ImageRule(exif=False)).shape == (3, 5, 7)


def test_prediction_reads_files_as_the_model_was_trained_on_them(oracle: Any, tmp_path: Path) -> None:
    """Annotated on stored pixels, 12 bits in 16: neither turned nor black, also when the result is drawn."""
    values = np.zeros((30, 50), np.uint16)
    values[5:20, 5:20] = 160  # 10 of 255 when 4095 is white, where the oracle sees object 10
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.tif"
    path.write_bytes(encoded(Image.fromarray(values), "TIFF", exif=exif))
    oracle = type(oracle)(Categories(tuple("abcdefghijk"), tuple(range(11))))
    oracle.image_rule = ImageRule(exif=False, full_scale=4080)
    for result in (predict(oracle, path), predict(oracle, path.read_bytes()), predict(oracle, [path])[0]):
        assert result.image_size == (30, 50)
        assert result.boxes.tolist() == [[5, 5, 20, 20]]
    assert predict(oracle, path).plot().size == (50, 30)
    assert predict(oracle, path)[:0].plot().getpixel((10, 10)) == (10, 10, 10)
    predict_sources(oracle, [path], tmp_path / "out")
    with Image.open(tmp_path / "out" / "overlays" / "a.jpg") as overlay:
        assert overlay.size == (50, 30)


def test_bytes_of_every_kind_are_one_image(oracle: Any) -> None:
    data = encoded(Image.new("RGB", (50, 30)))
    for source in (data, bytearray(data), memoryview(data)):
        assert not isinstance(predict(oracle, source), list)


def test_evaluation_reads_a_data_set_as_bright_as_the_model_was_trained_on_it(oracle: Any, tmp_path: Path) -> None:
    """The images of a dark test set alone would be stretched to another white."""
    values = np.zeros((30, 50), np.uint16)
    values[5:20, 5:20] = 160  # object 10 where 4080 is white, something else where 255 is
    Image.fromarray(values).save(tmp_path / "a.png")
    square = {"id": 1, "image_id": 1, "category_id": 10, "iscrowd": 0, "area": 225, "bbox": [5, 5, 15, 15]}
    square["segmentation"] = [[5, 5, 20, 5, 20, 20, 5, 20]]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 50, "height": 30}],
        "categories": [{"id": i, "name": name} for i, name in enumerate("abcdefghijk")],
        "annotations": [square],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    oracle = type(oracle)(Categories(tuple("abcdefghijk"), tuple(range(11))))
    oracle.image_rule = ImageRule(full_scale=4080)
    oracle.extra = {"image_rule": oracle.image_rule.to_json()}
    assert evaluate(oracle, tmp_path / "set.json", split="train", progress=False)["segm"]["ap"] == pytest.approx(1)
