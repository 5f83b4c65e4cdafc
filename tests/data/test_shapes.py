"""The drawn data set: seeded, lazy, and its masks are what one sees."""

from itertools import combinations

import numpy as np
import pytest
import torch

from instseg.core import rle as rle_codes
from instseg.core.errors import ConfigError
from instseg.data.dataset import ground_truth
from instseg.data.open import open_dataset, splits
from instseg.data.shapes import CATEGORIES, ShapesConfig, draw_picture, shapes


def test_defaults_are_64_and_16_pictures_of_256_pixels() -> None:
    train, val = open_dataset("shapes", "train"), open_dataset("shapes", "val")
    assert (len(train), len(val)) == (64, 16)
    assert splits("shapes") == ("train", "val", "test")
    assert train[0].image.shape == (3, 256, 256)
    assert len(CATEGORIES) >= 3
    counts = [len(record.annotations) for record in train.records]
    assert min(counts) >= 3
    assert max(counts) <= 12
    assert len(set(counts)) > 4
    assert all(len({a.label for a in record.annotations}) >= 3 for record in train.records)


def test_pictures_follow_from_seed_split_and_index() -> None:
    picture = draw_picture(ShapesConfig(), "train", 3)
    draw_picture.cache_clear()
    again = draw_picture(ShapesConfig(), "train", 3)
    assert torch.equal(picture.image, again.image)
    assert picture.record == again.record
    for other in (
        draw_picture(ShapesConfig(seed=1), "train", 3),
        draw_picture(ShapesConfig(), "val", 3),
        draw_picture(ShapesConfig(), "train", 4),
    ):
        assert not torch.equal(picture.image, other.image)
    assert torch.equal(open_dataset("shapes", size=4)[3].image, open_dataset("shapes", size=500)[3].image)
    assert not torch.equal(open_dataset("shapes")[0].image, open_dataset("shapes", seed=7)[0].image)


def test_any_number_is_made_only_when_asked_for() -> None:
    dataset = open_dataset("shapes", size=10_000_000)
    assert dataset[9_999_999].image_id == 10_000_000
    assert dataset.records[-1].image_id == 10_000_000
    assert [record.image_id for record in dataset.records[2:4]] == [3, 4]
    with pytest.raises(IndexError):
        dataset.records[10_000_000]


def test_masks_hold_visible_pixels_only() -> None:
    dataset = open_dataset("shapes")
    for index in range(20):
        assert int(dataset[index].masks.sum(0).max()) == 1  # no pixel belongs to two objects


def test_objects_cover_each_other() -> None:
    boxes = [[a.box for a in record.annotations] for record in shapes("train", 20).records]
    meeting = sum(
        a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for row in boxes for a, b in combinations(row, 2)
    )
    assert meeting > 20


def test_a_ring_has_a_hole() -> None:
    ring = CATEGORIES.names.index("ring")
    config = ShapesConfig(overlap=False, min_size=40, count=(3, 4))
    holes = 0
    for record in shapes("train", 8, config).records:
        for annotation in record.annotations:
            if annotation.label == ring:
                x0, y0, x1, y1 = (int(v) for v in annotation.box)
                holes += rle_codes.decode(annotation.rle)[(y0 + y1) // 2, (x0 + x1) // 2] == 0
    assert holes >= 3


def test_objects_stay_apart_and_large_when_told() -> None:
    config = ShapesConfig(overlap=False, min_size=40, count=(3, 5))
    for record in shapes("train", 30, config).records:
        assert 3 <= len(record.annotations) <= 5
        boxes = [a.box for a in record.annotations]
        assert min(min(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes) >= 39
        union = sum(rle_codes.decode(a.rle).astype(int) for a in record.annotations)
        assert np.max(union) == 1


def test_colors_tell_objects_from_the_ground() -> None:
    sample = shapes("train", 1)[0]
    image = sample.image.float()
    assert image.std() > 20
    inside = image[:, sample.masks[0].bool()]
    assert inside.std(dim=1).max() < image.std()


def test_ground_truth_of_drawn_pictures_resolves() -> None:
    truth = ground_truth(shapes("val", 3))
    assert [image["id"] for image in truth["images"]] == [1, 2, 3]
    assert {a["image_id"] for a in truth["annotations"]} == {1, 2, 3}


@pytest.mark.parametrize(
    ("split", "size", "config"),
    [
        ("training", None, ShapesConfig()),
        ("train", 0, ShapesConfig()),
        ("train", 4, ShapesConfig(image_size=64, min_size=60)),
        ("train", 4, ShapesConfig(count=(5, 3))),
    ],
)
def test_what_cannot_be_drawn_is_refused(split: str, size: int | None, config: ShapesConfig) -> None:
    with pytest.raises(ConfigError, match="shapes:"):
        shapes(split, size, config)
