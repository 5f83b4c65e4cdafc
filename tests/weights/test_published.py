"""Checkpoints of other code bases. Their files are rebuilt here from the names and shapes of the published ones."""

import math
import re
from dataclasses import replace

import pytest
import torch

import instseg
from instseg.core.errors import CheckpointError
from instseg.model.with_config import reconfigure
from instseg.models.zoo import MODELS, build_config, build_net
from instseg.weights.catalogue import CATALOGUE, cache_folder, obtain
from instseg.weights.checkpoint import read_checkpoint, write_checkpoint
from instseg.weights.coco_names import coco_categories
from instseg.weights.published import read_published
from instseg.weights.resolve import convert, read_weights

from .published_files import foreign, layout, layouts, lively, numbered, same_kind, write

KINDS = sorted({(entry.model, entry.code) for entry in CATALOGUE.values()})
# Published without an address of their own that still answers.
SODAR = ["sodar_r50", "sodar_r101", "sodar_r101_cls", "sodar_r101_mask", "sodar_solov2_r50", "sodar_solov2_r101"]
SODAR += ["sodar_solov2_r101_cls", "sodar_solov2_r101_mask"]
KINDS += [(name, "AggMask") for name in SODAR]


@pytest.mark.parametrize(("name", "code"), KINDS)
def test_every_published_file_is_read_tensor_by_tensor(name, code, tmp_path):
    state = foreign(name, code)
    path = write(tmp_path / "f.pth", state, "model" if code == "AdelaiDet" else "state_dict")
    if code == "AggMask":  # models of other grids have the same tensors: the file does not tell
        with pytest.warns(UserWarning, match=f"has the tensors of .*{name}.*is taken for"):
            assert read_published(path).model == name.removesuffix("_cls")
    checkpoint = read_published(path, name if code == "AggMask" else None)
    assert checkpoint.model == name and checkpoint.extra["source"] == code
    with torch.device("meta"):
        wanted = build_net(name, build_config(name, checkpoint.config)).state_dict()
    assert {k: v.shape for k, v in checkpoint.state.items()} == {k: v.shape for k, v in wanted.items()}
    theirs, taken = list(state), []
    for ours, tensor in checkpoint.state.items():
        if code == "AdelaiDet" and ours.endswith("num_batches_tracked"):
            assert float(tensor) == 0  # its norms are frozen and count nothing
            continue
        taken.append(theirs[int(tensor.flatten()[0])])
        assert same_kind(taken[-1], ours), (taken[-1], ours)
    assert sorted(taken) == sorted(theirs)  # each once, and none is left
    assert checkpoint.categories == coco_categories()
    caffe = code == "AdelaiDet"
    assert [checkpoint.config[field] for field in ("stride_in_1x1", "bgr", "antialias")] == [caffe] * 3


@pytest.mark.parametrize(("name", "code"), KINDS)
def test_every_published_file_is_trained_on_as_it_was_trained(name, code, tmp_path):
    """The stem, the first stage and all statistics stay; detectron2's norms have no parameters at all."""
    config = read_published(write(tmp_path / "f.pth", foreign(name, code)), name).config
    assert config["frozen_stages"] == 1 and config["norm_eval"] and config["norm_fixed"] == (code == "AdelaiDet")


@pytest.mark.parametrize("name", SODAR)
def test_the_cap_of_a_released_sodar_is_the_one_it_was_measured_with(name, tmp_path):
    cap = 300 if "solov2" in name or name.endswith("_cls") else 100
    config = read_published(write(tmp_path / "f.pth", foreign(name, "AggMask")), name).config
    assert config["max_instances"] == build_config(name, {}).max_instances == cap


def test_a_converted_sodar_keeps_that_cap(tmp_path):
    path = write(tmp_path / "f.pth", foreign("sodar_solov2_r50", "AggMask"))
    convert(path, tmp_path / "ours.safetensors", "sodar_solov2_r50_cls")
    config = read_weights(tmp_path / "ours.safetensors").config
    assert config["max_instances"] == 300 and config["grids"] == [50, 40, 24, 16, 12]


