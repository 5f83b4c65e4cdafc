"""Augmentation: what each field does, and that everything follows from the generator."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from instseg.core import rle as rle_codes
from instseg.core.geometry import mask_extents
from instseg.core.shapes import Shapes
from instseg.data.batch import Sample
from instseg.data.records import Annotation
from instseg.data.transforms import augment
from instseg.data.transforms.augment import Augment, RawSample, build_transform, draw_geometry, paste, untouched


def scene(seed: int = 0, height: int = 60, width: int = 80, objects: int = 3) -> RawSample:
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.integers(0, 256, size=(3, height, width), dtype=np.uint8))
    annotations = []
    for number in range(objects):
        mask = np.zeros((height, width), dtype=np.uint8)
        y, x = int(rng.integers(0, height - 20)), int(rng.integers(0, width - 20))
        mask[y : y + 20, x : x + 20] = 1
        annotations.append(Annotation(number + 1, number, rle_codes.encode(mask), (x, y, x + 20, y + 20), 400.0))
    return RawSample(image, annotations)


def run(augment: Augment, seed: int = 0, source: RawSample | None = None, train: bool = True) -> Sample:
    transform = build_transform(augment, train)
    return transform(source or scene(), np.random.default_rng(seed), lambda rng: scene(int(rng.integers(1, 9))))


STRONG = Augment(
    enlarge=1.7,
    jitter_scale=(0.5, 2),
    crop=64,
    flip=0.5,
    flip_vertical=0.5,
    rotate90=True,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    copy_paste=0.5,
)


@pytest.mark.parametrize("seed", range(20))
def test_a_sample_is_consistent_and_follows_from_the_generator(seed: int) -> None:
    one, other = run(STRONG, seed), run(STRONG, seed)
    for name in ("image", "boxes", "labels", "masks"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    count = len(one.labels)
    assert one.image.dtype == torch.float32 and one.masks.dtype == torch.uint8  # resized, and not rounded
    assert one.image.min() >= 0 and one.image.max() <= 1 + 1e-6
    assert one.masks.shape == (count, *one.image.shape[1:])
    assert max(one.image.shape) <= 64
    assert one.boxes.shape == (count, 4)
    assert one.boxes.dtype == torch.float32
    assert bool(one.masks.flatten(1).any(1).all())
    extents = mask_extents(one.masks.bool()).float()
    assert (one.boxes - extents).abs().max() <= 4  # equal up to the resize to whole pixels


def test_different_generators_give_different_samples() -> None:
    samples = {run(STRONG, seed).image.float().mean().item() for seed in range(8)}
    assert len(samples) == 8


def test_nothing_asked_for_changes_nothing() -> None:
    source = scene()
    sample = run(Augment(flip=0.0), source=source)
    assert torch.equal(sample.image, source.image)
    assert sample.labels.tolist() == [0, 1, 2]
    assert torch.equal(untouched(source, np.random.default_rng(0), lambda _: source).masks, sample.masks)


def test_flip_mirrors_image_masks_and_boxes() -> None:
    plain, flipped = run(Augment(flip=0.0)), run(Augment(flip=1.0))
    assert torch.equal(flipped.image, plain.image.flip(-1))
    assert torch.equal(flipped.masks, plain.masks.flip(-1))
    assert torch.equal(flipped.boxes[:, 0], 80 - plain.boxes[:, 2])


def test_multi_scale_draws_each_short_side() -> None:
    augment = Augment(train_short=[120, 180], train_long=1333, flip=0)
    heights = {run(augment, seed).image.shape[1] for seed in range(12)}
    assert heights == {120, 180}


def test_a_range_draws_every_side_between_its_ends() -> None:
    augment = Augment(train_short="58..62", flip=0)
    drawn = [min(draw_geometry((60, 80), augment, np.random.default_rng(seed)).out_size) for seed in range(200)]
    assert set(drawn) == {58, 59, 60, 61, 62} and all(drawn.count(side) > 20 for side in set(drawn))
    assert min(run(augment, train=False).image.shape[1:]) == 62
    one_of_a_list = Augment(train_short=[58, 59, 60, 61, 62], flip=0)
    for seed in range(20):
        assert torch.equal(run(augment, seed).image, run(one_of_a_list, seed).image)


def test_without_train_nothing_is_random_and_the_largest_size_is_taken() -> None:
    augment = STRONG.model_copy(update={"enlarge": None, "train_short": [90, 120]})
    samples = [run(augment, seed, train=False) for seed in range(3)]
    assert all(sample.image.shape == (3, 120, 160) for sample in samples)
    assert torch.equal(samples[0].image, samples[1].image)


def test_small_images_keep_their_size_when_told() -> None:
    augment = Augment(train_short=[120], train_enlarge=False, flip=0)
    assert run(augment).image.shape == (3, 60, 80)


def test_large_scale_jitter_covers_its_range() -> None:
    rng = np.random.default_rng(0)
    augment = Augment(enlarge=2, jitter_scale=(0.5, 1.5))
    heights = [draw_geometry((100, 100), augment, rng).size[0] for _ in range(200)]
    assert 100 <= min(heights) < 120
    assert 280 < max(heights) <= 300


def test_crop_of_an_object_keeps_only_what_is_seen() -> None:
    for seed in range(30):
        sample = run(Augment(enlarge=1, crop=32, flip=0), seed)
        assert sample.image.shape == (3, 32, 32)
        assert torch.equal(sample.boxes, mask_extents(sample.masks.bool()).float())


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation", "hue"])
@pytest.mark.parametrize("enlarge", [0.5, 2.0])
def test_colors_change_and_masks_do_not(field: str, enlarge: float) -> None:
    plain = run(Augment(flip=0, enlarge=enlarge))
    changed = run(Augment(flip=0, enlarge=enlarge, **{field: 0.5}))
    assert not torch.equal(changed.image, plain.image)
    assert torch.equal(changed.masks, plain.masks)


def test_rotation_by_quarter_turns_occurs_and_is_even() -> None:
    shapes = [tuple(run(Augment(flip=0, rotate90=True), seed).image.shape) for seed in range(40)]
    assert 8 <= shapes.count((3, 80, 60)) <= 32


def sample_of(boxes: list[tuple[int, int, int, int]], size: tuple[int, int], value: int) -> Sample:
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 1
    image = torch.full((3, *size), value, dtype=torch.uint8)
    boxes_of = torch.tensor(boxes).float().view(-1, 4)
    return Sample(image, boxes_of, torch.arange(len(boxes)), Shapes.from_masks(masks))


def test_pasted_objects_cover_what_lies_below() -> None:
    below = sample_of([(0, 0, 10, 10), (20, 20, 30, 30), (4, 4, 6, 6)], (40, 40), 10)
    above = sample_of([(3, 0, 20, 40)], (40, 20), 200)
    result = paste(below, above)
    assert result.labels.tolist() == [0, 1, 0]  # the small one is wholly covered
    assert result.boxes.tolist() == [[0, 0, 3, 10], [20, 20, 30, 30], [3, 0, 20, 40]]
    assert (result.masks.sum(0) <= 1).all()
    assert (result.image[0, :, 3:20] == 200).all()
    assert (result.image[0, :, 20:] == 10).all()
    assert (below.image == 10).all()  # the original is left alone


def test_pasting_nothing_leaves_the_sample_alone() -> None:
    below = sample_of([(0, 0, 10, 10)], (40, 40), 10)
    assert paste(below, sample_of([], (20, 60), 9)) is below


def test_copy_paste_adds_objects_of_another_image() -> None:
    counts = [len(run(Augment(flip=0, copy_paste=1.0), seed).labels) for seed in range(20)]
    assert max(counts) > 3
    assert [len(run(Augment(flip=0, copy_paste=0.0), seed).labels) for seed in range(5)] == [3] * 5


def test_image_without_objects_gives_empty_targets() -> None:
    sample = run(STRONG.model_copy(update={"copy_paste": 0.0}), source=scene(objects=0))
    assert sample.masks.shape == (0, *sample.image.shape[1:])
    assert sample.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "fields", [{"flipp": 0.5}, {"flip": 2}, {"jitter_scale": (2, 1)}, {"train_short": []}, {"crop": 3}, {"hue": 0.6}]
)
def test_impossible_fields_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Augment(**fields)  # type: ignore[arg-type]


# --- what a network asks for ----------------------------------------------------------------------------------------


def asking(*needs: str, **changes: object) -> RawSample:
    return replace(scene(), needs=frozenset(needs), **changes)


def test_boxes_alone_are_cut_without_decoding_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = run(Augment(flip=1, enlarge=2, crop=64), 3)
    monkeypatch.setattr(augment, "crop_masks", None)
    boxes = run(Augment(flip=1, enlarge=2, crop=64), 3, asking())
    assert boxes.shapes is None
    assert len(boxes.labels) == len(boxes.boxes) >= len(masks.labels)
    for box, label in zip(masks.boxes, masks.labels, strict=True):
        torch.testing.assert_close(boxes.boxes[boxes.labels == label][0], box)


def test_boxes_that_leave_the_crop_are_dropped() -> None:
    for seed in range(30):
        sample = run(Augment(enlarge=1, crop=32, flip=0), seed, asking())
        assert bool((sample.boxes >= 0).all()) and bool((sample.boxes <= 32).all())
        assert bool(((sample.boxes[:, 2:] - sample.boxes[:, :2]) >= 1).all())


@pytest.mark.parametrize("seed", range(10))
def test_outlines_are_the_same_masks_later(seed: int) -> None:
    fields = STRONG.model_copy(update={"copy_paste": 0.0})
    dense, lazy = run(fields, seed), run(fields, seed, asking("outlines"))
    assert lazy.shapes is not None and not lazy.shapes.rasterized
    assert torch.equal(lazy.masks, dense.masks) and torch.equal(lazy.boxes, dense.boxes)


def test_a_matte_is_never_rounded() -> None:
    ramp = torch.linspace(0, 1, 80).expand(60, 80).contiguous()
    annotation = replace(scene(objects=1).annotations[0], matte=ramp)
    sample = run(Augment(flip=1), 0, asking("mattes", annotations=[annotation]))
    assert torch.equal(sample.masks[0], ramp.flip(1))
    larger = run(Augment(flip=0, enlarge=2), 0, asking("mattes", annotations=[annotation]))
    expected = torch.nn.functional.interpolate(ramp[None, None], size=(120, 160), mode="bilinear")[0, 0]
    torch.testing.assert_close(larger.masks[0], expected)


def test_a_map_of_classes_goes_where_the_image_goes_and_is_ignored_under_pasted_objects() -> None:
    classes = torch.arange(60 * 80).view(60, 80) % 7
    sample = run(Augment(flip=1), 0, asking("masks", "semantic", semantic=classes))
    assert sample.semantic is not None and torch.equal(sample.semantic, classes.flip(1))
    changed = 0
    for seed in range(10):
        pasted = run(Augment(flip=0, copy_paste=1), seed, asking("masks", "semantic", semantic=classes))
        assert pasted.semantic is not None
        other = pasted.semantic != classes
        assert bool((pasted.semantic[other] == 255).all())
        changed += int(other.sum())
    assert changed > 0
    assert run(Augment(flip=0), 0, asking("masks", semantic=classes)).semantic is None


def test_what_is_pasted_on_an_image_that_kept_its_size_keeps_its_own_pixels() -> None:
    below = sample_of([(0, 0, 10, 10)], (40, 40), 10)
    above = replace(sample_of([(3, 0, 20, 40)], (40, 20), 200), image=torch.full((3, 40, 20), 0.7003))
    result = paste(below, above)
    assert bool((result.image[:, :, 3:20] == 0.7003).all())
    assert bool((result.image[:, :, 20:] * 255 == 10).all())


def test_antialiasing_reaches_mattes() -> None:
    stripes = (torch.arange(80) % 4 == 0).float().expand(60, 80).contiguous()
    raw = asking("mattes", annotations=[replace(scene(objects=1).annotations[0], matte=stripes)])
    smooth, plain = (
        build_transform(Augment(flip=0, enlarge=0.25), True, antialias)(raw, np.random.default_rng(0), None)  # type: ignore[arg-type]
        for antialias in (True, False)
    )
    assert plain.shapes is not None and len(plain.labels) == 0  # the samples lie between the stripes
    assert smooth.masks.mean().item() == pytest.approx(0.25, abs=0.02)


def test_colors_are_changed_without_rounding_wherever_the_resize_comes() -> None:
    """Enlarged images change before the resize and reduced ones after it; neither is cut to whole values."""
    for factor in (0.5, 1.0, 2.0):
        image = run(Augment(flip=0, enlarge=factor, brightness=0.3), 4).image
        assert image.dtype == torch.float32 and not torch.equal((image * 255).round(), image * 255)
        assert image.min() >= 0 and image.max() <= 1 + 1e-6
