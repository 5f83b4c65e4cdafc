"""Images in memory, as uint8 RGB."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from instseg.core.errors import DataError
from instseg.data.images.read import ImageRule, read_image, rgb_pixels, source_name, to_tensor
from instseg.data.images.samples import Samples, to_eight_bits, to_rgb
from instseg.data.images.wide import declares_wide

if TYPE_CHECKING:
    import numpy.typing as npt

_SHAPES = "(H, W, 3) RGB, (H, W, 4) RGBA, (H, W, 2) gray with alpha, or (H, W) or (H, W, 1) gray"
_TOLERANCE = 1e-3  # by how much floats may leave [0, 1]
_DEEP_FORMATS = frozenset({"PNG", "TIFF", "PPM", "JPEG2000"})


def from_memory(image: Any, rule: ImageRule = ImageRule()) -> Tensor:  # noqa: B008
    """One image in memory as (3, H, W) uint8 RGB.

    Args:
        image: a PIL image, which is read as its file would be; the bytes of an image file (bytes, bytearray or
            memoryview) or a binary file object, read from its start; a NumPy array (H, W, 3) RGB, (H, W, 4) RGBA,
            (H, W, 2) gray with alpha, (H, W) or (H, W, 1) gray; a tensor (3, H, W) RGB, (4, H, W) RGBA, (2, H, W) gray
            with alpha, (1, H, W) or (H, W) gray. Arrays and tensors are bool (True is white), uint8, wider integers,
            or floats in [0, 1].
        rule: how files become pixels. Integers wider than 8 bits follow its full scale, wherever they come from.

    Raises:
        DataError: anything else, values outside [0, 1] in a float array, negative or masked values.
    """
    if isinstance(image, Tensor):
        return _from_tensor(image, rule)
    if isinstance(image, np.ndarray):
        return _from_array(image, rule)
    if hasattr(image, "convert") and hasattr(image, "getexif"):
        return _from_pil(image, rule)
    if isinstance(image, bytes | bytearray | memoryview | os.PathLike) or hasattr(image, "read"):
        return read_image(image, exif=rule.exif, full_scale=rule.full_scale)
    kind = type(image).__name__
    raise DataError(f"{kind} is not an image; pass a path, address, PIL image, NumPy array or tensor.")


def _from_pil(image: Any, rule: ImageRule) -> Tensor:
    from PIL import Image, ImageOps

    name = source_name(image)
    content = _unread_file(image, rule)
    if content is not None:
        try:
            return read_image(content, exif=rule.exif, full_scale=rule.full_scale)
        except DataError as error:
            raise DataError(str(error).replace("image bytes", name, 1)) from None
    if 0 in image.size:
        raise DataError(
            f"{name}: PIL image of {image.size[0]} x {image.size[1]} pixels is empty; pass one with pixels."
        )
    try:
        upright = ImageOps.exif_transpose(image) if rule.exif else image
        if upright.mode.startswith(("I", "F")):
            pixels = to_rgb(Samples(np.asarray(upright)[..., None]), rule.full_scale)
        else:
            pixels = rgb_pixels(upright)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except (Image.DecompressionBombError, MemoryError):
        raise DataError(f"{name}: too large for Pillow; pass its path instead of a PIL image.") from None
    except Exception as error:  # Pillow's decoders raise anything on damaged or closed files
        text = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: PIL image cannot be decoded ({text}); open it again, or pass its path.") from error
    return to_tensor(pixels)


def _unread_file(image: Any, rule: ImageRule) -> bytes | None:
    """The file of a PIL image that is not decoded yet, where Pillow would cut off samples, or turn what must not be.

    The image itself stays as it is.
    """
    file: Any = getattr(image, "fp", None)
    if file is None or getattr(file, "closed", False) or not getattr(image, "tile", None):
        return None
    if image.format not in _DEEP_FORMATS or image.tell() != 0:
        return None
    if not declares_wide(image) and (rule.exif or image.format != "TIFF"):
        return None
    try:
        place = file.tell()
        file.seek(0)
        content: bytes = file.read()
        file.seek(place)
    except (OSError, ValueError):
        return None
    return content


def _from_array(array: npt.NDArray[Any], rule: ImageRule) -> Tensor:
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise DataError("masked array with masked pixels is not an image; fill them, for example array.filled(0).")
        array = array.data
    array = np.asarray(array)  # np.matrix keeps two dimensions whatever is asked of it
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in shape:
        turn = "; an array (C, H, W) must be transposed: array.transpose(1, 2, 0)"
        hint = turn if array.ndim == 3 and shape[0] in (1, 2, 3, 4) and 0 not in shape else ""
        raise DataError(f"array of shape {shape} is not an image; pass {_SHAPES}{hint}.")
    if array.dtype.kind not in "uifb":
        raise DataError(f"array of {array.dtype} is not an image; pass uint8, uint16, bool, or float in [0, 1].")
    return _from_samples(array, "array", rule)


def _from_tensor(tensor: Tensor, rule: ImageRule) -> Tensor:
    shape = tuple(tensor.shape)
    image = tensor[None] if tensor.ndim == 2 else tensor
    if image.ndim != 3 or image.shape[0] not in (1, 2, 3, 4) or 0 in shape:
        hint = ""
        if image.ndim == 3 and image.shape[2] in (1, 3, 4) and 0 not in shape:
            hint = "; a tensor (H, W, C) must be permuted: tensor.permute(2, 0, 1)"
        raise DataError(f"tensor of shape {shape} is not an image; pass (3, H, W) RGB, one image a tensor{hint}.")
    if image.layout is not torch.strided or image.is_quantized or image.is_complex() or image.is_meta:
        raise DataError(
            f"tensor of {tensor.dtype} is not an image as it is stored; pass a dense uint8 or float tensor."
        )
    image = image.detach().cpu()
    if image.dtype == torch.uint8 and image.shape[0] in (1, 3):  # the common case, without a copy where possible
        return image.expand(3, -1, -1).contiguous()
    if image.is_floating_point() and image.dtype not in (torch.float16, torch.float32, torch.float64):
        image = image.float()  # NumPy has no bfloat16, and no smaller floats
    return _from_samples(image.permute(1, 2, 0).resolve_neg().numpy(), "tensor", rule)


def _from_samples(values: npt.NDArray[Any], what: str, rule: ImageRule) -> Tensor:
    """values: (H, W, C) of 1 to 4 channels, of any bool, integer or float dtype."""
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        # [0, 255] would come out as white. NaN fails every comparison, so it is refused too.
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
            raise DataError(f"float {what} with values from {low:g} to {high:g} is not an image; scale it to [0, 1].")
        values = values.clip(0, 1)
    alpha = values.shape[2] in (2, 4)
    try:
        if values.dtype == np.bool_:
            values = to_eight_bits(values)
        if values.dtype != np.uint8:
            return to_tensor(to_rgb(Samples(values, alpha), rule.full_scale))
    except DataError as error:
        raise DataError(f"{what} {error}") from None
    if alpha:
        from PIL import Image

        mode = "LA" if values.shape[2] == 2 else "RGBA"
        return to_tensor(rgb_pixels(Image.fromarray(np.ascontiguousarray(values)).convert(mode)))
    return to_tensor(np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values)
