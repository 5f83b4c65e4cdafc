"""The switches of the SOLO family's ablation tables: each does what its name says."""

import pytest
import torch
from torchvision.ops import roi_align, sigmoid_focal_loss

from instseg.core.errors import InstsegError
from instseg.core.shapes import Shapes
from instseg.losses.mask import bce_loss, focal_mask_loss
from instseg.model.preprocess import Preprocess
from instseg.models.base import ImageBatch, Step, Target
from instseg.models.config import ModelConfig
from instseg.models.solo.decoupled_solo import DecoupledSOLO, DecoupledSOLOConfig
from instseg.models.solo.solo import SOLO, SOLOConfig, aligned
from instseg.models.solo.solov2 import SOLOv2, SOLOv2Config, class_masks, dynamic_loss, semantic_labels, semantic_loss
from instseg.nn.backbone import Backbone
from instseg.nn.deform import DeformConv2d

TINY = {
    "backbone": "resnet10t",
    "num_classes": 2,
    "fpn_channels": 16,
    "tower_convs": 4,
    "tower_channels": 16,
    "grids": (6, 5, 4, 3, 2),
    "scale_ranges": ((1, 999),) * 5,  # every level learns from every object
}
DYNAMIC = {**TINY, "mask_hidden": 16, "mask_channels": 4}


