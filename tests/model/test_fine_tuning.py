"""What a model that starts from a checkpoint leaves as it is while it trains."""

import warnings

import pytest
import torch
from tests.weights.published_files import foreign, lively, write

import instseg
from instseg.model.load import create_model
from instseg.model.with_config import reconfigure
from instseg.weights.resolve import convert

SMALL = {"input_short": 64, "input_long": 96}
NARROW = {**SMALL, "backbone": "resnet10t", "fpn_channels": 16, "tower_convs": 1, "tower_channels": 32}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
STEM = ("conv1.", "bn1.", "layer1.")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """One file of each code base whose values a network can compute with, read once each."""
    folder = tmp_path_factory.mktemp("published")
    kinds = {"SOLO": "solov2_light_448_r18", "mmdetection": "solov2_light_448_r18", "AdelaiDet": "solov2_r50"}
    return {
        code: (name, write(folder / f"{code}.pth", lively(foreign(name, code)))) for code, name in kinds.items()
    } | {"AggMask": ("sodar_r50", write(folder / "AggMask.pth", lively(foreign("sodar_r50", "AggMask"))))}


def update(model):
    """What one update with weight decay changes in the backbone, by name."""
    model.train()
    backbone = model.net.backbone.body
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=0.1)
    masks = torch.zeros(1, 64, 96, dtype=torch.uint8)
    masks[0, 10:50, 20:70] = 1
    target = {"boxes": torch.tensor([[20.0, 10, 70, 50]]), "labels": torch.tensor([0]), "masks": masks}
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    sum(model([image], [target]).values()).backward()
    optimizer.step()
    return {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}


@pytest.mark.parametrize("code", ["SOLO", "mmdetection", "AdelaiDet", "AggMask"])
def test_an_update_leaves_the_stem_the_first_stage_and_all_statistics(published, code):
    name, file = published[code]
    model = create_model(name, weights=file, overrides=SMALL)
    changed = update(model)
    assert changed and not [key for key in changed if key.startswith(STEM) or key.endswith(STATISTICS)]
    # detectron2's norms have no parameters; the others' train theirs.
    assert any("bn" in key for key in changed) == (code != "AdelaiDet")


def test_fields_that_are_given_come_first(published):
    for code in ("SOLO", "AdelaiDet"):
        name, file = published[code]
        model = create_model(name, weights=file, overrides={**SMALL, "frozen_stages": 0, "norm_eval": False})
        changed = update(model)
        assert changed == model.net.backbone.body.state_dict().keys(), code


def test_the_same_after_convert_and_from_load(published, tmp_path):
    name, file = published["SOLO"]
    convert(file, tmp_path / "ours.safetensors")
    started = create_model(name, weights=tmp_path / "ours.safetensors", overrides=SMALL)
    loaded = reconfigure(instseg.load(tmp_path / "ours.safetensors"), SMALL)
    for model in (started, loaded):
        changed = update(model)
        assert changed and not [key for key in changed if key.startswith(STEM) or key.endswith(STATISTICS)]


def test_sodar_started_from_a_published_host_freezes_what_the_host_did(published):
    _, file = published["SOLO"]
    with pytest.warns(
        UserWarning, match=r"checkpoint of solov2_light_448_r18: the aggregation of sodar_solov2_r50_cls"
    ):
        model = create_model("sodar_solov2_r50_cls", weights=file, overrides=SMALL)
    changed = update(model)
    assert changed and not [key for key in changed if key.startswith(STEM) or key.endswith(STATISTICS)]


def test_without_weights_nothing_is_frozen():
    model = instseg.create_model("solov2_r18", 1, **NARROW, mask_hidden=8, mask_channels=4)
    assert all(parameter.requires_grad for parameter in model.parameters())
    wanted = {key for key in model.net.backbone.body.state_dict() if not key.endswith("bias")}
    assert update(model) >= wanted  # the last norm of each block starts at zero, and its biases with it


def test_a_checkpoint_of_ones_own_keeps_what_its_run_said(tmp_path):
    for frozen, name in ((0, "free"), (2, "frozen")):
        fields = {**NARROW, "mask_hidden": 8, "mask_channels": 4, "frozen_stages": frozen, "norm_eval": frozen > 0}
        instseg.create_model("solov2_r18", 1, **fields).save(tmp_path / f"{name}.safetensors")
        again = instseg.create_model("solov2_r18", weights=tmp_path / f"{name}.safetensors")
        assert (again.config.frozen_stages, again.config.norm_eval) == (frozen, frozen > 0)


def test_auto_backbone_weights_that_cannot_be_had_change_no_field_of_a_checkpoint_or_a_call(published, monkeypatch):
    asked = []
    monkeypatch.setattr("instseg.model.load.imagenet_reachable", lambda backbone: asked.append(1))
    name, file = published["SOLO"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = instseg.create_model(name, weights=file, backbone_weights="auto", **SMALL)
    assert not asked  # the checkpoint has a backbone already
    assert model.config.frozen_stages == 1 and model.config.norm_eval
    with pytest.warns(UserWarning, match="no ImageNet weights"):
        model = instseg.create_model("solov2_r18", 1, backbone_weights="auto", **NARROW, frozen_stages=2)
    assert asked and model.config.frozen_stages == 2 and not model.config.norm_eval


def test_another_name_for_the_same_network_keeps_what_belongs_to_the_weights(tmp_path):
    fields = {
        **NARROW,
        "mask_hidden": 8,
        "mask_channels": 4,
        "bgr": True,
        "pixel_std": (1.0, 1.0, 1.0),
        "norm_eval": True,
    }
    instseg.create_model("solov2_light_448_r18", 1, **fields).save(tmp_path / "a.safetensors")
    narrow = {**NARROW, "mask_hidden": 8, "mask_channels": 4}
    made = instseg.create_model("solov2_tiny_r18", 1, weights=tmp_path / "a.safetensors", **narrow).config
    assert (made.bgr, made.pixel_std, made.norm_eval, made.input_short) == (True, (1.0, 1.0, 1.0), True, 64)


def test_a_backbone_other_than_the_name_says_is_named(tmp_path):
    instseg.create_model("solo_r50", 1, **NARROW).save(tmp_path / "host.safetensors")
    with pytest.warns(UserWarning, match="and so of this sodar_r101, is resnet10t, not r101"):
        instseg.create_model("sodar_r101", weights=tmp_path / "host.safetensors")