def as_earlier(path, **values):
    """The file at ``path`` as an earlier version converted it."""
    now = read_checkpoint(path)
    config = {key: value for key, value in now.config.items() if key != "norm_fixed"} | values
    write_checkpoint(path, replace(now, config=config))


@pytest.mark.parametrize(
    ("name", "code", "cap"),
    [("solov2_light_448_r18", "SOLO", 100), ("solov2_r50", "AdelaiDet", 100), ("sodar_solov2_r50", "AggMask", 300)],
)
def test_files_that_earlier_versions_converted_are_told_apart(name, code, cap, tmp_path):
    path = tmp_path / "ours.safetensors"
    convert(write(tmp_path / "f.pth", foreign(name, code)), path, name)
    today = read_weights(path).config
    as_earlier(path, frozen_stages=0, norm_eval=False, max_instances=100)
    assert read_weights(path).config == today
    assert (today["frozen_stages"], today["norm_eval"], today["max_instances"]) == (1, True, cap)


def test_what_was_changed_after_a_conversion_stays(tmp_path):
    path = tmp_path / "ours.safetensors"
    convert(write(tmp_path / "f.pth", foreign("solov2_light_448_r18", "SOLO")), path)
    reconfigure(instseg.load(path), {"frozen_stages": 0, "norm_eval": False, "max_instances": 7}).save(path)
    config = instseg.load(path).config
    assert (config.frozen_stages, config.norm_eval, config.max_instances) == (0, False, 7)


def test_a_converted_file_is_one_of_ours_and_predicts(tmp_path):
    state = lively(foreign("solov2_light_448_r18", "SOLO"))
    path = write(tmp_path / "f.pth", state)
    convert(path, tmp_path / "ours.safetensors", "solov2_light_448_r18")
    model, again = instseg.load(path), instseg.load(tmp_path / "ours.safetensors")
    ours = model.net.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), again.net.state_dict().values(), strict=True))
    assert torch.equal(ours["head.kernel.weight"], state["bbox_head.solo_kernel.weight"])
    assert torch.equal(ours["backbone.body.layer4.1.conv2.weight"], state["backbone.layer4.1.conv2.weight"])
    assert again.categories[0] == "person" and again.category_ids[-1] == 90
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    found, same = (m.predict_batch([image])[0].scores for m in (model, again))
    assert torch.equal(found, same) and len(found)


# Parameters of the published models, without statistics of norms.
TOTALS = {
    "solo_r50": 36_301_232,
    "solo_r101": 55_293_360,
    "decoupled_solo_r50": 40_028_560,
    "decoupled_solo_r101": 59_020_688,
    "decoupled_solo_light_r50": 32_354_192,
    "decoupled_solo_light_r50_dcn": 33_018_014,
    "solov2_r50": 46_592_912,
    "solov2_r101": 65_585_040,
    "solov2_r101_dcn": 68_729_118,
    "solov2_x101_dcn": 113_420_574,
    "solov2_light_448_r18": 18_271_760,
    "solov2_light_448_r34": 28_379_920,
    "solov2_light_448_r50": 31_340_560,
    "solov2_light_512_r50_dcn": 33_185_054,
    "sodar_r50": 38_812_017,
    "sodar_r101": 57_804_145,
    "sodar_r101_mask": 56_974_837,
    "sodar_solov2_r50": 38_970_705,
    "sodar_solov2_r101": 57_962_833,
    "sodar_solov2_r101_mask": 57_953_581,
}


@pytest.mark.parametrize(("name", "code"), [kind for kind in KINDS if kind[0] in TOTALS])
def test_the_lists_hold_as_many_parameters_as_the_published_models(name, code):
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(math.prod(s) for k, s in layout(name, code).items() if not k.endswith(buffers)) == TOTALS[name]


@pytest.mark.parametrize("head", ["solo", "decoupled_solo", "decoupled_solo_light", "solov2", "solov2_light"])
def test_the_lists_of_mmdetection_are_those_of_the_recorded_heads(head, references):
    recorded = torch.load(references.root / "mmdet" / f"{head}.pt", weights_only=True)["state_dict"]
    depth = {"solov2_light": 2}.get(head)  # recorded deeper than the one published
    kept = {name for name in recorded if depth is None or not re.match(rf"\w+_convs\.[{depth}-9]\.", name)}
    assert {f"mask_head.{name}" for name in kept} == set(layouts("mmdetection")[f"head {head}"])


