"""Images in memory, as uint8 RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from instseg.core.errors import DataError
from instseg.data.images import read_image, rgb_pixels, source_name, to_eight_bits

if TYPE_CHECKING:
    import numpy.typing as npt


def from_memory(image: Any) -> Tensor:
    """One PIL image, array, tensor, file in memory or binary file object as (3, H, W) uint8 RGB.

    Raises DataError for anything else.
    """
    if isinstance(image, Tensor):
        return _from_tensor(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if hasattr(image, "convert") and hasattr(image, "getexif"):
        return _from_pil(image)
    if isinstance(image, bytes) or hasattr(image, "read"):
        return read_image(image)
    raise DataError(f"{type(image).__name__} is no image: give a path, address, PIL image, NumPy array or tensor")


def _from_pil(image: Any) -> Tensor:
    from PIL import Image, ImageOps

    try:
        pixels = rgb_pixels(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{source_name(image)}: image cannot be decoded ({error})") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _from_array(array: npt.NDArray[Any]) -> Tensor:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        hint = "; a tensor-like (3, H, W) array must be transposed" if array.ndim == 3 and array.shape[0] == 3 else ""
        raise DataError(f"array of shape {array.shape} is no image: give (H, W, 3) RGB{hint}")
    _check_kind(str(array.dtype), array.dtype.kind)
    if array.dtype.kind == "f":
        _check_range(float(array.min()), float(array.max()), "array")
        array = array.clip(0, 1)
    from PIL import Image

    values = array if array.dtype == np.uint8 else to_eight_bits(array)
    if values.shape[2] == 4:
        values = rgb_pixels(Image.fromarray(values, mode=None))
    elif values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def _from_tensor(tensor: Tensor) -> Tensor:
    image = tensor.detach().cpu()
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise DataError(f"tensor of shape {tuple(tensor.shape)} is no image: give (3, H, W) RGB, one image a tensor")
    if image.is_floating_point():
        image = image.float()
        _check_range(float(image.min()), float(image.max()), "tensor")
        image = (image * 255).round().to(torch.uint8)
    elif image.dtype == torch.bool:
        image = image.to(torch.uint8) * 255
    elif image.dtype != torch.uint8:
        raise DataError(f"tensor of {image.dtype} is no image: give uint8, or float in [0, 1]")
    return image.expand(3, -1, -1).contiguous()


def _check_kind(name: str, kind: str) -> None:
    if kind not in "uifb":
        raise DataError(f"array of {name} is no image: give uint8, uint16, or float in [0, 1]")


def _check_range(low: float, high: float, what: str) -> None:
    """Floats in [0, 255] would come out as white: refuse them. NaN fails every comparison, so it is refused too."""
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise DataError(f"float {what} with values from {low:g} to {high:g} is no image: scale it to [0, 1]")
