"""The state of a training run, ``last.ckpt``, read without running any code in it.

It is a ``torch.save`` file that loads with ``weights_only=True``. Its zip container holds a CRC-32 of every record, so
a torn or damaged file is recognized before anything is loaded; the file it replaced stays beside it as
``last.ckpt.prev`` and is used instead.
"""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from instseg.core.errors import CheckpointError
from instseg.core.files import previous_of

FORMAT = "instseg training state 1"
State = dict[str, Any]


def load_state(path: Path) -> tuple[State, str | None]:
    """The newest whole state at ``path``, and a line about it when that is not ``path`` itself.

    Tensors are on the CPU. Raises :class:`CheckpointError` when neither ``path`` nor the one before it is whole and
    ours, and :class:`FileNotFoundError` when there is neither.
    """
    candidates = [file for file in (path, previous_of(path)) if file.exists()]
    if not candidates:
        raise FileNotFoundError(path)
    faults: list[str] = []
    for file in candidates:
        content = _read(file)
        if isinstance(content, str):
            faults.append(f"{file} {content}")
            continue
        notice = f"{faults[0]}; resuming from {file.name}" if faults else None
        if file != path and not faults:
            notice = f"{path} is missing; resuming from {file.name}"
        return content, notice
    raise CheckpointError("; ".join(faults) + "; start again without resume, in another folder.")


def _read(file: Path) -> State | str:
    """The state in a file, or what is wrong with it."""
    fault = _fault(file)
    if fault is not None:
        return fault
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler meets whatever a foreign file holds; no code of it is run
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        objects = "weights_only" in str(error) or "WeightsUnpickler" in str(error)
        why = "it holds Python objects, which are never run" if objects else reason
        return f"is not a training state of instseg ({why})"
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return "is not a training state of this version of instseg"
    return content


def _fault(file: Path) -> str | None:
    """What is wrong with a checkpoint file as a container, or None; reads all of it."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return f"is torn, or was not written by instseg ({reason})"
    return None if damaged is None else f"is damaged (record {damaged})"
