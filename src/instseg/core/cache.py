"""The folder in which files are kept that can be made or fetched again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def cache_folder() -> Path:
    """``$INSTSEG_CACHE``, or ``instseg`` in the user's cache folder."""
    given = os.environ.get("INSTSEG_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "instseg"


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Within this, no other process of this machine is in the same block for ``path``; they wait.

    The lock dies with its process. Where the system has no such locks, or the folder cannot be written, all go ahead.
    """
    with suppress(ImportError, OSError):
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f"{path.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
            return
    yield
