"""Files that are either whole or absent: written beside their place, flushed to the disk, then moved."""

from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch

from instseg.core.errors import CheckpointError
from instseg.core.files import atomic, previous_of, reason_of, whole_or_absent
from instseg.weights.training_state import FORMAT, State, load_state

__all__ = ["State", "load_state", "previous_of", "replace_file", "replace_with", "save_state"]


def replace_file(path: Path, write: Callable[[IO[bytes]], object], *, keep_previous: bool = False) -> None:
    """Write ``path`` so that a kill, a power cut or a full disk leaves either the old file or the new one.

    ``write`` gets a binary file opened in the same folder. With ``keep_previous`` the old file stays as
    ``<name>.prev``. Raises :class:`CheckpointError` when the disk is full or cannot be written.
    """
    try:
        with atomic(path, keep_previous=keep_previous, alone=True) as file:
            write(file)
    except (OSError, RuntimeError) as error:  # torch turns a failed write into a RuntimeError
        raise _not_written(path, error) from error


def replace_with(path: Path, save: Callable[[Path], object]) -> None:
    """As :func:`replace_file`, for a ``save`` that wants the path of the file to write."""
    try:
        with whole_or_absent(path, alone=True) as part:
            save(part)
    except OSError as error:
        raise _not_written(path, error) from error


def save_state(path: Path, state: State) -> None:
    """Write the whole state of a run to ``path``, keeping the file before it; see :func:`replace_file`."""
    replace_file(path, lambda file: torch.save({"format": FORMAT, **state}, file), keep_previous=True)


def _not_written(path: Path, error: Exception) -> CheckpointError:
    kept = f"; the file before it is intact: {path}" if path.exists() else ""
    return CheckpointError(f"could not write {path}: {reason_of(error)}{kept}; make room, then resume.")
