"""Objects that are cut by tiles come back as they were: masks are cut as tiles cut them, merged, and compared."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from instseg.core.geometry import InputGeometry
from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.model.tiles.seams import pieces
from instseg.model.tiles.tiles import merge_tiles, tile_views

KINDS = ("ellipse", "ring", "u", "bar", "frame", "rectangle", "blob", "comb")


def largest_piece(mask):
    numbered = pieces(mask)
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    return (numbered == sizes.argmax()) & mask


def draw(kind, size, r):
    """One random object, connected or empty."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    cy, cx = r.uniform(0, height), r.uniform(0, width)
    turn = r.uniform(0, 3.1)
    along, across = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn), (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
    distance = np.hypot(x - cx, y - cy)
    side = r.uniform(16, min(size))
    if kind == "ellipse":
        mask = (along / r.uniform(4, height / 2)) ** 2 + (across / r.uniform(4, width / 2)) ** 2 < 1
    elif kind == "ring":
        mask = (distance < side / 2) & (distance > side / 2 * r.uniform(0.3, 0.85))
    elif kind == "u":
        wall = max(4, side * r.uniform(0.1, 0.3))
        mask = (abs(along) < side / 2) & (abs(across) < side / 2)
        mask &= ~((abs(along) < side / 2 - wall) & (across < side / 2 - wall))
    elif kind == "bar":
        mask = abs(along) < r.uniform(1.5, 4)
    elif kind == "frame":
        mask = distance > r.uniform(0, height / 3)
    elif kind == "rectangle":
        mask = (abs(x - cx) < side / 2) & (abs(y - cy) < r.uniform(2, height / 2))
    elif kind == "blob":
        noise = torch.rand(
            1, 1, height // 8 + 2, width // 8 + 2, generator=torch.Generator().manual_seed(r.randrange(99))
        )
        mask = F.interpolate(noise, size=size, mode="bicubic")[0, 0].numpy() > r.uniform(0.4, 0.6)
    else:
        pitch = r.randint(12, 40)
        mask = ((x % pitch < pitch * 0.4) | (abs(y - cy) < 5)) & (abs(x - cx) < side) & (abs(y - cy) < side)
    return largest_piece(mask)


def scattered(size, count, r):
    """Objects of all kinds, none on top of another."""
    free, found = np.ones(size, dtype=bool), []
    for _ in range(count):
        mask = largest_piece(draw(r.choice(KINDS), size, r) & free)
        if mask.sum() >= 30:
            found.append(mask)
            free &= ~mask
    return found


def mosaic(size, count, r):
    """Objects that touch each other everywhere and leave nothing free."""
    y, x = np.mgrid[: size[0], : size[1]]
    centers = [(r.uniform(0, size[0]), r.uniform(0, size[1])) for _ in range(count)]
    nearest = np.argmin([(y - cy) ** 2 + (x - cx) ** 2 for cy, cx in centers], axis=0)
    return [nearest == i for i in range(count) if (nearest == i).any()]


def seen(masks, view, scores=None, labels=None, stride=1):
    """What a tile returns that sees its part of each mask and nothing else, at 1/``stride`` of the input."""
    (top, left), (height, width) = view.offset, view.size
    shown = [(k, m[top : top + height, left : left + width]) for k, m in enumerate(masks)]
    shown = [(k, m) for k, m in shown if m.any()]
    padded = [-(-side // stride) * stride for side in view.content]
    soft = torch.zeros(0, padded[0] // stride, padded[1] // stride)
    if shown:
        soft = torch.from_numpy(np.stack([m for _, m in shown])).float()[:, None]
        if view.content != view.size:
            soft = F.interpolate(soft, size=view.content, mode="bilinear", antialias=True)
        soft = F.pad(soft, (0, padded[1] - view.content[1], 0, padded[0] - view.content[0]), mode="replicate")
        soft = F.avg_pool2d(soft, stride)[:, 0]
    score = torch.tensor([0.8 if scores is None else scores[k] for k, _ in shown])
    label = torch.tensor([0 if labels is None else labels[k] for k, _ in shown], dtype=torch.int64)
    order = score.argsort(descending=True, stable=True)
    return Instances(score[order], label[order], Masks.from_maps(soft[order], view.content, stride).to_image(view))


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def assert_same(found, truth, at_least=0.995):
    assert len(found) == len(truth)
    masks = found.masks.bool().numpy()
    for i, mask in enumerate(truth):
        best = max(iou(mask, other) for other in masks)
        assert best >= at_least, f"object {i} of {mask.sum()} pixels comes back with IoU {best:.4f}"


def merged(masks, views, **options):
    return merge_tiles([seen(masks, view, **options) for view in views], views, 1000)


def random_case(make: Callable, seed: int, overlap: float):
    r = random.Random(seed)
    tile = r.choice([32, 48, 64])
    size = (r.randint(tile + 1, 4 * tile), r.randint(tile // 2, 4 * tile))
    return make(size, r.randint(1, 8), r), tile_views(size, 1.0, tile, round(overlap * tile))


def box(size, y0, y1, x0, x1):
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_an_object_larger_than_the_overlap_comes_back_whole():
    size = (256, 448)
    views = tile_views(size, 1.0, 256, 64)
    mask = box(size, 60, 160, 180, 280)  # 100 x 100 pixels across the seam
    found = merged([mask], views)
    assert found.masks.areas().tolist() == [10_000]


def test_an_object_larger_than_a_tile_comes_back_as_one():
    size = (448, 448)
    mask = box(size, 74, 374, 70, 370)  # 300 x 300, in four tiles
    found = merged([mask], tile_views(size, 1.0, 256, 64))
    assert_same(found, [mask], at_least=1.0)


@pytest.mark.parametrize("overlap", [0, 0.02, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("make", [scattered, mosaic])
def test_cut_objects_come_back_as_they_were(make, overlap):
    for seed in range(4):
        truth, views = random_case(make, seed, overlap)
        assert_same(merged(truth, views), truth)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [0.02, 0.1, 0.25, 0.4, 0.5])
@pytest.mark.parametrize("make", [scattered, mosaic])
def test_cut_objects_come_back_as_they_were_whatever_the_scene(make, overlap):
    for seed in range(150):
        truth, views = random_case(make, seed, overlap)
        assert_same(merged(truth, views), truth)


@pytest.mark.slow
@pytest.mark.parametrize("make", [scattered, mosaic])
def test_tiles_that_only_meet_rarely_mistake_one_object_for_another(make):
    """Where an outline happens to run along a seam, two objects look like one: 1 in 100 scenes at most."""
    wrong = 0
    for seed in range(200):
        truth, views = random_case(make, seed, 0)
        try:
            assert_same(merged(truth, views), truth)
        except AssertionError:
            wrong += 1
    assert wrong <= 2


@pytest.mark.parametrize("overlap", [0, 32])
def test_holes_are_kept(overlap):
    size = (192, 192)
    y, x = np.mgrid[:192, :192]
    ring = abs(np.hypot(y - 96, x - 90) - 60) < 20
    found = merged([ring], tile_views(size, 1.0, 96, overlap))
    assert_same(found, [ring], at_least=1.0)
    assert [len(rings) for rings in found.masks.polygons()[0]] == [2]  # an outline and a hole


@pytest.mark.parametrize("overlap", [0, 1, 8, 32])
def test_touching_neighbors_of_one_class_stay_apart_across_a_seam(overlap):
    size = (64, 128 - overlap)
    views = tile_views(size, 1.0, 64, overlap)
    upper, lower = box(size, 0, 30, 10, 110 - overlap), box(size, 30, 64, 10, 110 - overlap)
    assert_same(merged([upper, lower], views), [upper, lower], at_least=1.0)


@pytest.mark.parametrize("border", range(54, 75))
def test_touching_neighbors_stay_apart_where_their_border_runs_near_the_seam(border):
    size = (64, 112)
    views = tile_views(size, 1.0, 64, 16)  # the tiles share columns 48 to 64
    left, right = box(size, 10, 50, 4, border), box(size, 10, 50, border, 110)
    assert_same(merged([left, right], views), [left, right], at_least=1.0)


@pytest.mark.parametrize("border", [61, 62, 63, 65, 66])
def test_touching_neighbors_stay_apart_where_tiles_only_meet_near_their_border(border):
    size = (64, 128)
    views = tile_views(size, 1.0, 64, 0)
    left, right = box(size, 10, 50, 4, border), box(size, 10, 50, border, 120)
    assert_same(merged([left, right], views), [left, right], at_least=1.0)


@pytest.mark.parametrize("overlap", [0, 16])
def test_arms_that_a_tile_takes_for_two_objects_are_joined_by_the_tile_that_sees_the_base(overlap):
    size = (128 - overlap, 64)
    views = tile_views(size, 1.0, 64, overlap)
    whole = box(size, 20, 100, 6, 16) | box(size, 20, 100, 40, 50) | box(size, 90, 100, 6, 50)
    arms = [whole & box(size, 0, 64, 0, 30), whole & box(size, 0, 64, 30, 64)]
    found = merge_tiles([seen(arms, views[0]), seen([whole], views[1])], views, 10)
    assert_same(found, [whole], at_least=1.0)


def test_one_part_is_not_joined_with_two_that_a_tile_has_told_apart():
    size = (64, 112)
    views = tile_views(size, 1.0, 64, 16)
    upper, lower = box(size, 10, 30, 20, 100), box(size, 30, 40, 20, 100)
    # The right tile takes both for one.
    parts = [seen([upper, lower], views[0]), seen([upper | lower], views[1])]
    found = merge_tiles(parts, views, 10)
    assert len(found) == 2
    assert max(iou(lower, m) for m in found.masks.bool().numpy()) > 0.4


def test_parts_of_other_classes_are_not_joined():
    size = (64, 112)
    views = tile_views(size, 1.0, 64, 16)
    mask = box(size, 10, 40, 20, 100)
    parts = [seen([mask], views[0], labels=[0]), seen([mask], views[1], labels=[1])]
    assert sorted(merge_tiles(parts, views, 10).labels.tolist()) == [0, 1]


def test_scores_that_differ_moderately_join_and_the_mean_counts_pixels():
    size = (64, 112)
    views = tile_views(size, 1.0, 64, 16)
    mask = box(size, 10, 40, 34, 108)  # 30 columns on the left, 60 on the right
    found = merge_tiles([seen([mask], views[0], [0.5]), seen([mask], views[1], [0.8])], views, 10)
    assert len(found) == 1 and found.scores.tolist() == pytest.approx([0.7])


def test_scores_that_have_nothing_in_common_do_not_join():
    size = (64, 112)
    views = tile_views(size, 1.0, 64, 16)
    mask = box(size, 10, 40, 10, 108)
    found = merge_tiles([seen([mask], views[0], [0.95]), seen([mask], views[1], [0.1])], views, 10)
    assert len(found) == 2


def wavering(mask, seed, pixels):
    """The mask with its outline moved at random, by up to some pixels."""
    soft = F.avg_pool2d(F.pad(torch.from_numpy(mask).float()[None, None], (4, 4, 4, 4), mode="replicate"), 9, 1)[0, 0]
    noise = torch.rand(
        1, 1, mask.shape[0] // 6 + 2, mask.shape[1] // 6 + 2, generator=torch.Generator().manual_seed(seed)
    )
    moved = F.interpolate(noise * 2 - 1, size=mask.shape, mode="bilinear")[0, 0] * pixels / 9
    return (soft + moved > 0.5).numpy()


@pytest.mark.parametrize("overlap", [0, 8, 16, 32])
def test_parts_whose_outlines_differ_by_a_pixel_or_two_still_join(overlap):
    for seed in range(4):
        r = random.Random(seed)
        size = (r.randint(80, 200), r.randint(80, 200))
        truth = [m for m in mosaic(size, r.randint(2, 6), r) if m.sum() > 600]
        views = tile_views(size, 1.0, 64, overlap)
        parts = [
            seen(
                [wavering(m, 100 * k + i, 1 + seed % 2) for i, m in enumerate(truth)],
                view,
                [r.uniform(0.5, 0.9) for _ in truth],
            )
            for k, view in enumerate(views)
        ]
        assert_same(merge_tiles(parts, views, 1000), truth, at_least=0.8)


@pytest.mark.parametrize(("scale", "stride"), [(1.0, 4), (0.5, 2), (0.75, 4), (1.5, 4), (2.0, 4)])
def test_soft_masks_of_lower_resolution_come_back_as_one_look_would_show_them(scale, stride):
    size = (round(300 / scale), round(270 / scale))
    y, x = np.mgrid[: size[0], : size[1]] * scale
    truth = [
        np.hypot(y - 110, x - 120) < 90,
        abs(np.hypot(y - 240, x - 190) - 40) < 14,
        abs(y - 0.5 * x - 215) < 10,
    ]
    truth[2] &= ~truth[1] & (x < 120)
    views = tile_views(size, scale, 128, 32)
    found = merged(truth, views, stride=stride)
    content = (round(size[0] * scale), round(size[1] * scale))
    once = seen(truth, InputGeometry(content, size, size), stride=stride)
    assert len(found) == len(truth)
    for mask in truth:
        tiled, whole = (max(iou(mask, m) for m in one.masks.bool().numpy()) for one in (found, once))
        assert tiled > whole - 0.005
    assert max(iou(truth[0], m) for m in found.masks.bool().numpy()) >= 0.995


def test_an_object_on_top_of_another_is_kept_where_each_tile_kept_it():
    size = (64, 112)
    views = tile_views(size, 1.0, 64, 16)
    outer, inner = box(size, 5, 60, 5, 105), box(size, 20, 40, 40, 70)
    assert_same(merged([outer, inner], views), [outer, inner], at_least=1.0)


def test_a_large_object_is_not_given_up_for_a_small_one_inside_it():
    size = (64, 112)
    views = tile_views(size, 1.0, 64, 16)
    large, speck = box(size, 5, 60, 5, 105), box(size, 20, 26, 54, 60)
    parts = [seen([large], views[0], [0.7]), seen([large, speck], views[1], [0.7, 0.9])]
    found = merge_tiles(parts, views, 10)
    assert max(iou(large, m) for m in found.masks.bool().numpy()) == 1


def test_a_sliver_at_the_border_of_a_tile_that_the_next_tile_does_not_see_is_dropped():
    size = (64, 112)
    views = tile_views(size, 1.0, 64, 16)
    sliver = box(size, 10, 30, 48, 50)
    assert len(merge_tiles([seen([], views[0]), seen([sliver], views[1])], views, 10)) == 0


def test_the_cap_counts_objects_and_not_their_parts():
    size = (64, 400)
    views = tile_views(size, 1.0, 64, 16)
    long, short = box(size, 10, 20, 5, 395), box(size, 30, 50, 100, 110)
    found = merge_tiles([seen([long, short], view, [0.6, 0.9]) for view in views], views, 2)
    assert_same(found, [long, short], at_least=1.0)
    assert not found.truncated and found.scores.tolist() == pytest.approx([0.9, 0.6])
    fewer = merge_tiles([seen([long, short], view, [0.6, 0.9]) for view in views], views, 1)
    assert fewer.truncated and fewer.masks.areas().tolist() == [200]


def test_a_joined_mask_takes_memory_of_its_window_and_not_of_the_image():
    size = (10_000, 10_000)
    views = [InputGeometry((512, 512), (512, 512), size, (y, x)) for y in (4000, 4448) for x in (4000, 4448)]
    ones = torch.ones(1, 128, 128)
    parts = [
        Instances(torch.tensor([0.8]), torch.tensor([0]), Masks.from_maps(ones, view.content, 4).to_image(view))
        for view in views
    ]
    found = merge_tiles(parts, views, 10)
    assert found.masks.areas().tolist() == [960 * 960]
    assert found.masks.values.numel() == 960 * 960
