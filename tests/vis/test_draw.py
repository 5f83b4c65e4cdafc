from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from instseg.core import rle
from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.vis.colors import PALETTE, class_colors, instance_colors
from instseg.vis.draw import MAX_LABELS, draw_codes, draw_instances


def objects(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (120, 160), labels: Any = None) -> Instances:
    """Rectangles (x0, y0, x1, y1) with falling scores."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    given = [0] * len(boxes) if labels is None else labels
    return Instances(torch.linspace(0.95, 0.4, len(boxes)), torch.tensor(given), Masks.from_bool(masks))


def gray(size: tuple[int, int] = (120, 160)) -> np.ndarray[Any, Any]:
    return np.full((*size, 3), 100, np.uint8)


def test_only_the_pixels_of_the_masks_change_and_the_image_given_is_left_alone() -> None:
    image = gray()
    out = draw_instances(image, objects((10, 20, 60, 80)), ["cell"], text=False)
    changed = (out != 100).any(axis=2)
    assert changed[20:80, 10:60].all() and changed.sum() == 60 * 50
    assert (image == 100).all()


def test_inside_is_blended_and_outline_stands_out() -> None:
    out = draw_instances(gray(), objects((10, 20, 60, 80)), ["cell"], text=False).astype(int)
    color = PALETTE[0].astype(int)
    assert np.abs(out[50, 30] - (100 * 0.55 + color * 0.45)).max() <= 1
    assert np.abs(out[20, 30] - color).max() < np.abs(out[50, 30] - color).max()


def test_low_scores_are_not_drawn() -> None:
    found = objects((10, 20, 60, 80), (100, 20, 150, 80))
    out = draw_instances(gray(), found, ["cell"], score=0.5, text=False)
    assert (out[:, 90:] == 100).all() and (out[:, :90] != 100).any()


def test_small_object_inside_a_large_one_stays_visible() -> None:
    out = draw_instances(gray(), objects((50, 50, 60, 60), (10, 10, 150, 110)), ["cell"], text=False)
    assert not np.array_equal(out[55, 55], out[90, 90])


def test_names_are_drawn_for_few_objects_and_not_in_a_crowd() -> None:
    few = objects((20, 60, 80, 110))
    assert (draw_instances(gray(), few, ["cell"])[:60] != 100).any()
    crowd = objects(*[(2 * i, 60, 2 * i + 2, 62) for i in range(MAX_LABELS + 1)])
    assert (draw_instances(gray(), crowd, ["cell"])[:55] == 100).all()


def test_names_stay_inside_the_picture_and_do_not_cover_each_other() -> None:
    found = objects((0, 0, 40, 30), (120, 90, 160, 120), (0, 0, 42, 32), size=(120, 160))
    out = draw_instances(gray(), found, ["a very long name that is wider than the whole picture is"])
    assert out.shape == (120, 160, 3)


def test_zoom_enlarges_the_picture_and_smooths_the_outline() -> None:
    out = draw_instances(gray(), objects((10, 20, 60, 80)), ["cell"], text=False, zoom=3)
    assert out.shape == (360, 480, 3)
    assert (out[150, 90] != 100).any() and (out[10, 10] == 100).all()


def test_nothing_found_gives_the_image_back() -> None:
    empty = Instances(torch.zeros(0), torch.zeros(0, dtype=torch.int64), Masks.from_bool(torch.zeros(0, 120, 160)))
    assert np.array_equal(draw_instances(gray(), empty, ["cell"]), gray())


def test_ground_truth_codes_are_drawn_as_predictions_are() -> None:
    found = objects((10, 20, 60, 80), (80, 20, 150, 110))
    codes = found.masks.rle()
    drawn = draw_codes(gray(), codes, [0, 0], ["cell"], text=False)
    assert np.array_equal(drawn, draw_instances(gray(), found, ["cell"], text=False))
    assert draw_codes(gray(), [rle.encode(np.zeros((120, 160)))], [0], ["cell"]).shape == (120, 160, 3)


def test_neighbors_get_different_colors() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 400, (300, 2))
    boxes = np.concatenate([corners, corners + 20], axis=1)
    colors = instance_colors(boxes)
    touching = same = 0
    for i in range(300):
        near = (np.abs(corners - corners[i]) < 20).all(axis=1)
        near[i] = False
        touching += int(near.sum())
        same += int((colors[near] == colors[i]).all(axis=1).sum())
    assert touching > 300 and same == 0


def test_every_class_keeps_its_color_and_thirty_classes_have_thirty() -> None:
    colors = class_colors(np.arange(30))
    assert len({tuple(c) for c in colors.tolist()}) == 30
    assert np.array_equal(class_colors(np.array([3, 3])), colors[[3, 3]])


@pytest.mark.parametrize(("by", "same"), [("class", True), ("instance", False)])
def test_colors_follow_classes_or_objects(by: Any, same: bool) -> None:
    found = objects((10, 20, 40, 80), (50, 20, 80, 80), labels=[1, 1])
    out = draw_instances(gray(), found, ["cell", "bubble"], color_by=by, text=False)
    assert np.array_equal(out[50, 25], out[50, 65]) == same


def test_boxes_are_drawn_as_lines_where_there_are_no_masks():
    boxes = torch.tensor([[10.0, 20, 60, 80], [-5, 100, 500, 300], [100, 10, 100, 10]])
    found = Instances(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 0]), boxes=boxes, image_size=(120, 160))
    out = draw_instances(gray(), found, ["cell"], text=False)
    changed = (out != gray()).any(axis=2)
    assert (
        changed[20, 10:60].all() and changed[79, 10:60].all() and changed[20:80, 10].all() and changed[20:80, 59].all()
    )
    assert not changed[22:78, 12:58].any() and changed[100, :].all()
    named = draw_instances(gray(), found, ["cell"])
    assert (named != out).any() and draw_instances(gray(), found, ["cell"], zoom=2).shape == (240, 320, 3)
