"""Augmentation. All randomness of a sample comes from one generator, so a run can go on from any point."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from instseg.core import rle as rle_codes
from instseg.core.crop import CropTransform, crop_masks, full_crop
from instseg.core.geometry import fit_factor, mask_extents
from instseg.core.shapes import Outline, Shapes
from instseg.core.target import IGNORED, MASKS, SHAPES, Need
from instseg.data.batch import Sample
from instseg.data.records import Annotation
from instseg.data.transforms.crop import crop_image, draw_crop
from instseg.ops.resize import resize_image, unit_floats


@dataclass(frozen=True)
class RawSample:
    """An image with its objects at full size, as they were annotated.

    Attributes:
        image: (3, H, W) uint8.
        annotations: training targets, no crowds.
        semantic: (H, W) int64, the class of each pixel, 255 is ignored, or None.
        needs: what the network asks for besides boxes and labels.
    """

    image: Tensor
    annotations: Sequence[Annotation]
    semantic: Tensor | None = None
    needs: frozenset[Need] = MASKS


# Draws another image of the data set with the generator of the sample, for copy-paste.
Other: TypeAlias = Callable[[np.random.Generator], RawSample]
Transform: TypeAlias = Callable[[RawSample, np.random.Generator, Other], Sample]


RANGE = re.compile(r"[0-9]{1,5}\.\.[0-9]{1,5}")  # of sides, both ends included


class Augment(BaseModel):
    """What training does to an image; the fields of a recipe that belong to the data."""

    model_config = ConfigDict(extra="forbid")

    train_short: list[int] | str | None = None
    """Short sides in pixels, one drawn per image (multi-scale training): a list (the papers' code), or a range such as
    ``"640..800"`` with both ends (the papers' text); None keeps the size."""
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

    @field_validator("train_short", mode="before")
    @classmethod
    def _sides(cls, given: Any) -> Any:
        slip = isinstance(given, list) and any(isinstance(side, str) and not side.isdecimal() for side in given)
        if slip or (isinstance(given, str) and not (RANGE.fullmatch(given) and short_sides(given))):
            raise ValueError("a range of sides is written 640..800, the smaller one first; a list of them [640, 800]")
        return [given] if isinstance(given, int | float) and not isinstance(given, bool) else given

    @field_validator("train_short")
    @classmethod
    def _in_range(cls, given: list[int] | str | None) -> list[int] | str | None:
        sides = [32] if given is None else short_sides(given)
        if not sides or not 32 <= min(sides) <= max(sides) <= 16384:
            raise ValueError("one side or more is wanted, each of 32 to 16384 pixels")
        return given

    @model_validator(mode="after")
    def _ranges(self) -> "Augment":
        if self.jitter_scale is not None and not 0 < self.jitter_scale[0] <= self.jitter_scale[1]:
            raise ValueError("jitter_scale is a range [low, high] with 0 < low <= high")
        return self


def short_sides(given: list[int] | str) -> Sequence[int]:
    """The sides that ``train_short`` names."""
    if not isinstance(given, str):
        return given
    low, high = given.split("..")
    return range(int(low), int(high) + 1)


def build_transform(augment: Augment, train: bool, antialias: bool = False) -> Transform:
    """The transform of ``augment``.

    Images are resized as prediction resizes them: a sample that is not augmented is, bit for bit, what the network is
    shown of an image of that size.

    Args:
        augment: what is done to an image.
        train: False where nothing is to be random: images are resized as in training (to the largest of
            ``train_short``) and otherwise kept, which is what a loss on the validation split needs.
        antialias: smooth before shrinking, as the model's configuration has it.
    """
    # Not a closure: where worker processes are not forked, the transform is pickled.
    return partial(_augmented if train else _resized, augment, antialias)


def untouched(raw: RawSample, rng: np.random.Generator, other: Other) -> Sample:
    """The transform that changes nothing."""
    return take(raw, full_crop(*raw.image.shape[1:]))


def take(
    raw: RawSample, crop: CropTransform, recolor: Callable[[Tensor], Tensor] | None = None, antialias: bool = False
) -> Sample:
    """What a crop shows of an image and its objects, its colors changed by ``recolor``, as :func:`crop_image` does.

    Nothing is decoded that ``raw.needs`` does not name: without shapes only the annotated boxes are cut.
    """
    shapes, boxes, kept = _objects(raw, crop, antialias)
    labels = torch.tensor([annotation.label for annotation in raw.annotations], dtype=torch.int64)
    semantic = None
    if raw.semantic is not None and "semantic" in raw.needs:
        semantic = crop.maps(raw.semantic[None])[0]
    return Sample(crop_image(raw.image, crop, recolor, antialias), boxes, labels[kept], shapes, semantic)


def _objects(raw: RawSample, crop: CropTransform, antialias: bool) -> tuple[Shapes | None, Tensor, Tensor]:
    """The shapes that are asked for, the boxes (N, 4), and which of the annotations (N,) are left in a crop.

    An image with an object that has no mask has no shapes; where a network cannot do without, none is opened.
    """
    annotations = raw.annotations
    if raw.needs.isdisjoint(SHAPES) or not all(annotation.has_mask for annotation in annotations):
        return None, *_cut_boxes(annotations, crop)
    if "mattes" in raw.needs:
        return _mattes(annotations, crop, antialias)
    masks, boxes, kept = crop_masks([annotation.rle for annotation in annotations], crop)
    if "masks" in raw.needs:
        return Shapes.from_masks(masks), boxes, kept
    outlines = [Outline(annotations[i].rle, annotations[i].polygons) for i in kept.tolist()]
    return Shapes.from_outlines(outlines, crop), boxes, kept


def _cut_boxes(annotations: Sequence[Annotation], crop: CropTransform) -> tuple[Tensor, Tensor]:
    """Annotated boxes, cut at the crop; those of which less than a pixel of the result is left are dropped."""
    boxes = torch.tensor([a.box for a in annotations], dtype=torch.float32).view(-1, 4)
    corner = torch.tensor([crop.left, crop.top], dtype=torch.float32).repeat(2)
    limit = torch.tensor([crop.width, crop.height], dtype=torch.float32).repeat(2)
    shown = crop.boxes((boxes - corner).clamp(min=0).minimum(limit))
    kept = ((shown[:, 2:] - shown[:, :2]).amin(dim=1) >= 1).nonzero()[:, 0]
    return shown[kept], kept


def _mattes(annotations: Sequence[Annotation], crop: CropTransform, antialias: bool) -> tuple[Shapes, Tensor, Tensor]:
    """Float mattes, resized bilinearly and never rounded; a mask is a matte of zeros and ones."""
    mattes = torch.zeros(len(annotations), *crop.out_size)
    for out, annotation in zip(mattes, annotations, strict=True):
        whole = annotation.matte
        pixels = torch.from_numpy(rle_codes.decode(annotation.rle)).float() if whole is None else whole.float()
        out.copy_(crop.maps(pixels[None], partial(resize_image, antialias=antialias))[0].clamp(0, 1))  # or 1 + eps
    extents = mask_extents(mattes > 0).float()
    kept = (extents[:, 2] > extents[:, 0]).nonzero()[:, 0]
    return Shapes.from_masks(mattes[kept]), extents[kept], kept


def draw_geometry(size: tuple[int, int], augment: Augment, rng: np.random.Generator) -> CropTransform:
    """Where a sample looks: scale, crop, mirroring and turns, in this order from the generator."""
    height, width = size
    short = None if augment.train_short is None else int(rng.choice(short_sides(augment.train_short)))
    factor = _factor(size, augment, short)
    if augment.jitter_scale is not None:
        factor *= float(rng.uniform(*augment.jitter_scale))
    crop = draw_crop(height, width, factor, augment.crop, rng)
    mirror, mirror_vertical = rng.random(2) < (augment.flip, augment.flip_vertical)
    turns = int(rng.integers(4)) if augment.rotate90 else 0
    return replace(crop, mirror=bool(mirror), mirror_vertical=bool(mirror_vertical), turns=turns)


def _resized(augment: Augment, antialias: bool, raw: RawSample, rng: np.random.Generator, other: Other) -> Sample:
    height, width = raw.image.shape[1:]
    short = None if augment.train_short is None else max(short_sides(augment.train_short))
    return take(raw, draw_crop(height, width, _factor((height, width), augment, short), None, rng), None, antialias)


def _factor(size: tuple[int, int], augment: Augment, short: int | None) -> float:
    if augment.enlarge is not None:
        return augment.enlarge
    if short is None:
        return 1.0
    factor = fit_factor(*size, short, augment.train_long)
    return factor if augment.train_enlarge else min(factor, 1.0)


def _augmented(augment: Augment, antialias: bool, raw: RawSample, rng: np.random.Generator, other: Other) -> Sample:
    sample = _drawn(raw, augment, antialias, rng)
    if augment.copy_paste and rng.random() < augment.copy_paste:
        source = other(rng)
        # A random subset of its objects, as in Ghiasi et al. 2021, section 3.
        chosen = [annotation for annotation in source.annotations if rng.random() < 0.5]
        if chosen:
            sample = paste(sample, _drawn(replace(source, annotations=chosen), augment, antialias, rng))
    return sample


def _drawn(raw: RawSample, augment: Augment, antialias: bool, rng: np.random.Generator) -> Sample:
    height, width = raw.image.shape[1:]
    crop = draw_geometry((height, width), augment, rng)
    return take(raw, crop, _draw_colors(augment, rng), antialias)


def _draw_colors(augment: Augment, rng: np.random.Generator) -> Callable[[Tensor], Tensor] | None:
    """A change of the colors of floats in [0, 1], always of four draws; None when the recipe wants none."""
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


def paste(sample: Sample, source: Sample) -> Sample:
    """Simple copy-paste (Ghiasi et al. 2021, section 3): the objects of ``source`` on top of ``sample``.

    Both are aligned at the top left. What the pasted objects cover is taken from the masks below; an object that is
    wholly covered is dropped. Outlines become masks; mattes are laid over each other. A map of classes is ignored where
    something was pasted. Samples without shapes cannot be pasted: they stay as they are.
    """
    if sample.shapes is None or source.shapes is None:
        return sample
    height, width = sample.image.shape[1:]
    masks = source.masks[:, :height, :width]
    h, w = masks.shape[1:]
    below, above = len(sample.labels), len(masks)
    joined = torch.zeros(below + above, height, width, dtype=masks.dtype)
    joined[:below] = sample.masks
    cover = masks.amax(dim=0) if len(masks) else masks.new_zeros(h, w)  # h, w in [0, 1]
    if not bool(cover.any()):
        return sample
    image, shown = sample.image.clone(), source.image[:, :h, :w]
    if masks.is_floating_point() or image.dtype != shown.dtype:
        image, shown = unit_floats(image), unit_floats(shown)
    if masks.is_floating_point():
        image[:, :h, :w] += cover * (shown - image[:, :h, :w])
        joined[:below, :h, :w] *= 1 - cover
    else:
        image[:, :h, :w] = torch.where(cover.bool(), shown, image[:, :h, :w])
        joined[:below, :h, :w] *= ~cover.bool()
    joined[below:, :h, :w] = masks
    semantic = sample.semantic
    if semantic is not None:
        semantic = semantic.clone()
        semantic[:h, :w][cover > 0] = IGNORED
    return _tight(image, joined, torch.cat([sample.labels, source.labels]), semantic)


def _tight(image: Tensor, masks: Tensor, labels: Tensor, semantic: Tensor | None) -> Sample:
    """A sample with boxes made from its masks, without the empty ones."""
    extents = mask_extents(masks > 0).float()
    alive = extents[:, 2] > extents[:, 0]
    return Sample(image, extents[alive], labels[alive], Shapes.from_masks(masks[alive]), semantic)
