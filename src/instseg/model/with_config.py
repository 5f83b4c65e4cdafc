"""Changing the configuration of a model that is already there."""

from collections.abc import Mapping
from typing import Any

from instseg.core.errors import ConfigError
from instseg.model.instance_model import InstanceModel
from instseg.models.zoo import build_config


def reconfigure(model: InstanceModel, fields: Mapping[str, Any]) -> InstanceModel:
    """The model with some configuration fields changed, such as thresholds, tiles or the cap; weights are kept.

    Raises:
        ConfigError: an unknown field, a value it cannot have, or one that the weights do not fit.
    """
    if not fields:
        return model
    config = build_config(model.name, {**model.config.model_dump(), **fields})
    if not model.has_weights:
        return InstanceModel(model.name, config).train(model.training)
    changed = InstanceModel(model.name, config, model.meta) if config.num_classes == len(model.meta) else None
    wanted = {} if changed is None else {k: v.shape for k, v in changed.net.state_dict().items()}
    state = model.net.state_dict()
    if changed is None or wanted != {k: v.shape for k, v in state.items()}:
        names = ", ".join(fields)
        raise ConfigError(
            f"the weights of {model.name} do not fit after changing {names}: such fields are set when training."
        )
    changed.net.load_state_dict(state)
    changed.has_weights, changed.extra = model.has_weights, model.extra
    return changed.train(model.training)
