"""`instseg train`: from a data set and a recipe to a run folder."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from instseg._version import __version__
from instseg.core.errors import CheckpointError, ConfigError, DataError, InstsegError
from instseg.data.dataset import InstanceDataset, open_dataset
from instseg.data.transforms import build_transform
from instseg.infer.classes import match_categories
from instseg.infer.environment import pick_device
from instseg.infer.evaluate import evaluate
from instseg.infer.folders import free_folder
from instseg.infer.model import BUNDLED, InstanceModel, create_model
from instseg.models import MODELS, build_config, config_fields, fields_from
from instseg.models.config import ModelConfig
from instseg.training.checkpoint import State, load_state, replace_file
from instseg.training.loggers import RunLog
from instseg.training.loop import Evaluate, Trainer
from instseg.training.order import loader_processes, seed_of
from instseg.training.recipe import Recipe, load_recipe, parsed, read_recipe, split_fields, write_recipe
from instseg.weights.catalogue import CATALOGUE, obtain
from instseg.weights.source import read_weights

if TYPE_CHECKING:
    from accelerate import Accelerator

# Fields that may differ on resume: they change neither the weights nor the order of what is computed.
FREE_ON_RESUME = frozenset(
    {
        "data", "device", "workers", "log_every", "checkpoint_minutes", "tensorboard", "stuck_updates", "patience",
        "evaluate_every", "evaluate_split",
    }
)  # fmt: skip
PRODUCTS = ("last.ckpt", "last.ckpt.prev", "last.safetensors", "best.safetensors", "metrics.csv")


@dataclass(frozen=True)
class Plan:
    """What a run does, before anything is built: its recipe, the model's fields, and a state to go on from."""

    recipe: Recipe
    fields: dict[str, Any]
    state: State | None = None
    notice: str | None = None


