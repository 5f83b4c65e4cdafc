"""Dictionaries as torchvision's detection models take them, as targets of a network."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import instseg
from instseg.core.errors import DataError
from instseg.core.target import MASKS as NEEDED
from instseg.model.targets import sizes_of, targets_of
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


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "of type NoneType: give a dictionary with labels"),
        ([LABELS], "of type list: give a dictionary"),
        ({"masks": MASKS, "labels": [1]}, "labels of type list: give a tensor"),
        ({"masks": MASKS, "labels": LABELS.float()}, r"labels of float32: give \(N,\) int64"),
        ({"masks": MASKS, "labels": LABELS.bool()}, r"labels of bool: give \(N,\) int64"),
        ({"masks": MASKS, "labels": LABELS[:, None]}, r"labels of shape \(1, 1\): give \(N,\)"),
        ({"masks": MASKS, "labels": LABELS[0]}, r"labels of shape \(\): give \(N,\)"),
        ({"masks": MASKS, "labels": torch.tensor([-1])}, "labels from -1 to -1, but this model has 2 classes"),
        ({"masks": MASKS.numpy()}, "masks of type ndarray: give a tensor"),
        ({"masks": MASKS[0]}, r"masks of shape \(6, 8\) for 1 labels"),
        ({"masks": MASKS.to(torch.complex64)}, "masks of complex64"),
        ({"masks": MASKS * 255}, "masks with values from 0 to 255: give 0 and 1"),
        ({"masks": MASKS.float() * 255}, "masks with values from 0 to 255"),
        ({"masks": -MASKS.long()}, "masks with values from -1 to 0"),
        ({"masks": MASKS / 0}, "masks with values from nan to nan"),
        ({"masks": MASKS, "boxes": BOXES.tolist()}, "boxes of type list: give a tensor"),
        ({"masks": MASKS, "boxes": BOXES.numpy()}, "boxes of type ndarray: give a tensor"),
        ({"masks": MASKS, "boxes": torch.tensor([[2.0, 1, NAN, 4]])}, "boxes that are not finite"),
        ({"masks": MASKS, "boxes": torch.tensor([[2.0, 1, INF, 4]])}, "boxes that are not finite"),
        ({"masks": MASKS, "boxes": torch.tensor([[-INF, 1, 3, 4]])}, "boxes that are not finite"),
        ({"masks": MASKS, "boxes": torch.tensor([[5.0, 1, 2, 4]])}, "boxes that end before they begin: .* not xywh"),
        ({"masks": MASKS, "boxes": torch.tensor([[1, 4, 2, 3]])}, "boxes that end before they begin"),
        ({"masks": MASKS, "semantic": np.zeros((6, 8))}, "semantic of type ndarray"),
        ({"masks": MASKS, "semantic": torch.zeros(6, 8)}, "semantic of float32: give"),
        ({"masks": MASKS, "semantic": torch.full((6, 8), -1)}, "a semantic map with values from -1 to -1"),
        ({"masks": MASKS, "semantic": torch.full((6, 8), 300)}, "a semantic map with values from 300 to 300"),
    ],
)
def test_each_mistake_is_one_line_that_says_which_target_and_what_to_give(given: Any, said: str) -> None:
    good = {"labels": LABELS, "masks": MASKS}
    bad = {"labels": LABELS, **given} if isinstance(given, dict) else given
    with pytest.raises(DataError, match=f"^target 1.*{said}") as error:
        targets_of([good, bad], [(6, 8)] * 2, 2, frozenset({"masks"}), frozenset({"masks"}))
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_other_ways_of_writing_the_same_are_taken() -> None:
    needs = frozenset({"masks", "semantic"})
    target = made(
        needs,
        labels=LABELS.to(torch.int32),
        boxes=BOXES.long(),
        masks=MASKS.long(),
        semantic=torch.full((6, 8), 255, dtype=torch.uint8),
        image_id=7,
        area=[3.0],
    )
    assert target.labels.dtype == torch.int64 and target.boxes.dtype == torch.float32
    assert target.masks.dtype == torch.uint8 and target.semantic is not None and target.semantic.dtype == torch.int64
    flat = made(needs - {"semantic"}, boxes=torch.tensor([[2.0, 1, 2, 4]]), masks=MASKS)
    assert flat.boxes.tolist() == [[2, 1, 2, 4]]
    empty = made(needs - {"semantic"}, labels=torch.tensor([]), masks=MASKS[:0].bool(), boxes=BOXES[:0])
    assert len(empty) == 0 and empty.labels.dtype == torch.int64


class Watch(TorchDispatchMode):
    """Counts values that are waited for and tensors that are made on other devices than the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.waits += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        self.copies += func is torch.ops.aten._to_copy.default and found.device.type == "meta"
        return found


