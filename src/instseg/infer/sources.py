"""What users name as images, one by one."""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from instseg.core.errors import DataError
from instseg.data.images import IMAGE_SUFFIXES, ImageRule, read_image
from instseg.infer.pixels import from_memory

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

    ImageLike: TypeAlias = str | Path | bytes | IO[bytes] | Image | npt.NDArray[Any] | Tensor

_URL = re.compile(r"https?://", re.IGNORECASE)
URL_LIMIT = 1 << 28  # bytes that are read from an address
URL_PATIENCE = 30.0  # seconds
_ONE = (str, bytes, bytearray, memoryview)  # sequences that are one image


@dataclass(frozen=True)
class Source:
    """One image that was asked for.

    Attributes:
        name: relative path with forward slashes, unique among the sources of one call: what the image is called in
        results. stem: `name` without its suffix, unique as well, also where case does not count: what its output files
        are called. load: reads the image, (3, H, W) uint8 RGB; raises DataError with one line when it cannot.
        path: where the image lies, None when it is not a file.
    """

    name: str
    stem: str
    load: Callable[[], Tensor]
    path: Path | None = None


def expand(sources: ImageLike | Iterable[ImageLike], rule: ImageRule | None = None) -> list[Source]:
    """Every image that the sources name, in their order, a folder's images by name, read by a model's `rule`.

    A source is a file, a folder (searched through, hidden ones left out), a glob (`**` crosses folders), an http(s)
    address, `-` for an image on standard input, or an image in memory (see :func:`as_tensor`). A file that was named
    twice is taken once. Files of one name in different folders get names with enough of their folders to tell them
    apart.

    Raises DataError when a path does not exist, or a folder or glob holds no image.
    """
    found: dict[str, tuple[str, Callable[[], Tensor], Path | None]] = {}
    for number, source in enumerate(_listed(sources)):
        for name, load, path in _expand_one(source, number, rule or ImageRule()):
            found.setdefault(str(path.resolve()) if path else f"{number}:{name}", (name, load, path))
    entries = list(found.values())
    names = _unique_names([name for name, _, _ in entries], [path for _, _, path in entries])
    stems = _unique_stems(names)
    return [Source(name, stem, load, path) for name, stem, (_, load, path) in zip(names, stems, entries, strict=True)]


def as_tensor(image: ImageLike, rule: ImageRule | None = None) -> Tensor:
    """One image as (3, H, W) uint8 RGB, read by a model's `rule`.

    A path, address or `-` is read, anything else is taken as :func:`~instseg.infer.pixels.from_memory` says:
    a NumPy array is (H, W, 3) RGB (OpenCV's BGR must be turned first: `image[..., ::-1]`), a tensor (3, H, W).

    Raises DataError for anything else.
    """
    rule = rule or ImageRule()
    if isinstance(image, str | Path):
        text = str(image)
        if text == "-":
            return _read_stdin(rule)
        return _read_url(text, rule) if _URL.match(text) else _read_file(image, rule)
    return from_memory(image, rule)


def _listed(sources: Any) -> Iterable[Any]:
    return sources if isinstance(sources, Sequence) and not isinstance(sources, _ONE) else [sources]


Entry: TypeAlias = tuple[str, Callable[[], Tensor], "Path | None"]


def _expand_one(source: Any, number: int, rule: ImageRule) -> Iterator[Entry]:
    if not isinstance(source, str | Path):
        yield _in_memory_name(source, number), lambda: as_tensor(source, rule), None
        return
    text = str(source)
    if text == "-":
        yield "stdin", lambda: _read_stdin(rule), None
    elif _URL.match(text):
        yield _url_name(text), lambda: _read_url(text, rule), None
    else:
        path = Path(text).expanduser()
        if path.is_dir():
            yield from _entries(_images_in(path), path, rule)
        elif path.exists():
            yield path.name, _reader(path, rule), path
        elif glob.has_magic(text):
            yield from _glob(path, rule)
        else:
            raise DataError(f"{text}: no such image, folder or glob; check the path")


