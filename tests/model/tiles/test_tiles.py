import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.core.errors import ConfigError
from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.model.tiles.tiles import merge_tiles, tile_starts, tile_views
from instseg.models.zoo import build_config

SIZE = (100, 160)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500), st.integers(2, 120), st.data())
def test_tiles_cover_the_side_overlap_enough_and_stay_inside(extent, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(extent, tile, overlap)
    assert starts[0] == 0
    if extent <= tile:
        assert starts == [0]
    else:
        assert starts[-1] + tile == extent
        assert all(b - a <= tile - overlap for a, b in itertools.pairwise(starts))


def test_views_lie_in_image_pixels_and_are_scaled_to_the_network():
    views = tile_views((256, 320), 2.0, 512, 128)
    assert [v.offset for v in views] == [(0, 0), (0, 64)]
    assert all(v.content == (512, 512) and v.size == (256, 256) and v.image_size == (256, 320) for v in views)
    small = tile_views((100, 90), 2.0, 512, 128)
    assert len(small) == 1 and small[0].content == (200, 180) and small[0].size == (100, 90)


def test_tiles_of_an_enlarged_image_are_few_and_advance():
    # 32 network pixels are two image pixels here, and 24 round to two as well.
    views = tile_views((50, 40), 16.0, 32, 24)
    assert views[-1].offset == (48, 38) and len(views) == 49 * 39


def test_an_overlap_near_the_tile_makes_no_explosion_of_tiles():
    assert len(tile_views((4000, 4000), 1.0, 256, 255)) <= 60 * 60


def test_tiles_may_share_nothing():
    assert [v.offset for v in tile_views((64, 192), 1.0, 64, 0)] == [(0, 0), (0, 64), (0, 128)]
    assert build_config("solov2_r18", {"tile": 64, "tile_overlap": 0}).tile_overlap == 0


@pytest.mark.parametrize("overlap", [193, 255, 256, 1000])
def test_an_overlap_near_the_tile_is_refused_in_one_line_that_says_what_is_possible(overlap):
    with pytest.raises(ConfigError, match=rf"tile_overlap={overlap} .* give tile_overlap=192 or less\.$"):
        build_config("solov2_r18", {"tile": 256, "tile_overlap": overlap})


def test_a_tile_smaller_than_the_default_overlap_asks_for_another_overlap():
    with pytest.raises(ConfigError, match=r"tile_overlap=128 .* give tile_overlap=48 or less"):
        build_config("solov2_r18", {"tile": 64})


@pytest.mark.parametrize(("tile", "says"), [(100, "such as 96"), (8, "such as 32"), (0, "greater"), (10**9, "less")])
def test_a_tile_that_cannot_be_is_refused_by_name(tile, says):
    with pytest.raises(ConfigError, match=f"tile={tile} cannot be used: .*{says}"):
        build_config("solov2_r18", {"tile": tile, "tile_overlap": 0})


def found(boxes, scores, labels=None):
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    labels = torch.tensor(labels or [0] * len(boxes), dtype=torch.int64)
    return Instances(torch.tensor(scores, dtype=torch.float32), labels, Masks.from_bool(masks))


VIEWS = tile_views(SIZE, 1.0, 100, 40)  # columns 0 to 100 and 60 to 160


def test_an_object_in_the_overlap_is_kept_once_with_its_best_score():
    merged = merge_tiles([found([(70, 10, 90, 30)], [0.6]), found([(71, 10, 90, 30)], [0.8])], VIEWS, 10)
    assert merged.scores.tolist() == [torch.tensor(0.8).item()]
    assert merged.boxes.tolist() == [[71, 10, 90, 30]]


def test_a_mask_that_its_tile_cuts_gives_way_to_the_whole_one():
    cut, whole = found([(80, 10, 100, 30)], [0.9]), found([(80, 10, 130, 30)], [0.5])
    merged = merge_tiles([cut, whole], VIEWS, 10)
    assert merged.boxes.tolist() == [[80, 10, 130, 30]]


def test_neighbors_and_objects_of_other_classes_are_kept():
    a, b = found([(70, 10, 80, 30)], [0.9], [0]), found([(80, 10, 90, 30), (70, 10, 80, 30)], [0.8, 0.7], [0, 1])
    merged = merge_tiles([a, b], VIEWS, 10)
    assert len(merged) == 3
    assert merged.labels.tolist() == [0, 0, 1]


def test_objects_of_one_tile_are_left_to_that_tiles_own_suppression():
    a = found([(10, 10, 30, 30), (10, 10, 30, 30)], [0.9, 0.2])
    assert len(merge_tiles([a, found([], [])], VIEWS, 10)) == 2


def test_the_cap_holds_for_the_whole_image_and_is_flagged():
    merged = merge_tiles([found([(10, 10, 20, 20)], [0.4]), found([(130, 10, 150, 20)], [0.7])], VIEWS, 1)
    assert merged.truncated and merged.boxes.tolist() == [[130, 10, 150, 20]]


def test_a_tile_that_hit_its_own_cap_is_flagged_though_the_image_did_not():
    full = found([(10, 10, 20, 20)], [0.4])
    full = Instances(full.scores, full.labels, full.masks, truncated=True)
    assert merge_tiles([full, found([], [])], VIEWS, 10).truncated
    assert not merge_tiles([found([(10, 10, 20, 20)], [0.4]), found([], [])], VIEWS, 10).truncated


def test_the_cap_holds_for_an_image_of_one_tile():
    one = merge_tiles([found([(10, 10, 20, 20), (30, 10, 40, 20)], [0.8, 0.4])], VIEWS[:1], 1)
    assert one.truncated and one.boxes.tolist() == [[10, 10, 20, 20]]


def test_a_tile_without_objects_leaves_those_of_its_neighbor():
    merged = merge_tiles([found([], []), found([(130, 10, 150, 20)], [0.7])], VIEWS, 10)
    assert merged.boxes.tolist() == [[130, 10, 150, 20]] and merged.image_size == SIZE


def test_masks_without_a_pixel_are_left_out():
    assert len(merge_tiles([found([(10, 10, 10, 10)], [0.9]), found([(130, 10, 150, 20)], [0.7])], VIEWS, 10)) == 1


def test_tiles_without_objects_give_none():
    assert len(merge_tiles([found([], []), found([], [])], VIEWS, 10)) == 0


def test_boxes_without_masks_are_found_once_a_class_and_capped():
    boxes = torch.tensor([[10.0, 10, 30, 30], [11, 10, 31, 30], [60, 10, 80, 30]])
    views = tile_views((64, 96), 1.0, 64, 32)

    def of(scores, labels, ids):
        return Instances(torch.tensor(scores), torch.tensor(labels), boxes=boxes[ids], image_size=(64, 96))

    parts = [of([0.9, 0.7], [0, 1], [0, 1]), of([0.8, 0.6], [0, 0], [1, 2])]
    found = merge_tiles(parts, views, 10)
    assert found.masks is None and found.image_size == (64, 96)
    assert found.labels.tolist() == [0, 1, 0] and found.boxes.tolist() == boxes[[0, 1, 2]].tolist()
    assert len(merge_tiles(parts, views, 2)) == 2 and merge_tiles(parts, views, 2).truncated
