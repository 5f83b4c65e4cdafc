"""Folders that results go into."""

import os
from pathlib import Path

from instseg.core.errors import InstsegError


def make_writable(folder: Path, error: type[InstsegError]) -> None:
    """Makes a folder where it is not there, and sees that files can be written into it, before the work begins.

    Raises:
        InstsegError: of the class ``error``: it cannot be made or written.
    """
    fault = write_fault(folder)
    if fault is not None:
        raise error(f"{folder} {fault}; choose another folder.")


def write_fault(folder: Path) -> str | None:
    """Makes a folder where it is not there; why no file can be written into it, or None where one can."""
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        if folder.exists() and not folder.is_dir():
            return "is a file, not a folder"
        return f"cannot be written ({(error.strerror or str(error)).lower()})"
    return None
