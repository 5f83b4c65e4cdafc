"""One run at a time in a run folder."""

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from instseg.core.errors import ConfigError

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder until this one ends, in whatever way it ends.

    The lock is the operating system's and belongs to this process alone: it is gone with the process, also after
    ``kill -9``, and loader processes do not inherit it. Where the system or the file system has no locks, nothing is
    locked.

    Raises:
        ConfigError: another process trains in the folder.
    """
    file = _take(folder / NAME)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                os.unlink(folder / NAME)
            file.close()


def _take(path: Path) -> TextIO | None:
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    while True:
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  # closed with the lock
        except OSError:  # reported where the first checkpoint cannot be written
            return None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:
                raise FileNotFoundError(path)
        except FileNotFoundError:  # the run before has just ended and taken its file away
            file.close()
            continue
        except OSError as error:
            with file:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    return None
                file.seek(0)
                holder = " ".join(file.read(200).split()) or "another process"
            raise ConfigError(
                f"{path.parent} is in use: {holder} trains there. Wait until it ends, or give another --out."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        return file
