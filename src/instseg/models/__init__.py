"""The zoo: one plain dictionary from names to networks."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pydantic import ValidationError
from torch import nn

from instseg.core.errors import ConfigError, did_you_mean
from instseg.models.config import ModelConfig
from instseg.models.solov2 import SOLOv2, SOLOv2Config, light


@dataclass(frozen=True)
class ModelEntry:
    """One name of the zoo.

    Attributes:
        method: the method's own name.
        config: its configuration class.
        net: its network class, built from a configuration.
        fields: what this name changes of the configuration's defaults.
        paper_ap: COCO val2017 mask AP that the authors' repository states for this model, None where it states none.
        paper_input: (height, width) the paper's figures are for, pixels.
    """

    method: str
    config: type[ModelConfig]
    net: type[nn.Module]
    fields: Mapping[str, Any]
    paper_ap: float | None
    paper_input: tuple[int, int] = (800, 1333)


def _solov2(backbone: str, paper_ap: float | None, **changes: Any) -> ModelEntry:
    return ModelEntry("SOLOv2", SOLOv2Config, SOLOv2, {"backbone": backbone, **changes}, paper_ap)


def _solov2_light(backbone: str, paper_ap: float | None) -> ModelEntry:
    fields = light(backbone=backbone)
    return ModelEntry("SOLOv2-light", SOLOv2Config, SOLOv2, fields, paper_ap, (448, 768))


MODELS: dict[str, ModelEntry] = {
    "solov2_r18": _solov2("r18", None),
    "solov2_r34": _solov2("r34", None),
    "solov2_r50": _solov2("r50", 37.5),
    "solov2_r101": _solov2("r101", 39.1),
    "solov2_light_448_r18": _solov2_light("r18", 29.6),
    "solov2_light_448_r34": _solov2_light("r34", 32.0),
    "solov2_light_448_r50": _solov2_light("r50", 33.7),
}


def list_models(pattern: str = "*") -> list[str]:
    """The names of the zoo that match a glob pattern, sorted."""
    return sorted(name for name in MODELS if fnmatchcase(name, pattern))


def get_entry(name: str) -> ModelEntry:
    """Raises ConfigError, with the nearest name, when the zoo has no ``name``."""
    if name not in MODELS:
        raise ConfigError(
            f'"{name}" is not a model of the zoo.{did_you_mean(name, MODELS)} `instseg models` lists them all.'
        )
    return MODELS[name]


def config_fields(name: str) -> dict[str, Any]:
    """The configuration fields of a model and their defaults for that name."""
    return build_config(name, {}).model_dump()


def build_config(name: str, overrides: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a model with some fields changed.

    Raises:
        ConfigError: an unknown field (the error lists the known ones and names the nearest), or a value that a
            field cannot have.
    """
    entry = get_entry(name)
    known = entry.config.model_fields
    for field in overrides:
        if field not in known:
            raise ConfigError(
                f'{name} has no field "{field}".{did_you_mean(field, known)} Known fields: {", ".join(known)}.'
            )
    try:
        return entry.config(**{**entry.fields, **overrides})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise ConfigError(f"{name}: {where}={first['input']!r} cannot be used: {first['msg']}.") from None


def build_net(name: str, config: ModelConfig) -> nn.Module:
    """A new network with random weights. Raises ConfigError for a backbone that cannot be used."""
    return get_entry(name).net(config)
