import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.infer.tiles import merge_tiles, tile_starts, tile_views

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


def test_neighbours_and_objects_of_other_classes_are_kept():
    a, b = found([(70, 10, 80, 30)], [0.9], [0]), found([(80, 10, 90, 30), (70, 10, 80, 30)], [0.8, 0.7], [0, 1])
    merged = merge_tiles([a, b], VIEWS, 10)
    assert len(merged) == 3
    assert merged.labels.tolist() == [0, 0, 1]


def test_objects_of_one_tile_are_left_to_that_tiles_own_suppression():
    a = found([(10, 10, 30, 30), (10, 10, 30, 30)], [0.9, 0.2])
    assert len(merge_tiles([a, found([], [])], VIEWS, 10)) == 2


def test_the_cap_holds_for_the_whole_image_and_is_flagged():
    merged = merge_tiles([found([(10, 10, 20, 20)], [0.4]), found([(130, 10, 150, 20)], [0.7])], VIEWS, 1)
    assert merged.capped and merged.boxes.tolist() == [[130, 10, 150, 20]]


def test_tiles_without_objects_give_none():
    assert len(merge_tiles([found([], []), found([], [])], VIEWS, 10)) == 0
