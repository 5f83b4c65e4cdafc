import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.ops.coords import append_coordinates
from instseg.ops.deform import deform_conv2d
from instseg.ops.dynamic_conv import dynamic_conv
from instseg.ops.mask_iou import mask_iou
from instseg.ops.matrix_nms import matrix_nms
from instseg.ops.nms import NMSOptions, nms, select_top
from instseg.ops.point_nms import point_nms
from instseg.ops.resize import resize


def test_coordinates_run_from_minus_one_to_one_x_before_y():
    out = append_coordinates(torch.zeros(2, 3, 4, 5))
    assert out.shape == (2, 5, 4, 5)
    torch.testing.assert_close(out[1, 3, 2], torch.linspace(-1, 1, 5))
    torch.testing.assert_close(out[0, 4, :, 3], torch.linspace(-1, 1, 4))
    assert append_coordinates(torch.zeros(1, 1, 1, 1)).isfinite().all()


def test_halving_an_even_map_is_average_pooling():
    x = torch.rand(1, 2, 8, 12)
    torch.testing.assert_close(resize(x, (4, 6)), F.avg_pool2d(x, 2))


def test_a_score_survives_where_no_upper_or_left_neighbor_is_larger():
    scores = torch.tensor([[0.1, 0.9, 0.2], [0.3, 0.2, 0.8], [0.3, 0.1, 0.05]])[None, None]
    kept = torch.tensor([[0.1, 0.9, 0.0], [0.3, 0.0, 0.0], [0.3, 0.0, 0.0]])
    assert torch.equal(point_nms(scores)[0, 0], kept)


def test_mask_iou_counts_pixels():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 1:3], masks[2] = True, True, False
    torch.testing.assert_close(mask_iou(masks), torch.tensor([[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 0]]))


@pytest.mark.parametrize(("density", "size"), [(0.02, (9, 70)), (0.5, (40, 130)), (0.9, (7, 64)), (0.0, (5, 5))])
def test_mask_iou_is_the_dense_product_whatever_the_masks(density, size):
    draw = torch.Generator().manual_seed(0)
    masks = torch.rand(30, *size, generator=draw) < density
    masks[::3, : size[0] // 2] = False  # masks whose boxes do not meet
    masks[1::3, size[0] // 2 :] = False
    flat = masks.flatten(1).double()
    shared, areas = flat @ flat.T, flat.sum(dim=1)
    expected = (shared / (areas[:, None] + areas - shared).clamp(min=1)).float()
    assert torch.equal(mask_iou(masks), expected)
    assert torch.equal(mask_iou(masks.to(torch.uint8)), expected)
    assert mask_iou(masks[:0]).shape == (0, 0)


def test_mask_iou_leaves_pairs_of_other_labels_out():
    masks = torch.ones(3, 4, 4, dtype=torch.bool)
    expected = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert torch.equal(mask_iou(masks, torch.tensor([5, 2, 5])), expected)


def test_a_single_mask_keeps_its_score_and_none_stay_none():
    assert matrix_nms(torch.tensor([0.7]), torch.tensor([0]), torch.ones(1, 1)).tolist() == pytest.approx([0.7])
    assert matrix_nms(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0)).shape == (0,)


def test_the_second_of_two_identical_masks_decays_by_the_gaussian_of_one():
    scores, iou = torch.tensor([0.9, 0.8]), torch.ones(2, 2)
    same = matrix_nms(scores, torch.tensor([1, 1]), iou)
    torch.testing.assert_close(same, torch.tensor([0.9, 0.8 * math.exp(-2)]))
    assert torch.equal(matrix_nms(scores, torch.tensor([1, 2]), iou), scores)
    torch.testing.assert_close(matrix_nms(scores, torch.tensor([1, 2]), iou, class_agnostic=True), same)


def test_identical_masks_give_no_nan_with_the_linear_kernel():
    decayed = matrix_nms(torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64), torch.ones(3, 3), "linear")
    assert decayed.isfinite().all() and decayed[1] == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(0, 999))
def test_matrix_nms_is_the_papers_formula_written_as_loops(n, seed):
    g = torch.Generator().manual_seed(seed)
    masks = torch.rand(n, 6, 6, generator=g) > 0.5
    scores = torch.rand(n, generator=g).sort(descending=True).values
    iou = mask_iou(masks)
    expected = []
    for j in range(n):
        factors = [1.0]
        for i in range(j):
            worst = max([float(iou[k, i]) for k in range(i)], default=0.0)
            # The paper divides by sigma; its 0.5 is a multiplier of 2.
            factors.append(math.exp(-(float(iou[i, j]) ** 2) / 0.5) / math.exp(-(worst**2) / 0.5))
        expected.append(float(scores[j]) * min(factors))
    ours = matrix_nms(scores, torch.zeros(n, dtype=torch.int64), iou)
    torch.testing.assert_close(ours, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [1, 3])
