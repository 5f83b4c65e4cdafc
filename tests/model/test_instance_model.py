import pytest
import torch

import instseg
from instseg.core.categories import Categories
from instseg.core.errors import CheckpointError, ConfigError
from instseg.core.shapes import Shapes
from instseg.data.images.read import ImageRule
from instseg.model.load import resolve_model
from instseg.models.base import Target

NARROW = {
    "backbone": "resnet10t",
    "fpn_channels": 16,
    "tower_convs": 1,
    "tower_channels": 16,
    "mask_hidden": 16,
    "mask_channels": 8,
    "grids": (8, 6, 4, 3, 2),
    "input_short": 64,
    "input_long": 96,
}


def build(classes=2, **changes):
    torch.manual_seed(0)
    return instseg.create_model("solov2_r18", classes, **{**NARROW, **changes})


def test_sides_fit_into_short_and_long_unless_a_factor_is_given():
    size = build(input_short=800, input_long=1333).preprocess.target_size
    assert size(480, 640) == (800, 1067)
    assert size(400, 1200) == (444, 1333)
    assert build(input_short=800, input_long=1333, input_enlarge=False).preprocess.target_size(480, 640) == (480, 640)
    assert build(input_scale=2.0).preprocess.target_size(33, 50) == (66, 100)


def test_a_batch_is_normalized_then_padded_with_zeros_to_a_multiple_of_32():
    model = build()
    image = torch.full((3, 40, 50), 255.0)
    made = model.preprocess.batch([image, image[:, :10, :10]])
    assert made.sizes.tolist() == [[40, 50], [10, 10]]
    batch = made.pixels
    assert batch.shape == (2, 3, 64, 64)
    torch.testing.assert_close(
        batch[0, :, 0, 0], (255 - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    )
    assert (batch[0, :, 40:] == 0).all() and (batch[1, :, :, 10:] == 0).all()


def test_targets_are_resized_with_their_images():
    masks = torch.ones(1, 10, 20, dtype=torch.uint8)
    target = Target(
        (10, 20), torch.tensor([0]), torch.tensor([[2.0, 4, 6, 8]]), Shapes.from_masks(masks), masks[0].long()
    )
    resized = build().preprocess.resize_target(target, (20, 60))
    assert resized.size == (20, 60) and resized.boxes.tolist() == [[6, 8, 18, 16]]
    assert resized.masks.shape == (1, 20, 60) and resized.masks.dtype == torch.uint8
    assert resized.semantic.shape == (20, 60) and resized.semantic.dtype == torch.int64


def test_mattes_are_resized_without_rounding():
    alpha = torch.tensor([[[0.0, 0.5], [0.5, 1.0]]])
    target = Target((2, 2), torch.tensor([0]), torch.tensor([[0.0, 0, 2, 2]]), Shapes.from_masks(alpha))
    resized = build().preprocess.resize_target(target, (8, 8)).masks
    assert resized.dtype == torch.float32 and resized.unique().numel() > 3
    torch.testing.assert_close(resized.mean(), alpha.mean())


def test_an_image_larger_than_a_tile_is_predicted_at_its_own_size():
    model = build(tile=64, tile_overlap=32, input_scale=1.0, candidate_threshold=0.005, min_score=0.0).eval()
    found = model.predict_batch([torch.rand(3, 90, 130)])[0]
    assert found.image_size == (90, 130)
    assert len(found) > 0 and found.masks.bool().shape[1:] == (90, 130)


def test_the_cap_warns_once(recwarn):
    model = build(candidate_threshold=0.0, min_score=0.0, max_instances=1).eval()
    for _ in range(3):
        model.predict_batch([torch.rand(3, 64, 64)])
    assert len([w for w in recwarn if "max_instances=1" in str(w.message)]) == 1


def test_without_backbone_weights_nothing_is_frozen_and_with_them_the_published_parts_are(tmp_path):
    scratch = build()
    assert all(p.requires_grad for p in scratch.parameters()) and scratch.config.norm_eval is False
    torch.save({k: v for k, v in scratch.net.backbone.body.state_dict().items()}, tmp_path / "b.pth")
    started = instseg.create_model("solov2_r18", 2, backbone_weights=tmp_path / "b.pth", **NARROW)
    assert started.config.frozen_stages == 1 and started.config.norm_eval
    assert not all(p.requires_grad for p in started.parameters())
    for key, value in started.net.backbone.body.state_dict().items():
        assert torch.equal(value, scratch.net.backbone.body.state_dict()[key])


def test_backbone_weights_of_another_model_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="does not fit backbone"):
        instseg.create_model("solov2_r18", backbone_weights=tmp_path / "b.pth", **NARROW)
    with pytest.raises(CheckpointError, match="do not exist"):
        instseg.create_model("solov2_r18", backbone_weights=tmp_path / "none.pth", **NARROW)


def test_auto_backbone_weights_start_from_scratch_with_one_warning_when_offline(monkeypatch):
    monkeypatch.setattr("instseg.model.load.imagenet_reachable", lambda backbone: False)
    with pytest.warns(UserWarning, match="starts from scratch"):
        model = instseg.create_model("solov2_r18", backbone_weights="auto", **NARROW)
    assert model.config.frozen_stages == 0 and model.extra["backbone_weights"] == "none"


