"""What users name as images, one by one."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeGuard

from torch import Tensor

from instseg.core.errors import DataError
from instseg.data.images.read import IMAGE_SUFFIXES, ImageRule, read_image
from instseg.sources.names import unique_names, unique_stems
from instseg.sources.pixels import from_memory
from instseg.sources.written import is_written, walk_images

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

    ImageLike: TypeAlias = str | os.PathLike[str] | bytes | IO[bytes] | Image | npt.NDArray[Any] | Tensor

_URL = re.compile(r"https?://", re.IGNORECASE)
URL_LIMIT = 1 << 28  # bytes that are read from an address
URL_PATIENCE = 30.0  # seconds
_ONE = (str, bytes, bytearray, memoryview, Mapping, Tensor)  # iterable, but one image, or none


@dataclass(frozen=True)
class Source:
    """One image that was asked for.

    Attributes:
        name: relative path with forward slashes, unique among the sources of one call: what the image is called in
            results.
        stem: ``name`` without its suffix, unique as well, also where case does not count: what its output files are
            called.
        read: reads the image by a rule, (3, H, W) uint8 RGB; raises DataError with one line when it cannot.
        path: where the image lies, None when it is not a file.
        address: its http(s) address, if it has one.
        rule: how files become pixels, where :meth:`load` is not given another rule.
        threaded: whether another thread may read it.
    """

    name: str
    stem: str
    read: Callable[[ImageRule], Tensor]
    path: Path | None = None
    rule: ImageRule = field(default_factory=ImageRule)
    threaded: bool = False
    address: str | None = None

    def load(self, rule: ImageRule | None = None) -> Tensor:
        """The image, (3, H, W) uint8 RGB. Raises DataError with one line when it cannot be read."""
        return self.read(rule or self.rule)


@dataclass(frozen=True)
class Found:
    """What the sources of a call name.

    Attributes:
        sources: the images, in order.
        written: pictures in folders and globs that are left out because instseg wrote them.
    """

    sources: list[Source]
    written: list[Path]


@dataclass(frozen=True)
class _Entry:
    name: str
    read: Callable[[ImageRule], Tensor]
    path: Path | None = None
    threaded: bool = False
    address: str | None = None


def expand(sources: ImageLike | Iterable[ImageLike], rule: ImageRule | None = None) -> list[Source]:
    """Every image that the sources name, in their order, a folder's images by name, read by a model's ``rule``.

    A source is a file, a folder (searched through, hidden ones left out), a glob (`**` crosses folders), an http(s)
    address, `-` for an image on standard input, or an image in memory (see :func:`as_tensor`). A file that was named
    twice is taken once. Files of one name in different folders get names with enough of their folders to tell them
    apart. Pictures that instseg wrote are left out of folders and globs.

    Raises:
        DataError: a path is empty or does not exist, or a folder or glob holds no image.
    """
    return find(sources, rule).sources


def find(
    sources: ImageLike | Iterable[ImageLike],
    rule: ImageRule | None = None,
    *,
    strict: bool = True,
    once: bool = True,
) -> Found:
    """As :func:`expand`, and what was left out.

    Args:
        sources: as there.
        rule: as there.
        strict: raise an error for a source that is not there. Otherwise it is an image that cannot be read.
        once: take a file that was named twice once.
    """
    entries: list[_Entry] = []
    known: set[Path] = set()
    written: list[Path] = []
    listed = list(sources) if is_many(sources) else [sources]
    for number, source in enumerate(listed):
        try:
            found = _expand_one(source, number, written)
        except DataError as error:
            if strict:
                raise
            found = [_Entry(_in_memory_name(source, number), partial(_fail, str(error)))]
        for entry in found:
            place = entry.path.resolve() if entry.path is not None and once else None
            if place is None or place not in known:
                entries.append(entry)
            if place is not None:
                known.add(place)
    paths = [entry.path for entry in entries]
    names = unique_names([entry.name for entry in entries], paths)
    rule = rule or ImageRule()
    out = [
        Source(name, stem, entry.read, entry.path, rule, entry.threaded, entry.address)
        for name, stem, entry in zip(names, unique_stems(names), entries, strict=True)
    ]
    return Found(out, list(dict.fromkeys(written)))


def is_many(sources: Any) -> TypeGuard[Iterable[Any]]:
    """Whether an argument is a list, or anything else that is iterated over, of images."""
    if isinstance(sources, _ONE) or hasattr(sources, "read") or hasattr(sources, "__array_interface__"):
        return False
    return isinstance(sources, Iterable) and not isinstance(sources, os.PathLike)


def names_several(source: Any) -> bool:
    """Whether a source is a folder or a glob, which may hold any number of images."""
    if not isinstance(source, str | os.PathLike):
        return False
    try:
        path = _as_path(source)
        text = str(path)
        return path.is_dir() or (not path.exists() and not _URL.match(str(source)) and glob.has_magic(text))
    except (DataError, OSError, ValueError):
        return False


def as_tensor(image: ImageLike, rule: ImageRule | None = None) -> Tensor:
    """One image as (3, H, W) uint8 RGB, read by a model's `rule`.

    A path, address or `-` is read, anything else is taken as :func:`~instseg.sources.pixels.from_memory` says:
    a NumPy array is (H, W, 3) RGB (OpenCV's BGR must be turned first: `image[..., ::-1]`), a tensor (3, H, W).

    Raises DataError for anything else.
    """
    rule = rule or ImageRule()
    if isinstance(image, str | Path):
        text = str(image)
        if text == "-":
            return _read_stdin(rule)
        return _read_url(text, rule) if _URL.match(text) else _read_file(_as_path(image), rule)
    return from_memory(image, rule)


def _expand_one(source: Any, number: int, written: list[Path]) -> list[_Entry]:
    if not isinstance(source, str | os.PathLike):
        return [_Entry(_in_memory_name(source, number), partial(from_memory, source))]
    text = os.fspath(source)
    if text == "-":
        return [_Entry("stdin", _read_stdin)]
    if isinstance(text, str) and _URL.match(text):
        return [_Entry(_url_name(text), partial(_read_url, text), threaded=True, address=text)]
    path = _as_path(source)
    try:
        if path.is_dir():
            return _entries(_images_in(path, written), path)
        if path.exists():
            return [_entry(path.name, path)]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}); check the path.") from None
    if glob.has_magic(str(path)):
        return _glob(path, written)
    raise DataError(f"{path}: no such image, folder or glob; check the path.")


def _as_path(source: str | os.PathLike[str]) -> Path:
    """Raises DataError for the empty path, which would be the current folder."""
    text = os.fsdecode(source)
    if not text.strip():
        raise DataError(f'"{text}": the path of an image is empty; name a file, folder, glob or address.')
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~somebody who is not known here
        return Path(text)


def _images_in(folder: Path, written: list[Path]) -> list[Path]:
    os.scandir(folder).close()  # OSError where the folder itself cannot be read
    found, ours = walk_images(folder)
    if not found:
        if ours:
            raise DataError(f"{folder}: every picture in this folder is a result of instseg; name single files.")
        raise DataError(f"{folder}: no image in this folder (looked for {' '.join(sorted(IMAGE_SUFFIXES))}).")
    written += ours
    return found


def _glob(pattern: Path, written: list[Path]) -> list[_Entry]:
    parts = pattern.parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    matching = sorted(Path(text) for text in glob.glob(str(pattern), recursive=True))
    files = [path for path in matching if path.is_file()]
    if not files:
        raise DataError(f"{pattern}: the glob matches no file.")
    ours = {path for path in files if is_written(path, root)}
    if len(ours) == len(files):
        raise DataError(f"{pattern}: every file that the glob matches is a result of instseg; name single files.")
    written += sorted(ours)
    return _entries([path for path in files if path not in ours], root)


def _entries(paths: Sequence[Path], root: Path) -> list[_Entry]:
    return [_entry(path.relative_to(root).as_posix(), path) for path in paths]


def _entry(name: str, path: Path) -> _Entry:
    return _Entry(name, partial(_read_file, path), path, threaded=True)


def _read_file(source: str | Path | bytes, rule: ImageRule) -> Tensor:
    return read_image(source, exif=rule.exif, full_scale=rule.full_scale)


def _fail(message: str, rule: ImageRule) -> Tensor:
    raise DataError(message)


def _in_memory_name(source: Any, number: int) -> str:
    if isinstance(source, str | os.PathLike):
        return PurePosixPath(os.fsdecode(source)).name.strip() or f"image-{number + 1}"
    for attribute in ("filename", "name"):  # PIL images, file objects
        name = getattr(source, attribute, None)
        if isinstance(name, str) and Path(name).name:
            return Path(name).name
    return f"image-{number + 1}"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())


def _url_name(url: str) -> str:
    from urllib.parse import unquote, urlsplit

    try:
        last = unquote(PurePosixPath(urlsplit(url).path).name)
    except ValueError:
        last = ""
    name = re.sub(r"[^\w.\- ]", "_", last).strip(". ")
    return name or "download"


def _read_url(url: str, rule: ImageRule) -> Tensor:
    from http.client import HTTPException
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(url, headers={"User-Agent": "instseg"}), timeout=URL_PATIENCE) as answer:
            content = answer.read(URL_LIMIT + 1)
    except URLError as error:
        raise DataError(f"{url}: cannot be fetched ({error.reason}); check the address and the network.") from None
    except (OSError, ValueError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{url}: cannot be fetched ({reason}); check the address and the network.") from None
    if len(content) > URL_LIMIT:
        raise DataError(f"{url}: more than {URL_LIMIT >> 20} MB; download it and pass the file.")
    return _decode(content, url, rule)


def _read_stdin(rule: ImageRule) -> Tensor:
    content = sys.stdin.buffer.read()
    if not content:
        raise DataError("-: nothing came on standard input; pipe an image into it.")
    return _decode(content, "-", rule)


def _decode(content: bytes, name: str, rule: ImageRule) -> Tensor:
    try:
        return _read_file(content, rule)
    except DataError as error:
        raise DataError(str(error).replace("image bytes", name, 1)) from None
