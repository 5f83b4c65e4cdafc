"""The public Matrix NMS, which takes the results of any detector."""

import doctest
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import instseg
from instseg.core.errors import DataError
from instseg.core.masks import Masks
from instseg.ops import mask_nms
from instseg.ops.mask_iou import _dense_intersection, mask_iou
from instseg.ops.matrix_nms import matrix_nms as sorted_matrix_nms


def by_loops(scores, masks, labels, kernel, sigma=2.0):
    """Equations (8) and (9), mask by mask."""
    n = len(scores)
    order = sorted(range(n), key=lambda i: (-float(scores[i]), i))

    def iou(i, j):
        if labels is not None and labels[i] != labels[j]:
            return 0.0
        union = int((masks[i] | masks[j]).sum())
        return int((masks[i] & masks[j]).sum()) / union if union else 0.0

    def fall(u):
        return math.exp(-sigma * u * u) if kernel == "gaussian" else 1 - u

    found = [0.0] * n
    for place, j in enumerate(order):
        factor = 1.0
        for before, i in enumerate(order[:place]):
            worst = max((iou(k, i) for k in order[:before]), default=0.0)
            factor = min(factor, fall(iou(i, j)) / max(fall(worst), 1e-6))
        found[j] = float(scores[j]) * factor
    return torch.tensor(found)


def crowd(n, seed, ties):
    draw = torch.Generator().manual_seed(seed)
    masks = torch.rand(n, 5, 6, generator=draw) > 0.5
    masks[n // 2 :: 2] = masks[0].clone()  # identical ones
    masks[n // 3 :: 5] = False  # and empty ones
    scores = torch.rand(n, generator=draw)
    return (4 * scores).round() / 4 if ties else scores, masks, torch.randint(0, 2, (n,), generator=draw)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(0, 9999),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["gaussian", "linear"]),
)
def test_in_any_order_it_is_the_papers_formula_written_as_loops(n, seed, ties, classes, kernel):
    scores, masks, labels = crowd(n, seed, ties)
    labels = labels if classes else None
    ours = instseg.matrix_nms(scores, masks, labels, kernel=kernel)
    torch.testing.assert_close(ours, by_loops(scores, masks, labels, kernel), atol=1e-5, rtol=0)


def test_sorted_masks_get_what_the_methods_use():
    scores, masks, labels = crowd(9, 3, False)
    scores = scores.sort(descending=True).values
    expected = sorted_matrix_nms(scores, labels, mask_iou(masks, labels))
    assert torch.equal(instseg.matrix_nms(scores, masks, labels), expected)
    agnostic = sorted_matrix_nms(scores, labels, mask_iou(masks), class_agnostic=True)
    assert torch.equal(instseg.matrix_nms(scores, masks), agnostic)


def test_every_form_of_masks_says_the_same():
    scores, masks, _ = crowd(7, 5, False)
    expected = instseg.matrix_nms(scores, masks)
    iou = mask_iou(masks)
    soft = torch.where(masks, 0.7, 0.3)
    forms = [masks.to(torch.uint8), 255 * masks.to(torch.uint8), soft, soft[:, None], masks.numpy(), iou, iou.triu()]
    for form in forms:
        torch.testing.assert_close(instseg.matrix_nms(scores, form), expected)
    torch.testing.assert_close(instseg.matrix_nms(scores, Masks.from_bool(masks)), expected)
    assert torch.equal(instseg.matrix_nms(scores.tolist(), masks), expected)
    torch.testing.assert_close(instseg.matrix_nms(scores.double(), masks), expected.double())
    assert instseg.matrix_nms(scores, soft, threshold=0.8).equal(scores)  # nothing is foreground there


