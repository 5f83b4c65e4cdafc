"""The zoo: one plain dictionary from names to networks."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import ValidationError

from instseg.core.errors import ConfigError, did_you_mean
from instseg.models.base import Extends, Net
from instseg.models.config import ModelConfig, renamed, setting_names
from instseg.models.sodar.sodar import SODAR, SODARConfig, SODARSOLOv2, SODARSOLOv2Config
from instseg.models.solo import decoupled_solo, solov2
from instseg.models.solo.decoupled_solo import DecoupledSOLO, DecoupledSOLOConfig
from instseg.models.solo.solo import SOLO, SOLOConfig
from instseg.models.solo.solov2 import SOLOv2, SOLOv2Config


@dataclass(frozen=True)
class ModelEntry:
    """One name of the zoo.

    Attributes:
        method: the method's own name.
        config: its configuration class.
        net: its network class, built from a configuration.
        fields: what this name changes of the configuration's defaults.
        paper_ap: COCO val2017 mask AP that the authors state for this model, None where they state none.
        paper_input: (height, width) of the image that operations are counted for, pixels, as the papers count them.
        ours: a model of this project: no published file is one.
    """

    method: str
    config: type[ModelConfig]
    net: type[Net[Any]]
    fields: Mapping[str, Any]
    paper_ap: float | None
    paper_input: tuple[int, int] = (800, 1280)
    ours: bool = False


def _solo(paper_ap: float | None, **fields: Any) -> ModelEntry:
    return ModelEntry("SOLO", SOLOConfig, SOLO, fields, paper_ap)


def _single(grid: int) -> ModelEntry:
    fields = {"backbone": "r50", "pyramid": False, "grids": (grid,), "scale_ranges": ((1, 1e6),)}
    return ModelEntry("SOLO-single", SOLOConfig, SOLO, fields, None)


def _decoupled(paper_ap: float | None, **fields: Any) -> ModelEntry:
    return ModelEntry("Decoupled SOLO", DecoupledSOLOConfig, DecoupledSOLO, fields, paper_ap)


def _decoupled_light(paper_ap: float | None, **fields: Any) -> ModelEntry:
    fields = {"backbone": "r50", **decoupled_solo.light(), **fields}
    return ModelEntry("Decoupled SOLO-light", DecoupledSOLOConfig, DecoupledSOLO, fields, paper_ap, (512, 852))


def _solov2(paper_ap: float | None, **fields: Any) -> ModelEntry:
    return ModelEntry("SOLOv2", SOLOv2Config, SOLOv2, fields, paper_ap)


def _solov2_light(paper_ap: float | None, backbone: str, size: Literal[448, 512] = 448) -> ModelEntry:
    fields = {"backbone": backbone, **solov2.light(size)}
    paper_input = (448, 768) if size == 448 else (512, 852)
    return ModelEntry("SOLOv2-light", SOLOv2Config, SOLOv2, fields, paper_ap, paper_input)


def _solov2_tiny(backbone: str, **fields: Any) -> ModelEntry:
    """For small machines and small data. The published head (4 convolutions of 512 channels on 3,872 cells) costs 68 G
    multiply-adds whatever the size of the image; here it is that of the light models, on any input size."""
    fields = {"backbone": backbone, "tower_convs": 2, "tower_channels": 256, "mask_channels": 128, **fields}
    return ModelEntry("SOLOv2", SOLOv2Config, SOLOv2, fields, None, ours=True)


# The network of the bundled weights: many small objects, seen enlarged.
_NUCLEI: dict[str, Any] = {
    "fpn_channels": 96,
    "tower_channels": 128,
    "mask_hidden": 64,
    "grids": (64, 40, 24, 12),
    "scale_ranges": ((1, 48), (32, 96), (64, 192), (128, 1024)),
    "input_scale": 2.0,
    "tile": 512,
    "nms_pre": 2000,
    "max_instances": 500,
}

# Mask interpolation (SODAR, section IV-b): finer grids for the classes, coarser ones for the representations.
_HALVED = (20, 18, 12, 8, 6)
# Released with a cap of 300 objects an image: `_cls`, and all on SOLOv2; the others with 100.
_CLS: dict[str, Any] = {"grids": (50, 40, 24, 16, 12), "mask_grids": (40, 36, 24, 16, 12), "max_instances": 300}
_MASK: dict[str, Any] = {"mask_grids": _HALVED}
_CM: dict[str, Any] = {"grids": (50, 40, 24, 16, 12), "mask_grids": _HALVED}


def _sodar(paper_ap: float | None, backbone: str, **fields: Any) -> ModelEntry:
    """The paper's tables III to V."""
    return ModelEntry("SODAR", SODARConfig, SODAR, {"backbone": backbone, **fields}, paper_ap)