@pytest.mark.parametrize(("head", "file"), [("aggmask", "agg_cls_mask"), ("star halved", "star_mask")])
def test_the_lists_of_aggmask_are_those_of_the_recorded_heads(head, file, references):
    """Recorded towers are two blocks deep, the published ones four or seven."""
    recorded = torch.load(references.root / "aggmask" / f"{file}.pt", weights_only=True)["state_dict"]
    tower = r"\.((?:ins|cate|kernel)_convs(?:_convcomb)?)\.[1-9]\."
    shallow = {re.sub(tower, r".\1.1.", name) for name in layouts("AggMask")[f"head {head}"]}
    assert {f"bbox_head.{name}" for name in recorded} == shallow


OTHERS = {name.removeprefix("rest "): name for name in layouts("AdelaiDet") if name.startswith("rest ")}


@pytest.mark.parametrize("published", OTHERS)
def test_methods_that_are_not_here_yet_are_called_by_their_names(published, references, tmp_path):
    shapes = {**layouts("AdelaiDet")["backbone r50"], **layouts("AdelaiDet")[OTHERS[published]]}
    if published.startswith("TensorMask"):
        shapes |= layouts("AdelaiDet")["neck bottleneck"]
    if references.complete:
        recorded = torch.load(references.root / "adelaidet" / "checkpoint_layouts.pt", weights_only=True)["models"]
        assert shapes == recorded[published]["shapes"]
    refused(tmp_path, numbered(shapes), "model", published.split("_")[0])


@pytest.mark.parametrize(
    ("key", "method"),
    [
        ("bbox_head.controller.weight", "CondInst"),
        ("bbox_head.conv_centerness.weight", "FCOS"),
        ("roi_head.mask_head.conv_logits.weight", "Mask R-CNN"),
        ("roi_heads.mask_head.predictor.weight", "Mask R-CNN"),
        ("roi_heads.mask_predictor.conv5_mask.weight", "Mask R-CNN"),
    ],
)
def test_so_are_those_of_other_code_bases(key, method, tmp_path):
    body = {k: v for k, v in foreign("solo_r50", "mmdetection").items() if not k.startswith("mask_head.")}
    refused(
        tmp_path,
        {**body, key: torch.zeros(1), "mask_head.mask_feature_head.conv_pred.bias": torch.zeros(8)},
        "state_dict",
        method,
    )


def refused(tmp_path, state, key, method):
    path = write(tmp_path / "f.pth", state, key)
    with pytest.raises(CheckpointError) as error:
        instseg.load(path)
    assert f"{path} is a checkpoint of {method}, which this version of instseg does not have" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_adelaidet_that_says_how_it_normalizes_is_believed(tmp_path):
    said = {"pixel_mean": torch.tensor([[[1.0]], [[2]], [[3]]]), "pixel_std": torch.ones(3, 1, 1)}
    path = write(tmp_path / "f.pth", {**foreign("solov2_r50", "AdelaiDet"), **said}, "model")
    assert read_published(path).config["pixel_mean"] == [1, 2, 3]


def test_another_number_of_classes_starts_the_class_layer_anew_and_says_so(tmp_path):
    path = write(tmp_path / "f.pth", foreign("solov2_light_448_r18", "mmdetection"))
    with pytest.warns(UserWarning, match="80 classes and the model 3: head.category.weight, head.category.bias start"):
        model = instseg.create_model("solov2_light_448_r18", num_classes=3, weights=path)
    assert float(model.net.head.kernel.weight.detach().std()) == 0.0  # read from the file


def test_a_file_of_another_model_is_named_with_the_one_that_fits(tmp_path):
    path = write(tmp_path / "f.pth", foreign("decoupled_solo_light_r50", "SOLO"))
    with pytest.raises(CheckpointError) as error:
        read_published(path, "solov2_r50")
    said = str(error.value)
    assert "Decoupled SOLO on r50, 80 classes, from SOLO, not solov2_r50: use --model decoupled_solo_light_r50" in said
    assert "\n" not in said


