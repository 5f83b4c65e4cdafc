"""What every model of the zoo promises, whatever its method. Widths are reduced so that the suite stays fast."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

import instseg
from instseg.core.errors import CheckpointError, ConfigError, DataError
from instseg.models.base import ImageBatch, Staged
from instseg.models.config import setting_names
from instseg.models.pytrees import register_outputs
from instseg.models.zoo import MODELS


@dataclass(frozen=True)
class Variant:
    """One way of building a network.

    Attributes:
        fields: small widths; every level of the network learns from every object.
        everything: inference settings under which a network with random weights finds something.
        nothing: under which it finds nothing.
        objects: losses that need an object: without any they are zero.
        unused: beginnings of the names of parameters that this variant's switches leave without a use.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    everything: dict[str, Any] = field(default_factory=dict)
    nothing: dict[str, Any] = field(default_factory=dict)
    objects: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()


def on_grids(grids=(12, 10, 8, 6, 4), **fields):
    """A network of the SOLO family; deformable backbones need bottlenecks."""
    narrow = {"backbone": "resnet10t", "fpn_channels": 32, "tower_convs": 1, "tower_channels": 32, "grids": grids}
    return Variant(
        {**narrow, "scale_ranges": ((1, 9999),) * len(grids), **fields},
        {"candidate_threshold": 0.0, "mask_threshold": 1e-6, "min_score": 0.0},
        {"candidate_threshold": 1.0},
        frozenset({"loss_mask"}),
    )


def dynamic(**fields):
    return on_grids(**{"mask_hidden": 32, "mask_channels": 16, **fields})


HALF, FINE = (6, 5, 4, 3, 2), (14, 12, 9, 7, 5)
VARIANTS = {
    "solo_r50": on_grids(),
    "solo_r50_single_12": on_grids((12,)),
    "decoupled_solo_r50": on_grids(),
    "decoupled_solo_light_r50_dcn": on_grids(backbone="resnet14t"),
    "solov2_r18": dynamic(),
    "solov2_light_512_r50_dcn": dynamic(backbone="resnet14t"),
    "solov2_r101_dcn": dynamic(backbone="resnet14t"),
    "solov2_decoupled_r101": dynamic(mask_channels=8, mask_groups=2),
    "solov2_plus_r101_dcn": dynamic(backbone="resnet14t"),
    "sodar_r50": on_grids(),
    "sodar_r101_cm_deform": on_grids(FINE, mask_grids=HALF),
    "sodar_r101_mask": on_grids(mask_grids=HALF, aggregation="static"),
    "sodar_r50_cls": replace(
        on_grids((14, 12, 8, 6, 4), mask_grids=(12, 10, 8, 6, 4), context="only"), unused=("mask_tower", "mask_output")
    ),
    "sodar_solov2_r50": dynamic(two_stage_loss=True),
    "sodar_solov2_r101": dynamic(aggregation="static"),
    "sodar_solov2_r101_mask_deform": dynamic(mask_grids=HALF),
}
SMALL = {"input_short": 96, "input_long": 128}


def build(name, **changes):
    torch.manual_seed(0)
    return instseg.create_model(name, num_classes=3, **{**VARIANTS[name].fields, **SMALL, **changes})


@pytest.fixture(scope="module", params=VARIANTS)
def name(request):
    """One name of the zoo for each way of building a network."""
    return request.param


def test_every_method_of_the_zoo_is_tested_here():
    assert {MODELS[name].method for name in VARIANTS} == {entry.method for entry in MODELS.values()}