def test_a_dynamic_convolution_is_a_convolution_with_that_kernel(k):
    features, kernels = torch.randn(4, 7, 9), torch.randn(5, 4 * k * k)
    expected = torch.stack(
        [F.conv2d(features[None], kernel.view(1, 4, k, k), padding=k // 2)[0, 0] for kernel in kernels]
    )
    torch.testing.assert_close(dynamic_conv(features, kernels, k), expected, atol=1e-4, rtol=1e-4)
    assert dynamic_conv(features, kernels[:0], k).shape == (0, 7, 9)


def overlapping(n, seed):
    """Descending scores, labels of two classes and a plausible IoU matrix."""
    draw = torch.Generator().manual_seed(seed)
    masks = torch.zeros(n, 24, 24, dtype=torch.bool)
    for mask, (y, x) in zip(masks, torch.randint(0, 14, (n, 2), generator=draw).tolist(), strict=True):
        mask[y : y + 10, x : x + 10] = True
    scores = torch.rand(n, generator=draw).sort(descending=True).values
    return scores, torch.randint(0, 2, (n,), generator=draw), mask_iou(masks)


@pytest.mark.parametrize("seed", range(3))
def test_hard_nms_is_torchvisions_on_boxes(seed):
    from torchvision.ops import batched_nms, masks_to_boxes

    scores, labels, _ = overlapping(25, seed)
    masks = torch.zeros(25, 24, 24, dtype=torch.bool)
    draw = torch.Generator().manual_seed(seed)
    for mask, (y, x) in zip(masks, torch.randint(0, 14, (25, 2), generator=draw).tolist(), strict=True):
        mask[y : y + 10, x : x + 10] = True
    boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])
    kept = nms(scores, labels, mask_iou(masks), NMSOptions("hard", threshold=0.4)).nonzero()[:, 0]
    assert kept.tolist() == sorted(batched_nms(boxes, scores, labels, 0.4).tolist())


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_soft_nms_is_its_pseudo_code(kernel):
    scores, labels, iou = overlapping(20, 3)
    expected, left = scores.double().clone(), dict(enumerate(scores.double().tolist()))
    while left:
        best = max(left, key=lambda k: (left[k], -k))
        expected[best] = left.pop(best)
        for k in left:
            if labels[k] == labels[best]:
                u = float(iou[k, best])
                left[k] *= math.exp(-2 * u * u) if kernel == "gaussian" else (1 - u if u > 0.5 else 1.0)
    ours = nms(scores, labels, iou, NMSOptions("soft", kernel))
    torch.testing.assert_close(ours, expected.float(), atol=1e-6, rtol=0)


def test_fast_nms_lets_a_dropped_mask_drop_others_and_hard_nms_does_not():
    iou = torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.0, 0.6], [0.0, 0.6, 1.0]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    assert nms(scores, labels, iou, NMSOptions("fast")).tolist() == pytest.approx([0.9, 0, 0])
    assert nms(scores, labels, iou, NMSOptions("hard")).tolist() == pytest.approx([0.9, 0, 0.7])


@pytest.mark.parametrize("kind", ["matrix", "hard", "soft", "fast"])
def test_classes_compete_only_when_asked_to(kind):
    scores, iou = torch.tensor([0.9, 0.8]), torch.ones(2, 2)
    apart, together = torch.tensor([0, 1]), torch.tensor([1, 1])
    assert torch.equal(nms(scores, apart, iou, NMSOptions(kind)), scores)
    lowered = nms(scores, together, iou, NMSOptions(kind))
    assert lowered[0] == scores[0] and lowered[1] < 0.2
    torch.testing.assert_close(nms(scores, apart, iou, NMSOptions(kind, class_agnostic=True)), lowered)
    assert nms(scores[:0], apart[:0], iou[:0, :0], NMSOptions(kind)).shape == (0,)


def test_coordinates_of_one_axis_are_those_of_both():
    features = torch.zeros(1, 1, 3, 5)
    both = append_coordinates(features)
    assert torch.equal(append_coordinates(features, "x"), both[:, :2])
    assert torch.equal(append_coordinates(features, "y"), both[:, [0, 2]])


@pytest.mark.parametrize(("groups", "stride", "k", "modulated"), [(1, 1, 3, True), (2, 2, 3, False), (1, 1, 1, True)])
def test_deformable_convolution_is_torchvisions_with_its_gradients(groups, stride, k, modulated):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 9, 7, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4 // groups, k, k, generator=draw, dtype=torch.float64, requires_grad=True)
    out = [(side - 1) // stride + 1 for side in (9, 7)]
    offsets = 2 * torch.randn(2, 2 * k * k, *out, generator=draw, dtype=torch.float64)  # many taps fall outside
    offsets.requires_grad_()
    modulation = torch.rand(2, k * k, *out, generator=draw, dtype=torch.float64, requires_grad=True)
    inputs = [x, weight, offsets, modulation] if modulated else [x, weight, offsets]
    mask = modulation if modulated else None
    ours = deform_conv2d(x, offsets, weight, mask, stride, k // 2)
    theirs = torchvision.ops.deform_conv2d(x, offsets, weight, None, stride, k // 2, 1, mask)
    torch.testing.assert_close(ours, theirs)
    up = torch.randn(ours.shape, generator=draw, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(ours, inputs, up), torch.autograd.grad(theirs, inputs, up), strict=True):
        torch.testing.assert_close(a, b)


def test_what_survives_is_ordered_thresholded_and_capped_and_never_what_was_dropped():
    scores, labels, iou = torch.tensor([0.9, 0.8, 0.3, 0.2]), torch.zeros(4, dtype=torch.int64), torch.eye(4)
    iou[0, 1] = iou[1, 0] = 0.9
    order, left, more = select_top(scores, labels, iou, NMSOptions("hard"), 0.0, 4)
    assert (order.tolist(), left.tolist(), more) == ([0, 2, 3], pytest.approx([0.9, 0.3, 0.2]), False)
    order, _, more = select_top(scores, labels, iou, NMSOptions("hard"), 0.25, 1)
    assert (order.tolist(), more) == ([0], True)
