"""The weights of a run, whatever it has written so far."""

from pathlib import Path
from typing import Any

import pytest
import torch

from instseg.core.categories import Categories
from instseg.core.errors import CheckpointError
from instseg.model.instance_model import InstanceModel
from instseg.models.zoo import build_config
from instseg.training.checkpoint import save_state
from instseg.weights.run_folder import read_run_folder

FIELDS: dict[str, Any] = {
    "backbone": "test_resnet", "fpn_channels": 32, "tower_channels": 32, "tower_convs": 1, "mask_hidden": 32,
    "mask_channels": 16, "grids": [8, 6], "scale_ranges": [[1, 32], [16, 64]], "num_classes": 2,
}  # fmt: skip


def model(value: float) -> InstanceModel:
    made = InstanceModel("solov2_r18", build_config("solov2_r18", FIELDS), Categories(("car", "dog"), (3, 18)))
    made.extra["note"] = "kept"
    with torch.no_grad():
        made.net.fpn.lateral[0].weight.fill_(value)
    return made


def state(value: float, averaged: float | None = None, **changes: Any) -> dict[str, Any]:
    """What training saves, as far as it concerns the weights."""
    made = model(value)
    average = None
    if averaged is not None:
        average = {"n_averaged": torch.tensor(1)}
        average |= {f"module.{k}": v for k, v in model(averaged).state_dict().items()}
    return {
        "updates": 5, "recipe": {"weights": None}, "model_name": made.name, "average": average,
        "model_config": made.config.model_dump(mode="json"), "model_extra": made.extra,
        "categories": {"names": ["car", "dog"], "ids": [3, 18]}, "model": made.state_dict(),
        "data_fingerprint": {"images": 3, "categories": ["car", "dog"]}, **changes,
    }  # fmt: skip


def value_in(folder: Path) -> float:
    found = read_run_folder(folder).state["fpn.lateral.0.weight"]
    return float(found.flatten()[0])


def test_best_then_last_then_the_averaged_weights_of_the_state(tmp_path: Path) -> None:
    save_state(tmp_path / "last.ckpt", state(3.0, averaged=4.0))
    assert value_in(tmp_path) == 4.0
    model(2.0).save(tmp_path / "last.safetensors")
    assert value_in(tmp_path) == 2.0
    model(1.0).save(tmp_path / "best.safetensors")
    assert value_in(tmp_path) == 1.0


def test_a_state_alone_says_model_configuration_classes_and_extra(tmp_path: Path) -> None:
    save_state(tmp_path / "last.ckpt", state(3.0))
    found = read_run_folder(tmp_path)
    assert (found.model, found.categories) == ("solov2_r18", Categories(("car", "dog"), (3, 18)))
    assert found.extra["note"] == "kept"
    built = InstanceModel(found.model, build_config(found.model, found.config), found.categories)
    built.net.load_state_dict(found.state)
    assert value_in(tmp_path) == 3.0


def test_a_state_of_an_older_version_has_names_and_no_ids(tmp_path: Path) -> None:
    old = state(3.0)
    del old["categories"]
    save_state(tmp_path / "last.ckpt", old)
    assert read_run_folder(tmp_path).categories == Categories.from_names(["car", "dog"])


def test_a_torn_file_is_skipped_with_a_warning(tmp_path: Path) -> None:
    save_state(tmp_path / "last.ckpt", state(5.0))
    save_state(tmp_path / "last.ckpt", state(6.0))
    (tmp_path / "best.safetensors").write_bytes(b"half")
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:3000])
    with pytest.warns(UserWarning, match=r"best\.safetensors.*last\.ckpt"):
        assert value_in(tmp_path) == 5.0


def test_a_run_without_an_update_has_no_weights_to_use_unless_it_began_with_some(tmp_path: Path) -> None:
    save_state(tmp_path / "last.ckpt", state(3.0, updates=0))
    with pytest.raises(CheckpointError, match=r"not saved an update yet.*--resume"):
        read_run_folder(tmp_path)
    save_state(tmp_path / "last.ckpt", state(3.0, updates=0, recipe={"weights": "nuclei"}))
    assert value_in(tmp_path) == 3.0


def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights") as error:
        read_run_folder(tmp_path)
    assert "\n" not in str(error.value)
