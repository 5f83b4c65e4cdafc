"""Where results go when the user names no folder."""

from pathlib import Path


def free_folder(verb: str, parent: Path | str = "runs") -> Path:
    """The first of ``runs/<verb>``, ``runs/<verb>2``, ``runs/<verb>3``, ... that is not there or empty.

    The folder is not made here.
    """
    number = 1
    while True:
        folder = Path(parent) / (verb if number == 1 else f"{verb}{number}")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return folder
        number += 1
