"""`instseg train`: from a data set and a recipe to a run folder."""

import atexit
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from instseg._version import __version__
from instseg.core.environment import pick_device
from instseg.core.errors import CheckpointError, ConfigError, InstsegError
from instseg.core.lock import locked
from instseg.core.stopping import Stop
from instseg.core.values import parsed
from instseg.data.dataset import InstanceDataset
from instseg.data.holdout import KEY
from instseg.data.transforms.augment import build_transform
from instseg.model.instance_model import InstanceModel
from instseg.model.load import create_model
from instseg.models.config import ModelConfig
from instseg.models.zoo import MODELS
from instseg.training.checkpoint import State, replace_file
from instseg.training.data import TrainingData, make_evaluate, open_training_data
from instseg.training.guards import TrainingInterrupted
from instseg.training.loggers import RunLog
from instseg.training.loop import Trainer
from instseg.training.plan import Plan, new_folder, new_plan, resumed_folder, resumed_plan
from instseg.training.processes import LONGEST_WAIT, end_group
from instseg.training.recipe import Recipe, write_recipe
from instseg.training.sampler import seed_of
from instseg.weights.catalogue import CATALOGUE
from instseg.weights.resolve import BUNDLED

if TYPE_CHECKING:
    from accelerate import Accelerator

RESIZE = "training_resize"  # in a model's extra: how its training resized images; absent where they were rounded


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
        data: folder, COCO JSON, data YAML or built-in name, as for :func:`~instseg.data.open.open_dataset`.
        model: name from the zoo; None takes the recipe's, or with ``weights`` the checkpoint's. A checkpoint here is
            taken as ``weights``.
        out: the run folder itself; None takes the first free of ``runs/train``, ``runs/train2``, ...
        config: a recipe: a bundled name, a YAML file, or a run folder; None is ``finetune``.
        resume: resume the run in ``out`` (None: the newest) as if it had never stopped: on a CPU with as many threads
            the weights are equal to the last bit. Fields of the recipe cannot change, except those in
            ``plan.FREE_ON_RESUME``; what is not given is as it was. Where nothing was saved yet the run starts.
        weights: checkpoint to start from: ``.safetensors`` or published ``.pth`` file, run folder, published name
            or ``nuclei``. The model is built as the
            checkpoint says; fields that the caller sets (in ``config`` or ``overrides``) come first.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; None takes the fastest.
        workers: loader processes; None chooses by the number of cores.
        batch: images a process and forward pass.
        overrides: fields of the recipe or of the model's config, by name; text values are read as YAML.
        split: split to train on; None takes the recipe's, ``train``.
        progress: show lines and a progress bar on the screen.

    Returns:
        ``folder``, ``epochs``, ``best`` and ``best_metric`` (the figure of the best weights, and its column in
        ``metrics.csv``), ``best_ap`` (the same where it is an AP), ``best_epoch`` (None and 0 without evaluation), and
        ``last``, the last row of ``metrics.csv``.

    Raises:
        ConfigError: unknown or impossible field, a run folder that holds a run or is in use, a field changed on resume.
        DataError: the data set cannot be used.
        CheckpointError: a checkpoint cannot be read or written.
        TrainingError: a loss is not a number; the line names the images, and the last checkpoint is intact.
        TrainingInterrupted: stopped by Ctrl-C, SIGTERM or SIGHUP, after saving.
    """
    given = _given(
        data, overrides, model=model, weights=weights, device=device, workers=workers, batch=batch, split=split
    )
    folder = resumed_folder(out) if resume else None
    interrupt = Stop(at_once=False)
    main, ours = int(os.environ.get("RANK", "0")) == 0, False
    try:
        with interrupt.handled(), ExitStack() as stack:
            with interrupt.at_once():  # there is nothing to save yet
                if folder is not None and main:
                    stack.enter_context(locked(folder))
                    ours = True
                plan = resumed_plan(folder, config, given) if folder is not None else new_plan(config, given)
                accelerator = make_accelerator(plan.recipe)
                if folder is None:
                    folder = new_folder(out, accelerator)
                    if main:
                        stack.enter_context(locked(folder))
                        ours = True
                log = stack.enter_context(_opened_log(plan, folder if main else None, progress))
                trainer = _build(plan, folder, accelerator, log, interrupt, stack)
                del plan
            return _fit(trainer)
    finally:
        if ours and folder is not None:
            _remove_traces(folder)


def _given(data: str | Path, overrides: Mapping[str, object] | None, **named: Any) -> dict[str, Any]:
    """The fields that the caller chose."""
    given: dict[str, Any] = parsed(overrides or {})
    given |= {key: str(v) if isinstance(v, Path) else v for key, v in named.items() if v is not None}
    given["data"] = str(data)
    start = str(given.get("model", ""))
    if start not in MODELS and start and (start in BUNDLED or start in CATALOGUE or Path(start).exists()):
        given |= {"weights": given.get("weights", start)}  # a checkpoint where a name of the zoo is expected
        del given["model"]
    return given


def _remove_traces(folder: Path) -> None:
    """Remove the folder of a run that failed before there was anything to keep."""
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {"log.txt"}:
            (folder / "log.txt").unlink(missing_ok=True)
            folder.rmdir()


@contextmanager
def _opened_log(plan: Plan, folder: Path | None, progress: bool) -> Iterator[RunLog]:
    """The log of a run, which also records how the run failed."""
    updates = plan.state["updates"] if plan.state is not None else 0
    log = RunLog(folder, progress=progress, tensorboard=plan.recipe.tensorboard, purge_step=updates)
    del plan  # and with it the weights that the run starts from
    try:
        with _warnings_to(log):
            yield log
    except TrainingInterrupted as error:
        log.record(str(error))
        raise
    except InstsegError as error:
        log.record(f"error: {error}")
        raise
    except KeyboardInterrupt:
        log.record("interrupted")
        raise
    finally:
        log.close()


def _build(
    plan: Plan, folder: Path, accelerator: "Accelerator", log: RunLog, interrupt: Stop, stack: ExitStack
) -> Trainer:
    """Everything that a run needs, at the point where it starts or was stopped; writes what describes the run."""
    recipe, state = plan.recipe, plan.state
    for line in plan.notices:
        log.line(line)
    if state is not None:
        done = state["progress"]
        ended = "; all its epochs are done" if done["epoch"] >= recipe.epochs else ""
        log.line(f"resuming in {folder} after epoch {done['epoch']}, update {done['update']}{ended}")
    data = open_training_data(recipe, state, log)
    dataset = data.dataset
    torch.manual_seed(seed_of(recipe.seed))
    model = _build_model(plan, dataset)
    model.extra["image_rule"] = dataset.image_rule.to_json()
    if state is not None and RESIZE not in model.extra:
        log.line(
            "warning: the run was begun by a version that rounded resized images to whole values and never antialiased "
            "them; from here on they are resized as in prediction"
        )
    model.extra[RESIZE] = {"rounded": False, "antialias": model.config.antialias}
    model.extra.pop(KEY, None)  # of a checkpoint that the run starts from
    if data.record is not None:
        model.extra[KEY] = data.record
    transform = build_transform(at_model_scale(recipe, model.config), True, model.config.antialias)
    augmented = dataset.with_transform(transform)
    evaluator = make_evaluate(recipe, data, accelerator, log, state, interrupt, stack)
    saved = _saved_with_the_state(recipe, model, data, accelerator)
    trainer = Trainer(model, augmented, recipe, folder, accelerator, log, evaluator, saved, interrupt)
    if state is not None:
        _restore(trainer, state, folder)
    if accelerator.is_main_process:
        text = _config_text(recipe, model, dataset, accelerator)
        replace_file(folder / "config.yaml", lambda file: file.write(text.encode()))
        if data.record is not None:
            listing = json.dumps(data.listing(), indent=1, ensure_ascii=False)
            replace_file(folder / "split.json", lambda file: file.write(listing.encode("utf-8", "replace")))
    trained, total = (sum(p.numel() for p in ps) for ps in (trainer.parameters, model.parameters()))
    log.line(
        f"{model.name}: {total / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained; {len(dataset)} images "
        f"of {len(dataset.categories)} classes; {recipe.epochs} epochs of {trainer.per_epoch} updates of "
        f"{trainer.total_batch} images at lr {trainer.lr:.3g} on {accelerator.device}; run folder {folder}"
    )
    return trainer


def _saved_with_the_state(
    recipe: Recipe, model: InstanceModel, data: TrainingData, accelerator: "Accelerator"
) -> dict[str, Any]:
    """What a checkpoint holds beside how far the run is: enough to resume, and to build the model alone."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "model_name": model.name,
        "model_config": model.config.model_dump(mode="json"),
        "model_extra": model.extra,
        "categories": {"names": list(model.categories), "ids": list(model.category_ids)},
        "data_fingerprint": data.fingerprint,
        "processes": accelerator.num_processes,
    }


