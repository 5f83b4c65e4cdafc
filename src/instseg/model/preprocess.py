"""Images of any size to a padded, normalized batch, and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.core.geometry import InputGeometry, scale_boxes
from instseg.models.base import ImageBatch
from instseg.models.config import ModelConfig

DIVISOR = 32


@dataclass(frozen=True)
class Preprocess:
    """Resizing, normalizing and padding as ``config`` says. Holds no state, so it belongs to no device."""

    config: ModelConfig

    def scale(self, height: int, width: int) -> float:
        """The factor by which an image is resized."""
        c = self.config
        if c.input_scale is not None:
            return c.input_scale
        factor = min(c.input_long / max(height, width), c.input_short / min(height, width))
        return factor if c.input_enlarge else min(factor, 1.0)

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the network input without padding."""
        factor = self.scale(height, width)
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))

    def resize_image(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """(3, H, W) uint8 or float in [0, 1] to float32 (3, *size) in [0, 255]."""
        x = image.float() * (1.0 if image.dtype == torch.uint8 else 255.0)
        if tuple(x.shape[-2:]) == size:
            return x
        y = F.interpolate(x[None], size=size, mode="bilinear", align_corners=False, antialias=self.config.antialias)
        return y[0]

    def resize_target(self, target: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Boxes scaled and masks (N, H, W) resized to nearest, as the references resize ground truth."""
        masks = target["masks"]
        old = (int(masks.shape[-2]), int(masks.shape[-1]))
        if old == size:
            return target
        if len(masks):
            masks = F.interpolate(masks[None].to(torch.uint8), size=size, mode="nearest")[0]
        else:
            masks = masks.new_zeros(0, *size)
        return {**target, "masks": masks, "boxes": scale_boxes(target["boxes"], old, size)}

    def batch(self, images: Sequence[Tensor], padded: tuple[int, int] | None = None) -> ImageBatch:
        """Images (3, h, w) float in [0, 255] to one normalized batch (B, 3, H, W), H and W multiples of 32.

        Padding goes to the right and below and is zero after normalization. ``padded`` gives H and W where they
        must not follow from the images.
        """
        height, width = padded or (max(i.shape[-2] for i in images), max(i.shape[-1] for i in images))
        height, width = height + -height % DIVISOR, width + -width % DIVISOR
        mean = images[0].new_tensor(self.config.pixel_mean)[:, None, None]
        std = images[0].new_tensor(self.config.pixel_std)[:, None, None]
        out = images[0].new_zeros(len(images), 3, height, width)
        for slot, image in zip(out, images, strict=True):
            pixels = image.flip(0) if self.config.bgr else image
            slot[:, : image.shape[-2], : image.shape[-1]] = (pixels - mean) / std
        return ImageBatch(out, torch.tensor([i.shape[-2:] for i in images]))

    def view(self, image: Tensor) -> InputGeometry:
        """How a whole image (3, H, W) is shown to the network."""
        size = (int(image.shape[-2]), int(image.shape[-1]))
        return InputGeometry(self.target_size(*size), size, size)
