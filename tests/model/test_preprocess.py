"""Training and prediction show a network the same pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instseg.core.crop import CropTransform
from instseg.data.batch import Sample, collate
from instseg.data.transforms.augment import Augment, RawSample, build_transform
from instseg.data.transforms.crop import crop_image
from instseg.model.preprocess import Preprocess
from instseg.models.config import ModelConfig


def noise(height: int, width: int, seed: int = 0, interleaved: bool = False) -> Tensor:
    rng = np.random.default_rng(seed)
    if interleaved:  # as files are read
        return torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).permute(2, 0, 1)
    return torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))


def loaded(image: Tensor, augment: Augment, antialias: bool, train: bool = True) -> Sample:
    raw = RawSample(image, [])
    return build_transform(augment, train, antialias)(raw, np.random.default_rng(0), lambda rng: raw)


def normalized(pre: Preprocess, image: Tensor) -> Tensor:
    return pre.batch([pre.resize_image(image, (image.shape[-2], image.shape[-1]))]).pixels


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 150), st.integers(20, 150), st.integers(32, 120), st.booleans(), st.booleans(), st.booleans())
def test_what_training_normalizes_equals_what_prediction_does(
    height: int, width: int, short: int, antialias: bool, interleaved: bool, train: bool
) -> None:
    image = noise(height, width, interleaved=interleaved)
    pre = Preprocess(ModelConfig(input_short=short, input_long=2 * short, antialias=antialias))
    sample = loaded(image, Augment(train_short=[short], train_long=2 * short, flip=0), antialias, train)
    size = pre.target_size(height, width)
    assert tuple(sample.image.shape[-2:]) == size
    predicted = pre.batch([pre.resize_image(image, size)]).pixels
    assert torch.equal(normalized(pre, collate([sample]).images[0]), predicted)
    assert torch.equal(normalized(pre, sample.image), predicted)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.3, 3), st.booleans())
def test_a_fixed_factor_is_resized_alike(factor: float, antialias: bool) -> None:
    image = noise(61, 47)
    pre = Preprocess(ModelConfig(input_scale=factor, antialias=antialias))
    sample = loaded(image, Augment(enlarge=factor, flip=0), antialias)
    assert torch.equal(
        normalized(pre, sample.image), pre.batch([pre.resize_image(image, pre.target_size(61, 47))]).pixels
    )


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("factor", [0.5, 2])
def test_a_crop_is_resized_as_a_tile_is(antialias: bool, factor: float) -> None:
    """A part of an image, and the same part as prediction in tiles cuts it out."""
    image = noise(90, 120, interleaved=True)
    size = (round(40 * factor), round(60 * factor))
    pre = Preprocess(ModelConfig(antialias=antialias))
    shown = crop_image(image, CropTransform(10, 20, 40, 60, size), None, antialias)
    assert torch.equal(normalized(pre, shown), pre.batch([pre.resize_image(image[:, 10:50, 20:80], size)]).pixels)


def test_antialiasing_shows_in_training() -> None:
    plain, smooth = (loaded(noise(100, 100), Augment(train_short=[40], flip=0), on).image for on in (False, True))
    assert smooth.std() < 0.7 * plain.std()


def test_images_of_floats_are_resized_as_those_of_bytes() -> None:
    pre, image = Preprocess(ModelConfig()), noise(50, 70)
    for size in ((50, 70), (31, 44), (90, 126)):
        assert torch.equal(pre.resize_image(image / 255, size), pre.resize_image(image, size))


def test_how_an_image_lies_in_memory_does_not_show() -> None:
    image = noise(50, 70, interleaved=True)
    for antialias in (False, True):
        pre = Preprocess(ModelConfig(antialias=antialias))
        for size in ((31, 44), (90, 126)):
            assert torch.equal(pre.resize_image(image, size), pre.resize_image(image.contiguous(), size))


def test_an_image_that_keeps_its_size_travels_as_bytes() -> None:
    sample = loaded(noise(50, 70), Augment(flip=0), False)
    assert sample.image.dtype == torch.uint8
    resized = loaded(noise(50, 70), Augment(flip=0, enlarge=2), False)
    assert resized.image.dtype == torch.float32
    assert not torch.equal((resized.image * 255).round(), resized.image * 255)
