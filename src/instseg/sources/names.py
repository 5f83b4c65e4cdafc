"""What images are called in results: names that tell them apart, also where case or Unicode form do not count."""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

_LONGEST = 200  # bytes of a part of an output file's name; file systems take 255, suffixes included


def unique_names(names: Sequence[str], paths: Sequence[Path | None]) -> list[str]:
    """Names in which files that would be called the same carry as many of their folders as tell them apart; what has no
    folder, or is still the same, gets a number."""
    out = list(names)
    depth = 1
    while repeated := [group for group in _groups(out) if any(paths[i] is not None for i in group)]:
        grown = False
        for group in repeated:
            for i in group:
                longer = _with_folders(paths[i], out[i], depth)
                grown |= longer != out[i]
                out[i] = longer
        depth += 1
        if not grown:
            break
    return _numbered(out)


def unique_stems(names: Sequence[str]) -> list[str]:
    """Names without suffix; `a.png` beside `a.jpg` become `a_png` and `a_jpg`."""
    stems = [_short(str(PurePosixPath(name).with_suffix(""))) for name in names]
    for group in _groups(stems):
        for i in group:
            stems[i] = f"{stems[i]}_{PurePosixPath(names[i]).suffix[1:]}"
    return _numbered(stems)


def clear_of(names: Sequence[str], stems: Sequence[str], taken: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names and stems of images, numbered where they are those of others whose results are ``taken`` already."""
    taken = list(taken)
    bare = [str(PurePosixPath(name).with_suffix("")) for name in taken]
    drawn = [*bare, *(f"{stem}_{PurePosixPath(name).suffix[1:]}" for stem, name in zip(bare, taken, strict=True))]
    return _renamed(names, {key(name) for name in taken}), _renamed(stems, {key(_short(stem)) for stem in drawn})


def _renamed(names: Sequence[str], taken: set[str]) -> list[str]:
    known = taken | {key(name) for name in names}
    out = []
    for name in names:
        path, unique, number = PurePosixPath(name), name, 2
        while key(unique) in (taken if unique == name else known):
            unique, number = str(path.with_name(f"{path.stem}-{number}{path.suffix}")), number + 1
        known.add(key(unique))
        out.append(unique)
    return out


def key(name: str) -> str:
    """The same for names that a file system may take for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _groups(names: Sequence[str]) -> list[list[int]]:
    where: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        where.setdefault(key(name), []).append(i)
    return [group for group in where.values() if len(group) > 1]


def _with_folders(path: Path | None, name: str, more: int) -> str:
    if path is None:
        return name
    parts = [part for part in path.resolve().parts if part != path.resolve().anchor]
    wanted = len(PurePosixPath(name).parts) + 1
    return "/".join(parts[-wanted:]) if wanted <= len(parts) else name


def _numbered(names: Sequence[str]) -> list[str]:
    taken: set[str] = set()
    out = []
    for name in names:
        path, unique, number = PurePosixPath(name), name, 2
        while key(unique) in taken:
            unique, number = str(path.with_name(f"{path.stem}-{number}{path.suffix}")), number + 1
        taken.add(key(unique))
        out.append(unique)
    return out


def _short(stem: str) -> str:
    parts = [part.encode("utf-8", "surrogateescape") for part in stem.split("/")]
    if all(len(part) <= _LONGEST for part in parts):
        return stem
    return "/".join(part[:_LONGEST].decode("utf-8", "ignore") for part in parts)
