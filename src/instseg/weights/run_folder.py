"""The weights in a run folder, finished or not."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from instseg.core.categories import Categories
from instseg.core.errors import CheckpointError
from instseg.weights.checkpoint import Checkpoint, read_checkpoint
from instseg.weights.training_state import State, load_state

WEIGHTS = ("best.safetensors", "last.safetensors")
STATE = "last.ckpt"


def read_run_folder(path: str | os.PathLike[str]) -> Checkpoint:
    """The best weights that a training run has saved so far.

    Those of ``best.safetensors``, else ``last.safetensors``, else of the state that the run resumes from (``last.ckpt``
    or the one before it): the averaged ones where the run averages. A damaged file is skipped with a warning.

    Raises:
        CheckpointError: the folder holds no weights, none that can be read, or only those that a run began with.
    """
    folder = Path(path)
    faults: list[str] = []
    for name in WEIGHTS:
        if (folder / name).is_file():
            try:
                return _after(faults, read_checkpoint(folder / name), name)
            except CheckpointError as error:
                faults.append(str(error))
    try:
        state, notice = load_state(folder / STATE)
    except FileNotFoundError:
        if faults:
            raise CheckpointError(faults[0]) from None
        raise CheckpointError(
            f"{folder} holds no weights ({', '.join(WEIGHTS)} or {STATE}): give the folder of a training run."
        ) from None
    if notice is not None:
        faults.append(notice)
    return _after(faults, _from_state(folder, state), STATE)


def _after(faults: list[str], checkpoint: Checkpoint, name: str) -> Checkpoint:
    if faults:
        warnings.warn(f"{'; '.join(faults)} Reading {name}.", stacklevel=3)
    return checkpoint


def _from_state(folder: Path, state: State) -> Checkpoint:
    try:
        if not state["updates"] and state["recipe"].get("weights") is None:
            raise CheckpointError(
                f"{folder} holds a run that has not saved an update yet: its weights are untrained. Train on with "
                "--resume."
            )
        average = state.get("average")
        tensors = _network(state["model"], "net.") if average is None else _network(average, "module.net.")
        if not tensors:
            raise KeyError("net")
        return Checkpoint(
            state["model_name"], dict(state["model_config"]), _categories(state), tensors, dict(state["model_extra"])
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / STATE} does not say which model it is of ({' '.join(str(error).split())}): resume the run, "
            "which writes last.safetensors."
        ) from None


def _network(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _categories(state: Mapping[str, Any]) -> Categories:
    """Names and ids; older states have names only."""
    kept = state.get("categories")
    if kept is None:
        return Categories.from_names(state["data_fingerprint"]["categories"])
    return Categories(tuple(kept["names"]), tuple(kept["ids"]))