def _sodar_solov2(paper_ap: float | None, backbone: str, **fields: Any) -> ModelEntry:
    fields = {"backbone": backbone, "max_instances": 300, **fields}
    return ModelEntry("SODAR*", SODARSOLOv2Config, SODARSOLOv2, fields, paper_ap)


_DCN: dict[str, Any] = {"dcn": 2, "dcn_towers": "all", "mask_feature_dcn": True}

MODELS: dict[str, ModelEntry] = {
    "solo_r50": _solo(35.8, backbone="r50"),
    "solo_r101": _solo(37.1, backbone="r101"),
    "solo_r50_single_12": _single(12),
    "solo_r50_single_24": _single(24),
    "solo_r50_single_36": _single(36),
    "decoupled_solo_r50": _decoupled(36.4, backbone="r50"),
    "decoupled_solo_r101": _decoupled(37.9, backbone="r101"),
    "decoupled_solo_light_r50": _decoupled_light(33.0),
    "decoupled_solo_light_r50_dcn": _decoupled_light(35.0, dcn=1, dcn_towers="last"),
    "solov2_r18": _solov2(None, backbone="r18"),
    "solov2_r34": _solov2(None, backbone="r34"),
    "solov2_r50": _solov2(37.5, backbone="r50"),
    "solov2_r101": _solov2(39.1, backbone="r101"),
    "solov2_r101_dcn": _solov2(41.4, backbone="r101", **_DCN),
    "solov2_x101_dcn": _solov2(42.4, backbone="x101_64x4d", **_DCN),
    "solov2_tiny_r18": _solov2_tiny("r18"),
    "solov2_tiny_r34": _solov2_tiny("r34"),
    "solov2_tiny_r50": _solov2_tiny("r50"),
    "solov2_tiny_r10t_nuclei": _solov2_tiny("resnet10t", **_NUCLEI),
    "solov2_light_448_r18": _solov2_light(29.6, "r18"),
    "solov2_light_448_r34": _solov2_light(32.0, "r34"),
    "solov2_light_448_r50": _solov2_light(33.7, "r50"),
    "solov2_light_512_r50_dcn": _solov2_light(36.4, "r50", 512),
    "solov2_decoupled_r101": _solov2(39.3, backbone="r101", mask_groups=4, mask_channels=64),
    "solov2_plus_r101_dcn": _solov2(None, backbone="r101", **_DCN, semantic_weight=1.0, grids=(80, 64, 32, 24, 12)),
    "sodar_r50": _sodar(37.9, "r50"),
    "sodar_r50_deform": _sodar(None, "r50", deformable=True),
    "sodar_r50_cls": _sodar(None, "r50", **_CLS),
    "sodar_r50_cls_deform": _sodar(None, "r50", **_CLS, deformable=True),
    "sodar_r50_mask": _sodar(None, "r50", **_MASK),
    "sodar_r50_mask_deform": _sodar(None, "r50", **_MASK, deformable=True),
    "sodar_r50_cm": _sodar(None, "r50", **_CM),
    "sodar_r50_cm_deform": _sodar(None, "r50", **_CM, deformable=True),
    "sodar_r101": _sodar(38.6, "r101"),
    "sodar_r101_deform": _sodar(None, "r101", deformable=True),
    "sodar_r101_cls": _sodar(39.1, "r101", **_CLS),
    "sodar_r101_cls_deform": _sodar(39.5, "r101", **_CLS, deformable=True),
    "sodar_r101_mask": _sodar(38.8, "r101", **_MASK),
    "sodar_r101_mask_deform": _sodar(39.1, "r101", **_MASK, deformable=True),
    "sodar_r101_cm": _sodar(39.0, "r101", **_CM),
    "sodar_r101_cm_deform": _sodar(None, "r101", **_CM, deformable=True),
    "sodar_solov2_r50": _sodar_solov2(38.7, "r50"),
    "sodar_solov2_r50_deform": _sodar_solov2(None, "r50", deformable=True),
    "sodar_solov2_r50_cls": _sodar_solov2(None, "r50", **_CLS),
    "sodar_solov2_r50_cls_deform": _sodar_solov2(None, "r50", **_CLS, deformable=True),
    "sodar_solov2_r50_mask": _sodar_solov2(None, "r50", **_MASK),
    "sodar_solov2_r50_mask_deform": _sodar_solov2(None, "r50", **_MASK, deformable=True),
    "sodar_solov2_r50_cm": _sodar_solov2(None, "r50", **_CM),
    "sodar_solov2_r50_cm_deform": _sodar_solov2(None, "r50", **_CM, deformable=True),
    "sodar_solov2_r101": _sodar_solov2(39.4, "r101"),
    "sodar_solov2_r101_deform": _sodar_solov2(None, "r101", deformable=True),
    "sodar_solov2_r101_cls": _sodar_solov2(39.7, "r101", **_CLS),
    "sodar_solov2_r101_cls_deform": _sodar_solov2(40.0, "r101", **_CLS, deformable=True),
    "sodar_solov2_r101_mask": _sodar_solov2(39.2, "r101", **_MASK),
    "sodar_solov2_r101_mask_deform": _sodar_solov2(39.6, "r101", **_MASK, deformable=True),
    "sodar_solov2_r101_cm": _sodar_solov2(39.4, "r101", **_CM),
    "sodar_solov2_r101_cm_deform": _sodar_solov2(None, "r101", **_CM, deformable=True),
}


