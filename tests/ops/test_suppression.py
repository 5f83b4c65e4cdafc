"""Soft, Hard and Fast NMS against plain loops, with ties, zeros and identical masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.ops.nms import NMSOptions, nms, select_top
from instseg.ops.voting import vote_weights

OVERLAPS = st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])
SCORES = st.sampled_from([0.0, 0.1, 0.5, 0.5, 0.9, 1.0]) | st.floats(0, 1, width=32)


@st.composite
def crowds(draw):
    """Scores (N,) descending, labels (N,) of two classes and an IoU (N, N)."""
    n = draw(st.integers(1, 8))
    scores = sorted(draw(st.lists(SCORES, min_size=n, max_size=n)), reverse=True)
    iou = torch.eye(n)
    for i in range(n):
        for j in range(i):
            iou[i, j] = iou[j, i] = draw(OVERLAPS)
    return torch.tensor(scores), torch.tensor(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))), iou


def soft_by_loops(scores, labels, iou, kernel, threshold):
    left = {i: float(s) for i, s in enumerate(scores)}
    found = [0.0] * len(scores)
    while left:
        best = min(left, key=lambda i: (-left[i], i))
        found[best] = left.pop(best)
        for i in left:
            if labels[i] != labels[best]:
                continue
            u = float(iou[best, i])
            if kernel == "gaussian":
                left[i] *= math.exp(-2 * u**2)
            elif u > threshold:
                left[i] *= 1 - u
    return torch.tensor(found)


def hard_by_loops(scores, labels, iou, threshold, fast):
    kept = []
    for j in range(len(scores)):
        rivals = range(j) if fast else kept
        if all(labels[i] != labels[j] or iou[i, j] <= threshold for i in rivals):
            kept.append(j)
    return torch.tensor([float(s) if j in kept else 0.0 for j, s in enumerate(scores)])


@settings(max_examples=200, deadline=None)
@given(crowds(), st.sampled_from(["gaussian", "linear"]), st.sampled_from([0.0, 0.5, 1.0]))
def test_soft_nms_is_the_sequential_loop(crowd, kernel, threshold):
    ours = nms(*crowd, NMSOptions("soft", kernel, threshold=threshold))
    torch.testing.assert_close(ours, soft_by_loops(*crowd, kernel, threshold), atol=1e-6, rtol=0)


@settings(max_examples=200, deadline=None)
@given(crowds(), st.sampled_from([0.0, 0.5, 1.0]))
def test_hard_and_fast_nms_are_their_loops(crowd, threshold):
    for kind in ("hard", "fast"):
        ours = nms(*crowd, NMSOptions(kind, threshold=threshold))
        assert torch.equal(ours, hard_by_loops(*crowd, threshold, kind == "fast"))


@pytest.mark.parametrize("kind", ["soft", "hard", "fast", "matrix"])
def test_the_best_of_each_group_of_identical_masks_keeps_its_score(kind):
    iou = torch.eye(4)
    iou[0, 1] = iou[1, 0] = iou[2, 3] = iou[3, 2] = 1
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.zeros(4, dtype=torch.int64)
    options = NMSOptions(kind, "linear")
    assert nms(scores, labels, iou, options).tolist() == pytest.approx([0.9, 0, 0.7, 0])
    order, left, _ = select_top(scores, labels, iou, options, 0.05, 10)
    assert order.tolist() == [0, 2] and left.tolist() == pytest.approx([0.9, 0.7])


@settings(max_examples=100, deadline=None)
@given(crowds(), st.sampled_from(["soft", "hard", "fast", "matrix"]), st.sampled_from(["gaussian", "linear"]))
def test_the_best_mask_is_never_lowered_and_none_is_raised(crowd, kind, kernel):
    scores = crowd[0]
    ours = nms(*crowd, NMSOptions(kind, kernel))
    assert ours[0] == scores[0] and bool((ours <= scores + 1e-6).all()) and bool((ours >= 0).all())


def test_a_mask_with_votes_of_no_weight_is_its_own():
    iou, labels = torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64)
    for scheme in ("score", "iou"):
        votes = vote_weights(scheme, 0.5, iou, labels, torch.zeros(2), torch.tensor([1, 0]))
        assert votes.tolist() == [[0.0, 1.0], [1.0, 0.0]]
