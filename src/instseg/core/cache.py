"""The folder in which files are kept that can be made or fetched again."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


def cache_folder() -> Path:
    """``$INSTSEG_CACHE``, or ``instseg`` in the user's cache folder."""
    given = os.environ.get("INSTSEG_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "instseg"


@contextmanager
def only_one(path: Path, waiting: Callable[[], object] | None = None) -> Iterator[bool]:
    """Within this, no other process of this machine is in the same block for ``path``; they wait.

    The lock dies with its process. Where the system has no such locks, or the folder cannot be written, all go ahead.

    Args:
        path: what the block makes; the lock is a file beside it.
        waiting: called once when another process is in the block.

    Returns:
        as the context's value, whether this process is certainly the only one.
    """
    with ExitStack() as stack:
        alone = False
        with suppress(ImportError, OSError):
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.with_name(f"{path.name}.lock").open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None:
                    waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        yield alone
