"""Files that are either whole or absent: written beside their place, flushed to the disk, then moved."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from instseg.core.errors import CheckpointError, InstsegError
from instseg.weights.training_state import FORMAT, State, load_state, previous_of

__all__ = ["State", "load_state", "previous_of", "put_in_place", "replace_file", "replace_with", "save_state"]


def replace_file(path: Path, write: Callable[[BinaryIO], object], *, keep_previous: bool = False) -> None:
    """Write ``path`` so that a kill, a power cut or a full disk leaves either the old file or the new one.

    ``write`` gets a binary file opened in the same folder. With ``keep_previous`` the old file stays as
    ``<name>.prev``. Raises :class:`CheckpointError` when the disk is full or cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, path, keep_previous=keep_previous)
    except (OSError, RuntimeError) as error:  # torch turns a failed write into a RuntimeError
        raise _not_written(path, temporary, error) from error


def replace_with(path: Path, save: Callable[[Path], object]) -> None:
    """As :func:`replace_file`, for a ``save`` that wants the path of the file to write."""
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    try:
        save(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        put_in_place(temporary, path)
    except InstsegError:
        temporary.unlink(missing_ok=True)
        raise
    except Exception as error:  # safetensors has an error class of its own
        raise _not_written(path, temporary, error) from error


def put_in_place(temporary: Path, path: Path, *, keep_previous: bool = False) -> None:
    """Move a finished file to its name, and make the move itself durable."""
    if keep_previous and path.exists():
        os.replace(path, previous_of(path))
    os.replace(temporary, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_state(path: Path, state: State) -> None:
    """Write the whole state of a run to ``path``, keeping the file before it; see :func:`replace_file`."""
    replace_file(path, lambda file: torch.save({"format": FORMAT, **state}, file), keep_previous=True)


def _not_written(path: Path, temporary: Path, error: Exception) -> CheckpointError:
    temporary.unlink(missing_ok=True)
    cause = next((e for e in (error.__context__, error) if isinstance(e, OSError) and e.strerror), None)
    reason = cause.strerror if cause is not None else " ".join(str(error).split())[:160]
    kept = f"; the file before it is intact: {path}" if path.exists() else ""
    return CheckpointError(f"could not write {path}: {reason}{kept}; make room, then resume")
