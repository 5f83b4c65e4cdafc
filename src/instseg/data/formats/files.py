"""Where the pictures of an annotation file lie: by the path that a record gives, however its tool wrote it."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from instseg.data.images.read import IMAGE_SUFFIXES

# A data set's folder is searched this deep, and no further than this many entries.
_DEPTH = 6
_ENTRIES = 2_000_000
_URLS = ("http://", "https://", "s3://", "gs://", "file://")


@dataclass(frozen=True)
class Found:
    """The file of a record, or why there is none.

    Attributes:
        path: where it lies; None when it was not found.
        reason: what to say then.
    """

    path: Path | None
    reason: str = ""


class ImageFinder:
    """Finds the pictures of one annotation file below a folder, and nowhere above it.

    A record's path is tried as it is written, from each of the likely folders. Backslashes are folders, percent signs
    and the host of an address are taken off, a path that leads out of the data set is shortened from the left. The
    case of letters and the unicode form do not matter where exactly one file fits. A picture that is missing in a
    folder which is there is not taken from another one.
    """

    def __init__(self, root: Path, here: Path, folders: Sequence[Path], others: Collection[str] = ()) -> None:
        """
        Args:
            root: nothing is taken from above it, unless a record's own path says so.
            here: the annotation file's folder.
            folders: where pictures may lie, the likeliest first.
            others: words for the other splits: pictures in folders of such a name belong to them.
        """
        self.root, self.here = root, here
        self.others = frozenset(others)
        self.folders = list(dict.fromkeys(folders))
        self._listed: dict[Path, frozenset[str]] = {}
        self._serving: Path | None = None
        self._as_named = False

    def find_all(self, names: Sequence[str]) -> list[Found]:
        """A file for each of ``names``."""
        parts = [_parts(name) for name in names]
        self._order_folders(parts)
        written = [self._written(name, steps) for name, steps in zip(names, parts, strict=True)]
        # Where some lie in the folders that their records name, the others are missing, not elsewhere.
        self._as_named = any(path is not None and len(steps) > 1 for path, steps in zip(written, parts, strict=True))
        taken = {path for path in written if path is not None}
        found = []
        for name, steps, path in zip(names, parts, written, strict=True):
            searched = Found(path) if path is not None else self._search(name, steps)
            if path is None and searched.path in taken:
                searched = Found(None, f"{self._where(name)}; {searched.path} is the file of another record")
            elif searched.path is not None:
                taken.add(searched.path)
            found.append(searched)
        return found

    def _written(self, name: str, steps: tuple[str, ...]) -> Path | None:
        path = self._as_written(name) or self._below(steps)
        return self._below(_parts(unquote(name))) if path is None and unquote(name) != name else path

    def _order_folders(self, names: Sequence[tuple[str, ...]]) -> None:
        """The folder that holds the most of the pictures comes first."""
        sample = names if len(names) <= 2000 else names[:: len(names) // 2000]
        held = {folder: [len(steps) for steps in sample if self._holds(folder, steps)] for folder in self.folders}
        self.folders.sort(key=lambda folder: -len(held[folder]))  # stable
        # A plain name that is missing where the others are is not taken from elsewhere: splits often number alike.
        self._serving = next((folder for folder in self.folders if 1 in held[folder]), None)

    def _as_written(self, name: str) -> Path | None:
        """An absolute path, or one that leads out of the annotation file's folder, where that very file exists."""
        if name.startswith("file://"):
            name = unquote(urlsplit(name).path)
        path = Path(name)
        leads_out = ".." in path.parts
        if not (path.is_absolute() or leads_out):
            return None
        for start in [self.here, *self.folders] if leads_out else [self.here]:
            if (start / path).is_file():
                return Path(os.path.normpath(start / path))
        return None

    def _below(self, steps: tuple[str, ...]) -> Path | None:
        """The path as it is written, from a likely folder."""
        if not steps or ".." in steps:
            return None
        serving = [self._serving] if self._serving is not None and len(steps) == 1 else self.folders
        for folder in serving:
            if self._holds(folder, steps):
                return folder.joinpath(*steps)
        if len(steps) > 1:
            # Some tools write paths from the folder above, or with the name of the data set's own folder.
            above = [self.here.parent] + ([self.root.parent] if steps[0] == self.root.name else [])
            for start in (self.root, *above):
                if self._holds(start, steps):
                    return start.joinpath(*steps)
        return None

    def _holds(self, folder: Path, steps: tuple[str, ...]) -> bool:
        parent = folder.joinpath(*steps[:-1]) if len(steps) > 1 else folder
        return bool(steps) and steps[-1] in self._list(parent)

    def _list(self, folder: Path) -> frozenset[str]:
        names = self._listed.get(folder)
        if names is None:
            try:
                with os.scandir(folder) as entries:
                    names = frozenset(entry.name for entry in entries if not entry.is_dir())
            except OSError:
                names = frozenset()
            self._listed[folder] = names
        return names

    def _search(self, name: str, steps: tuple[str, ...]) -> Found:
        """The one file in the whole data set that fits the end of the path. A path is shortened only if it leads out of
        the data set, or where no record's folder is here."""
        out = ".." in steps or Path(name).is_absolute() or name[1:2] == ":" or name.lower().startswith(_URLS)
        steps = tuple(step for step in steps if step not in ("..", "."))
        for tail in dict.fromkeys((steps, _parts(unquote("/".join(steps))))):
            for start in range(len(tail) if out or not self._as_named else 1):
                fitting = [path for path in self._tree.fitting(tail[start:]) if self._may_serve(path, tail[start:])]
                if len(fitting) == 1:
                    return Found(fitting[0])
                if fitting:
                    shown = ", ".join(str(path) for path in fitting[:3])
                    return Found(None, f"{len(fitting)} files fit ({shown}{', ...' if len(fitting) > 3 else ''})")
                # The folder is here and the file is not in it: one of the same name elsewhere is another picture.
                if start + 1 < len(tail) and self._is_here(tail[start:-1]):
                    break
        return Found(None, self._where(name))

    def _is_here(self, folders: tuple[str, ...]) -> bool:
        return self._tree.has_folder(folders) or _plain(folders[-1]) == _plain(self.root.name)

    def _may_serve(self, path: Path, tail: tuple[str, ...]) -> bool:
        """Whether a file may be taken for a record whose path ends in ``tail``: not from a folder of another split, and
        for a plain name only from where the other pictures of its annotation file lie."""
        inside = path.relative_to(self.root).parts[: -len(tail)]
        if any(re.sub(r"[\d_\-. ]+$", "", step.lower()) in self.others for step in inside):
            return False
        return len(tail) > 1 or self._serving is None or path.parent == self._serving

    def _where(self, name: str) -> str:
        looked = ", ".join(str(folder) for folder in self.folders[:4]) or str(self.root)
        plain = name.replace("\\", "/")
        if plain[1:2] == ":" or ".." in _parts(name) or Path(plain).is_absolute():
            leads = plain.rpartition("/")[0] if plain[1:2] == ":" else os.path.normpath(self.here / Path(plain).parent)
            gone = "" if os.path.exists(leads) else ", which is not there"
            return f"no such file in {looked} and below {self.root}; its path leads to {leads}{gone}"
        return f"no such file in {looked}"

    @cached_property
    def _tree(self) -> "_Tree":
        return _Tree(self.root)


