"""Checkpoints of other code bases. Their files are rebuilt here from the names and shapes of the published ones."""

import re

import pytest
import torch

import instseg
from instseg.core.errors import CheckpointError
from instseg.models.zoo import MODELS, build_config, build_net
from instseg.weights.catalogue import CATALOGUE, cache_folder, obtain
from instseg.weights.coco_names import coco_categories
from instseg.weights.published import read_published
from instseg.weights.resolve import convert

BODY = (
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"fpn\.lateral\.(\d)\.(.+)", r"neck.lateral_convs.\1.conv.\2"),
    (r"fpn\.output\.(\d)\.(.+)", r"neck.fpn_convs.\1.conv.\2"),
)
MMDET = (
    *BODY,
    (r"mask_feature\.output\.(.+)", r"mask_head.mask_feature_head.conv_pred.\1"),
    (r"mask_feature\.levels\.(.)\.(.)\.(.+)", r"mask_head.mask_feature_head.convs_all_levels.\1.conv<\2>.\3"),
    (r"head\.kernel_tower\.(.+)", r"mask_head.kernel_convs.\1"),
    (r"(?:head\.category_tower|category\.tower)\.(.+)", r"mask_head.cls_convs.\1"),
    (r"head\.kernel\.(.+)", r"mask_head.conv_kernel.\1"),
    (r"(?:head\.category|category\.output)\.(.+)", r"mask_head.conv_cls.\1"),
    (r"mask_tower((?:_[xy])?)\.(.+)", r"mask_head.mask_convs\1.\2"),
    (r"mask_output((?:_[xy])?)\.(.+)", r"mask_head.conv_mask_list\1.\2"),
)
AUTHORS = (
    *BODY,
    (r"mask_feature\.output\.(.+)", r"mask_feat_head.conv_pred.0.\1"),
    (r"mask_feature\.levels\.(.)\.(.)\.(.+)", r"mask_feat_head.convs_all_levels.\1.conv<\2>.\3"),
    (r"head\.kernel_tower\.(.+)", r"bbox_head.kernel_convs.\1"),
    (r"(?:head\.category_tower|category\.tower)\.(.+)", r"bbox_head.cate_convs.\1"),
    (r"head\.kernel\.(.+)", r"bbox_head.solo_kernel.\1"),
    (r"head\.category\.(.+)", r"bbox_head.solo_cate.\1"),
    (r"category\.output\.(.+)", r"bbox_head.{d}solo_cate.\1"),
    (r"mask_tower((?:_[xy])?)\.(.+)", r"bbox_head.ins_convs\1.\2"),
    (r"mask_output((?:_[xy])?)\.(.+)", r"bbox_head.{d}solo_ins_list\1.\2"),
)
AGGMASK = (
    (r"aggregation\.aggregate\.weights\.(.+)", r"bbox_head.learned_weights.\1"),
    (r"aggregation\.context\.fuse\.(.+)", r"bbox_head.context_fusion_convs.0.\1"),
    (r"aggregation\.context\.tail\.0\.(.+)", r"bbox_head.context_fusion_convs.1.\1"),
    (r"aggregation\.context\.tail\.2\.(.+)", r"bbox_head.context_fusion_convs.3.\1"),
    (r"aggregation\.tower\.(.+)", r"bbox_head.kernel_convs_convcomb.\1"),
    (r"mask_feature\.levels\.(.)\.(.)\.(.+)", r"bbox_head.feature_convs.\1.conv<\2>.\3"),
    (r"mask_feature\.output\.(.+)", r"bbox_head.solo_mask.\1"),
    *AUTHORS,
)
ADELAIDET = (
    (r"backbone\.body\.conv1\.weight", r"backbone.bottom_up.stem.conv1.weight"),
    (r"backbone\.body\.bn1\.(.+)", r"backbone.bottom_up.stem.conv1.norm.\1"),
    (r"backbone\.body\.layer(.)\.(\d+)\.conv(.)\.weight", r"backbone.bottom_up.res<+\1>.\2.conv\3.weight"),
    (r"backbone\.body\.layer(.)\.(\d+)\.bn(.)\.(.+)", r"backbone.bottom_up.res<+\1>.\2.conv\3.norm.\4"),
    (r"backbone\.body\.layer(.)\.(\d+)\.downsample\.0\.(.+)", r"backbone.bottom_up.res<+\1>.\2.shortcut.\3"),
    (r"backbone\.body\.layer(.)\.(\d+)\.downsample\.1\.(.+)", r"backbone.bottom_up.res<+\1>.\2.shortcut.norm.\3"),
    (r"fpn\.lateral\.(.)\.(.+)", r"backbone.fpn_lateral<++\1>.\2"),
    (r"fpn\.output\.(.)\.(.+)", r"backbone.fpn_output<++\1>.\2"),
    (r"head\.category_tower\.(.)\.conv\.(.+)", r"ins_head.cate_tower.<t\1>.\2"),
    (r"head\.category_tower\.(.)\.gn\.(.+)", r"ins_head.cate_tower.<n\1>.\2"),
    (r"head\.kernel_tower\.(.)\.conv\.(.+)", r"ins_head.kernel_tower.<t\1>.\2"),
    (r"head\.kernel_tower\.(.)\.gn\.(.+)", r"ins_head.kernel_tower.<n\1>.\2"),
    (r"head\.category\.(.+)", r"ins_head.cate_pred.\1"),
    (r"head\.kernel\.(.+)", r"ins_head.kernel_pred.\1"),
    (r"mask_feature\.levels\.(.)\.(.)\.conv\.(.+)", r"mask_head.convs_all_levels.\1.conv<\2>.0.\3"),
    (r"mask_feature\.levels\.(.)\.(.)\.gn\.(.+)", r"mask_head.convs_all_levels.\1.conv<\2>.1.\3"),
    (r"mask_feature\.output\.conv\.(.+)", r"mask_head.conv_pred.0.\1"),
    (r"mask_feature\.output\.gn\.(.+)", r"mask_head.conv_pred.1.\1"),
)
CODES = {"mmdetection": MMDET, "SOLO": AUTHORS, "AggMask": AGGMASK, "AdelaiDet": ADELAIDET}
NUMBERS = {
    "": lambda n: n // 2,
    "+": lambda n: n + 1,
    "++": lambda n: n + 2,
    "t": lambda n: 3 * n,
    "n": lambda n: 3 * n + 1,
}


