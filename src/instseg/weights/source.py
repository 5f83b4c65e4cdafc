"""Whatever ``weights=`` names, as a checkpoint."""

import os
from pathlib import Path

from instseg.core.errors import CheckpointError
from instseg.weights.catalogue import CATALOGUE, obtain
from instseg.weights.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from instseg.weights.published import read_published

FOREIGN = (".pth", ".pt", ".pkl")


def read_weights(weights: str | os.PathLike[str], model: str | None = None) -> Checkpoint:
    """The checkpoint in a ``.safetensors`` file of ours, a ``.pth`` of another code base, or under a catalogued name.

    Args:
        weights: a path or a name of the catalogue.
        model: the zoo's name that a foreign file must fit; None finds it.

    Raises CheckpointError when there is none, or it does not fit.
    """
    text = os.fspath(weights)
    if text in CATALOGUE and not Path(text).exists():
        return read_published(obtain(text), model or CATALOGUE[text].model)
    if Path(text).suffix.lower() in FOREIGN:
        return read_published(text, model)
    return read_checkpoint(text)


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
    checkpoint = read_weights(weights, model)
    if model is not None and checkpoint.model != model:
        raise CheckpointError(f"{os.fspath(weights)} is a checkpoint of {checkpoint.model}, not {model}.")
    write_checkpoint(out, checkpoint, half)
    return checkpoint
