"""SODAR started from what it is put on: what it takes over, what starts new, and that it trains and predicts."""

import re
import warnings

import pytest
import torch
from tests.weights.published_files import foreign, lively, write

import instseg
from instseg.core.categories import Categories
from instseg.core.errors import CheckpointError
from instseg.model.load import create_model
from instseg.models.zoo import MODELS, build_config, extends
from instseg.training.plan import new_plan
from instseg.weights.resolve import convert

NARROW = {"fpn_channels": 16, "tower_convs": 1, "tower_channels": 32, "input_short": 64, "input_long": 96}
FEATURE = {"mask_hidden": 8, "mask_channels": 4}
BASIC, BOTTLENECK = {**NARROW, "backbone": "resnet10t"}, {**NARROW, "backbone": "resnet14t"}
FEW = {"grids": (8, 6), "scale_ranges": ((1, 64), (32, 999))}
# A host: its name and fields, and what starts new in every SODAR on it but the aggregation.
SOLO_HOSTS = {
    "as published": ("solo_r50", BASIC, []),
    "two levels": ("solo_r50", {**BASIC, **FEW}, []),
    "no pyramid": ("solo_r50_single_24", BASIC, ["fpn", "mask_output"]),
}
SOLOV2_HOSTS = {
    "as published": ("solov2_r18", {**BASIC, **FEATURE}, []),
    "two levels": ("solov2_r18", {**BASIC, **FEATURE, **FEW}, []),
    "light": ("solov2_light_448_r18", {**BASIC, **FEATURE}, []),
    "deformable": ("solov2_light_512_r50_dcn", {**BOTTLENECK, **FEATURE}, []),
    "plus": ("solov2_plus_r101_dcn", {**BOTTLENECK, **FEATURE}, []),
    "as AggMask's": ("solov2_r18", {**BASIC, **FEATURE, "mask_feature_norm": False, "kernel_conv": 1}, []),
    "several maps a mask": ("solov2_decoupled_r101", {**BASIC, **FEATURE}, ["head.kernel"]),
    "a feature a level": ("solov2_r18", {**BASIC, **FEATURE, "mask_feature": "separate"}, ["mask_feature"]),
}
HOSTS = {f"SOLO, {k}": v for k, v in SOLO_HOSTS.items()} | {f"SOLOv2, {k}": v for k, v in SOLOV2_HOSTS.items()}
NAMES = [name for name in MODELS if name.startswith("sodar_") and "_r101" not in name]
COMBINATIONS = [
    (host, name)
    for host, (solo, *_) in HOSTS.items()
    for name in NAMES
    if extends(name, solo) and ("as published" in host or not name.endswith("_deform"))
]
FINER, HALVED, USUAL = (50, 40, 24, 16, 12), (20, 18, 12, 8, 6), (40, 36, 24, 16, 12)
GRIDS = {"cls": (FINER, USUAL), "mask": (None, HALVED), "cm": (FINER, HALVED)}  # None: the host's


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """The host of a name as a checkpoint, made once."""
    made = {}

    def host(key):
        if key not in made:
            torch.manual_seed(0)
            name, fields, _ = HOSTS[key]
            model = instseg.create_model(name, 2, **fields)
            path = tmp_path_factory.mktemp("hosts") / "host.safetensors"
            model.save(path)
            made[key] = (model, path)
        return made[key]

    return host


def start(name, path, **fields):
    """A model that starts from a file, and the one line that says what starts new in it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = instseg.create_model(name, weights=path, **fields)
    (line,) = [str(w.message) for w in caught if "is a checkpoint of" in str(w.message)]
    return model, line


def works(model):
    """One update of training, then prediction."""
    masks = torch.zeros(1, 64, 96, dtype=torch.uint8)
    masks[0, 10:50, 20:70] = 1
    target = {"boxes": torch.tensor([[20.0, 10, 70, 50]]), "labels": torch.tensor([0]), "masks": masks}
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    loss = sum(model.train()([image], [target]).values())
    loss.backward()
    optimizer.step()
    assert loss.isfinite() and all(p.isfinite().all() for p in model.parameters())
    (found,) = model.eval()([image])
    assert found["masks"].shape == (len(found["scores"]), 1, 64, 96)


@pytest.mark.parametrize(("host", "name"), COMBINATIONS)
def test_a_host_gives_its_tensors_and_its_fields_and_the_name_its_grids(hosts, host, name):
    solo, path = hosts(host)
    model, line = start(name, path)
    variant = next((v for v in GRIDS if f"_{v}" in name), None)
    levels_kept = variant is None or len(solo.config.grids) == 5
    own, maps = GRIDS.get(variant, (None, None))
    at_home = solo.config.grids if levels_kept and "no pyramid" not in host else USUAL
    assert model.config.grids == (own or at_home) and model.config.mask_grids == maps
    assert len(model.config.scale_ranges) == len(model.config.grids)
    assert model.config.deformable == name.endswith("_deform")
    for field in ("backbone", "tower_channels", "input_short", "num_classes", "dcn"):
        assert getattr(model.config, field) == getattr(solo.config, field)
    parts = list(HOSTS[host][2])
    if name.startswith("sodar_r50") and "mask_output" not in parts:
        parts += ["mask_output"] * (model.config.map_grids != solo.config.grids)
    parts = [*sorted(parts), "aggregation"]
    ours, theirs = model.net.state_dict(), solo.net.state_dict()
    new = {k for k in ours if k.startswith(tuple(f"{part}." for part in parts))}
    said = re.fullmatch(rf".* is a checkpoint of {solo.name}: the (.+) of {name} \((\d+) tensors\) starts? new\.", line)
    assert sorted(re.split(", | and ", said[1])) == sorted(parts) and int(said[2]) == len(new)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours.keys() - new)
    assert {k for k in theirs if k not in ours or k in new} == {
        k for k in theirs if k.startswith(tuple(f"{part}." for part in parts))
    }
    works(model)


def test_a_solov2_as_host_brings_its_own_branches(hosts):
    model, _ = start("sodar_solov2_r50", hosts("SOLOv2, as published")[1])
    assert model.config.base == "solov2" and model.config.mask_feature_norm and model.config.kernel_conv == 3
    assert model.config.shared_cells == "last" and model.config.weight_kernel == 1  # SODAR*'s own


def test_representations_of_a_sodar_start_as_such_whatever_the_host_says(hosts):
    """SOLO's channels start as improbable masks; raw representations start at zero."""
    model, _ = start("sodar_r50_mask", hosts("SOLO, as published")[1])
    assert model.config.mask_prior == 0.5 and float(model.net.mask_output[0].bias.detach().abs().max()) == 0


