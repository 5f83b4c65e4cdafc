"""What a run is to do, before anything is built: a new run's recipe, or a saved run and what may change in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instseg.core.errors import CheckpointError, ConfigError
from instseg.core.folders import free_folder
from instseg.models.config import renamed
from instseg.models.zoo import build_config, config_fields, fields_from
from instseg.training.checkpoint import State, load_state
from instseg.training.recipe import Recipe, for_model, load_recipe, read_recipe, recipe_names, split_fields
from instseg.weights.checkpoint import Checkpoint
from instseg.weights.resolve import read_weights

if TYPE_CHECKING:
    from accelerate import Accelerator

# Fields that may differ on resume: they change neither the weights nor the order of what is computed. With `epochs` the
# schedule follows the new plan from there on.
FREE_ON_RESUME = frozenset(
    {
        "data", "device", "workers", "log_every", "checkpoint_minutes", "tensorboard", "stuck_updates", "patience",
        "evaluate_every", "evaluate_split", "evaluate_batch", "on_error", "epochs",
    }
)  # fmt: skip
# What is said where one of them does: the others concern the machine.
SAID = ("epochs", "on_error", "evaluate_every", "evaluate_split", "evaluate_batch")
# What runs did before a recipe had these fields.
BEFORE: dict[str, Any] = {
    "val_split": 0.0, "crowd": "ignore", "classes": None, "evaluate_batch": None, "norm_weight_decay": None,
    "bias_weight_decay": None, "bias_lr_factor": 1.0, "freeze": [], "average_normalizers": False,
    "lr_drops_updates": [], "warmup": "linear",
}  # fmt: skip
FROZEN = ("frozen_stages", "norm_eval", "norm_fixed")
PRODUCTS = ("last.ckpt", "last.ckpt.prev", "last.safetensors", "best.safetensors", "metrics.csv")


@dataclass(frozen=True)
class Plan:
    """What a run does: its recipe, the model's fields, a state to resume from, and what the user should know."""

    recipe: Recipe
    fields: dict[str, Any]
    state: State | None = None
    notices: tuple[str, ...] = ()
    start: Checkpoint | None = None  # what a new run starts from, read once

    @property
    def kept(self) -> Mapping[str, Any] | None:
        """``model.extra`` of the run that is resumed; None for a new run."""
        return None if self.state is None else self.state["model_extra"]


def new_plan(config: str | Path | None, given: dict[str, Any]) -> Plan:
    """A fresh run: the recipe with what the caller gave, and the model as the checkpoint, if any, says."""
    recipe, fields = load_recipe(config, given, config_fields)
    if recipe.weights is None:
        if config is not None and Path(config).is_dir():  # what that run kept of its weights is random in this one
            fields = {k: v for k, v in fields.items() if k in given or k not in FROZEN}
        return Plan(recipe, fields)
    # The fields of the default recipe describe a model made from nothing; only what the caller chose counts here.
    values = {} if config is None else read_recipe(config)
    model = given.get("model") or values.get("model")
    checkpoint = read_weights(recipe.weights, model)
    recipe = recipe.model_copy(update={"model": model or checkpoint.model})
    if "model" not in values:  # the fields are those of the checkpoint's model
        where = "the call" if config is None else str(config)
        _, fields = split_fields({**values, **given, "model": recipe.model}, config_fields, where)
    known = fields_from(recipe.model, checkpoint.model, checkpoint.config)
    return Plan(recipe, {**{k: v for k, v in known.items() if k != "num_classes"}, **fields}, start=checkpoint)


def resumed_plan(folder: Path, config: str | Path | None, given: dict[str, Any]) -> Plan:
    """The run in ``folder`` as it was begun; refuses fields that would change what it computes."""
    try:
        state, notice = load_state(folder / "last.ckpt")
    except FileNotFoundError:
        used = [name for name in PRODUCTS if (folder / name).exists()]
        if used:
            raise CheckpointError(f"{folder} holds {used[0]} but no last.ckpt: nothing to resume from.") from None
        return new_plan(config, given)
    lacks = sorted({"recipe", "model_name", "model_config", "model_extra", "data_fingerprint", "progress"} - set(state))
    if lacks:
        raise CheckpointError(f"{folder / 'last.ckpt'} is not the state of a run: it lacks {', '.join(lacks)}.")
    saved, name, fields = state["recipe"], state["model_name"], renamed(state["model_config"])
    began = {**BEFORE, **saved}
    # A recipe may have fields that were not there when the run began: it keeps what it did then.
    where = f"resume in {folder}"
    values = read_recipe(config) if config else {}
    if "model" in given or str(config) in recipe_names():  # else it is the recipe's model that is asked for
        values = {**for_model(values, name, str(config)), "model": name}
    asked = {k: v for k, v in values.items() if k in saved or k not in BEFORE} | given
    if asked.get("model", name) != name:
        raise ConfigError(f"{folder} trains {name}, not {asked['model']}: give that model, or another --out.")
    recipe, changed = split_fields({**began, **asked, "model": name}, [*fields], where)
    earlier, _ = split_fields({**began, "model": name}, [], where)
    now = {**recipe.model_dump(mode="json"), **build_config(name, {**fields, **changed}).model_dump(mode="json")}
    before = {**earlier.model_dump(mode="json"), **build_config(name, fields).model_dump(mode="json")}
    differ = [key for key in now if now[key] != before[key]]
    fixed = ", ".join(f"{k} was {before[k]!r}, now {now[k]!r}" for k in differ if k not in FREE_ON_RESUME)
    if fixed:
        raise ConfigError(f"{where}: {fixed}; leave it as it was, or begin a new run (--weights {folder}).")
    notices = [f"warning: {notice}"] if notice is not None else []
    notices += [f"{key} was {before[key]!r} and is {now[key]!r} from here on" for key in differ if key in SAID]
    return Plan(recipe, {k: v for k, v in fields.items() if k != "num_classes"}, state, tuple(notices))


def resumed_folder(out: str | Path | None) -> Path:
    """The run folder to resume in: ``out``, or the newest in ``runs/``."""
    if out is not None:
        folder = Path(out)
        _make(folder)
        return folder
    runs = [path.parent for path in Path("runs").glob("train*/last.ckpt*")]
    if not runs:
        raise ConfigError("nothing to resume in runs/: name the run folder with --out.")
    return max(runs, key=_last_written)


def _last_written(run: Path) -> float:
    files = [path for path in (run / "log.txt", *run.glob("last.ckpt*")) if path.exists()]
    return max((path.stat().st_mtime for path in files), default=0.0)


def new_folder(out: str | Path | None, accelerator: "Accelerator") -> Path:
    """The folder of a new run, made by the main process and the same for all. Never one that holds a run."""
    from accelerate.utils import broadcast_object_list

    folder = Path(out or "")
    if out is None and accelerator.is_main_process:
        folder = free_folder("train")
    folder = Path(broadcast_object_list([str(folder)])[0])
    used = [name for name in PRODUCTS if (folder / name).exists()]
    accelerator.wait_for_everyone()
    if used:
        raise ConfigError(f"{folder} already holds a run ({used[0]}): resume it with --resume, or give another --out.")
    _make(folder)
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the run folder {folder}: {error.strerror}; give another --out.") from error