def trains_and_predicts(net):
    mask = torch.zeros(1, 64, 96, dtype=torch.uint8)
    mask[0, 10:40, 20:60] = 1
    target = Target((64, 96), torch.tensor([1]), torch.tensor([[20.0, 10, 60, 40]]), Shapes.from_masks(mask))
    x = ImageBatch.of(torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    losses = net.train().loss(net(x), [target], Step()).losses
    torch.stack(list(losses.values())).sum().backward()
    assert losses["loss_mask"] > 0
    assert all(p.grad is not None for p in net.parameters())
    with torch.no_grad():
        net.eval().decode(net(x))
    return losses


def test_region_grid_is_roi_align_of_the_whole_map_and_pooling_the_maximum_of_a_cell():
    x = torch.randn(1, 3, 10, 14, generator=torch.Generator().manual_seed(0))
    whole = torch.tensor([[0.0, 0, 0, 14, 10]])
    theirs = roi_align(x, whole, (4, 4), sampling_ratio=2, aligned=True)
    torch.testing.assert_close(aligned(x, 4, "region_grid"), theirs)
    assert torch.equal(aligned(x[..., :8, :8], 4, "adaptive_pool")[0, 0, 0, 0], x[0, 0, :2, :2].max())


@pytest.mark.parametrize("align", ["interpolate", "adaptive_pool", "region_grid"])
def test_every_alignment_trains(align):
    trains_and_predicts(SOLO(SOLOConfig(**TINY, align=align)))
    trains_and_predicts(DecoupledSOLO(DecoupledSOLOConfig(**TINY, align=align)))


@pytest.mark.parametrize("n", range(4))
def test_as_many_mask_convolutions_as_asked_see_coordinates(n):
    net = SOLO(SOLOConfig(**TINY, coord_convs=n))
    inputs = [block.conv.in_channels for block in net.mask_tower]
    assert inputs == [18 if i < n else 16 for i in range(4)]
    trains_and_predicts(net)


def test_columns_and_rows_have_towers_of_their_own_unless_light():
    apart, shared = (DecoupledSOLO(DecoupledSOLOConfig(**TINY, shared_tower=s)) for s in (False, True))
    assert apart.mask_tower_x[0].conv.in_channels == apart.mask_tower_y[0].conv.in_channels == 17
    assert shared.mask_tower[0].conv.in_channels == 18 and not hasattr(shared, "mask_tower_x")


@pytest.mark.parametrize(("kernel", "feature"), [(True, False), (False, True), (False, False)])
def test_coordinates_of_kernels_and_features_can_be_left_out(kernel, feature):
    net = SOLOv2(SOLOv2Config(**DYNAMIC, kernel_coords=kernel, feature_coords=feature))
    assert net.head.kernel_tower[0].conv.in_channels == (18 if kernel else 16)
    assert net.mask_feature.levels[3][0].conv.in_channels == (18 if feature else 16)
    trains_and_predicts(net)


@pytest.mark.parametrize("k", [1, 3])
def test_separate_features_give_masks_at_half_the_stride_of_their_level(k):
    net = SOLOv2(SOLOv2Config(**DYNAMIC, mask_feature="separate", kernel_size=k)).eval()
    out = net(ImageBatch.of(torch.randn(1, 3, 64, 96)))
    cells = torch.tensor([0, 5])
    assert net.mask_probabilities(out, 0, 1, cells).shape == (2, 16, 24)
    assert net.mask_probabilities(out, 0, 1, cells, out.size).shape == (2, *out.size)
    trains_and_predicts(net)


def test_a_decoupled_mask_is_the_product_of_its_groups():
    net = SOLOv2(SOLOv2Config(**DYNAMIC, mask_groups=3)).eval()
    with torch.no_grad():
        out = net(ImageBatch.of(torch.randn(1, 3, 64, 96)))
        kernel = out.kernels[0][0].flatten(1)[:, 7].view(3, 4)
        maps = torch.einsum("ae,ehw->ahw", kernel, out.mask_features[0][0]).sigmoid()
        torch.testing.assert_close(net.mask_probabilities(out, 0, 0, torch.tensor([7]))[0], maps.prod(dim=0))


def test_the_semantic_branch_learns_the_smallest_object_and_is_gone_in_evaluation():
    net = SOLOv2(SOLOv2Config(**DYNAMIC, semantic_weight=2.0))
    masks = torch.zeros(2, 64, 96, dtype=torch.uint8)
    masks[0, :32, :32], masks[1, :8, :8] = 1, 1
    target = Target((64, 96), torch.tensor([1, 0]), torch.zeros(2, 4), Shapes.from_masks(masks))
    labels = semantic_labels(target, (16, 24), 2)
    expected = torch.full((16, 24), 2)
    expected[:8, :8], expected[:2, :2] = 1, 0
    assert torch.equal(labels, expected)
    logits = torch.randn(1, 2, 16, 24)
    targets = torch.stack([labels == 0, labels == 1])[None].float()
    whole = sigmoid_focal_loss(logits, targets, reduction="sum") / targets.sum()
    torch.testing.assert_close(semantic_loss(logits, labels[None]), whole)
    assert "loss_semantic" in trains_and_predicts(net)
    assert net(ImageBatch.of(torch.randn(1, 3, 64, 96))).semantic is None


def test_the_semantic_branch_can_learn_every_class_of_a_pixel():
    masks = torch.zeros(3, 60, 90, dtype=torch.uint8)
    masks[0, :32, :32], masks[1, :8, :8], masks[2, 16:40, 16:90] = 1, 1, 1
    target = Target((60, 90), torch.tensor([1, 0, 1]), torch.zeros(3, 4), Shapes.from_masks(masks))
    merged = class_masks(target, (16, 24), 2)
    expected = torch.zeros(2, 16, 24)
    expected[0, :2, :2] = 1  # both classes
    expected[1, :8, :8] = 1  # two objects of one class are merged
    expected[1, 4:10, 4:22] = 1
    assert torch.equal(merged, expected)
    logits = torch.randn(1, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    whole = sigmoid_focal_loss(logits, expected[None], reduction="sum") / expected.sum()
    torch.testing.assert_close(semantic_loss(logits, merged[None]), whole)
    losses = []
    for multi_label in (False, True):
        torch.manual_seed(0)
        net = SOLOv2(SOLOv2Config(**DYNAMIC, semantic_weight=2.0, multi_label=multi_label)).train()
        outputs = net(ImageBatch.of(torch.ones(1, 3, 64, 96)))
        losses.append(net.loss(outputs, [target], Step()).losses)
        labels = semantic_labels(target, outputs.size, 2) if not multi_label else class_masks(target, outputs.size, 2)
        torch.testing.assert_close(losses[-1]["loss_semantic"], 2 * semantic_loss(outputs.semantic, labels[None]))
    assert losses[0]["loss_semantic"] != losses[1]["loss_semantic"]
    torch.testing.assert_close(losses[0]["loss_mask"], losses[1]["loss_mask"])
    none = Target((60, 90), target.labels[:0], torch.zeros(0, 4), Shapes.from_masks(masks[:0]))
    assert not class_masks(none, (16, 24), 2).any()


def test_semantic_labels_of_mattes_are_those_of_their_halves():
    matte = torch.zeros(2, 16, 16)
    matte[0], matte[1, :8] = 0.6, 0.4
    target = Target((16, 16), torch.tensor([0, 1]), torch.zeros(2, 4), Shapes.from_masks(matte))
    assert semantic_labels(target, (4, 4), 2).eq(0).all()
    assert class_masks(target, (4, 4), 2).sum((1, 2)).tolist() == [16, 0]


def test_a_matte_is_learned_as_a_matte():
    """The loss compares with the mean of a block, not with zero or one."""
    matte = torch.full((1, 64, 96), 0.25)
    matte[0, :32] = 0.75
    target = Target((64, 96), torch.tensor([0]), torch.tensor([[0.0, 0.0, 96.0, 64.0]]), Shapes.from_masks(matte))
    net = SOLOv2(SOLOv2Config(**DYNAMIC)).train()
    outputs = net(ImageBatch.of(torch.ones(1, 3, 64, 96)))
    found = net.assign(target, (64, 96))
    quarter = matte[:, ::4, ::4]
    terms = dynamic_loss(
        net.config,
        outputs,
        [target],
        [found],
        {"loss_mask": lambda image, level, cells: quarter.expand(len(cells), -1, -1)},
        Step(),
    )
    assert len(found.cells) > 0 and 0 <= float(terms.losses["loss_mask"]) < 0.01


def test_mask_losses_are_torchs_on_logits():
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 5, 6, generator=draw)
    targets = (torch.rand(4, 5, 6, generator=draw) < 0.4).float()
    weight = torch.where(targets > 0, 2.0, 1.0)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, weight, reduction="none")
    torch.testing.assert_close(bce_loss(logits.sigmoid(), targets), bce.flatten(1).mean(1), atol=1e-5, rtol=1e-4)
    focal = sigmoid_focal_loss(logits, targets).flatten(1).mean(1)
    torch.testing.assert_close(focal_mask_loss(logits.sigmoid(), targets), focal, atol=1e-5, rtol=1e-4)
    assert bce_loss(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 0.0]]])).isfinite().all()