def _restore(trainer: Trainer, state: State, folder: Path) -> None:
    processes = trainer.accelerator.num_processes
    if state["processes"] != processes:
        raise ConfigError(f"the run began with {state['processes']} processes, now {processes}: launch as many.")
    try:
        trainer.restore(state)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder / 'last.ckpt'} does not fit the run that it says it is of ({reason}): begin a new run with "
            f"--weights {folder}."
        ) from error


def _fit(trainer: Trainer) -> dict[str, Any]:
    folder, accelerator, log = trainer.folder, trainer.accelerator, trainer.log
    progress = trainer.fit()
    if accelerator.is_main_process:
        from instseg.vis.plots import plot_training

        try:
            plot_training(folder / "metrics.csv", folder / "plots")
        except OSError as error:
            log.line(f"warning: no curves in {folder / 'plots'}: {error.strerror}")
        log.line(f"done: weights in {folder / 'best.safetensors'}, curves in {folder / 'plots'}")
    return {
        "folder": str(folder),
        "epochs": progress.epoch,
        "best": progress.best,
        "best_metric": progress.best_name,
        "best_ap": progress.best if (progress.best_name or "ap").endswith("ap") else None,
        "best_epoch": progress.best_epoch,
        "last": progress.history[-1] if progress.history else {},
    }