def scene(height, width, boxes, classes=3):
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height))
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 1
    labels = torch.arange(len(boxes)) % classes
    return image, {"boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4), "labels": labels, "masks": masks}


def total(losses):
    return torch.stack(list(losses.values())).sum()


def batch():
    image_a, target_a = scene(80, 120, [(10, 10, 50, 60), (60, 20, 110, 70)])
    image_b, target_b = scene(97, 61, [(5, 30, 50, 90)])
    return [image_a, image_b], [target_a, target_b]


def test_training_gives_finite_scalar_losses_and_reaches_every_parameter(name):
    model = build(name).train()
    losses = model(*batch())
    assert losses and all(loss.shape == () and torch.isfinite(loss) for loss in losses.values())
    total(losses).backward()
    used = [(n, p) for n, p in model.net.named_parameters() if not n.startswith(VARIANTS[name].unused)]
    assert [n for n, p in used if p.requires_grad and p.grad is None] == []


def test_images_without_objects_train_alone_and_beside_others(name):
    model = build(name).train()
    image, empty = scene(64, 64, [])
    losses = model([image], [empty])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(losses[key] == 0 for key in VARIANTS[name].objects)
    total(losses).backward()
    assert not any(p.grad.isnan().any() for p in model.parameters() if p.grad is not None)
    images, targets = batch()
    assert torch.isfinite(total(model([*images, image], [*targets, empty])))


def test_boxes_may_be_absent(name):
    model = build(name).eval().train()
    images, targets = batch()
    with_boxes = model(images, targets)
    without = model(images, [{k: v for k, v in t.items() if k != "boxes"} for t in targets])
    for key in with_boxes:
        torch.testing.assert_close(with_boxes[key], without[key])


def test_evaluation_gives_the_detection_contract_in_the_image_as_given(name):
    model = build(name, **VARIANTS[name].everything, max_instances=5).eval()
    images = [scene(h, w, [])[0] for h, w in ((80, 120), (97, 61), (33, 200))]
    with pytest.warns(UserWarning, match="max_instances=5"):
        results = model(images)
    for image, result in zip(images, results, strict=True):
        m = len(result["scores"])
        assert 0 < m <= 5
        assert result["boxes"].shape == (m, 4) and result["labels"].shape == (m,)
        assert result["masks"].shape == (m, 1, *image.shape[-2:])
        assert result["masks"].dtype == torch.float32
        assert result["masks"].min() >= 0 and result["masks"].max() <= 1
        assert (result["scores"].diff() <= 0).all()
        assert ((result["labels"] >= 0) & (result["labels"] < 3)).all()


def test_a_model_that_sees_nothing_gives_empty_results(name):
    model = build(name, **VARIANTS[name].nothing).eval()
    result = model([torch.zeros(3, 50, 70)])[0]
    assert result["boxes"].shape == (0, 4) and result["masks"].shape == (0, 1, 50, 70)
    assert len(model.predict_batch([torch.zeros(3, 50, 70)])[0]) == 0


def test_float_and_uint8_images_are_the_same_image(name):
    model = build(name).train()
    images, targets = batch()
    as_bytes = [(image * 255).round().to(torch.uint8) for image in images]
    model.eval().train()
    first, second = model(as_bytes, targets), model([b.float() / 255 for b in as_bytes], targets)
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=1e-4, rtol=1e-4)


def test_a_saved_model_predicts_the_same_and_remembers_its_categories(name, tmp_path):
    model = build(name, **VARIANTS[name].everything).eval()
    model.set_categories(instseg.Categories(("cat", "dog", "owl"), (3, 7, 90)))
    model.save(tmp_path / "model.safetensors")
    again = instseg.load(tmp_path / "model.safetensors")
    assert not again.training
    assert again.categories == ("cat", "dog", "owl") and again.category_ids == (3, 7, 90)
    assert again.config == model.config
    image = scene(70, 90, [])[0]
    a, b = model.predict_batch([image])[0], again.predict_batch([image])[0]
    assert torch.equal(a.scores, b.scores) and a.masks.rle() == b.masks.rle()