def test_a_backbone_that_timm_lacks_or_without_a_pyramid_is_refused():
    with pytest.raises(ConfigError, match='Did you mean "resnet10t"'):
        build(backbone="resnet10tt")
    with pytest.raises(ConfigError, match="strides"):
        build(backbone="vit_tiny_patch16_224")


def test_starting_from_a_checkpoint_takes_its_structure_and_its_weights(tmp_path):
    first = build()
    first.set_categories(Categories(("a", "b"), (5, 9)))
    first.save(tmp_path / "m.safetensors")
    second = instseg.create_model("solov2_r18", weights=tmp_path / "m.safetensors", max_instances=7)
    assert second.config.tower_channels == 16 and second.config.max_instances == 7 and second.categories == ("a", "b")
    for key, value in first.net.state_dict().items():
        assert torch.equal(second.net.state_dict()[key], value)


def test_another_number_of_classes_starts_the_class_layer_anew_and_says_so(tmp_path):
    build(2).save(tmp_path / "m.safetensors")
    with pytest.warns(UserWarning, match="2 classes and the model 5.*head.category.weight"):
        model = instseg.create_model("solov2_r18", 5, weights=tmp_path / "m.safetensors")
    assert model.config.num_classes == 5


def test_a_checkpoint_of_another_structure_is_refused_with_what_it_is(tmp_path):
    build().save(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"is a checkpoint of solov2_r18 \(backbone resnet10t\)"):
        instseg.create_model("solov2_light_448_r18", 2, weights=tmp_path / "m.safetensors")


def test_half_precision_files_are_half_as_large_and_load_as_float32(tmp_path):
    model = build()
    model.save(tmp_path / "a.safetensors")
    model.save(tmp_path / "b.safetensors", half=True)
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in "ab"]
    assert sizes[1] < 0.55 * sizes[0]
    assert all(p.dtype == torch.float32 for p in instseg.load(tmp_path / "b.safetensors").parameters())


def test_a_model_remembers_how_its_images_are_read(tmp_path):
    model = build()
    assert model.image_rule == ImageRule()
    model.extra["image_rule"] = ImageRule(exif=False, full_scale=4095.0).to_json()
    model.save(tmp_path / "m.safetensors")
    assert instseg.load(tmp_path / "m.safetensors").image_rule == ImageRule(False, 4095.0)


def test_model_names_resolve_to_files_folders_and_zoo_names(tmp_path):
    build().save(tmp_path / "best.safetensors")
    assert resolve_model(tmp_path).has_weights and resolve_model(tmp_path / "best.safetensors").has_weights
    assert not resolve_model("solov2_light_448_r18").has_weights
    with pytest.raises(ConfigError, match="neither a file"):
        resolve_model("solov9")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds none of best\.safetensors"):
        resolve_model(tmp_path / "empty")


def test_a_run_that_was_killed_before_its_first_checkpoint_predicts_from_its_state(tmp_path):
    model = build()
    state = {"format": "instseg training state 1", "progress": {}, "optimizer": {}, "updates": 3, "recipe": {}}
    state |= {"model": {f"net.{k}": v for k, v in model.net.state_dict().items()}, "model_name": model.name}
    state |= {"model_config": model.config.model_dump(mode="json"), "model_extra": {}}
    torch.save({**state, "categories": {"names": ["a", "b"], "ids": [4, 7]}}, tmp_path / "last.ckpt")
    for ready in (resolve_model(tmp_path), instseg.load(tmp_path)):
        assert ready.category_ids == (4, 7) and ready.has_weights
        assert torch.equal(ready.net.head.category.weight, model.net.head.category.weight)
    assert instseg.create_model("solov2_r18", weights=tmp_path).categories == ("a", "b")


def test_a_model_that_extends_another_starts_from_its_checkpoint(tmp_path):
    """SODAR's masks are its host's before any training; only the aggregation starts new."""
    torch.manual_seed(0)
    narrow = {"backbone": "resnet10t", "fpn_channels": 16, "tower_channels": 16, "tower_convs": 1, "grids": (8, 4)}
    narrow |= {"scale_ranges": ((1, 64), (32, 999)), "input_short": 64, "input_long": 96, "mask_prior": 0.5}
    host = instseg.create_model("solo_r50", 2, **narrow).eval()
    host.save(tmp_path / "host.safetensors")
    with pytest.warns(UserWarning, match=r"checkpoint of solo_r50: the aggregation of sodar_r50 .* starts new"):
        model = instseg.create_model("sodar_r50", 2, weights=tmp_path / "host.safetensors").eval()
    assert model.config.grids == (8, 4) and model.config.backbone == "resnet10t" and model.has_weights
    images = [torch.rand(3, 60, 80)]
    with torch.no_grad():
        inputs = [model.preprocess.resize_image(images[0], (64, 85))]
        ours, theirs = (m.net(m.preprocess.batch(inputs)) for m in (model, host))
        cells = torch.arange(16)
        a, b = (m.net.mask_probabilities(o, 0, 1, cells) for m, o in ((model, ours), (host, theirs)))
    for x, y in zip(ours.cls_logits, theirs.cls_logits, strict=True):
        torch.testing.assert_close(x, y)
    torch.testing.assert_close(a, b, atol=0.03, rtol=0)
    with pytest.raises(CheckpointError, match="does not fit"):
        instseg.create_model("sodar_solov2_r50", 2, weights=tmp_path / "host.safetensors", backbone="resnet10t")
