"""What every model's configuration says about its input, output and frozen parts."""

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from instseg.nn.deform import Version


def lists_of_one(fields: Mapping[str, FieldInfo], values: Any) -> Any:
    """Values for a model of pydantic's, a single one where a list of any length is wanted as a list: ``grids=24``."""
    if not isinstance(values, Mapping):
        return values
    single = {k: v for k, v in values.items() if k in fields and isinstance(v, int | float | str) and v is not True}
    return {**values, **{k: [v] for k, v in single.items() if _takes_a_list(fields[k].annotation, v)}}


def _takes_a_list(annotation: Any, value: Any) -> bool:
    forms = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if isinstance(value, str) and str in forms:
        return False
    return any(get_origin(form) is list or (get_origin(form) is tuple and ... in get_args(form)) for form in forms)


Positive = Annotated[int, Field(gt=0)]
Depth = Annotated[int, Field(gt=0, le=100)]  # modules in a row
Fraction = Annotated[float, Field(ge=0, le=1)]


class InferenceSettings(BaseModel):
    """Fields that change what is done with a network and never the network: replacing one rebuilds nothing.

    A method's own settings (thresholds, NMS) are a subclass, and its configuration inherits from it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, values: Any) -> Any:
        return lists_of_one(cls.model_fields, values)

    input_short: Positive = 800  # pixels, the shorter side is resized to this ...
    input_long: Positive = 1333  # pixels, ... unless the longer side would exceed this
    input_enlarge: bool = True  # False: smaller images keep their size
    input_scale: Annotated[float, Field(gt=0)] | None = None  # a fixed factor instead of the two sides above
    antialias: bool = False  # smooth before shrinking; published checkpoints were trained without
    tile: Annotated[int, Field(gt=0, le=16384)] | None = None  # pixels of network input: larger images in such squares
    # pixels of network input that neighboring tiles share
    tile_overlap: Annotated[int, Field(ge=0, validate_default=True)] = 128

    max_instances: Positive = 100  # cap on objects of one image; hitting it warns

    @field_validator("tile")
    @classmethod
    def _tile(cls, tile: int | None) -> int | None:
        if tile is not None and tile % 32:
            near = max(32, round(tile / 32) * 32)
            raise PydanticCustomError("tile", "a tile is a multiple of 32 pixels, such as {near}", {"near": near})
        return tile

    @field_validator("tile_overlap")
    @classmethod
    def _overlap(cls, overlap: int, info: ValidationInfo) -> int:
        tile = info.data.get("tile")
        if tile is not None and overlap > tile * 3 // 4:  # then each pixel passes the network 16 times
            raise PydanticCustomError(
                "tile_overlap",
                "tiles of {tile} pixels share at most three quarters of their side, give tile_overlap={most} or less",
                {"tile": tile, "most": tile * 3 // 4},
            )
        return overlap


class ModelConfig(InferenceSettings):
    """Fields that all methods share. Every field can be given to ``create_model`` by name."""

    num_classes: Positive = 80
    backbone: str = "r50"  # a short name (r18, r34, r50, r101, x101_64x4d) or any timm feature extractor
    dcn: Version = 0  # deformable convolutions of this version in the backbone's stages 2 to 4; 0: none
    stride_in_1x1: bool = False  # ResNets that halve in the first 1x1 convolution, as Caffe's and detectron2's
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = 0  # 1 freezes the stem and the first stage; 0 nothing
    norm_eval: bool = False  # the backbone's batch norms keep their running statistics while training
    norm_fixed: bool = False  # with norm_eval: nor do their scale and shift train, as detectron2's FrozenBatchNorm2d

    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # of the network's channels, in [0, 255]
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    bgr: bool = False  # the network takes blue first; mean and deviation are in its own order


def setting_names(config: type[ModelConfig]) -> frozenset[str]:
    """The fields of a configuration that are inference settings: those of its :class:`InferenceSettings` bases."""
    bases = [b for b in config.__mro__ if issubclass(b, InferenceSettings) and not issubclass(b, ModelConfig)]
    return frozenset(name for base in bases for name in base.model_fields)


# Fields that earlier versions called otherwise: read in checkpoints, run folders, recipes and calls.
RENAMED = {
    "centre_region": "center_region",
    "neighbours": "neighbors",
    "neighbour_cells": "neighbor_cells",
    "score_threshold": "candidate_threshold",
    "keep_threshold": "min_score",
}


def renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields under today's names; where both names of a field are given, today's counts."""
    return {RENAMED[k]: v for k, v in fields.items() if k in RENAMED} | {
        k: v for k, v in fields.items() if k not in RENAMED
    }
