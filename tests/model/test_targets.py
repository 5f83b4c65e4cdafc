"""Dictionaries as torchvision's detection models take them, as targets of a network."""

from typing import Any

import pytest
import torch

from instseg.core.errors import DataError
from instseg.model.targets import targets_of
from instseg.models.base import Target

MASKS = torch.zeros(1, 6, 8, dtype=torch.uint8)
MASKS[0, 1:4, 2:7] = 1
LABELS = torch.tensor([1])
BOXES = torch.tensor([[2.0, 1, 7, 4]])


def made(needs: frozenset[str], optional: frozenset[str] = frozenset(), **given: Any) -> Target:
    return targets_of([{"labels": LABELS, **given}], [(6, 8)], 2, needs, needs | optional)[0]  # type: ignore[arg-type]


def test_boxes_are_those_of_the_masks_where_none_are_given() -> None:
    target = made(frozenset({"masks"}), masks=MASKS.bool())
    assert target.boxes.tolist() == BOXES.tolist() and torch.equal(target.masks, MASKS)


def test_a_box_detector_needs_no_masks_and_keeps_none() -> None:
    assert made(frozenset(), boxes=BOXES).shapes is None
    assert made(frozenset(), masks=MASKS).shapes is None
    with pytest.raises(DataError, match="neither boxes nor masks"):
        made(frozenset())


def test_a_matte_is_never_rounded_and_a_method_of_hard_masks_sees_it_cut_at_half() -> None:
    alpha = MASKS * torch.linspace(0.3, 0.9, 8)
    soft = made(frozenset({"mattes"}), masks=alpha)
    assert soft.shapes is not None and soft.shapes.soft and torch.equal(soft.masks, alpha)
    hard = made(frozenset({"masks"}), masks=alpha)
    assert hard.masks.dtype == torch.uint8 and torch.equal(hard.masks.bool(), alpha >= 0.5)
    assert hard.boxes.tolist() == [[3, 1, 7, 4]]


def test_a_map_of_classes_is_kept_where_it_is_used() -> None:
    semantic = torch.full((6, 8), 255)
    assert made(frozenset(), boxes=BOXES, semantic=semantic).semantic is None
    assert made(frozenset(), frozenset({"semantic"}), boxes=BOXES, semantic=semantic).semantic is semantic
    with pytest.raises(DataError, match="no semantic map"):
        made(frozenset({"semantic"}), boxes=BOXES)
    with pytest.raises(DataError, match=r"semantic map of \(2, 2\)"):
        made(frozenset({"semantic"}), boxes=BOXES, semantic=semantic[:2, :2])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"boxes": BOXES}, "has no masks"),
        ({"masks": MASKS[:, 1:]}, "masks of shape"),
        ({"masks": MASKS, "boxes": BOXES[0]}, "boxes of shape"),
        ({"masks": MASKS, "labels": torch.tensor([2])}, "labels from 2 to 2"),
        ({"masks": MASKS, "labels": None}, "has no labels"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"target 0.*{said}"):
        made(frozenset({"masks"}), **given)