def test_the_cap_is_the_larger_one(tmp_path):
    for cap, name, expected in ((100, "sodar_r50_cls", 300), (500, "sodar_r50_cls", 500), (20, "sodar_r50", 20)):
        instseg.create_model("solo_r50", 2, **BASIC, max_instances=cap).save(tmp_path / "host.safetensors")
        assert start(name, tmp_path / "host.safetensors")[0].config.max_instances == expected


def test_fields_that_are_given_come_first(hosts):
    path = hosts("SOLO, as published")[1]
    model, line = start("sodar_r50_cm", path, grids=(9, 7), mask_grids=(7, 5), scale_ranges=((1, 64), (32, 999)))
    assert model.config.grids == (9, 7) and "the mask_output and aggregation of sodar_r50_cm" in line
    with pytest.raises(CheckpointError, match=r"does not fit sodar_r50 \(backbone resnet14t\)"):
        create_model("sodar_r50", weights=path, overrides={"backbone": "resnet14t"})


def test_the_bundled_weights_are_a_host_of_their_own_towers():
    nuclei = instseg.load("nuclei")
    for name in ("sodar_solov2_r50", "sodar_solov2_r50_cls", "sodar_solov2_r101_cm_deform"):
        model, line = start(name, "nuclei", input_scale=None, tile=None, input_short=64, input_long=96)
        assert model.config.tower_channels == nuclei.config.tower_channels == 128 and model.config.base == "solov2"
        assert f"nuclei is a checkpoint of solov2_r18: the aggregation of {name} (" in line
        assert all(torch.equal(value, model.net.state_dict()[key]) for key, value in nuclei.net.state_dict().items())
        works(model)


@pytest.mark.parametrize("name", ["sodar_r50", "sodar_r50_cls", "sodar_r101_mask"])
def test_a_published_host_starts_a_sodar_as_it_does_when_it_is_converted_first(name, tmp_path):
    path = write(tmp_path / "SOLO_R50_3x.pth", lively(foreign("solo_r50", "SOLO")))
    convert(path, tmp_path / "host.safetensors")
    states = []
    for file in (path, tmp_path / "host.safetensors"):
        torch.manual_seed(0)
        model, line = start(name, file, input_short=64, input_long=96)
        assert f"{file} is a checkpoint of solo_r50" in line and model.config.frozen_stages == 1
        plan = new_plan(None, {"weights": str(file), "model": name})
        assert plan.recipe.model == name and plan.start.model == "solo_r50"
        assert build_config(name, plan.fields).grids == model.config.grids
        states.append(model.net.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_published_file_of_another_family_is_refused_in_one_line(tmp_path):
    path = write(tmp_path / "SOLOv2.pth", foreign("solov2_light_448_r18", "SOLO"))
    with pytest.raises(
        CheckpointError, match=r"seems to be SOLOv2 on r18.*not sodar_r50: use --model solov2_light_448"
    ):
        instseg.create_model("sodar_r50", weights=path)
    with pytest.raises(
        CheckpointError, match="is a checkpoint of solov2_light_448_r18, not sodar_solov2_r50: use --model"
    ):
        convert(path, tmp_path / "ours.safetensors", "sodar_solov2_r50")  # a conversion adds no aggregation


def test_the_hosts_classes_keep_their_rows(hosts, tmp_path):
    solo, _ = hosts("SOLO, as published")
    solo.set_categories(Categories(("cat", "dog"), (1, 2)))
    solo.save(tmp_path / "host.safetensors")
    model = create_model(
        "sodar_r50_cls", weights=tmp_path / "host.safetensors", categories=Categories(("cow", "dog", "cat"), (5, 6, 7))
    )
    old, new = solo.net.category.output.weight, model.net.category.output.weight
    assert torch.equal(new[1], old[1]) and torch.equal(new[2], old[0]) and not torch.equal(new[0], old[0])
