"""Changing the configuration of a model that is already there."""

import copy
from collections.abc import Mapping
from typing import Any

from instseg.core.errors import ConfigError
from instseg.model.instance_model import InstanceModel
from instseg.models.config import ModelConfig, renamed, setting_names
from instseg.models.zoo import build_config


def with_fields(name: str, config: ModelConfig, fields: Mapping[str, Any]) -> ModelConfig:
    """A configuration of the zoo's ``name`` with some fields changed. Raises as :func:`build_config`."""
    return build_config(name, {**config.model_dump(), **renamed(fields)})


def unfit(name: str, fields: Mapping[str, Any]) -> ConfigError:
    """What is raised where the weights of a model do not fit another configuration."""
    return ConfigError(
        f"the weights of {name} do not fit after changing {', '.join(fields)}: such fields are set when training."
    )


def reconfigure(model: InstanceModel, fields: Mapping[str, Any]) -> InstanceModel:
    """A model with some configuration fields changed, such as thresholds, tiles or the cap; weights are kept.

    Where all that changes are inference settings, no network is built: both models share its parameters, and the one
    given keeps its own settings.

    Raises:
        ConfigError: an unknown field, a value it cannot have, or one that the weights do not fit.
    """
    if not fields:
        return model
    config = with_fields(model.name, model.config, fields)
    changed = {name for name, value in config if value != getattr(model.config, name)}
    if changed <= setting_names(type(config)):
        return _sharing(model, config)
    if not model.has_weights:
        return InstanceModel(model.name, config).train(model.training)
    again = InstanceModel(model.name, config, model.categories) if "num_classes" not in changed else None
    state = model.net.state_dict()
    wanted = {} if again is None else {k: v.shape for k, v in again.net.state_dict().items()}
    if again is None or wanted != {k: v.shape for k, v in state.items()}:
        raise unfit(model.name, fields)
    again.net.load_state_dict(state)
    again.has_weights, again.extra = model.has_weights, model.extra
    modes = {part: module.training for part, module in model.named_modules()}
    for part, module in again.named_modules():
        module.training = modes.get(part, model.training)
    return again


def _sharing(model: InstanceModel, config: ModelConfig) -> InstanceModel:
    """The model with other inference settings and the same parameters, in the same modes."""
    net = copy.copy(model.net)
    net.__dict__["config"] = config
    changed = copy.copy(model)
    changed._modules = {**model._modules, "net": net}  # a copied module shares this dictionary with its original
    changed.config, changed._warned = config, False
    return changed
