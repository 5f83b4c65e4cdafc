"""Whatever ``weights=`` or MODEL names, as a checkpoint that is opened once."""

import os
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

from instseg.core.errors import CheckpointError, ConfigError, did_you_mean
from instseg.core.files import make_writable
from instseg.models.zoo import MODELS
from instseg.weights.catalogue import CATALOGUE, obtain
from instseg.weights.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from instseg.weights.published import as_ours, brought_up, open_published
from instseg.weights.run_folder import STATE, WEIGHTS, read_run_folder

BUNDLED = {"nuclei": "nuclei/nuclei.safetensors"}


def resolve(text: str | os.PathLike[str]) -> Checkpoint | None:
    """What a MODEL text stands for; None for a name of the zoo, which has no weights.

    Args:
        text: ``nuclei``, ``coco`` or another published name, a file, a run folder, or a name of the zoo. A folder that
            holds no run does not stand in the way of a name.

    Raises:
        CheckpointError: its file cannot be had or read.
        ConfigError: it is none of them.
    """
    name, path = os.fspath(text), Path(text)
    if name in MODELS and not path.is_file() and not is_run_folder(path):
        return None
    if name in BUNDLED or name in CATALOGUE or path.exists() or path.suffix:
        return read_weights(text)
    known = did_you_mean(name, [*BUNDLED, *CATALOGUE, *MODELS])
    raise ConfigError(
        f'"{name}" is neither a file, a run folder, "nuclei", "coco", a published checkpoint, nor a model of the zoo.'
        f"{known} `instseg models` lists them."
    )


def read_weights(weights: str | os.PathLike[str], model: str | None = None) -> Checkpoint:
    """The checkpoint that a path or a name stands for.

    Args:
        weights: a ``.safetensors`` file of ours, a file of another code base, a run folder, the name of a bundled or of
            a catalogued checkpoint. A file or a run folder comes before a catalogued name, any other folder after.
        model: the zoo's name that a foreign file must fit, or that of a model that extends what it holds; None finds
            it.

    Raises:
        CheckpointError: there is none, or it cannot be read, or does not fit.
    """
    return replace(_read(os.fspath(weights), model), where=os.fspath(weights))


def _read(text: str, model: str | None) -> Checkpoint:
    path = Path(text)
    if text in BUNDLED:
        with as_file(files("instseg") / "assets" / BUNDLED[text]) as bundled:
            return read_checkpoint(bundled)
    if path.is_file():
        return _read_file(path, model)
    if is_run_folder(path):
        return read_run_folder(path)
    if text in CATALOGUE:
        return open_published(obtain(text), model or CATALOGUE[text].model)
    if path.is_dir():
        raise CheckpointError(
            f"{path} holds none of {', '.join((*WEIGHTS, STATE))}: give the folder of a training run, or a file."
        )
    known = did_you_mean(text, [*BUNDLED, *CATALOGUE])
    raise CheckpointError(f"{path} does not exist: give a .safetensors file, a run folder, nuclei or coco.{known}")


def is_run_folder(path: Path) -> bool:
    """Whether a folder holds the weights of a training run, finished or not."""
    return any((path / name).is_file() for name in (*WEIGHTS, STATE, f"{STATE}.prev"))


def _read_file(path: Path, model: str | None) -> Checkpoint:
    """By what the file holds: its name may be anybody's."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; make it readable.") from None
    if path.name in (STATE, f"{STATE}.prev"):
        raise CheckpointError(f"{path} is the state of a training run: give its folder, {path.parent}.")
    ours = start[8:9] == b"{" or path.suffix.lower() == ".safetensors"
    return open_published(path, model) if start[:2] == b"PK" or not ours else brought_up(read_checkpoint(path))


def convert(
    weights: str | os.PathLike[str], out: str | os.PathLike[str], model: str | None = None, half: bool = False
) -> Checkpoint:
    """Writes a published checkpoint as one of ours, which ``instseg.load`` and every verb take.

    Args:
        weights: as for :func:`read_weights`.
        out: the ``.safetensors`` file to write.
        model: the zoo's name that it must fit; None finds it.
        half: floating-point tensors in half precision.

    Raises CheckpointError when it cannot be read, does not fit, or cannot be written.
    """
    target = Path(out)
    if target.is_dir():
        raise CheckpointError(f"{target} is a folder: give the name of the .safetensors file to write.")
    make_writable(target.parent, CheckpointError)
    checkpoint = read_weights(weights, model)
    if checkpoint.model in MODELS:
        checkpoint = as_ours(checkpoint)
    if model is not None and checkpoint.model != model:
        raise CheckpointError(
            f"{os.fspath(weights)} is a checkpoint of {checkpoint.model}, not {model}: use --model {checkpoint.model}."
        )
    write_checkpoint(target, checkpoint, half)
    return checkpoint