@pytest.mark.parametrize("stride", [1, 2])
def test_deformable_convolutions_begin_as_plain_ones(stride):
    x = torch.randn(1, 4, 8, 10)
    for version, share in ((1, 1.0), (2, 0.5)):
        conv = DeformConv2d(4, 6, 3, version=version, stride=stride)
        plain = torch.nn.functional.conv2d(x, conv.weight, None, stride, 1)
        torch.testing.assert_close(conv(x), share * plain, atol=1e-5, rtol=1e-4)


def test_a_stage_halves_in_the_convolution_asked_for():
    for first, strides in ((False, (1, 2)), (True, (2, 1))):
        block = Backbone("resnet14t", stride_in_1x1=first).body.layer3[0]
        assert (block.conv1.stride[0], block.conv2.stride[0]) == strides
    with pytest.raises(InstsegError, match="no ResNet bottlenecks"):
        Backbone("resnet10t", dcn=1)


def test_channels_are_shown_in_the_order_and_scale_asked_for():
    image = torch.tensor([200.0, 100.0, 50.0])[:, None, None].expand(3, 32, 32)  # red, green, blue
    config = ModelConfig(bgr=True, pixel_mean=(10.0, 20.0, 30.0), pixel_std=(1.0, 1.0, 2.0))
    assert Preprocess(config).batch([image]).pixels[0, :, 0, 0].tolist() == [40.0, 80.0, 85.0]