def test_bf16_losses_are_float32_and_close(name):
    model = build(name).train()
    exact = total(model(*batch()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(*batch())
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    torch.testing.assert_close(total(losses), exact, rtol=0.05, atol=0.05)


def test_one_step_lowers_the_loss_of_its_batch(name):
    model = build(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses = []
    for _ in range(8):
        loss = total(model(*batch()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_targets_that_do_not_fit_are_named(name):
    model = build(name).train()
    images, targets = batch()
    with pytest.raises(DataError, match="labels from 0 to 9"):
        model(images, [{**targets[0], "labels": torch.tensor([0, 9])}, targets[1]])
    with pytest.raises(DataError, match="masks of shape"):
        model(images, [{**targets[0], "masks": targets[0]["masks"][:, 1:]}, targets[1]])
    with pytest.raises(DataError, match="2 images but 1 targets"):
        model(images, targets[:1])
    with pytest.raises(DataError, match="targets are needed"):
        model(images)
    with pytest.raises(DataError, match="training mode"):
        model.predict_batch(images)


def test_unknown_fields_and_impossible_values_are_named(name):
    with pytest.raises(ConfigError, match=r'no field "max_instance".*Did you mean "max_instances"'):
        instseg.create_model(name, max_instance=5)
    with pytest.raises(ConfigError, match="max_instances=0"):
        instseg.create_model(name, max_instances=0)


def test_parameters_may_lack_a_gradient_only_where_the_network_says_so(name):
    """Two processes then have to look for them: in one a level, or every level, may have no object."""
    model = build(name).train()
    total(model(*[[part] for part in scene(64, 64, [])])).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert model.net.may_leave_unused or not without


def test_the_rows_of_classes_are_those_the_network_names(name):
    """A network of other classes differs in these tensors alone, by the rows that it states."""
    three = build(name).net
    five = instseg.create_model(name, num_classes=5, **{**VARIANTS[name].fields, **SMALL}).net
    layouts, more = three.class_layers(), five.state_dict()
    assert layouts.keys() == five.class_layers().keys()
    for key, tensor in three.state_dict().items():
        if key in layouts:
            assert len(tensor) == layouts[key].rows(3) and len(more[key]) == layouts[key].rows(5)
            assert tensor.shape[1:] == more[key].shape[1:]
        else:
            assert tensor.shape == more[key].shape
    assert set(layouts) <= set(more)


def test_settings_are_replaced_without_building_and_change_what_is_found(name):
    model = build(name, **VARIANTS[name].everything, max_instances=7).eval()
    net, before = model.net, {k: v.clone() for k, v in model.net.state_dict().items()}
    batch = ImageBatch.of(torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        outputs = net(batch)
        (many,) = net.decode(outputs)
        net.config = net.config.model_copy(update={"max_instances": 2})
        (few,) = net.decode(outputs)
    assert len(many.instances) == len(many.source) == 7 and len(few.instances) == 2
    assert torch.equal(few.instances.scores, many.instances.scores[:2]) and few.instances.truncated
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    names = setting_names(type(net.config))
    assert {"max_instances", "tile", *VARIANTS[name].everything} <= names
    assert not {"num_classes", "backbone", *VARIANTS[name].fields} & names


def test_the_stages_of_a_network_are_its_own_modules_in_the_order_of_a_batch(name):
    net = build(name).eval().net
    stages = net.stages() if isinstance(net, Staged) else {}
    modules = set(net.modules())
    assert stages and all(stage in modules for stage in stages.values())
    passed = []
    for stage_name, stage in stages.items():
        stage.register_forward_hook(lambda *_, stage_name=stage_name: passed.append(stage_name))
    with torch.no_grad():
        net(ImageBatch.of(torch.zeros(1, 3, 64, 64)))
    assert [s for s in stages if s in passed] == list(dict.fromkeys(passed))
    assert "backbone" in passed


@pytest.mark.parametrize("net", {MODELS[name].net: name for name in reversed(VARIANTS)}.values())
def test_the_forward_pass_can_be_exported(net):
    """One variant of each network. With torch.export, outputs as they are; the exported graph computes the same."""
    net = build(net).eval().net
    register_outputs()
    batch = ImageBatch.of(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        exported = torch.export.export(net, (batch,), strict=False)
        ours, again = net(batch), exported.module()(batch)
    assert type(ours) is type(again)
    for a, b in zip(tree_leaves(ours), tree_leaves(again), strict=True):
        torch.testing.assert_close(a, b)


def test_a_model_without_weights_is_not_asked_for_predictions(name):
    with pytest.raises(CheckpointError, match="has no weights"):
        build(name).eval().predict(torch.zeros(3, 32, 32))


@pytest.mark.parametrize("zoo_name", sorted(MODELS))
def test_every_name_builds_with_its_own_configuration(zoo_name):
    from instseg.models.zoo import build_config

    config = build_config(zoo_name, {"num_classes": 7})
    assert config.num_classes == 7
    for key, value in MODELS[zoo_name].fields.items():
        assert getattr(config, key) == value


def test_importing_the_package_loads_no_backbone_library():
    code = "import sys, instseg; print([m for m in ('torch', 'timm', 'matplotlib', 'accelerate') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
