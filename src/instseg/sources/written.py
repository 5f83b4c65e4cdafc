"""Which pictures in a folder are results of `instseg`, so that they are not taken for photographs."""

import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from instseg.data.images.read import IMAGE_SUFFIXES

MARK = "written by instseg"  # in the header of every overlay and label image
PICTURES = ("overlays", "labels")  # folders of pictures in a folder of results
_HEADER = 2048  # bytes of a file in which the mark stands

# How results begin whose pictures carry no mark, because an earlier version wrote them.
_UNMARKED_RESULTS = b'{"info": {"description": "instseg predictions"},'
_UNMARKED_README = b"Each PNG holds one 16-bit whole number a pixel."


def is_marked(path: Path) -> bool:
    """Whether a picture carries the mark; False where it cannot be read."""
    return MARK.encode() in _head(path)


def walk_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images of a folder and its subfolders, by name, and the pictures among them that instseg wrote.

    Hidden files and folders are left out, symbolic links to folders are not followed. Plots of training and evaluation
    are known by the files beside them, pictures by their mark, and the pictures of results that have no mark by the
    results.
    """
    images: list[Path] = []
    ours: list[Path] = []
    unmarked: dict[Path, list[Path]] = {}
    marked: set[Path] = set()
    for where, files in _folders(folder):
        results = _results_above(where, folder)
        plots = _is_plots(where)
        for name in files:
            path = where / name
            if plots or _is_statistics(path) or is_marked(path):
                ours.append(path)
                if results is not None:
                    marked.add(results)
            elif results is not None:
                unmarked.setdefault(results, []).append(path)
            else:
                images.append(path)
    for results, paths in unmarked.items():  # beside marked pictures, what has no mark is somebody's photograph
        (images if results in marked else ours).extend(paths)
    return sorted(images), sorted(ours)


def is_written(path: Path, root: Path) -> bool:
    """Whether instseg wrote a picture below the folder ``root``."""
    if is_marked(path) or _is_statistics(path):
        return True
    return path.parent != root and (_is_plots(path.parent) or _results_above(path.parent, root) is not None)


def _folders(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    def unreadable(error: OSError) -> None:
        warnings.warn(f"{error.filename}: folder cannot be read ({error.strerror}) and is left out.", stacklevel=2)

    for where, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = [n for n in files if not n.startswith(".") and os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES]
        yield Path(where), [name for name in images if os.path.isfile(os.path.join(where, name))]


def _results_above(where: Path, root: Path) -> Path | None:
    """The folder `overlays` or `labels` of somebody's results in which ``where``, below ``root``, lies."""
    while where != root and root in where.parents:
        if where.name in PICTURES and _holds_results(where.parent):
            return where
        where = where.parent
    return None


def _holds_results(folder: Path) -> bool:
    """Whether results lie in a folder whose pictures carry no mark."""
    if _head(folder / "predictions.json").startswith(_UNMARKED_RESULTS):
        return True
    return _head(folder / "labels" / "README.txt").startswith(_UNMARKED_README)


def _is_plots(folder: Path) -> bool:
    """The plots of a training run or an evaluation."""
    if folder.name != "plots":
        return False
    run = all((folder.parent / name).is_file() for name in ("config.yaml", "metrics.csv"))
    return run or (folder.parent / "metrics.json").is_file()


def _is_statistics(path: Path) -> bool:
    """What `data check --out` draws."""
    drawn = path.name == "statistics.png" or path.name in ("train.jpg", "val.jpg", "test.jpg")
    return drawn and path.with_name("report.json").is_file() and path.with_name("statistics.png").is_file()


def _head(path: Path) -> bytes:
    with suppress(OSError), path.open("rb") as file:
        return file.read(_HEADER)
    return b""