def test_its_arguments_stay_as_they_are_and_no_masks_are_legal():
    scores, masks, labels = crowd(6, 2, True)
    before = scores.clone(), masks.clone(), labels.clone()
    instseg.matrix_nms(scores, masks, labels)
    assert all(torch.equal(a, b) for a, b in zip(before, (scores, masks, labels), strict=True))
    for none in (torch.zeros(0, 4, 4), torch.zeros(0, 0), Masks.from_bool(torch.zeros(0, 4, 4))):
        assert instseg.matrix_nms(torch.zeros(0), none).shape == (0,)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scores": torch.ones(3)}, "2 masks for 3 scores"),
        ({"scores": torch.ones(2, 1)}, "one for each mask"),
        ({"scores": 0.5}, "single number"),
        ({"scores": torch.tensor([0.5, math.nan])}, "NaN"),
        ({"scores": torch.tensor([0.5, -1.0])}, "not logits"),
        ({"scores": ["a", "b"]}, "as an array"),
        ({"masks": torch.ones(2, 3, 4, 4)}, "(2, 3, 4, 4)"),
        ({"masks": torch.ones(2, 9)}, "(2, 9)"),
        ({"masks": 5 * torch.eye(2)}, "outside"),
        ({"masks": torch.full((2, 4, 4), 3.0)}, "not logits"),
        ({"masks": torch.full((2, 4, 4), math.nan)}, "outside"),
        ({"masks": None}, "as an array"),
        ({"labels": torch.zeros(3)}, "labels"),
        ({"kernel": "cosine"}, "gaussian"),
        ({"sigma": 0.0}, "sigma"),
    ],
)
def test_what_cannot_be_is_one_line(change, says):
    fine = {"scores": torch.tensor([0.9, 0.8]), "masks": torch.ones(2, 4, 4, dtype=torch.bool)}
    with pytest.raises(DataError) as caught:
        instseg.matrix_nms(**{**fine, **change})
    assert says in str(caught.value) and str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_pixels_counted_block_by_block_are_the_whole_count():
    masks = torch.rand(6, 9, 11, generator=torch.Generator().manual_seed(0)) < 0.4
    flat = masks.flatten(1).float()
    for values in (1, 7, 60, 10**6):
        assert torch.equal(_dense_intersection(masks, values), flat @ flat.T)


def test_the_example_runs():
    assert doctest.testmod(mask_nms).attempted >= 4
    assert doctest.testmod(mask_nms).failed == 0


def test_the_package_offers_it_without_loading_anything_before():
    code = (
        "import sys, instseg; assert 'torch' not in sys.modules and 'matrix_nms' in dir(instseg);"
        "f = instseg.matrix_nms; assert callable(f) and 'torchvision' not in sys.modules;"
        "import instseg.ops.matrix_nms as m; assert callable(m.matrix_nms) and instseg.matrix_nms is f"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_numpy_scores_work():
    assert instseg.matrix_nms(np.array([0.9, 0.8]), np.zeros((2, 3, 3), dtype=bool)).tolist() == [0.9, 0.8]


def test_an_iou_a_hair_above_one_lowers_no_score_below_zero() -> None:
    for above in (1.0005, 1 + 1e-7):
        for kernel in ("gaussian", "linear"):
            lowered = instseg.matrix_nms([0.9, 0.8, 0.7], torch.full((3, 3), above), kernel=kernel)
            assert lowered[0] == 0.9 and bool((lowered >= 0).all())


@pytest.mark.parametrize("shape", [(3, 0, 5), (3, 5, 0), (3, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.float8_e4m3fn])
def test_masks_without_pixels_overlap_nothing(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert instseg.matrix_nms([0.9, 0.8, 0.7], torch.zeros(shape).to(dtype)).tolist() == pytest.approx([0.9, 0.8, 0.7])


@pytest.mark.parametrize("form", ["tensors", "arrays", "mirrored", "sparse"])
def test_masks_are_taken_as_people_hold_them(form: str) -> None:
    masks = torch.zeros(3, 6, 7, dtype=torch.uint8)
    masks[0, :3] = masks[1, :3] = masks[2, 3:] = 1
    held = {
        "tensors": list(masks),
        "arrays": [mask.numpy() for mask in masks],
        "mirrored": masks.numpy()[:, :, ::-1],
        "sparse": masks.to_sparse(),
    }
    assert torch.equal(instseg.matrix_nms([0.6, 0.9, 0.5], held[form]), instseg.matrix_nms([0.6, 0.9, 0.5], masks))
    assert instseg.matrix_nms([], []).shape == (0,)


@pytest.mark.parametrize(
    "options",
    [{"sigma": float("inf")}, {"sigma": "2"}, {"sigma": float("nan")}, {"threshold": float("nan")}, {"threshold": None},
     {"labels": [0.0, 1.0]}, {"labels": [0]}],
    ids=str,
)  # fmt: skip
def test_options_that_mean_nothing_are_one_line(options: dict) -> None:
    with pytest.raises(DataError, match=r"^matrix_nms: ") as error:
        instseg.matrix_nms([0.9, 0.8], torch.ones(2, 4, 4), **options)
    assert "\n" not in str(error.value)
