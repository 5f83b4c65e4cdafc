"""A model from whatever names one: read once, built once, and as it was saved."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.weights.published_files import foreign, write

import instseg
from instseg.core.errors import CheckpointError, ConfigError
from instseg.model.load import create_model, resolve_model
from instseg.models.solo.net import GridNet
from instseg.training.checkpoint import save_state
from instseg.weights import published, resolve
from instseg.weights.resolve import convert, read_weights

NARROW = {
    "backbone": "resnet10t",
    "fpn_channels": 16,
    "tower_convs": 1,
    "tower_channels": 32,
    "grids": (8, 6, 4, 3, 2),
    "input_short": 64,
    "input_long": 96,
}
OLD_NAMES = {"center_region": "centre_region", "candidate_threshold": "score_threshold", "min_score": "keep_threshold"}


@pytest.fixture
def built(monkeypatch):
    """The names of the networks that are built."""
    names = []
    original = GridNet.__init__

    def counted(self, config):
        names.append(type(self).__name__)
        original(self, config)

    monkeypatch.setattr(GridNet, "__init__", counted)
    return names


@pytest.fixture
def opened(monkeypatch):
    """The files that are read as those of other code bases."""
    files = []
    original = published._tensors
    monkeypatch.setattr(published, "_tensors", lambda path: files.append(path.name) or original(path))
    return files


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "sodar_r50.pth", foreign("sodar_r50", "AggMask"))


@pytest.mark.filterwarnings("ignore:.*is taken for")
def test_a_published_file_is_read_once_and_loads_with_one_network_built(file, built, opened):
    model = instseg.load(file)
    assert model.name == "sodar_r50" and model.has_weights and not model.training
    assert built == ["SODAR"] and opened == [file.name]


def test_training_from_a_published_file_builds_one_network_and_reads_it_once(file, built, opened):
    checkpoint = read_weights(file, "sodar_r50")
    assert not built
    model = create_model("sodar_r50", weights=checkpoint)
    assert model.has_weights and model.categories == checkpoint.categories
    assert built == ["SODAR"] and opened == [file.name]


def test_a_path_as_weights_builds_one_network(file, built, opened):
    create_model("sodar_r50", weights=file)
    assert built == ["SODAR"] and opened == [file.name]


def test_convert_builds_one_network(file, built, opened):
    convert(file, file.with_name("ours.safetensors"), "sodar_r50")
    assert built == ["SODAR"] and opened == [file.name]


def test_a_file_of_ours_loads_with_one_network_built(built):
    assert instseg.load("nuclei").has_weights
    assert built == ["SOLOv2"]


def test_a_loaded_model_is_the_saved_one_in_every_tensor_and_in_what_trains(tmp_path):
    torch.manual_seed(0)
    model = create_model("solov2_r18", 2, overrides={**NARROW, "frozen_stages": 1})
    model.save(tmp_path / "a.safetensors")
    again = instseg.load(tmp_path / "a.safetensors")
    for (name, ours), theirs in zip(again.net.state_dict().items(), model.net.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype and ours.is_contiguous(), name
    trained = {name: p.requires_grad for name, p in model.net.named_parameters()}
    assert {name: p.requires_grad for name, p in again.net.named_parameters()} == trained
    assert not all(trained.values())


def test_what_a_network_has_beside_its_checkpoint_is_there(tmp_path, monkeypatch):
    create_model("solov2_r18", 2, overrides=NARROW).save(tmp_path / "a.safetensors")
    original = GridNet.__init__

    def with_constant(self, config):
        original(self, config)
        self.register_buffer("constant", torch.arange(3), persistent=False)

    monkeypatch.setattr(GridNet, "__init__", with_constant)
    assert instseg.load(tmp_path / "a.safetensors").net.constant.tolist() == [0, 1, 2]


def test_the_file_may_change_after_a_model_was_loaded(tmp_path):
    path = tmp_path / "a.safetensors"
    create_model("solov2_r18", 2, overrides=NARROW).save(path)
    model = instseg.load(path)
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(value, before[key]) for key, value in model.net.state_dict().items())


def test_a_name_of_the_zoo_loads_without_weights():
    model = instseg.load("solov2_light_448_r18")
    assert model.name == "solov2_light_448_r18" and not model.has_weights and not model.training
    with pytest.raises(CheckpointError, match="has no weights"):
        model.predict("image.jpg")


def test_a_model_that_is_there_stays_the_same():
    model = instseg.load("nuclei")
    assert resolve_model(model) is model
    with pytest.raises(ConfigError, match="neither a file"):
        instseg.load("nothing_of_that_name")


def test_a_checkpoint_with_the_old_names_of_fields_loads(tmp_path):
    path = tmp_path / "a.safetensors"
    create_model("solov2_r18", 2, overrides={**NARROW, "min_score": 0.125}).save(path)
    with safe_open(path, framework="pt") as opened:
        state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  not a dictionary
        metadata = opened.metadata()
    config = {OLD_NAMES.get(key, key): value for key, value in json.loads(metadata["config"]).items()}
    assert config["keep_threshold"] == 0.125
    save_file(state, path, {**metadata, "config": json.dumps(config)})
    assert instseg.load(path).config.min_score == 0.125
    assert create_model("solov2_r18", weights=path).config.min_score == 0.125


def test_a_state_with_the_old_names_of_fields_loads(tmp_path):
    model = create_model("solov2_r18", 2, overrides={**NARROW, "min_score": 0.125})
    config = {OLD_NAMES.get(key, key): value for key, value in model.config.model_dump(mode="json").items()}
    state = {
        "updates": 3,
        "recipe": {"weights": None},
        "model": {f"net.{key}": value for key, value in model.net.state_dict().items()},
        "model_name": model.name,
        "model_config": config,
        "model_extra": {},
        "categories": {"names": ["a", "b"], "ids": [3, 5]},
    }
    save_state(tmp_path / "last.ckpt", state)
    again = instseg.load(tmp_path)
    assert again.config.min_score == 0.125 and again.category_ids == (3, 5)


def test_the_bundled_weights_were_saved_under_old_names_and_load():
    checkpoint = resolve.read_weights("nuclei")
    assert set(OLD_NAMES.values()) <= checkpoint.config.keys()
    assert instseg.load("nuclei").config.min_score == checkpoint.config["keep_threshold"]