def test_missing_and_unknown_tensors_are_listed_and_refused(tmp_path):
    state = foreign("solov2_light_448_r18", "SOLO")
    del state["bbox_head.solo_kernel.bias"]
    with pytest.raises(CheckpointError, match=r"does not fit solov2_light_448_r18.*1 tensors.*head\.kernel\.bias"):
        read_published(write(tmp_path / "a.pth", state), "solov2_light_448_r18")
    state = {**foreign("solov2_light_448_r18", "SOLO"), "bbox_head.extra.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"looks like SOLO but 1 of its tensors.*bbox_head\.extra\.weight"):
        read_published(write(tmp_path / "b.pth", state))
    with pytest.raises(CheckpointError, match=r"no checkpoint of the SOLO family.*rpn_head\.weight"):
        read_published(write(tmp_path / "c.pth", {"rpn_head.weight": torch.zeros(1)}))


def test_files_that_are_no_checkpoints_are_one_line(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04 torn")
    torch.save({"code": print}, tmp_path / "b.pth")
    torch.save([1, 2], tmp_path / "c.pth")
    for name, said in (("a", "cannot be read"), ("b", "never run"), ("c", "no tensors"), ("d", "does not exist")):
        with pytest.raises(CheckpointError, match=said) as error:
            read_published(tmp_path / f"{name}.pth")
        assert "\n" not in str(error.value)


def test_names_of_a_parallel_wrapper_are_known(tmp_path):
    state = {f"module.{k}": v for k, v in foreign("solov2_light_448_r18", "SOLO").items()}
    assert read_published(write(tmp_path / "f.pth", state)).model == "solov2_light_448_r18"


@pytest.mark.parametrize("around", ["module.module.", "model.", "module.model.", "_orig_mod."])
def test_names_of_the_modules_around_a_network_are_left_out(around, tmp_path):
    state = foreign("solo_r50", "SOLO")
    beside = {
        "ema_backbone_conv1_weight": torch.zeros(2),
        "steps": torch.zeros(()),
        "data_preprocessor.mean": torch.ones(3),
    }
    named = {f"{around}{key}": value.contiguous() for key, value in (state | beside).items()}
    torch.save({"model": {"state_dict": named}}, tmp_path / "a.pth")
    found = read_published(tmp_path / "a.pth", "solo_r50").state
    wanted = read_published(write(tmp_path / "b.pth", state), "solo_r50").state
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_old_deformable_names_are_known(tmp_path):
    state = foreign("decoupled_solo_light_r50_dcn", "SOLO")
    old = {k.replace("conv2.conv_offset", "conv2_offset"): v for k, v in state.items()}
    assert old.keys() != state.keys()
    assert read_published(write(tmp_path / "f.pth", old)).model == "decoupled_solo_light_r50_dcn"


def test_offline_a_published_name_says_which_file_is_wanted_and_where_it_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path))

    def refuse(*args, **more):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(CheckpointError) as error:
        instseg.create_model("solov2_r50", weights="solov2_r50_3x")
    said = str(error.value)
    entry = CATALOGUE["solov2_r50_3x"]
    assert entry.url in said and str(cache_folder() / "SOLO" / "SOLOv2_R50_3x.pth") in said and "\n" not in said
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_put_there_by_hand_is_used_and_a_wrong_one_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path))
    path = tmp_path / "SOLO" / "SOLOv2_LIGHT_448_R18_3x.pth"
    path.parent.mkdir()
    write(path, foreign("solov2_light_448_r18", "SOLO"))
    assert obtain("solov2_light_448_r18_3x") == path
    assert instseg.load("solov2_light_448_r18_3x").name == "solov2_light_448_r18"
    other = tmp_path / "mmdetection" / CATALOGUE["solov2_r50_3x_mmdet"].file
    other.parent.mkdir()
    other.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="is not the published file"):
        obtain("solov2_r50_3x_mmdet")


def test_the_catalogue_names_models_and_recipes_that_exist():
    from importlib.resources import files

    for entry in CATALOGUE.values():
        assert entry.model in MODELS
        assert (files("instseg") / "recipes" / f"{entry.recipe}.yaml").is_file(), entry.recipe
        assert entry.name.startswith(entry.model.split("_r")[0])