def train(
    data: str | Path,
    model: str | None = None,
    *,
    out: str | Path | None = None,
    config: str | Path | None = None,
    resume: bool = False,
    weights: str | Path | None = None,
    device: str | None = None,
    workers: int | None = None,
    batch: int | None = None,
    overrides: Mapping[str, object] | None = None,
    split: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a model on a data set and keep everything in a run folder.

    Args:
        data: folder, COCO JSON, data YAML or built-in name, as for :func:`~instseg.data.dataset.open_dataset`.
        model: name from the zoo; None takes the recipe's, or with ``weights`` the checkpoint's. A checkpoint here is
            taken as ``weights``.
        out: the run folder itself; None takes the first free of ``runs/train``, ``runs/train2``, ...
        config: a recipe: a bundled name, a YAML file, or a run folder; None is ``finetune``.
        resume: go on with the run in ``out`` (None: the newest) as if it had never stopped: on a CPU with as many
            threads the weights are equal to the last bit. Fields of the recipe cannot change, except those in
            ``FREE_ON_RESUME``; what is not given is as it was. Where nothing was saved yet the run starts.
        weights: checkpoint to start from: ``.safetensors`` or published ``.pth`` file, run folder, published name
            or ``nuclei``. The model is built as the
            checkpoint says; fields that the caller gives (in ``config`` or ``overrides``) come first.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; None takes the fastest.
        workers: loader processes; None chooses by the number of cores.
        batch: images a process and forward pass.
        overrides: fields of the recipe or of the model's config, by name; text values are read as YAML.
        split: split to train on; None takes the recipe's, ``train``.
        progress: show lines and a progress bar on the screen.

    Returns:
        ``folder``, ``epochs``, ``best_ap``, ``best_epoch`` (None and 0 without evaluation), and ``last``, the last
        row of ``metrics.csv``.

    Raises:
        ConfigError: unknown or impossible field, a run folder already in use, a field changed on resume.
        DataError: the data set cannot be used.
        CheckpointError: a checkpoint cannot be read or written.
        TrainingError: a loss is no number; the line names the images, and the last checkpoint is intact.
        TrainingInterrupted: stopped by Ctrl-C or SIGTERM, after saving.
    """
    given: dict[str, Any] = parsed(overrides or {})
    named = {"model": model, "weights": weights, "device": device, "workers": workers, "batch": batch, "split": split}
    given |= {key: str(v) if isinstance(v, Path) else v for key, v in named.items() if v is not None}
    given["data"] = str(data)
    start = str(given.get("model", ""))
    if start not in MODELS and start and (start in BUNDLED or start in CATALOGUE or Path(start).exists()):
        given |= {"weights": given.get("weights", start)}  # a checkpoint where a name of the zoo is expected
        del given["model"]
    folder = _resumed_folder(out) if resume else None
    plan = _resumed_plan(folder, config, given) if folder is not None else _new_plan(config, given)
    accelerator = make_accelerator(plan.recipe)
    folder = folder or _new_folder(out, accelerator)
    main = accelerator.is_main_process
    done = plan.state["progress"] if plan.state is not None else None
    log = RunLog(
        folder if main else None,
        progress=progress,
        tensorboard=plan.recipe.tensorboard,
        purge_step=plan.state["updates"] if plan.state is not None else 0,
    )
    try:
        with _warnings_to(log):
            if plan.notice:
                log.line(f"warning: {plan.notice}")
            if done is not None:
                ended = "; all its epochs are done" if done["epoch"] >= plan.recipe.epochs else ""
                log.line(f"going on in {folder} after epoch {done['epoch']}, update {done['update']}{ended}")
            return _run(plan, folder, accelerator, log)
    except InstsegError as error:
        log.record(f"error: {error}")
        raise
    finally:
        log.close()
        if main and {path.name for path in folder.glob("*")} == {"log.txt"}:  # it failed before there was a run
            (folder / "log.txt").unlink()
            folder.rmdir()


def _run(plan: Plan, folder: Path, accelerator: "Accelerator", log: RunLog) -> dict[str, Any]:
    recipe = plan.recipe
    dataset = open_training_data(recipe)
    torch.manual_seed(seed_of(recipe.seed))
    model = _build_model(plan, dataset)
    dataset = dataset.with_transform(build_transform(at_model_scale(recipe, model.config), train=True))
    evaluator = make_evaluate(recipe, dataset, accelerator, log)
    trainer = Trainer(
        model,
        dataset,
        recipe,
        folder,
        accelerator,
        log,
        evaluator,
        {
            "recipe": recipe.model_dump(mode="json"),
            "model_name": model.name,
            "model_config": model.config.model_dump(mode="json"),
            "model_extra": model.extra,
            "data_fingerprint": fingerprint(dataset),
            "processes": accelerator.num_processes,
        },
    )
    if plan.state is not None:
        _check_same_data(plan.state, dataset, accelerator)
        trainer.restore(plan.state)
    if accelerator.is_main_process:
        text = _config_text(recipe, model, dataset, accelerator)
        replace_file(folder / "config.yaml", lambda file: file.write(text.encode()))
    trained, total = (sum(p.numel() for p in ps) for ps in (trainer.parameters, model.parameters()))
    log.line(
        f"{model.name}: {total / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained; {len(dataset)} images "
        f"of {len(dataset.categories)} classes; {recipe.epochs} epochs of {trainer.per_epoch} updates of "
        f"{trainer.total_batch} images at lr {trainer.lr:.3g} on {accelerator.device}; run folder {folder}"
    )
    progress = trainer.fit()
    if accelerator.is_main_process:
        from instseg.vis.plots import plot_training

        try:
            plot_training(folder / "metrics.csv", folder / "plots")
        except OSError as error:
            log.line(f"warning: no curves in {folder / 'plots'}: {error.strerror}")
        log.line(f"done: weights in {folder / 'best.safetensors'}, curves in {folder / 'plots'}")
    if accelerator.num_processes > 1:
        accelerator.end_training()
    return {
        "folder": str(folder),
        "epochs": progress.epoch,
        "best_ap": progress.best,
        "best_epoch": progress.best_epoch,
        "last": progress.history[-1] if progress.history else {},
    }


# --- what to do --------------------------------------------------------------------------------------------------


def _new_plan(config: str | Path | None, given: dict[str, Any]) -> Plan:
    """A fresh run: the recipe with what the caller gave, and the model as the checkpoint, if any, says."""
    recipe, fields = load_recipe(config, given, config_fields)
    if recipe.weights is None:
        return Plan(recipe, fields)
    checkpoint = read_weights(weights_file(recipe.weights), given.get("model"))
    # The fields of the default recipe describe a model made from nothing; only what the caller chose counts here.
    chosen = {**(read_recipe(config) if config is not None else {}), **given}
    recipe = recipe.model_copy(update={"model": given.get("model") or chosen.get("model") or checkpoint.model})
    where = str(config) if config is not None else "the call"
    _, fields = split_fields({**chosen, "model": recipe.model}, config_fields, where)
    known = fields_from(recipe.model, checkpoint.model, checkpoint.config)
    return Plan(recipe, {**{k: v for k, v in known.items() if k != "num_classes"}, **fields})


def _resumed_plan(folder: Path, config: str | Path | None, given: dict[str, Any]) -> Plan:
    """The run in ``folder`` as it was begun; refuses fields that would change what it computes."""
    try:
        state, notice = load_state(folder / "last.ckpt")
    except FileNotFoundError:
        used = [name for name in PRODUCTS if (folder / name).exists()]
        if used:
            raise CheckpointError(f"{folder} holds {used[0]} but no last.ckpt: nothing to resume from") from None
        return _new_plan(config, given)
    asked = {**(read_recipe(config) if config is not None else {}), **given}
    began, name, fields = state["recipe"], state["model_name"], state["model_config"]
    if asked.get("model", name) != name:
        raise ConfigError(f"{folder} trains {name}, not {asked['model']}: give that model, or another --out")
    where = f"resume in {folder}"
    recipe, changed = split_fields({**began, **asked, "model": name}, [*fields], where)
    now = {**recipe.model_dump(mode="json"), **build_config(name, {**fields, **changed}).model_dump(mode="json")}
    before = {**began, **fields}
    differ = [key for key in now if key not in FREE_ON_RESUME and now[key] != before[key]]
    if differ:
        told = ", ".join(f"{key} was {before[key]!r}, now {now[key]!r}" for key in differ[:3])
        raise ConfigError(
            f"{where}: {told}; leave it as it was, or begin a new run (weights={folder / 'last.safetensors'})"
        )
    return Plan(recipe, {k: v for k, v in fields.items() if k != "num_classes"}, state, notice)


def _resumed_folder(out: str | Path | None) -> Path:
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    runs = [path.parent for path in Path("runs").glob("train*/last.ckpt*")]
    if not runs:
        raise ConfigError("nothing to resume in runs/: name the run folder with --out")
    return max(runs, key=lambda run: (run / "log.txt").stat().st_mtime)


def _new_folder(out: str | Path | None, accelerator: "Accelerator") -> Path:
    """The folder of a new run, made by the main process and the same for all. Never one that holds a run."""
    from accelerate.utils import broadcast_object_list

    folder = Path(out) if out is not None else free_folder("train")
    folder = Path(broadcast_object_list([str(folder)])[0])
    used = [name for name in PRODUCTS if (folder / name).exists()]
    accelerator.wait_for_everyone()
    if used:
        raise ConfigError(f"{folder} already holds a run ({used[0]}): go on with --resume, or give another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the run folder {folder}: {error.strerror}; give another --out") from error
    return folder


def weights_file(text: str) -> Path:
    """The file behind ``weights=``: a checkpoint, the best of a run folder, a bundled or a catalogued name."""
    if text in BUNDLED:
        return Path(__file__).parent.parent / "assets" / BUNDLED[text]
    if text in CATALOGUE:
        return obtain(text)
    path = Path(text)
    if path.is_dir():
        files = [path / name for name in ("best.safetensors", "last.safetensors") if (path / name).is_file()]
        if not files:
            raise CheckpointError(f"weights={path}: the folder holds neither best.safetensors nor last.safetensors")
        return files[0]
    if not path.is_file():
        raise CheckpointError(
            f"weights={text}: neither a file, a run folder, {', '.join(BUNDLED)}, nor a "
            "published name (`instseg models NAME` lists them)"
        )
    return path


# --- building ----------------------------------------------------------------------------------------------------


def make_accelerator(recipe: Recipe) -> "Accelerator":
    """The engine for the recipe's device and precision, over all processes of the launcher if there is one."""
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState

    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    wanted = pick_device(recipe.device)
    if recipe.precision == "fp16" and wanted.type == "cpu":
        raise ConfigError("precision=fp16 needs a GPU: use bf16 or fp32 on a CPU")
    if wanted.index is not None and not launched:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(wanted)
    else:
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run of this Python may have set another
    return Accelerator(
        cpu=wanted.type == "cpu",
        mixed_precision="no" if recipe.precision == "fp32" else recipe.precision,
        # the main process evaluates alone while the others wait
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
    )


def open_training_data(recipe: Recipe) -> InstanceDataset:
    """The images that the recipe trains on, not augmented yet. Raises DataError where there are none."""
    assert recipe.data is not None
    dataset = open_dataset(recipe.data, recipe.split, on_error=recipe.on_error, keep_empty=recipe.keep_empty)
    if not len(dataset):
        raise DataError(f"{recipe.data}: split {recipe.split} holds no images; look at it with `instseg data check`")
    dataset.seed = recipe.seed  # of the augmentation; the pictures of `shapes` stay the same
    return dataset


def at_model_scale(recipe: Recipe, config: ModelConfig) -> Recipe:
    """The recipe's augmentation, with the model's own input size where the recipe names none.

    What is trained is then what is predicted on: sides, factor, and the tile of a model that predicts in tiles.
    """
    if recipe.train_short is not None or recipe.enlarge is not None:
        return recipe
    scale: dict[str, Any] = {"enlarge": config.input_scale}
    if config.input_scale is None:
        sides = {"train_short": [config.input_short], "train_long": config.input_long}
        scale = {**sides, "train_enlarge": config.input_enlarge}
    return recipe.model_copy(update={**scale, "crop": recipe.crop or config.tile})


def _build_model(plan: Plan, dataset: InstanceDataset) -> InstanceModel:
    """The model with weights as the recipe says; on resume the state brings them."""
    recipe, fields = plan.recipe, dict(plan.fields)
    classes = len(dataset.categories)
    if fields.pop("num_classes", classes) != classes:
        raise ConfigError(f"num_classes comes from the data, which has {classes} classes: leave it out")
    fresh = plan.state is None
    start = weights_file(recipe.weights) if fresh and recipe.weights is not None else None
    backbone = recipe.backbone_weights if fresh and recipe.weights is None else None
    model = create_model(recipe.model, classes, start, backbone, fields, dataset.categories)
    if plan.state is not None:
        model.extra = plan.state["model_extra"]
    model.has_weights = True
    return model


def make_evaluate(recipe: Recipe, dataset: InstanceDataset, accelerator: "Accelerator", log: RunLog) -> Evaluate | None:
    """What gives the AP columns, or None where the data has no split to evaluate on."""
    if not recipe.evaluate_every:
        return None
    assert recipe.data is not None
    try:
        if recipe.data.endswith(".json") and recipe.evaluate_split != recipe.split:  # it opens as any split
            raise DataError(f"{recipe.data} is one split; name a folder or a data YAML to have two")
        held_out = open_dataset(recipe.data, recipe.evaluate_split, on_error=recipe.on_error)
    except DataError as error:
        log.line(f"warning: no evaluation, so best.safetensors will be the last weights ({error})")
        return None
    match_categories(dataset.categories, held_out.categories)  # now rather than after the first epoch
    workers = loader_processes(recipe.workers, accelerator.num_processes)

    def measure(model: InstanceModel) -> dict[str, float]:
        report = evaluate(model, held_out, batch=recipe.batch, workers=workers, progress=log.console is not None)
        masks, boxes = report["segm"], report["bbox"]
        return {"ap": masks["ap"], "ap50": masks["ap50"], "ap75": masks["ap75"], "box_ap": boxes["ap"]}

    return measure


def fingerprint(dataset: InstanceDataset) -> dict[str, Any]:
    """What tells whether a resumed run sees the data that it began with."""
    return {"images": len(dataset), "categories": list(dataset.categories.names)}


def _check_same_data(state: State, dataset: InstanceDataset, accelerator: "Accelerator") -> None:
    before, now = state["data_fingerprint"], fingerprint(dataset)
    differ = [key for key in now if now[key] != before[key]]
    if differ:
        key = differ[0]
        raise DataError(f"the run began on data with {key} {before[key]}, now {now[key]}: resume wants the same data")
    if state["processes"] != accelerator.num_processes:
        raise ConfigError(
            f"the run began with {state['processes']} processes, now {accelerator.num_processes}: launch as many"
        )


def _config_text(recipe: Recipe, model: InstanceModel, dataset: InstanceDataset, accelerator: "Accelerator") -> str:
    names = ", ".join(dataset.categories.names[:10]) + (", ..." if len(dataset.categories) > 10 else "")
    config = model.config.model_dump(mode="json", exclude={"num_classes"})
    return write_recipe(
        recipe,
        config,
        [
            f"instseg {__version__}, torch {torch.__version__}, {accelerator.num_processes} process(es) on "
            f"{accelerator.device}",
            f"{len(dataset)} images, {len(dataset.categories)} classes: {names}",
            f"backbone weights that were found: {model.extra.get('backbone_weights', 'none')}",
        ],
    )


@contextmanager
def _warnings_to(log: RunLog) -> Iterator[None]:
    """Warnings meant for the user as lines of the log, each once; those of libraries about themselves as ever."""
    told: set[str] = set()
    with warnings.catch_warnings():
        before = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if not issubclass(category, UserWarning):
                before(message, category, *rest, **more)
            elif str(message) not in told:
                told.add(str(message))
                log.line(f"warning: {message}")

        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
