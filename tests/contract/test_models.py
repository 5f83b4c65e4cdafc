"""What every model of the zoo promises, whatever its method. Widths are reduced so that the suite stays fast."""

import subprocess
import sys

import pytest
import torch

import instseg
from instseg.core.errors import CheckpointError, ConfigError, DataError
from instseg.models.zoo import MODELS

NARROW = {
    "backbone": "resnet10t",
    "fpn_channels": 32,
    "tower_convs": 1,
    "tower_channels": 32,
    "mask_hidden": 32,
    "mask_channels": 16,
    "grids": (12, 10, 8, 6, 4),
}
# A variant of the zoo for each way of building a network; deformable backbones need bottlenecks.
VARIANTS = {
    "solo_r50": {},
    "solo_r50_single_12": {"grids": (12,)},
    "decoupled_solo_r50": {},
    "decoupled_solo_light_r50_dcn": {"backbone": "resnet14t"},
    "solov2_r18": {},
    "solov2_light_512_r50_dcn": {"backbone": "resnet14t"},
    "solov2_r101_dcn": {"backbone": "resnet14t"},
    "solov2_decoupled_r101": {"mask_channels": 8, "mask_groups": 2},
    "solov2_plus_r101_dcn": {"backbone": "resnet14t"},
    "sodar_r50": {},
    "sodar_r101_cm_deform": {"grids": (14, 12, 9, 7, 5), "mask_grids": (6, 5, 4, 3, 2)},
    "sodar_r101_mask": {"mask_grids": (6, 5, 4, 3, 2), "aggregation": "static"},
    "sodar_r50_cls": {"mask_grids": (12, 10, 8, 6, 4), "grids": (14, 12, 8, 6, 4), "context": "only"},
    "sodar_solov2_r50": {"two_stage_loss": True},
    "sodar_solov2_r101": {"aggregation": "static"},
    "sodar_solov2_r101_mask_deform": {"mask_grids": (6, 5, 4, 3, 2)},
}
SMALL = {"input_short": 96, "input_long": 128}


def build(name, **changes):
    torch.manual_seed(0)
    known = MODELS[name].config.model_fields
    narrow = {field: value for field, value in NARROW.items() if field in known}
    return instseg.create_model(name, num_classes=3, **{**narrow, **VARIANTS[name], **SMALL, **changes})


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
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_images_without_objects_train_alone_and_beside_others(name):
    model = build(name).train()
    image, empty = scene(64, 64, [])
    losses = model([image], [empty])
    assert losses["loss_mask"] == 0 and torch.isfinite(total(losses))
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters())
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
    model = build(name, candidate_threshold=0.0, mask_threshold=1e-6, min_score=0.0, max_instances=5).eval()
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
    model = build(name, candidate_threshold=1.0).eval()
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
    model = build(name, candidate_threshold=0.001, mask_threshold=1e-6, min_score=0.0).eval()
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


def test_a_model_without_weights_is_not_asked_for_predictions(name):
    with pytest.raises(CheckpointError, match="has no weights"):
        build(name).eval().predict(torch.zeros(3, 32, 32))


@pytest.mark.parametrize("zoo_name", sorted(MODELS))
def test_every_name_builds_with_its_own_configuration(zoo_name):
    from instseg.models.zoo import build_config

    config = build_config(zoo_name, {"num_classes": 7})
    assert config.num_classes == 7
    for field, value in MODELS[zoo_name].fields.items():
        assert getattr(config, field) == value


def test_importing_the_package_loads_no_backbone_library():
    code = "import sys, instseg; print([m for m in ('torch', 'timm', 'matplotlib', 'accelerate') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