class _Tree:
    """Every picture below a folder, by its plain name."""

    def __init__(self, root: Path) -> None:
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        self.folders: set[tuple[str, ...]] = set()
        for folder, names in _walk(root):
            steps = tuple(_plain(step) for step in folder.relative_to(root).parts)
            self.folders |= {steps[i:] for i in range(len(steps))}
            for name in names:
                if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                    self.by_name[_plain(name)].append(folder / name)

    def fitting(self, tail: tuple[str, ...]) -> list[Path]:
        """The pictures whose path ends so. Of several that differ in case or unicode form alone, the one that is
        written the same."""
        found = self.by_name.get(_plain(tail[-1]), [])
        wanted = tuple(_plain(step) for step in tail)
        found = [path for path in found if tuple(_plain(step) for step in path.parts[-len(tail) :]) == wanted]
        exact = [path for path in found if path.parts[-len(tail) :] == tail]
        if len(exact) == 1:
            return exact
        return list({os.path.realpath(path): path for path in reversed(found)}.values())[::-1]

    def has_folder(self, steps: tuple[str, ...]) -> bool:
        return tuple(_plain(step) for step in steps) in self.folders


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders below ``root`` and the files in them; hidden ones left out."""
    seen = 0
    entered: set[str] = set()
    base = len(root.parts)
    for folder, folders, names in os.walk(root, followlinks=True):
        path = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(folder)
        if real in entered:  # a link in a circle
            folders.clear()
            continue
        entered.add(real)
        if len(path.parts) - base >= _DEPTH:
            folders.clear()
        seen += len(names)
        if seen > _ENTRIES:
            return
        yield path, names


def _parts(name: str) -> tuple[str, ...]:
    """The steps of a path as any system or address writes it."""
    if name.lower().startswith(_URLS):
        name = urlsplit(name).path
    steps = name.replace("\\", "/").split("/")
    if steps and steps[0].endswith(":"):  # a drive
        steps = steps[1:]
    return tuple(step for step in steps if step not in ("", "."))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