def wanted() -> frozenset[Any]:
    return frozenset({"masks"})


def many(count: int) -> list[dict[str, Tensor]]:
    return [{"labels": LABELS, "masks": MASKS, "boxes": BOXES} for _ in range(count)]


def test_no_value_is_waited_for_whatever_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    lists: list[int] = []
    tolist = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: lists.append(1) or tolist(self))
    for count in (1, 8):
        lists.clear()
        with Watch() as watch:
            targets_of(many(count), [(6, 8)] * count, 2, wanted(), wanted())
        assert watch.waits == 0 and len(lists) == 1  # one wait for the whole batch


def test_nothing_is_copied_to_the_device_before_everything_is_checked() -> None:
    bad = [*many(2), {"labels": torch.tensor([5]), "masks": MASKS}]
    with Watch() as watch, pytest.raises(DataError, match="target 2: labels from 5 to 5"):
        targets_of(bad, [(6, 8)] * 3, 2, wanted(), wanted(), "meta")
    assert watch.copies == 0
    with Watch() as watch:
        found = targets_of(many(2), [(6, 8)] * 2, 2, wanted(), wanted(), "meta")
    assert watch.copies >= 2 * 3 and all(t.labels.is_meta and t.boxes.is_meta and t.masks.is_meta for t in found)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([torch.rand(6, 8)], r"image 0 is of shape \(6, 8\): give \(3, H, W\)"),
        (torch.rand(3, 6, 8), r"image 0 is of shape \(6, 8\)"),
        ([torch.rand(3, 6, 8), torch.rand(6, 8, 3)], r"image 1 is of shape \(6, 8, 3\)"),
        ([np.zeros((3, 6, 8))], "image 0 is of type ndarray: give a tensor"),
        ([torch.rand(3, 0, 8)], r"image 0 is of shape \(3, 0, 8\)"),
    ],
)
def test_what_is_no_image_is_named(images: Any, said: str) -> None:
    model = instseg.create_model("solov2_r18", 2, backbone="resnet10t", fpn_channels=16, tower_channels=16)
    with pytest.raises(DataError, match=said):
        model.train()(images, [{"labels": LABELS, "masks": MASKS}] * len(images))
    with pytest.raises(DataError, match=said):
        model.eval()(images)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.float8_e4m3fn])
def test_masks_and_labels_of_any_type_that_can_hold_them(dtype: torch.dtype) -> None:
    masks = torch.zeros(1, 6, 8)
    masks[0, 1:4, 2:7] = 1
    given = {"labels": torch.tensor([1]), "masks": masks.to(dtype)}
    if not dtype.is_floating_point:
        given["labels"] = given["labels"].to(dtype)
    made = targets_of([given], [(6, 8)], 2, NEEDED, NEEDED)[0]
    assert torch.equal(made.masks, masks.to(torch.uint8)) and made.labels.dtype == torch.int64
    assert made.boxes.tolist() == [[2, 1, 7, 4]]


@pytest.mark.parametrize(
    ("given", "fault"),
    [(iter([]), "^targets of type"), (3, "^targets of type int"), ([], "^no images and no targets"),
     ([{"labels": torch.tensor([0]), "masks": torch.ones(1, 6, 8).to_sparse()}], "masks of layout"),
     ([{"labels": torch.tensor([0]), "masks": torch.ones(1, 6, 8), "boxes": torch.ones(1, 4, dtype=torch.bool)}],
      "boxes of bool")],
)  # fmt: skip
def test_what_is_no_list_of_targets_is_one_line(given: object, fault: str) -> None:
    sizes = [(6, 8)] if given != [] else []
    with pytest.raises(DataError, match=fault) as error:
        targets_of(given, sizes, 2, NEEDED, NEEDED)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_images_that_are_none_are_one_line() -> None:
    with pytest.raises(DataError, match=r"^images of type NoneType"):
        sizes_of(None)  # type: ignore[arg-type]
