"""Images of any size to a padded, normalized batch, and targets with them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.core.geometry import InputGeometry, fit_factor, scale_boxes, scaled
from instseg.core.shapes import Shapes
from instseg.models.base import ImageBatch, Target
from instseg.models.config import ModelConfig
from instseg.ops.resize import resize_image


@dataclass(frozen=True)
class Preprocess:
    """Resizing, normalizing and padding. Holds no tensor, so it belongs to no device.

    Attributes:
        config: what the size of the input and the normalization follow from.
        stride: sides of a batch are multiples of it.
    """

    config: ModelConfig
    stride: int = 32

    def scale(self, height: int, width: int) -> float:
        """The factor by which an image is resized."""
        c = self.config
        if c.input_scale is not None:
            return c.input_scale
        factor = fit_factor(height, width, c.input_short, c.input_long)
        return factor if c.input_enlarge else min(factor, 1.0)

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the network input without padding."""
        factor = self.scale(height, width)
        return scaled(height, factor), scaled(width, factor)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of a batch that holds an input of ``height`` x ``width``."""
        return height + -height % self.stride, width + -width % self.stride

    def at_scale(self, factor: float) -> "Preprocess":
        """The same, for inputs that are ``factor`` times as large."""
        c = self.config
        sides = {"input_short": round(c.input_short * factor), "input_long": round(c.input_long * factor)}
        fixed = None if c.input_scale is None else c.input_scale * factor
        return replace(self, config=c.model_copy(update={**sides, "input_scale": fixed}))

    def resize_image(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """(3, H, W) uint8 or float in [0, 1] to float32 (3, *size) in [0, 255]."""
        resized = resize_image(image, size, self.config.antialias)
        return resized.float() if resized.dtype == torch.uint8 else resized.float() * 255.0

    def resize_target(self, target: Target, size: tuple[int, int]) -> Target:
        """A target for the image at another size (h, w): boxes are scaled, masks and the map of classes resized to
        the nearest pixel, as the references resize ground truth, mattes bilinearly."""
        if target.size == size:
            return target
        shapes = target.shapes
        if shapes is not None:
            soft, masks = shapes.soft, shapes.full()
            if not len(masks):
                masks = masks.new_zeros(0, *size)
            elif soft:
                masks = resize_image(masks, size, self.config.antialias)
            else:
                masks = F.interpolate(masks[None].to(torch.uint8), size=size, mode="nearest")[0]
            shapes = Shapes.from_masks(masks)
        semantic = target.semantic
        if semantic is not None:
            semantic = F.interpolate(semantic[None, None].double(), size=size, mode="nearest")[0, 0].to(semantic.dtype)
        return Target(size, target.labels, scale_boxes(target.boxes, target.size, size), shapes, semantic)

    def batch(self, images: Sequence[Tensor], padded: tuple[int, int] | None = None) -> ImageBatch:
        """Images (3, h, w) float in [0, 255] to one normalized batch (B, 3, H, W).

        Padding goes to the right and below and is zero after normalization. ``padded`` gives H and W where they
        must not follow from the images.
        """
        height, width = self.padded(*(padded or (max(i.shape[-2] for i in images), max(i.shape[-1] for i in images))))
        mean, std = self._colors(images[0])
        out = images[0].new_zeros(len(images), 3, height, width)
        for slot, image in zip(out, images, strict=True):
            pixels = image.flip(0) if self.config.bgr else image
            slot[:, : image.shape[-2], : image.shape[-1]] = (pixels - mean) / std
        return ImageBatch(out, torch.tensor([i.shape[-2:] for i in images]))

    def shown(self, batch: ImageBatch, image: int) -> Tensor:
        """(3, H, W) uint8 RGB on the CPU, what a batch shows of one image; black in the padding."""
        (h, w), pixels = batch.sizes[image].tolist(), batch.pixels[image]
        mean, std = self._colors(pixels)
        out = torch.zeros(pixels.shape, dtype=torch.uint8)
        out[:, :h, :w] = (pixels * std + mean)[:, :h, :w].round().clamp(0, 255).to(torch.uint8).cpu()
        return out.flip(0) if self.config.bgr else out

    def view(self, image: Tensor) -> InputGeometry:
        """How a whole image (3, H, W) is shown to the network."""
        size = (int(image.shape[-2]), int(image.shape[-1]))
        return InputGeometry(self.target_size(*size), size, size)

    def _colors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (3, 1, 1) of the network's channels."""
        mean, std = like.new_tensor(self.config.pixel_mean), like.new_tensor(self.config.pixel_std)
        return mean[:, None, None], std[:, None, None]
