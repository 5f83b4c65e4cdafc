"""Augmentation. All randomness of a sample comes from one generator, so a run can go on from any point."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from instseg.core.geometry import mask_extents
from instseg.data.records import Annotation
from instseg.data.transforms.crop import CropTransform, crop_view, fit_factor, full_view, view_image, view_masks


@dataclass(frozen=True)
class RawSample:
    """An image with its objects at full size, masks still as codes.

    Attributes:
        image: (3, H, W) uint8.
        annotations: training targets, no crowds.
    """

    image: Tensor
    annotations: Sequence[Annotation]


@dataclass(frozen=True)
class Shot:
    """What is left of a scene after augmentation.

    Attributes:
        image: (3, h, w) uint8.
        masks: (N, h, w) uint8, each with at least one pixel.
        boxes: (N, 4) float32 xyxy in pixels of the shot.
        labels: (N,) int64.
    """

    image: Tensor
    masks: Tensor
    boxes: Tensor
    labels: Tensor


# Draws another scene of the data set with the generator of the sample, for copy-paste.
Other: TypeAlias = Callable[[np.random.Generator], RawSample]
Transform: TypeAlias = Callable[[RawSample, np.random.Generator, Other], Shot]


class Augment(BaseModel):
    """What training does to an image; the fields of a recipe that belong to the data."""

    model_config = ConfigDict(extra="forbid")

    train_short: list[int] | None = None
    """Short sides in pixels, one drawn per image (the paper's multi-scale training); None keeps the size."""
    train_long: int = Field(default=1333, ge=32)
    """The long side stays below it, pixels."""
    train_enlarge: bool = True
    """False: images smaller than train_short and train_long keep their size."""
    enlarge: float | None = Field(default=None, gt=0)
    """Resize by this factor instead of to train_short and train_long."""
    jitter_scale: tuple[float, float] | None = None
    """Large-scale jitter: the size is multiplied by a factor drawn from this range."""
    crop: int | None = Field(default=None, ge=32)
    """Side in pixels of a random square cut after resizing; smaller images stay whole."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability to mirror left to right."""
    flip_vertical: float = Field(default=0.0, ge=0, le=1)
    """Probability to mirror top to bottom."""
    rotate90: bool = False
    """Turn by 0, 90, 180 or 270 degrees, each as likely."""
    brightness: float = Field(default=0.0, ge=0, le=1)
    """Brightness is multiplied by 1 - this to 1 + this."""
    contrast: float = Field(default=0.0, ge=0, le=1)
    """Contrast is multiplied by 1 - this to 1 + this."""
    saturation: float = Field(default=0.0, ge=0, le=1)
    """Saturation is multiplied by 1 - this to 1 + this."""
    hue: float = Field(default=0.0, ge=0, le=0.5)
    """Hue is shifted by up to this part of the color circle, either way."""
    copy_paste: float = Field(default=0.0, ge=0, le=1)
    """Probability to paste objects of another image (simple copy-paste, Ghiasi et al. 2021)."""

    @model_validator(mode="after")
    def _ranges(self) -> "Augment":
        if self.train_short is not None and (not self.train_short or min(self.train_short) < 32):
            raise ValueError("train_short needs at least one side of 32 pixels or more")
        if self.jitter_scale is not None and not 0 < self.jitter_scale[0] <= self.jitter_scale[1]:
            raise ValueError("jitter_scale is a range [low, high] with 0 < low <= high")
        return self


def build_transform(augment: Augment, train: bool) -> Transform:
    """The transform of ``augment``.

    With ``train=False`` nothing is random: images are resized as in training (to the largest of
    ``train_short``) and otherwise kept, which is what a loss on the validation split needs.
    """
    # Not a closure: where worker processes are not forked, the transform is pickled.
    return partial(_augmented if train else _resized, augment)


def untouched(scene: RawSample, rng: np.random.Generator, other: Other) -> Shot:
    """The transform that changes nothing."""
    return take(scene, full_view(*scene.image.shape[1:]))


def take(scene: RawSample, view: CropTransform, recolor: Callable[[Tensor], Tensor] | None = None) -> Shot:
    """The part of a scene that a view shows, its colors changed by ``recolor``."""
    masks, boxes, kept = view_masks([annotation.rle for annotation in scene.annotations], view)
    labels = torch.tensor([annotation.label for annotation in scene.annotations], dtype=torch.int64)
    return Shot(view_image(scene.image, view, recolor), masks, boxes, labels[kept])


def draw_view(size: tuple[int, int], augment: Augment, rng: np.random.Generator) -> CropTransform:
    """Where a sample looks: scale, crop, mirroring and turns, in this order from the generator."""
    height, width = size
    short = None if augment.train_short is None else int(rng.choice(augment.train_short))
    factor = _factor(size, augment, short)
    if augment.jitter_scale is not None:
        factor *= float(rng.uniform(*augment.jitter_scale))
    view = crop_view(height, width, factor, augment.crop, rng)
    mirror, mirror_vertical = rng.random(2) < (augment.flip, augment.flip_vertical)
    turns = int(rng.integers(4)) if augment.rotate90 else 0
    return CropTransform(
        view.top, view.left, view.height, view.width, view.size, bool(mirror), bool(mirror_vertical), turns
    )


def _resized(augment: Augment, scene: RawSample, rng: np.random.Generator, other: Other) -> Shot:
    height, width = scene.image.shape[1:]
    short = None if augment.train_short is None else max(augment.train_short)
    return take(scene, crop_view(height, width, _factor((height, width), augment, short), None, rng))


def _factor(size: tuple[int, int], augment: Augment, short: int | None) -> float:
    if augment.enlarge is not None:
        return augment.enlarge
    if short is None:
        return 1.0
    factor = fit_factor(*size, short, augment.train_long)
    return factor if augment.train_enlarge else min(factor, 1.0)


def _augmented(augment: Augment, scene: RawSample, rng: np.random.Generator, other: Other) -> Shot:
    shot = _shoot(scene, augment, rng)
    if augment.copy_paste and rng.random() < augment.copy_paste:
        source = other(rng)
        # A random subset of its objects, as in Ghiasi et al. 2021, section 3.
        chosen = [annotation for annotation in source.annotations if rng.random() < 0.5]
        if chosen:
            shot = paste(shot, _shoot(RawSample(source.image, chosen), augment, rng))
    return shot


def _shoot(scene: RawSample, augment: Augment, rng: np.random.Generator) -> Shot:
    height, width = scene.image.shape[1:]
    view = draw_view((height, width), augment, rng)
    return take(scene, view, _draw_colors(augment, rng))


def _draw_colors(augment: Augment, rng: np.random.Generator) -> Callable[[Tensor], Tensor] | None:
    """A change of colors, always of four draws; None when the recipe wants none."""
    strengths = (augment.brightness, augment.contrast, augment.saturation, augment.hue)
    brightness, contrast, saturation, hue = (float(v) for v in rng.uniform(-1, 1, size=4) * strengths)
    if not any(strengths):
        return None

    def recolor(image: Tensor) -> Tensor:
        if brightness:
            image = F.adjust_brightness(image, 1 + brightness)
        if contrast:
            image = F.adjust_contrast(image, 1 + contrast)
        if saturation:
            image = F.adjust_saturation(image, 1 + saturation)
        return F.adjust_hue(image, hue) if hue else image

    return recolor


def paste(shot: Shot, source: Shot) -> Shot:
    """Simple copy-paste (Ghiasi et al. 2021, section 3): the objects of ``source`` on top of ``shot``.

    Both are aligned at the top left. What the pasted objects cover is taken from the masks below; an object that is
    wholly covered is dropped.
    """
    height, width = shot.image.shape[1:]
    masks = source.masks[:, :height, :width]
    h, w = masks.shape[1:]
    cover = masks.any(dim=0).bool()
    if not bool(cover.any()):
        return shot
    image = shot.image.clone()
    image[:, :h, :w] = torch.where(cover, source.image[:, :h, :w], image[:, :h, :w])
    below, above = len(shot.masks), len(masks)
    joined = torch.zeros(below + above, height, width, dtype=torch.uint8)
    joined[:below] = shot.masks
    joined[:below, :h, :w] *= ~cover
    joined[below:, :h, :w] = masks
    return _tight(image, joined, torch.cat([shot.labels, source.labels]))


def _tight(image: Tensor, masks: Tensor, labels: Tensor) -> Shot:
    """A shot with boxes made from its masks, without the empty ones."""
    extents = mask_extents(masks.bool()).float()
    alive = extents[:, 2] > extents[:, 0]
    return Shot(image, masks[alive], extents[alive], labels[alive])
