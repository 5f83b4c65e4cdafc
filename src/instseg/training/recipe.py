"""Recipes: flat YAML files whose fields train, augment, and configure the model.

A recipe holds the fields of :class:`Recipe` (training, and the data room's :class:`Augment`) beside any field
of the chosen model's own config. ``key=value`` overrides are laid over it. Nothing inherits.
"""

import warnings
from collections.abc import Callable, Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from instseg.core.errors import ConfigError, did_you_mean
from instseg.core.values import Loader, parsed
from instseg.data.crowds import Crowd
from instseg.data.transforms.augment import Augment
from instseg.models.config import lists_of_one
from instseg.models.zoo import MODELS, carried

DEFAULT = "finetune"
ModelFields = Callable[[str], Collection[str]]


class Recipe(Augment):
    """Everything a training run needs besides the data and the model's own config.

    An *update* is one step of the optimizer; it sees ``batch × accumulate × processes`` images, the total batch.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, protected_namespaces=(), allow_inf_nan=False
    )

    model: str = Field("solov2_tiny_r50", description="name from the zoo")
    data: str | None = Field(None, description="data set; recorded in a run folder, the call's own comes first")
    split: str = Field("train", description="split that is trained on")
    val_split: float = Field(
        0.1, ge=0, lt=1, description="part of the images held out where the data has no evaluate_split; 0: none"
    )
    crowd: Crowd = Field("auto", description="what iscrowd marks: ignore (crowds), object, or auto: as decided")
    classes: list[str] | None = Field(None, description="classes to train on, in this order; null: all")
    weights: str | None = Field(None, description="checkpoint to start from: a path or a published name")
    backbone_weights: str | None = Field("auto", description="imagenet, auto, a path, or none")

    epochs: int = Field(50, ge=1, description="passes over the data")
    batch: int = Field(4, ge=1, description="images a process and forward pass")
    accumulate: int = Field(1, ge=1, description="forward passes an update")
    seed: int = Field(0, ge=0, description="seed of weights, order and augmentation")
    aspect_groups: bool = Field(False, description="batches of all-wide or all-tall images: less padding")
    keep_empty: bool = Field(True, description="train on images without objects too")
    on_error: Literal["raise", "skip"] = Field("raise", description="what a bad image or record does")

    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(5e-4, gt=0, description="learning rate for base_batch images an update")
    base_batch: int | None = Field(4, ge=1, description="total batch that lr belongs to; null: lr as it is")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    nesterov: bool = Field(False, description="of SGD")
    beta1: float = Field(0.9, ge=0, lt=1, description="of AdamW")
    beta2: float = Field(0.999, ge=0, lt=1, description="of AdamW")
    weight_decay: float = Field(0.05, ge=0)
    decay_norms_and_biases: bool = Field(False, description="weight decay on norms and biases too")
    norm_weight_decay: float | None = Field(None, ge=0, description="of norms; null: as decay_norms_and_biases says")
    bias_weight_decay: float | None = Field(None, ge=0, description="of biases; null: as decay_norms_and_biases says")
    backbone_lr_factor: float = Field(1.0, ge=0, description="rate of the backbone over that of the rest")
    bias_lr_factor: float = Field(1.0, ge=0, description="rate of biases over that of weights")
    freeze: list[str] = Field([], description="patterns of parameters that are not trained, such as backbone.*")
    average_normalizers: bool = Field(False, description="normalize losses over all processes, in methods that do")
    clip: float | None = Field(10.0, gt=0, description="largest global L2 norm of the gradient; null: none")

    schedule: Literal["step", "cosine", "constant"] = "cosine"
    lr_drops: list[int] = Field([], description="epochs (0-based) at whose start the rate drops; for step")
    lr_drops_updates: list[int] = Field([], description="updates (0-based) at which the rate drops; for step")
    lr_drop_factor: float = Field(0.1, gt=0, le=1, description="what each drop multiplies with; for step")
    lr_end_factor: float = Field(0.01, ge=0, le=1, description="last rate over the first; for cosine")
    warmup: Literal["linear", "constant"] = Field("linear", description="how the rate gets from warmup_factor to 1")
    warmup_iterations: int = Field(100, ge=0, description="updates; at most a quarter of the run")
    warmup_factor: float = Field(0.01, ge=0, le=1, description="rate of the first update over the full one")

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = Field(True, description="memory layout; faster on CPUs and tensor cores")
    ema_decay: float = Field(0.998, ge=0, lt=1, description="of the averaged weights; 0: no averaging")

    evaluate_every: int = Field(1, ge=0, description="epochs between evaluations; 0: never")
    evaluate_split: str = Field("val", description="split that chooses the best weights")
    evaluate_batch: int | None = Field(None, ge=1, description="images a forward pass of an evaluation; null: batch")
    patience: int = Field(0, ge=0, description="evaluations without a better result before stopping; 0: never")
    checkpoint_minutes: float = Field(5.0, ge=0, description="most time between two checkpoints")
    log_every: int = Field(20, ge=1, description="updates between two lines of the log")
    stuck_updates: int = Field(100, ge=0, description="updates the watched loss may stand still; 0: no watch")
    tensorboard: bool = Field(False, description="write event files too")
    workers: int | None = Field(None, ge=0, description="loader processes; null: by the number of cores")
    device: str | None = Field(None, description="cpu, cuda, cuda:1, mps; null: the best there is")

    @model_validator(mode="before")
    @classmethod
    def _none_is_a_word(cls, values: Any) -> Any:
        """YAML's null and the word none mean the same where no word is a value of its own."""
        if isinstance(values, Mapping):
            words = {"weights", "backbone_weights", "train_short"}
            return {k: None if k in words and v in ("none", "None") else v for k, v in values.items()}
        return values

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, values: Any) -> Any:
        return lists_of_one(cls.model_fields, values)

    @field_validator("classes")
    @classmethod
    def _each_class_once(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ValueError("name at least one class, and each once")
        return names


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("instseg.recipes")
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(source: str | Path | None) -> dict[str, Any]:
    """The fields in a recipe: a bundled name (None: ``finetune``), a YAML file, or a run folder."""
    name = str(source) if source is not None else DEFAULT
    if name in recipe_names():
        text = resources.files("instseg.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        return _fields(text, name)
    path = Path(name)
    if path.is_dir():
        path = path / "config.yaml"
    if not path.is_file():
        known = recipe_names()
        raise ConfigError(f"no recipe {name}: neither a file nor one of {', '.join(known)}.{did_you_mean(name, known)}")
    try:
        return _fields(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the recipe {path}: {error}") from error


def _fields(text: str, where: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, Loader=Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{where} must be a flat list of `field: value` lines")
    if values.get("classes") is not None:  # a class may be called no, or 007
        values["classes"] = yaml.load(text, Loader=yaml.BaseLoader)["classes"]
    return values


def load_recipe(
    source: str | Path | None, overrides: Mapping[str, object], model_fields: Collection[str] | ModelFields
) -> tuple[Recipe, dict[str, Any]]:
    """A recipe with ``overrides`` laid over it, and what in it belongs to the model's config.

    ``model_fields`` are the names of the model's config fields, or a function that returns them for the model's
    name. Text values in ``overrides`` are read as YAML. Raises :class:`ConfigError` for a field that neither
    knows, with the nearest one that is known, and for a value of the wrong type or range. Where ``overrides`` names
    another model than the recipe, the recipe's fields count as :func:`for_model` says.
    """
    chosen = parsed(overrides)
    where = str(source) if source is not None else DEFAULT
    return split_fields({**for_model(read_recipe(source), chosen.get("model"), where), **chosen}, model_fields, where)


def for_model(values: Mapping[str, Any], model: str | None, where: str) -> dict[str, Any]:
    """A recipe for another model than it names: without what it says of its own model's network, with a warning."""
    own = values.get("model")
    if own is None or model is None or model not in MODELS:
        return dict(values)
    ours = {key: value for key, value in values.items() if key in Recipe.model_fields}
    kept, left = carried(str(own), model, {key: value for key, value in values.items() if key not in ours})
    if own != model and ours.get("weights") is not None:
        left.append(f"weights={ours.pop('weights')}")
    if left:
        warnings.warn(
            f"{where} is a recipe for {own}: its {', '.join(left)} do not count for {model}; give them as key=value "
            "where they are wanted.",
            stacklevel=4,
        )
    return {**ours, **kept}


def split_fields(
    values: Mapping[str, Any], model_fields: Collection[str] | ModelFields, where: str
) -> tuple[Recipe, dict[str, Any]]:
    """Sort ``values`` into a recipe and the model's fields; errors as :func:`load_recipe`."""
    ours = {key: value for key, value in values.items() if key in Recipe.model_fields}
    try:
        recipe = Recipe(**ours)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error)}") from error
    fields = model_fields(recipe.model) if callable(model_fields) else model_fields
    theirs = {key: value for key, value in values.items() if key not in Recipe.model_fields}
    for key in theirs:
        if key not in fields:
            near = did_you_mean(key, [*Recipe.model_fields, *fields])
            raise ConfigError(f"{where}: neither recipes nor {recipe.model} have a field {key}.{near}")
    return recipe, theirs


def explain(error: ValidationError) -> str:
    """The first fault that pydantic found as one line: the field, the value, what is wanted."""
    fault = error.errors()[0]
    field = f"{fault['loc'][0]} = {fault['input']!r}: " if fault["loc"] else ""
    wanted = fault["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{field}{wanted[0].lower()}{wanted[1:]}{more}"


def write_recipe(recipe: Recipe, model_config: Mapping[str, Any], comments: list[str]) -> str:
    """A recipe as YAML text that :func:`load_recipe` reads back, headed by ``comments``."""
    values = {**recipe.model_dump(mode="json"), **model_config}
    head = "".join(f"# {line}\n" for line in comments)
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None)