def foreign(name, code, **fields):
    """The state dict of a model as another code base names it: every tensor a single value that can be told apart."""
    with torch.device("meta"):
        shapes = {k: (v.shape, v.dtype) for k, v in build_net(name, build_config(name, fields)).state_dict().items()}
    state = {}
    for i, (ours, (shape, dtype)) in enumerate(shapes.items()):
        if code == "AdelaiDet" and ours.endswith("num_batches_tracked"):
            continue  # its norms are frozen
        pattern, replacement = next(rule for rule in CODES[code] if re.fullmatch(rule[0], ours))
        theirs = re.sub(pattern, replacement, ours)
        theirs = theirs.replace("{d}", "d" if "decoupled" in name else "")
        theirs = re.sub(r"<([+tn]*)(\d)>", lambda m: str(NUMBERS[m[1]](int(m[2]))), theirs)
        state[theirs] = torch.full((), float(i % 997)).to(dtype).expand(shape)
    return state


def write(path, state, key="state_dict"):
    torch.save({"meta": {"epoch": 36}, key: state}, path)
    return path


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
    for i, (ours, tensor) in enumerate(checkpoint.state.items()):
        if not ours.endswith("num_batches_tracked"):
            assert float(tensor.flatten()[0]) == i % 997, ours
    assert checkpoint.categories == coco_categories()
    caffe = code == "AdelaiDet"
    assert [checkpoint.config[field] for field in ("stride_in_1x1", "bgr", "antialias")] == [caffe] * 3


def test_a_converted_file_is_one_of_ours_and_predicts(tmp_path):
    torch.manual_seed(0)
    model = instseg.create_model("solov2_light_448_r18").eval()
    ours = model.net.state_dict()
    state = {
        theirs: value for theirs, value in zip(foreign("solov2_light_448_r18", "SOLO"), ours.values(), strict=True)
    }
    path = write(tmp_path / "f.pth", state)
    convert(path, tmp_path / "ours.safetensors", "solov2_light_448_r18")
    again = instseg.load(tmp_path / "ours.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), again.net.state_dict().values(), strict=True))
    assert again.categories[0] == "person" and again.category_ids[-1] == 90
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.predict_batch([image])[0].scores, instseg.load(path).predict_batch([image])[0].scores)


def test_another_number_of_classes_starts_the_class_layer_anew_and_says_so(tmp_path):
    path = write(tmp_path / "f.pth", foreign("solov2_light_448_r18", "mmdetection"))
    with pytest.warns(UserWarning, match="80 classes and the model 3: head.category.weight, head.category.bias start"):
        model = instseg.create_model("solov2_light_448_r18", num_classes=3, weights=path)
    assert float(model.net.head.kernel.weight.std()) == 0.0  # read from the file


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
