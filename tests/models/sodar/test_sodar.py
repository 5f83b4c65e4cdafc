from functools import partial

import pytest
import torch
from torch import nn

from instseg.core.errors import ConfigError
from instseg.core.geometry import InputGeometry
from instseg.core.masks import Masks
from instseg.core.shapes import Shapes
from instseg.losses.dice import dice_loss
from instseg.models.base import ImageBatch, Step, Target
from instseg.models.sodar.sodar import SODAR, SODARConfig, SODARSOLOv2, SODARSOLOv2Config
from instseg.models.solo.decode import ImageMasks
from instseg.models.solo.solo import SOLO, cell_maps
from instseg.models.zoo import build_config
from instseg.nn.aggregation import MultiLevelContext, conv_at

NARROW = {
    "num_classes": 2,
    "backbone": "resnet10t",
    "fpn_channels": 16,
    "tower_channels": 16,
    "tower_convs": 1,
    "grids": (6, 4),
    "scale_ranges": ((1, 60), (40, 999)),
}
HOSTS = {"SODAR": (SODAR, SODARConfig), "SODAR*": (SODARSOLOv2, SODARSOLOv2Config)}


def build(host="SODAR", **fields):
    torch.manual_seed(0)
    net, config = HOSTS[host]
    small = {} if host == "SODAR" else {"mask_hidden": 16, "mask_channels": 8}
    return net(config(**{**NARROW, **small, **fields})).eval()


def target():
    masks = torch.zeros(2, 96, 128, dtype=torch.uint8)
    masks[0, 10:60, 10:50], masks[1, 20:80, 60:120] = 1, 1
    boxes = torch.tensor([[10.0, 10, 50, 60], [60, 20, 120, 80]])
    return Target((96, 128), torch.tensor([0, 1]), boxes, Shapes.from_masks(masks))


