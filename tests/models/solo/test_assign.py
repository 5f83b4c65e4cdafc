import torch

from instseg.models.solo.assign import assign_cells

GRIDS, RANGES = (40, 36, 24, 16, 12), ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
PADDED = (800, 800)


def square(x0, y0, x1, y1):
    mask = torch.zeros(1, *PADDED, dtype=torch.uint8)
    mask[0, y0:y1, x0:x1] = 1
    return torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32), mask


def levels(assignment):
    ends = torch.tensor([s * s for s in GRIDS]).cumsum(0)
    return torch.bucketize(assignment.cells, ends, right=True).tolist()


def test_an_object_is_positive_on_every_level_whose_range_holds_its_scale():
    assert set(levels(assign_cells(*square(100, 100, 170, 170), PADDED, GRIDS, RANGES))) == {0, 1}
    assert set(levels(assign_cells(*square(100, 100, 130, 130), PADDED, GRIDS, RANGES))) == {0}
    assert set(levels(assign_cells(*square(100, 100, 196, 196), PADDED, GRIDS, RANGES))) == {0, 1, 2}  # both ends


def test_an_object_outside_all_ranges_or_without_pixels_is_on_no_level():
    boxes, masks = square(100, 100, 130, 130)
    assert len(assign_cells(boxes, masks, PADDED, (40,), ((96, 200),)).cells) == 0
    assert len(assign_cells(boxes, masks * 0, PADDED, GRIDS, RANGES).cells) == 0


def test_the_positive_cells_lie_around_the_center_of_mass_and_are_at_most_nine():
    assignment = assign_cells(*square(0, 0, 700, 700), PADDED, (40,), ((1, 2048),))
    center = int(349.5 * 40 / 800)
    expected = {(center + dy) * 40 + center + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert set(assignment.cells.tolist()) == expected


def test_of_objects_that_share_a_cell_the_later_one_owns_it_and_both_are_listed():
    box, mask = square(100, 100, 130, 130)
    both = assign_cells(box.repeat(2, 1), mask.repeat(2, 1, 1), PADDED, GRIDS, RANGES)
    assert sorted(both.objects.tolist()) == [0, 1]
    assert both.matched_gt[both.cells].tolist() == [1, 1]
    assert both.owned().objects.tolist() == [1]


def test_background_has_no_owner():
    assignment = assign_cells(*square(100, 100, 130, 130), PADDED, GRIDS, RANGES)
    assert int((assignment.matched_gt >= 0).sum()) == len(assignment.cells.unique())


def test_no_objects_give_no_cells():
    empty = assign_cells(torch.zeros(0, 4), torch.zeros(0, 8, 8, dtype=torch.uint8), (32, 32), GRIDS, RANGES)
    assert len(empty.cells) == 0 and (empty.matched_gt == -1).all() and len(empty.matched_gt) == 3872
