"""The folder that takes results: checked before the work, and left as it was when there is none."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from instseg.core.errors import DataError
from instseg.core.folders import free_folder
from instseg.predict.journal import PREDICTIONS
from instseg.results.writers import WriteError, unwritable
from instseg.sources.sources import Source
from instseg.sources.written import PICTURES, is_marked

_PROBE = 1 << 12  # bytes that must fit
_JPEG_SIDE = 65_500  # pixels; larger overlays are PNG


@contextmanager
def claimed(out: Path | str | None, verb: str, subfolders: Sequence[str]) -> Iterator[Path]:
    """A folder that exists and takes files; folders made for it are removed again when they stay empty.

    Args:
        out: the folder; None takes the next free one of ``runs/<verb>``.
        verb: what runs.
        subfolders: those of it that must take files as well.

    Raises:
        WriteError: a folder cannot be made or written.
    """
    if out is not None and (not str(out).strip() or "\0" in str(out)):
        raise WriteError("the folder for the results has no name; choose another --out.")
    try:
        folder = free_folder(verb) if out is None else Path(out).expanduser()
        made = _missing(folder) if out is not None else [folder, folder.parent]
    except (OSError, RuntimeError, ValueError) as error:
        raise WriteError(f"{out or 'runs'}: cannot be used for results ({error}); choose another --out.") from None
    made = [folder / name for name in subfolders if not (folder / name).exists()] + made
    try:
        for target in (folder, *(folder / name for name in subfolders)):
            _check_writable(target)
        if (folder / PREDICTIONS).is_dir():
            raise WriteError(f"{folder / PREDICTIONS}: is a folder; remove it, or choose another --out.")
        yield folder
    finally:
        for path in made:  # goes only while it is empty
            with suppress(OSError):
                path.rmdir()


def _missing(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _check_writable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise WriteError(f"{folder}: is a file, not a folder for results; choose another --out.")
    probe = folder / f".{os.getpid()}.writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(folder, error) from None
    finally:
        with suppress(OSError):
            probe.unlink()


def picture_paths(folder: Path, source: Source, size: tuple[int, int] | None = None) -> tuple[Path, Path]:
    """Where the overlay and the label image of a source go; ``size`` is the image's, (H, W)."""
    suffix = "png" if size is not None and max(size) > _JPEG_SIDE else "jpg"
    return folder / "overlays" / f"{source.stem}.{suffix}", folder / "labels" / f"{source.stem}.png"


def check_no_source(sources: Sequence[Source], folder: Path, overlays: bool, labels: bool) -> None:
    """Raises DataError when results would replace one of the images they are made from."""
    inside = {source.path.resolve() for source in sources if source.path is not None}
    root = folder.resolve()
    inside = {path for path in inside if root in path.parents}
    if not inside:
        return
    for source in sources:
        for wanted, target in zip((overlays, labels), picture_paths(root, source), strict=True):
            if wanted and target.resolve() in inside:
                raise DataError(f"{target}: is an image to predict, and would be replaced; choose another --out.")


def clear_pictures(folder: Path, keep: Sequence[Source]) -> None:
    """Removes the pictures of an earlier run, which would stand beside those of this one; other files stay."""
    kept = {source.path.resolve() for source in keep if source.path is not None}
    for name in PICTURES:
        for path in (folder / name).rglob("*"):
            if path.suffix in (".jpg", ".png") and is_marked(path) and path.resolve() not in kept:
                with suppress(OSError):
                    path.unlink()