VIEW = InputGeometry((96, 128), (96, 128), (96, 128))
IMAGE = ImageBatch.of(torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(params=HOSTS)
def host(request):
    return request.param


def logits(net, outputs):
    with torch.no_grad():
        return torch.cat(
            [net.mask_logits(outputs, 0, level, torch.arange(6)).flatten() for level in range(len(net.maps))]
        )


def test_deformable_neighbors_start_as_the_fixed_ones(host):
    net = build(host, deformable=True)
    state = {k: v for k, v in net.state_dict().items() if "offsets" not in k}
    assert net.state_dict().keys() - state.keys() == {f"aggregation.aggregate.offsets.{k}" for k in ("weight", "bias")}
    fixed = build(host)
    fixed.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(logits(net, net(IMAGE)), logits(fixed, fixed(IMAGE)))


def test_gradients_reach_the_offsets_and_the_maps_they_sample(host):
    net = build(host, deformable=True).train()
    sum(net.loss(net(IMAGE), [target()], Step()).losses.values()).backward()
    assert net.aggregation.aggregate.offsets.weight.grad.abs().sum() > 0
    sampled = net.mask_output[0].weight if host == "SODAR" else net.head.kernel.weight
    assert sampled.grad.abs().sum() > 0


def test_the_gradient_of_the_offsets_can_be_damped():
    def gradient(factor):
        net = build(deformable=True, offset_gradient=factor).train()
        sum(net.loss(net(IMAGE), [target()], Step()).losses.values()).backward()
        return net.aggregation.aggregate.offsets.weight.grad

    torch.testing.assert_close(gradient(0.1), 0.1 * gradient(1.0))
    assert gradient(0.0).abs().sum() == 0


def test_only_the_maps_that_are_sampled_are_made(host):
    net = build(host, mask_grids=(5, 3), deformable=True)
    asked = []
    original = net.representations
    net.representations = lambda o, i, level, cells: asked.append(cells) or original(o, i, level, cells)
    with torch.no_grad():
        net.mask_logits(net(IMAGE), 0, 0, torch.tensor([0, 1]))
    (cells,) = asked
    assert len(cells) == len(cells.unique()) < 25


def test_an_offset_moves_the_sampled_place(host):
    net = build(host, deformable=True)
    nn.init.constant_(net.aggregation.aggregate.offsets.bias, 0.5)
    outputs = net(IMAGE)
    found = net.aggregation.gather(outputs.aggregation, 0, torch.tensor([7]))  # row 1, column 1 of six
    center = found.positions[0, 2]
    torch.testing.assert_close(center, torch.tensor([1.5, 1.5]))
    assert found.cells[0, 2].tolist() == [7, 8, 13, 14]
    torch.testing.assert_close(found.shares[0, 2].detach(), torch.full((4,), 0.25))


@pytest.mark.parametrize(
    ("fields", "pattern", "maps"),
    [
        ({}, "4", 5),
        ({"mask_grids": (3, 2)}, "corners", 4),
        ({"mask_grids": (3, 4)}, "4", 5),  # one level alike: the released code then gathers as if all were
        ({"mask_grids": (3, 2), "neighbor_cells": "plus"}, "4", 5),
        ({"mask_grids": (3, 2), "neighbor_cells": "paper"}, "4", 5),
        ({"mask_grids": (3, 2), "deformable": True}, "4", 5),
        ({"neighbors": 0}, "self", 1),
        ({"neighbors": "2col"}, "2col", 3),
        ({"neighbors": "2row"}, "2row", 3),
        ({"neighbors": 8}, "8", 9),
    ],
)
def test_which_cells_are_gathered(fields, pattern, maps):
    net = build(**fields)
    assert net.config.pattern == pattern and net.aggregation.aggregate.maps == maps


def test_the_context_is_that_of_the_published_order_of_operations():
    torch.manual_seed(0)
    pyramid = [torch.randn(2, 32, 64 >> i, 96 >> i) for i in range(5)]
    for layers in (1, 2):
        context = MultiLevelContext(32, 16, layers)
        with torch.no_grad():
            torch.testing.assert_close(context(pyramid), context.as_published(pyramid), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_at_chosen_cells_is_that_of_all_cells(kernel):
    conv, feature = nn.Conv2d(5, 7, kernel, padding=kernel // 2), torch.randn(5, 6, 4)
    cells = torch.tensor([23, 0, 5, 3, 20])
    expected = conv(feature[None])[0].flatten(1).T[cells]
    torch.testing.assert_close(conv_at(conv, feature, cells), expected, atol=1e-5, rtol=1e-4)


def test_the_weights_of_all_cells_are_those_of_the_chosen_ones(host):
    net = build(host, deformable=True)
    with torch.no_grad():
        pyramid = net.fpn(net.backbone(IMAGE.pixels))
        inputs = net.predict_pyramid(pyramid, IMAGE.sizes).aggregation
        given = inputs.features if net.aggregation.tower is None else net.head_levels(pyramid)
        published = net.aggregation.as_published(pyramid, given, inputs.sources, inputs.targets)
        cells = torch.tensor([40, 2, 36])  # of the second, first and second level
        dense = torch.cat([f[0].flatten(1) for f in published.features], dim=1).T[cells]
        weights = dense[:, :-10].tanh() if host == "SODAR" else dense[:, :-10]
        torch.testing.assert_close(net.aggregation.weights(inputs, 0, cells), weights, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(published.context, inputs.context, atol=1e-5, rtol=1e-4)


def test_the_two_stage_loss_teaches_the_cells_own_representation(host):
    net, given = build(host, two_stage_loss=True).train(), target()
    outputs = net(IMAGE)
    losses = net.loss(outputs, [given], Step()).losses
    assert set(losses) == {"loss_category", "loss_mask", "loss_representation"}
    found = net.assign(given, (96, 128))
    expected = []
    for level, m in enumerate(net.maps):
        at = (found.cells >= m.first) & (found.cells < m.last)
        p = net.representations(outputs, 0, level, found.cells[at] - m.first).sigmoid()
        expected.append(dice_loss(p, given.shapes.at_stride(m.stride)[found.objects[at]]))
    torch.testing.assert_close(losses["loss_representation"], 3 * torch.cat(expected).mean())
    plain = build(host).train()
    plain.load_state_dict(net.state_dict())
    for name, loss in plain.loss(plain(IMAGE), [given], Step()).losses.items():
        torch.testing.assert_close(losses[name], loss)


def test_on_solo_the_host_itself_is_solo():
    """Without the aggregation SODAR's maps are SOLO's."""
    net = build()
    solo = SOLO(build_config("solo_r50", NARROW))
    solo.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("aggregation.")})
    with torch.no_grad():
        ours, theirs = net(IMAGE), solo.eval()(IMAGE)
        cells = torch.tensor([0, 5])
        plain = cell_maps(theirs.features[1][0], solo.mask_output[1], cells)
        torch.testing.assert_close(net.representations(ours, 0, 1, cells), plain)


def test_the_base_of_sodar_star_is_the_released_one_or_solov2s_own():
    released, own = (build_config("sodar_solov2_r50", {"base": base}) for base in ("released", "solov2"))
    assert (released.tower_channels, released.mask_hidden, released.kernel_conv) == (256, 256, 1)
    assert not released.mask_feature_norm
    assert (own.tower_channels, own.mask_hidden, own.kernel_conv) == (512, 128, 3) and own.mask_feature_norm
    assert build_config("sodar_solov2_r50", {"tower_channels": 64}).tower_channels == 64


def test_static_weights_are_ordinary_parameters():
    net = build(aggregation="static")
    names = [n for n, _ in net.aggregation.aggregate.named_parameters()]
    assert names == [f"static.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    assert logits(net, net(IMAGE)).isfinite().all()


def test_small_objects_can_be_left_out():
    given = target()
    given.masks[1] = 0
    given.masks[1, 20:23, 60:63] = 1
    assert 1 in build().assign(given, (96, 128)).objects
    assert 1 not in build(min_pixels=10).assign(given, (96, 128)).objects


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_grids": (20, 18)}, "one entry for each of grids"),
        ({"context": "only", "deformable": True}, "gathers no neighbors"),
        ({"context": "only", "aggregation": "static"}, "gathers no neighbors"),
        ({"two_stage_loss": True, "mask_grids": (20, 18, 12, 8, 6)}, "a representation for each cell"),
        ({"pyramid": False, "grids": (12,), "scale_ranges": ((1, 999),)}, "needs the pyramid"),
    ],
)
def test_fields_that_do_not_go_together_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        build_config("sodar_r50", fields)


def decoded(voting, **fields):
    net = build(candidate_threshold=0.0, mask_threshold=1e-6, min_score=0.0, nms_pre=20, voting=voting, **fields)
    with torch.no_grad():
        outputs = net(IMAGE)
        (found,) = net.decode(outputs)
        return net, outputs, (found.instances.to_image(VIEW), found.source)


def test_voting_keeps_scores_and_cells_and_changes_masks():
    _, _, (plain, cells) = decoded("none")
    _, _, (voted, again) = decoded("average", voting_threshold=0.0)
    assert torch.equal(plain.scores, voted.scores) and torch.equal(cells, again)
    assert not torch.equal(plain.masks.soft(), voted.masks.soft())


def test_an_average_vote_is_the_mean_of_the_soft_masks_in_one_chunk_or_many(monkeypatch):
    net, outputs, (plain, cells) = decoded("none")
    assert len(plain) == 20  # all candidates are found again: each is a voter
    soft = ImageMasks(0, outputs.size, net.maps, partial(net.mask_probabilities, outputs))(cells)
    same = (plain.labels[:, None] == plain.labels).float()
    mean = (same @ soft.flatten(1) / same.sum(dim=1, keepdim=True)).view_as(soft)
    expected = Masks.from_maps(mean, (96, 128), 4, 1e-6).to_image(VIEW).soft()
    for values in (8_000_000, 24 * 32 * 3):
        monkeypatch.setattr("instseg.models.solo.decode.CHUNK_VALUES", values)
        _, _, (voted, _) = decoded("average", voting_threshold=0.0)
        torch.testing.assert_close(voted.masks.soft(), expected, atol=1e-5, rtol=1e-4)


def test_every_object_is_told_the_cell_it_was_found_at():
    _, outputs, (found, cells) = decoded("none")
    assert len(cells) == len(found)
    categories = torch.cat([c.flatten(2) for c in outputs.cls_logits], dim=2)[0].sigmoid()
    assert (categories[found.labels, cells] >= found.scores - 1e-6).all()  # maskness and NMS only lower it


@pytest.mark.parametrize(
    "fields", [{}, {"deformable": True}, {"neighbors": 8}, {"aggregation_layers": 1}, {"mask_grids": (3, 2)}]
)
@pytest.mark.parametrize("aggregation", ["dynamic", "static"])
def test_training_starts_from_the_hosts_masks(host, fields, aggregation):
    """But for the small random part of the weights, a mask is its cell's own representation, scaled a little."""
    net = build(host, aggregation=aggregation, **fields)
    for name, parameter in net.aggregation.aggregate.named_parameters():
        if name == "weights.weight":
            nn.init.zeros_(parameter)
        elif aggregation == "static":
            parameter.data[parameter.data.abs() < 0.1] = 0
    for output in net.mask_output if host == "SODAR" else [net.head.kernel]:
        nn.init.normal_(output.weight)  # representations of a size that shows
    with torch.no_grad():
        outputs = net(IMAGE)
        logits = net.mask_logits(outputs, 0, 0, torch.tensor([7]))[0]
        own = net.representations(outputs, 0, 0, torch.tensor([7]))[0]
        if "mask_grids" in fields:  # the mean of the cells around row 1.2 - 0.2, column 1.2 - 0.2 of six
            around = torch.tensor([0, 1, 3, 4])
            own = net.representations(outputs, 0, 0, around).mean(dim=0)
    scale = 0.96**net.config.aggregation_layers
    assert own.abs().max() > 0.3
    torch.testing.assert_close(logits, scale * own, atol=0.15 * float(own.abs().max()), rtol=0.15)


def test_the_released_initialization_is_pytorchs(host):
    weight = build(host, aggregation_start="released").aggregation.aggregate.weights.weight
    bound = weight[0].numel() ** -0.5
    assert weight.abs().max() <= bound and weight.std() > bound / 2


def test_half_precision_does_not_overflow(host):
    """Float16 ends at 65504: representations of that size stay finite, as in float32."""
    net = build(host)
    aggregation = net.aggregation.aggregate
    maps, index = torch.full((5, 4, 4), 3e4), torch.arange(5)[None]
    weights, context = torch.ones(1, 945), torch.ones(16, 4, 4)
    exact = aggregation(maps, index, weights, context)
    with torch.autocast("cpu", dtype=torch.float16):
        ours = aggregation(maps, index, weights.half(), context.half())
    assert exact.max() > 65504
    torch.testing.assert_close(ours, exact)
