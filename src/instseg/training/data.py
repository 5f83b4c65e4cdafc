"""What a run trains on and is evaluated on."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instseg.core.category_matching import match_categories
from instseg.core.errors import ConfigError, DataError
from instseg.core.stopping import Stop
from instseg.core.target import SHAPES
from instseg.data.dataset import InstanceDataset, OnError
from instseg.data.formats.layout import locate
from instseg.data.holdout import KEY, LEAST_IMAGES, file_names, hold_out, make_record, parts
from instseg.data.images.read import ImageRule
from instseg.data.open import data_path, open_dataset, splits
from instseg.evaluation.best import Measured, measured
from instseg.evaluation.collect import image_reader
from instseg.evaluation.evaluate import evaluate
from instseg.model.instance_model import InstanceModel
from instseg.models.zoo import get_entry
from instseg.training.checkpoint import State
from instseg.training.loggers import RunLog
from instseg.training.loop import Evaluate
from instseg.training.processes import share_of
from instseg.training.recipe import Recipe
from instseg.training.sampler import loader_processes

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class TrainingData:
    """The images of a run.

    Attributes:
        dataset: those trained on, not augmented.
        held_out: those of the same data that are kept for evaluation; None where the data has a split of its own.
        record: of the split, for the checkpoint; None without one.
        fingerprint: of all of them, which tells whether a resumed run sees the data that it began with.
    """

    dataset: InstanceDataset
    held_out: InstanceDataset | None
    record: dict[str, Any] | None
    fingerprint: dict[str, Any]

    def listing(self) -> dict[str, Any]:
        """What ``split.json`` holds: seed, fraction, and the file names of both parts."""
        assert self.record is not None and self.held_out is not None
        named = {"train": self.dataset, "val": self.held_out}
        lists = {key: file_names(data, range(len(data))) for key, data in named.items()}
        return {"seed": self.record["seed"], "fraction": self.record["fraction"], **lists}


def open_training_data(recipe: Recipe, state: State | None, log: RunLog) -> TrainingData:
    """The images of a new run, or with ``state`` the same ones again.

    Where the data has no split to evaluate on, a part of its images is held out. Raises DataError where there are no
    images, or other ones than the run began with.
    """
    assert recipe.data is not None
    record: dict[str, Any] | None = state["model_extra"].get(KEY) if state is not None else None
    splitting = record is not None or (state is None and wants_held_out(recipe))
    net = get_entry(recipe.model).net
    whole = open_dataset(
        recipe.data,
        recipe.split,
        on_error=recipe.on_error,
        keep_empty=recipe.keep_empty or splitting,
        crowd=recipe.crowd,
        classes=recipe.classes,
        needs=net.needs,
        read_shapes=not SHAPES.isdisjoint(net.needs | net.optional),
    )
    whole.needs = net.needs | net.optional
    if not len(whole):
        raise DataError(f"{recipe.data}: split {recipe.split} holds no images; look at it with `instseg data check`.")
    if recipe.copy_paste and not whole.has_masks:
        raise ConfigError(
            f"copy_paste={recipe.copy_paste:g} pastes objects by their masks, and {recipe.model} sees boxes alone in "
            f"{recipe.data}: set copy_paste=0."
        )
    whole.seed = recipe.seed  # of the augmentation; the pictures of `shapes` stay the same
    if state is not None:
        _check_same_data(state, whole.fingerprint())
        whole.image_rule = ImageRule.from_json(state["model_extra"].get("image_rule"))
    data = TrainingData(whole, None, None, whole.fingerprint())
    if not splitting:
        return data
    if record is None:
        return _hold_out(data, recipe, log)
    found = parts(whole, record)
    if found is None:
        raise DataError(f"{recipe.data}: its images are not those that the run began with: resume wants the same data.")
    return _divided(data, found, record, recipe)


def wants_held_out(recipe: Recipe) -> bool:
    """Whether a new run holds out a part of its images."""
    return recipe.evaluate_every > 0 and recipe.val_split > 0 and not _has_split(recipe)


def _has_split(recipe: Recipe) -> bool:
    """Whether the data has a split to evaluate on. A lone JSON, which opens as any split, is the one trained on."""
    assert recipe.data is not None
    if recipe.evaluate_split == recipe.split or recipe.data == "shapes":
        return True
    path = data_path(recipe.data)
    if path.suffix.lower() == ".json" and not path.is_dir():
        return False
    if recipe.evaluate_split in splits(path):
        return True
    if not path.is_dir():
        return False
    try:
        locate(path, recipe.evaluate_split)
    except DataError:
        return False
    return True


def _hold_out(data: TrainingData, recipe: Recipe, log: RunLog) -> TrainingData:
    whole = data.dataset
    found = hold_out(whole, recipe.val_split, recipe.seed)
    held = len(found[1])
    if not held:
        log.line(
            f"warning: no evaluation, so best.safetensors will be the last weights: {recipe.data} has no split "
            f'"{recipe.evaluate_split}", and of its {len(whole)} images none is held out ({LEAST_IMAGES} are needed)'
        )
        return data if recipe.keep_empty else replace(data, dataset=_with_objects(whole, recipe))
    log.line(
        f'{recipe.data} has no split "{recipe.evaluate_split}": {held} of its {len(whole)} images are held out to '
        f"evaluate on (val_split={recipe.val_split:g}, seed {recipe.seed}; split.json names them; val_split=0 trains "
        "on all)"
    )
    return _divided(data, found, make_record(whole, found[1], recipe.val_split, recipe.seed), recipe)


def _divided(data: TrainingData, found: tuple[Any, Any], record: dict[str, Any], recipe: Recipe) -> TrainingData:
    part, held = (data.dataset.subset(rows) for rows in found)
    return replace(data, dataset=_with_objects(part, recipe), held_out=held, record=record)


def _with_objects(dataset: InstanceDataset, recipe: Recipe) -> InstanceDataset:
    """The images to train on: those without objects only where the recipe keeps them."""
    rows = np.unique(dataset.objects()[0])
    if not len(rows):
        raise DataError(f"{recipe.data}: no image has an object to train on; annotate some.")
    return dataset if recipe.keep_empty else dataset.subset(rows)


def _check_same_data(state: State, now: Mapping[str, Any]) -> None:
    before = state["data_fingerprint"]
    for key in now:  # older states lack the digest of the annotations
        if key not in before or now[key] == before[key]:
            continue
        if key == "annotations":
            raise DataError(
                "the annotations are not those that the run began with, although images and classes are as many: "
                "resume wants the same data; begin a new run with --weights to train on the new ones."
            )
        raise DataError(f"the run began on data with {key} {before[key]}, now {now[key]}: resume wants the same data.")


def make_evaluate(
    recipe: Recipe,
    data: TrainingData,
    accelerator: "Accelerator",
    log: RunLog,
    began: State | None,
    stop: Stop,
    stack: ExitStack,
) -> Evaluate | None:
    """What evaluates a model, each process its share of the images; None where there is nothing to evaluate on.

    The processes that read the images live until ``stack`` is left.
    """
    if not recipe.evaluate_every:
        return None
    dataset, images = data.dataset, data.held_out
    moved = began is not None and began["recipe"]["evaluate_split"] != recipe.evaluate_split
    if images is None or (moved and _has_split(recipe)):
        images = _open_split(recipe, log)
    if images is None:
        return None
    match_categories(dataset.categories, images.categories)  # now rather than after the first epoch
    images.image_rule = dataset.image_rule
    images.on_error = "skip"  # an image that cannot be read costs itself and a warning, not the AP of the epoch
    reader = image_reader(images, loader_processes(recipe.workers, accelerator.num_processes))
    stack.callback(reader.close)
    share = share_of(accelerator, stop)

    def measure(model: InstanceModel) -> Measured | None:
        batch, shown = recipe.evaluate_batch or recipe.batch, log.console is not None
        report = evaluate(model, images, batch=batch, progress=shown, share=share, reader=reader)
        return measured(report) if report else None

    return measure


def _open_split(recipe: Recipe, log: RunLog) -> InstanceDataset | None:
    """The split to evaluate on; where a record of it is defective, the rest of it."""
    assert recipe.data is not None
    if not _has_split(recipe):
        if not wants_held_out(recipe):
            is_json = Path(recipe.data).suffix.lower() == ".json"
            lone = " (it is one split; name a folder or a data YAML to have two)" if is_json else ""
            log.line(
                f"warning: no evaluation, so best.safetensors will be the last weights: {recipe.data} has no split "
                f'"{recipe.evaluate_split}"{lone}'
            )
        return None
    try:
        found = _opened(recipe, recipe.on_error)
    except DataError as error:
        found = _without_defects(recipe, error, log)
    return found if recipe.classes is None else _of_classes(found, recipe.classes, log)


def _opened(recipe: Recipe, on_error: OnError) -> InstanceDataset:
    assert recipe.data is not None
    needs = get_entry(recipe.model).net.needs
    return open_dataset(recipe.data, recipe.evaluate_split, on_error=on_error, crowd=recipe.crowd, needs=needs)


def _without_defects(recipe: Recipe, error: DataError, log: RunLog) -> InstanceDataset:
    assert recipe.data is not None
    fix = f'fix split "{recipe.evaluate_split}", or train without evaluation (evaluate_every=0)'
    if recipe.on_error == "skip":
        raise DataError(f"{str(error).rstrip('.')}; {fix}.") from None
    try:
        found = _opened(recipe, "skip")
    except DataError as again:
        raise DataError(f"{str(again).rstrip('.')}; {fix}.") from None
    log.line(
        f'warning: split "{recipe.evaluate_split}" has defects and is evaluated WITHOUT its bad records, on '
        f"{len(found)} images, so its AP is not that of the whole split; the first: {error}"
    )
    return found


def _of_classes(found: InstanceDataset, classes: list[str], log: RunLog) -> InstanceDataset:
    there = [name for name in classes if name in found.categories.names]
    missing = [name for name in classes if name not in there]
    if not there:
        raise ConfigError(f"{found.name}: split {found.split} has none of the classes {', '.join(classes)}.")
    if missing:
        log.line(f"warning: split {found.split} has no class {', '.join(missing)}: it counts for no AP")
    return found.with_classes(there)