def _images_in(folder: Path) -> list[Path]:
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not found:
        raise DataError(f"{folder}: no image in this folder (looked for {' '.join(sorted(IMAGE_SUFFIXES))})")
    return sorted(found)


def _glob(pattern: Path, rule: ImageRule) -> Iterator[Entry]:
    parts = pattern.parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    found = sorted(Path(text) for text in glob.glob(str(pattern), recursive=True))
    files = [path for path in found if path.is_file()]
    if not files:
        raise DataError(f"{pattern}: the glob matches no file")
    return _entries(files, root, rule)


def _entries(paths: Iterable[Path], root: Path, rule: ImageRule) -> Iterator[Entry]:
    for path in paths:
        yield path.relative_to(root).as_posix(), _reader(path, rule), path


def _reader(path: Path, rule: ImageRule) -> Callable[[], Tensor]:
    return lambda: _read_file(path, rule)


def _read_file(source: str | Path | bytes, rule: ImageRule) -> Tensor:
    return read_image(source, exif=rule.exif, full_scale=rule.full_scale)


def _unique_names(names: list[str], paths: list[Path | None]) -> list[str]:
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


def _groups(names: Sequence[str]) -> list[list[int]]:
    where: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        where.setdefault(name.casefold(), []).append(i)
    return [group for group in where.values() if len(group) > 1]


def _with_folders(path: Path | None, name: str, more: int) -> str:
    if path is None:
        return name
    parts = [part for part in path.resolve().parts if part != path.resolve().anchor]
    wanted = len(PurePosixPath(name).parts) + 1
    return "/".join(parts[-wanted:]) if wanted <= len(parts) else name


def _numbered(names: list[str]) -> list[str]:
    taken: set[str] = set()
    out = []
    for name in names:
        path, unique, number = PurePosixPath(name), name, 2
        while unique.casefold() in taken:
            unique, number = str(path.with_name(f"{path.stem}-{number}{path.suffix}")), number + 1
        taken.add(unique.casefold())
        out.append(unique)
    return out


def _unique_stems(names: list[str]) -> list[str]:
    """Names without suffix; `a.png` beside `a.jpg` become `a_png` and `a_jpg`."""
    stems = [str(PurePosixPath(name).with_suffix("")) for name in names]
    for group in _groups(stems):
        for i in group:
            stems[i] = f"{stems[i]}_{PurePosixPath(names[i]).suffix[1:]}"
    return _numbered(stems)


def _in_memory_name(source: Any, number: int) -> str:
    for attribute in ("filename", "name"):  # PIL images, file objects
        name = getattr(source, attribute, None)
        if isinstance(name, str) and Path(name).name:
            return Path(name).name
    return f"image-{number + 1}"


def _url_name(url: str) -> str:
    from urllib.parse import unquote, urlsplit

    last = unquote(PurePosixPath(urlsplit(url).path).name)
    name = re.sub(r"[^\w.\- ]", "_", last).strip(". ")
    return name or "download"


def _read_url(url: str, rule: ImageRule) -> Tensor:
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(url, headers={"User-Agent": "instseg"}), timeout=URL_PATIENCE) as answer:
            content = answer.read(URL_LIMIT + 1)
    except URLError as error:
        raise DataError(f"{url}: cannot be fetched ({error.reason}); check the address and the network") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{url}: cannot be fetched ({error}); check the address and the network") from None
    if len(content) > URL_LIMIT:
        raise DataError(f"{url}: more than {URL_LIMIT >> 20} MB; download it and give the file")
    return _decode(content, url, rule)


def _read_stdin(rule: ImageRule) -> Tensor:
    content = sys.stdin.buffer.read()
    if not content:
        raise DataError("-: nothing came on standard input; pipe an image into it")
    return _decode(content, "-", rule)


def _decode(content: bytes, name: str, rule: ImageRule) -> Tensor:
    try:
        return _read_file(content, rule)
    except DataError as error:
        raise DataError(str(error).replace("image bytes", name, 1)) from None
