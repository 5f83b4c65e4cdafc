"""Folders for results."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from instseg.core.errors import ConfigError
from instseg.core.files import make_writable


def free_folder(verb: str, parent: Path | str = "runs") -> Path:
    """Makes the first of ``runs/<verb>``, ``runs/<verb>2``, ``runs/<verb>3``, ... that does not exist.

    Of several processes that ask at once, each gets its own.

    Raises:
        ConfigError: it cannot be made.
    """
    number = 1
    while True:
        folder = Path(parent) / (verb if number == 1 else f"{verb}{number}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileExistsError:
            if not folder.exists() and not folder.is_symlink():  # it is `parent` that is a file
                raise ConfigError(f"{parent} is a file, not a folder; choose another folder with --out.") from None
            number += 1
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"{folder} cannot be made ({reason}); choose another folder with --out.") from None
        else:
            return folder


@contextmanager
def results_folder(out: Path | str | None, verb: str) -> Iterator[Path]:
    """The folder that a verb writes into: ``out``, or a new one in ``runs``.

    It is made, and seen to be writable, before the work begins. Folders that were made here and are still empty when
    the work fails are removed again.

    Raises:
        ConfigError: it cannot be made or written.
    """
    wanted = Path("runs") / verb if out is None else Path(out)
    made = [each for each in (wanted, *wanted.parents) if not each.exists()]
    folder = free_folder(verb) if out is None else wanted
    if out is None and folder not in made:
        made.insert(0, folder)
    try:
        make_writable(folder, ConfigError)
        yield folder
    except BaseException:
        for each in made:  # from the innermost outwards
            with suppress(OSError):
                each.rmdir()
        raise
