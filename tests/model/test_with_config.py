"""Changing fields of a model that has weights."""

from pathlib import Path

import pytest
import torch

import instseg
from instseg.core.errors import ConfigError
from instseg.model.instance_model import InstanceModel
from instseg.model.load import resolve_model
from instseg.model.with_config import reconfigure

SMALL = {"fpn_channels": 32, "tower_channels": 32, "tower_convs": 1, "mask_channels": 16, "mask_hidden": 32}


@pytest.fixture(scope="module")
def model() -> InstanceModel:
    made = instseg.create_model("solov2_r18", num_classes=2, **SMALL).eval()
    made.has_weights = True
    return made


def test_a_threshold_changes_and_the_weights_stay(model: InstanceModel) -> None:
    changed = reconfigure(model, {"max_instances": 7, "tile": 64, "tile_overlap": 8})
    assert changed.config.max_instances == 7
    assert changed.config.tower_channels == 32
    assert changed.categories == model.categories
    assert changed.has_weights and not changed.training
    assert all(
        torch.equal(a, b) for a, b in zip(changed.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert model.config.max_instances == 100


def test_no_network_is_built_for_a_setting_and_the_parameters_are_shared(
    model: InstanceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    monkeypatch.setattr("instseg.model.instance_model.build_net", lambda name, config: built.append(name))
    changed = reconfigure(model, {"max_instances": 7, "min_score": 0.3, "tile": 64, "tile_overlap": 8})
    assert built == []
    assert all(a is b for a, b in zip(changed.parameters(), model.parameters(), strict=True))
    assert changed.net.config.min_score == 0.3 and model.net.config.min_score != 0.3
    assert changed.preprocess.config.tile == 64 and model.preprocess.config.tile is None
    assert changed.extra == model.extra and changed.net is not model.net


def test_without_fields_it_is_the_same_model(model: InstanceModel) -> None:
    assert reconfigure(model, {}) is model


@pytest.mark.parametrize("fields", [{"tower_channels": 64}, {"num_classes": 3}, {"backbone": "r34"}])
def test_a_field_that_the_weights_do_not_fit_is_refused(model: InstanceModel, fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        reconfigure(model, fields)


def test_an_unknown_field_names_the_nearest(model: InstanceModel) -> None:
    with pytest.raises(ConfigError, match='Did you mean "max_instances"'):
        reconfigure(model, {"max_instance": 7})


def test_without_weights_every_field_can_change() -> None:
    made = instseg.create_model("solov2_r18", num_classes=2, **SMALL)
    changed = reconfigure(made, {"tower_channels": 64, "num_classes": 5})
    assert changed.config.tower_channels == 64
    assert len(changed.categories) == 5


def test_a_field_under_its_old_name_changes(model: InstanceModel, tmp_path: Path) -> None:
    assert reconfigure(model, {"keep_threshold": 0.4}).config.min_score == 0.4
    model.save(tmp_path / "a.safetensors")
    assert resolve_model(tmp_path / "a.safetensors", fields={"keep_threshold": 0.4}).config.min_score == 0.4