# What belongs to the weights, whatever the name they go under.
OF_WEIGHTS = frozenset(
    {"pixel_mean", "pixel_std", "bgr", "antialias", "stride_in_1x1", "frozen_stages", "norm_eval", "norm_fixed"}
)


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


def fields_from(name: str, other: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model takes over of the configuration of a checkpoint of ``other``: everything of the same model, what
    both have of a host that it extends, how its weights want images and training of the same network under another
    name, and nothing of any other."""
    if name == other:
        return dict(config)
    net = get_entry(name).net
    if other in MODELS and net is get_entry(other).net:
        return {key: value for key, value in build_config(other, config).model_dump().items() if key in OF_WEIGHTS}
    if not extends(name, other) or not isinstance(net, Extends):
        return {}
    return net.host_fields(build_config(other, config).model_dump(), get_entry(name).fields)


def carried(own: str, name: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What of the fields that were chosen for one model counts for another: a name says what its network is.

    Args:
        own: the model they were chosen for.
        name: the model they are asked for.
        fields: of both configurations, also all of them, as in a run folder; those that none of them knows are kept.

    Returns:
        the inference settings in which they differ from ``own`` as it is by default, and the names of all other fields
        in which they do, which are not carried over.
    """
    if own not in MODELS or own == name:
        return dict(fields), []
    fields = renamed(fields)
    defaults = config_fields(own)
    values = build_config(own, {k: v for k, v in fields.items() if k in defaults}).model_dump()
    chosen = {k: v for k, v in fields.items() if k not in values or values[k] != defaults[k]}
    settings = setting_names(get_entry(name).config)
    kept = {k: v for k, v in chosen.items() if k in settings or k not in values}
    return kept, [k for k in chosen if k not in kept]


def extends(name: str, other: str) -> bool:
    """True when the network of ``name`` is that of ``other`` with something on top, as SODAR is SOLO's."""
    if other not in MODELS:
        return False
    net = get_entry(name).net
    return isinstance(net, Extends) and net.host() is get_entry(other).net


def build_config(name: str, overrides: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a model with some fields changed.

    Raises:
        ConfigError: an unknown field (the error lists the known ones and names the nearest), or a value that a
            field cannot have.
    """
    entry = get_entry(name)
    overrides = renamed(overrides)
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
        where = f"{'.'.join(str(part) for part in first['loc'])}={first['input']!r} cannot be used: "
        why = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{name}: {where if first['loc'] else ''}{why}.") from None


def build_net(name: str, config: ModelConfig) -> Net[Any]:
    """A new network with random weights. Raises ConfigError for a backbone that cannot be used."""
    return get_entry(name).net(config)
