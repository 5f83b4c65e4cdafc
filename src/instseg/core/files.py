"""Folders that results go into, and files that are either whole or absent."""

import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from instseg.core.errors import InstsegError


@contextmanager
def whole_or_absent(
    path: Path, *, durable: bool = True, keep_previous: bool = False, alone: bool = False
) -> Iterator[Path]:
    """Where to write a file that takes its name when the block ends well, and leaves nothing behind when it does not.

    A kill, a power cut or a full disk leaves either the old file or the new one.

    Args:
        path: of the file; its folder is made.
        durable: the content, and the name, are on the disk when this returns.
        keep_previous: the old file stays as :func:`previous_of` says.
        alone: no other process writes this file: what a killed one left behind is written over.

    Returns:
        as the context's value, the path of a file in the same folder.

    Raises:
        OSError: the file cannot be written.
    """
    # Names may be as long as the file system takes: that of the part must not be longer.
    part = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.{'' if alone else f'{os.getpid()}.'}part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if durable:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        if keep_previous and path.exists():
            os.replace(path, previous_of(path))
        os.replace(part, path)
        if durable:
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def atomic(
    path: Path, mode: str = "wb", *, durable: bool = True, keep_previous: bool = False, alone: bool = False
) -> Iterator[IO[Any]]:
    """As :func:`whole_or_absent`, the file itself, opened in ``mode`` "wb" or "w" (UTF-8)."""
    with (
        whole_or_absent(path, durable=durable, keep_previous=keep_previous, alone=alone) as part,
        part.open(mode, encoding=None if "b" in mode else "utf-8") as file,
    ):
        yield file


def previous_of(path: Path) -> Path:
    """Where the file that ``path`` replaced is kept."""
    return path.with_name(path.name + ".prev")


def reason_of(error: BaseException) -> str:
    """Why a file cannot be written, in a few words; libraries wrap the system's error in their own."""
    causes = (error, error.__cause__, error.__context__)
    said = next((e.strerror for e in causes if isinstance(e, OSError) and e.strerror), None)
    return said or " ".join(str(error).split())[:160] or type(error).__name__


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


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
    probe = folder / f".writable.{os.getpid()}.{threading.get_ident()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        if folder.exists() and not folder.is_dir():
            return "is a file, not a folder"
        return f"cannot be written ({(error.strerror or str(error)).lower()})"
    return None
