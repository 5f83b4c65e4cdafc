"""Files and names from anywhere: a checkpoint is read, anything else is one line; nothing in it is fetched or run."""

import json
import pickle
import socket
import struct

import pytest
import torch
from safetensors.torch import save_file

import instseg
from instseg.cli import main
from instseg.core.errors import CheckpointError, ConfigError
from instseg.model.load import resolve_model
from instseg.weights.catalogue import CATALOGUE
from instseg.weights.resolve import convert, read_weights

from .published_files import foreign, write

CONFIG = {
    "backbone": "resnet10t",
    "fpn_channels": 8,
    "tower_convs": 1,
    "tower_channels": 32,
    "mask_hidden": 8,
    "mask_channels": 4,
    "grids": [8, 6, 4, 3, 2],
    "input_short": 64,
    "input_long": 96,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A whole checkpoint of ours: its tensors and its metadata."""
    from safetensors import safe_open

    path = tmp_path_factory.mktemp("small") / "a.safetensors"
    torch.manual_seed(0)
    instseg.create_model("solov2_r18", 2, **CONFIG).save(path)
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture
def no_network(monkeypatch):
    """Any use of a socket ends the test."""

    def refuse(*args, **more):
        raise AssertionError(f"the network was asked for {args}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def changed(small, tmp_path, part=None, **values):
    """The checkpoint with some of its metadata, or of the JSON in one part of it, replaced."""
    state, metadata = small
    if part is not None:
        values = {part: json.dumps({**json.loads(metadata[part]), **values})}
    path = tmp_path / "changed.safetensors"
    save_file(state, path, {**metadata, **values})
    return path


@pytest.mark.parametrize(
    "backbone",
    [
        "hf_hub:someone/x",
        "hf-hub:someone/x",
        "local-dir:weights",
        "timm/resnet50",
        "https://example.com/net",
        "../net",
        "r18\n",
        "",
    ],
)
def test_a_backbone_that_points_elsewhere_is_refused_without_asking_the_network(
    small, tmp_path, no_network, backbone, capsys
):
    path = changed(small, tmp_path, "config", backbone=backbone)
    with pytest.raises(CheckpointError, match=r"changed\.safetensors.*not the name of a timm model") as error:
        instseg.load(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="addresses and paths are not followed"):
        instseg.create_model("solov2_r18", backbone=backbone)
    assert main(["benchmark", "solov2_r18", f"backbone={backbone.strip().replace('r18', 'a/b') or 'a/b'}"]) == 1
    assert "not the name of a timm model" in capsys.readouterr().err


def test_loading_asks_no_network(small, tmp_path, no_network):
    assert instseg.load(changed(small, tmp_path)).has_weights
    assert resolve_model("nuclei").has_weights


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        (None, {"config": "[1]"}, "configuration"),
        (None, {"config": "{"}, "cannot be read"),
        (None, {"config": "[" * 100_000}, "cannot be read"),
        (None, {"categories": "[]"}, "categories"),
        (None, {"categories": '{"names": ["a", "b"]}'}, "ids"),
        (None, {"extra": "3"}, "configuration"),
        (None, {"model": "solov9"}, "solov9"),
        (None, {"format": "other"}, "not written by instseg"),
        ("categories", {"names": "ab"}, "names of its categories"),
        ("categories", {"names": [1, 2]}, "names of its categories"),
        ("categories", {"ids": ["1", "2"]}, "ids of its categories"),
        ("categories", {"ids": [1.5, 2]}, "ids of its categories"),
        ("categories", {"ids": [1, 1]}, "not unique"),
        ("categories", {"names": ["a"], "ids": [1]}, "1 categories for a model of 2 classes"),
        ("config", {"num_classes": 5}, "does not fit"),
        ("config", {"num_classes": 10**12}, "does not fit|cannot be built"),
        ("config", {"fpn_channels": 10**18}, "does not fit|cannot be built"),
        ("config", {"tower_channels": 33}, "does not fit|cannot be built"),
        ("config", {"tower_convs": 10**9}, "tower_convs"),
        ("config", {"num_classes": "many"}, "num_classes"),
        ("extra", {"image_rule": 5}, "cannot be used"),
        ("extra", {"image_rule": {"full_scale": "white"}}, "cannot be used"),
        ("config", {"a_field_of_tomorrow": 1}, "a_field_of_tomorrow"),
        ("config", {"backbone": "resnet18"}, "does not fit"),
    ],
)
def test_metadata_that_is_wrong_is_one_line_that_names_the_file(small, tmp_path, part, values, said):
    path = changed(small, tmp_path, part, **values)
    with pytest.raises(CheckpointError, match=said) as error:
        instseg.load(path)
    assert "changed.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_tensors_that_are_missing_or_too_many_are_one_line(small, tmp_path):
    state, metadata = small
    for tensors in ({}, {**state, "extra.weight": torch.zeros(3)}, dict(list(state.items())[1:])):
        save_file(tensors, tmp_path / "b.safetensors", metadata)
        with pytest.raises(CheckpointError, match=r"b\.safetensors.*does not fit"):
            instseg.load(tmp_path / "b.safetensors")


def test_a_header_of_impossible_length_is_one_line(tmp_path):
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        instseg.load(tmp_path / "b.safetensors")


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("code in the file was run",))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        b"PK\x03\x04 cut off",
        b"\x80\x02garbage",
        b"\x89PNG\r\n\x1a\n",
        b"hello",
        pickle.dumps({"a": print}),
        pickle.dumps(Malicious()),
        pickle.dumps({"state_dict": {"w": [1]}}, protocol=2),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors", ""])
def test_any_other_file_is_one_line(tmp_path, content, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)) as error:
        resolve_model(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(()),
        torch.zeros(3),
        torch.zeros(1).expand(10**9, 256, 3, 3),
        torch.zeros(1, dtype=torch.float16).expand(10**7, 256, 3, 3),
        torch.zeros(80, 256, 3, 3, dtype=torch.complex64),
        torch.zeros(80, 256, 3, 3, device="meta"),
    ],
    ids=["number", "vector", "huge", "huge in half precision", "complex", "without content"],
)
def test_tensors_that_no_network_has_are_one_line(tmp_path, tensor):
    state = {**foreign("solov2_light_448_r18", "mmdetection"), "mask_head.conv_cls.weight": tensor}
    with pytest.raises(CheckpointError, match=r"f\.pth") as error:
        instseg.load(write(tmp_path / "f.pth", state))
    assert "\n" not in str(error.value)


def test_names_that_are_not_texts_are_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="no names"):
        instseg.load(write(tmp_path / "f.pth", {1: torch.zeros(1)}))


def test_a_file_is_read_by_what_it_holds_whatever_it_is_called(small, tmp_path):
    ours = changed(small, tmp_path)
    renamed = tmp_path / "best.pth"
    renamed.write_bytes(ours.read_bytes())
    assert read_weights(renamed).model == "solov2_r18"
    theirs = write(tmp_path / "theirs.safetensors", foreign("solov2_light_448_r18", "SOLO"))
    assert read_weights(theirs).model == "solov2_light_448_r18"


def test_names_of_the_catalogue_come_after_files_and_before_other_folders(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr("instseg.weights.resolve.obtain", lambda name: asked.append(name) or tmp_path / "f.pth")
    write(tmp_path / "f.pth", foreign(CATALOGUE["solo_r50_1x"].model, "SOLO"))
    (tmp_path / "solo_r50_1x").mkdir()  # holds pictures, say
    assert read_weights("solo_r50_1x").model == "solo_r50" and asked == ["solo_r50_1x"]
    changed(small, tmp_path).rename(tmp_path / "solo_r50_1x" / "best.safetensors")
    assert read_weights("solo_r50_1x").model == "solov2_r18" and len(asked) == 1  # a run of that name
    (tmp_path / "solov2_r18").mkdir()
    assert not resolve_model("solov2_r18").has_weights  # the zoo's name, not the empty folder


def test_a_folder_and_a_state_are_told_what_they_are(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match=r"holds none of best\.safetensors, last\.safetensors, last\.ckpt"):
        read_weights(tmp_path / "run")
    torch.save({"format": "x"}, tmp_path / "run" / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"state of a training run: give its folder"):
        read_weights(tmp_path / "run" / "last.ckpt")


def test_convert_looks_at_its_out_before_it_downloads(tmp_path, monkeypatch):
    monkeypatch.setattr("instseg.weights.resolve.obtain", lambda name: pytest.fail("downloaded"))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file, not a folder"):
        convert("coco", tmp_path / "file" / "a.safetensors")
    with pytest.raises(CheckpointError, match="is a folder: give the name"):
        convert("coco", tmp_path)


def test_bundled_and_misspelt_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert instseg.load("nuclei").categories == ("nucleus",)
    with pytest.raises(CheckpointError, match='Did you mean "nuclei"'):
        read_weights("nuclie")
    with pytest.raises(ConfigError, match=r'neither a file.*Did you mean "coco"'):
        resolve_model("cocoo")