# --- building ----------------------------------------------------------------------------------------------------


def make_accelerator(recipe: Recipe) -> "Accelerator":
    """The engine for the recipe's device and precision, over all processes of the launcher if there is one."""
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState

    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    wanted = pick_device(recipe.device)
    if recipe.precision == "fp16" and wanted.type == "cpu":
        raise ConfigError("precision=fp16 needs a GPU: use bf16 or fp32 on a CPU.")
    if wanted.index is not None and not launched:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(wanted)
    else:
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run of this Python may have set another
    if launched and not torch.distributed.is_initialized():
        atexit.register(end_group)  # it lasts as long as the program: a second run could not begin another
    return Accelerator(
        cpu=wanted.type == "cpu",
        mixed_precision="no" if recipe.precision == "fp32" else recipe.precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )


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
        raise ConfigError(f"num_classes comes from the data, which has {classes} classes: leave it out.")
    fresh = plan.state is None
    backbone = recipe.backbone_weights if fresh and recipe.weights is None else None
    model = create_model(recipe.model, classes, plan.start, backbone, fields, dataset.categories)
    if plan.state is not None:
        model.extra = plan.state["model_extra"]
    model.has_weights = True
    return model


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
    shown: set[str] = set()
    with warnings.catch_warnings():
        before = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if not issubclass(category, UserWarning):
                before(message, category, *rest, **more)
            elif str(message) not in shown:
                shown.add(str(message))
                log.line(f"warning: {message}")

        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
