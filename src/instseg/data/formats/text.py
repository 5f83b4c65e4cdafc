"""Annotation files as people have them: JSON with a byte-order mark, comments, NaN, in another encoding."""

import json
import math
import mmap
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Buffer: TypeAlias = bytes | memoryview | mmap.mmap | msgspec.Raw

_LISTS = ("images", "annotations", "categories")
# A string, or one of the two kinds of comments; a string, or a comma before a closing bracket.
_COMMENT = re.compile(r'("(?:\\.|[^"\\])*")|//[^\r\n]*|/\*.*?\*/', re.DOTALL)
_LAST_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[\]}])', re.DOTALL)


class NotReadable(Exception):
    """A file that is not JSON, or not the JSON that was wanted; ``str()`` says why in a few words."""


@dataclass(frozen=True)
class Text:
    """The records of an annotation file, not parsed yet.

    Attributes:
        content: what the records lie in: the file itself, mapped into memory, or a clean copy of it.
        in_file: True when ``content`` is the file, so that an offset in it is an offset in the file.
        images, annotations: the text of each record, a view of ``content``.
        categories: parsed.
    """

    content: bytes | mmap.mmap
    in_file: bool
    images: Sequence[Buffer]
    annotations: Sequence[Buffer]
    categories: list[Any]

    def release(self) -> None:
        """Give the memory of a mapped file back; what is looked at again is read again."""
        if isinstance(self.content, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.content.madvise(mmap.MADV_DONTNEED)

    @cached_property
    def _base(self) -> int:
        return _address(self.content)

    def offset(self, part: Buffer) -> int:
        """Where a view of ``content`` begins in it."""
        return _address(part) - self._base


class _Lists(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[Any]


def read_text(path: Path) -> Text:
    """The lists of a COCO JSON.

    A clean file is mapped into memory and never copied, whatever its size. One with a byte-order mark, comments,
    trailing commas, NaN, or in UTF-16 or a Windows encoding is read into memory and cleaned.

    Raises:
        NotReadable: the file is not JSON, or has no such lists.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            raise NotReadable("is not JSON (the file is empty); export it again") from None
    try:
        lists = msgspec.json.decode(content, type=_Lists)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _clean_copy(bytes(content))
    return Text(content, True, lists.images, lists.annotations, lists.categories)


def parse(record: Buffer) -> Any:
    """The value of one record's text, also where it holds NaN or a number out of range."""
    try:
        return msgspec.json.decode(record)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return json.loads(bytes(record).decode("utf-8", errors="replace"))


def load_json(raw: bytes) -> Any:
    """The content of a JSON file in any encoding, comments and trailing commas left out.

    Raises:
        NotReadable: it is not JSON even then.
    """
    text = _decoded(raw)
    try:
        return json.loads(text)
    except RecursionError:
        raise NotReadable("is not JSON that can be read (nested too deeply); export it again") from None
    except ValueError as error:
        first = " ".join(str(error).split())
    try:
        plain = _LAST_COMMA.sub(_keep_strings, _COMMENT.sub(_keep_strings, text))
        return json.loads(plain)
    except (ValueError, RecursionError):
        raise NotReadable(f"is not JSON ({first}); export it again") from None


def _clean_copy(raw: bytes) -> Text:
    value = load_json(raw)
    if isinstance(value, dict):  # some sets have their records by id instead of in lists
        value = {
            key: list(v.values()) if v and isinstance(v, dict) and key in _LISTS else v for key, v in value.items()
        }
    for key in _LISTS:
        if not isinstance(value, dict) or not isinstance(value.get(key), list):
            raise NotReadable(f'is not COCO instance annotations (no list "{key}"); export it as COCO JSON')
    images, annotations = _texts(value["images"]), _texts(value["annotations"])
    content = b"".join([*images, *annotations])
    views, start = [], 0
    for text in (*images, *annotations):
        views.append(memoryview(content)[start : start + len(text)])
        start += len(text)
    return Text(content, False, views[: len(images)], views[len(images) :], value["categories"])


def _texts(values: Iterable[Any]) -> list[bytes]:
    return [json.dumps(_finite(value)).encode() for value in values]


def _finite(value: Any) -> Any:
    """A value with NaN and infinity as texts, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value).replace("nan", "NaN")
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return {key: _finite(part) for key, part in value.items()} if isinstance(value, dict) else value


def _decoded(raw: bytes) -> str:
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if raw.startswith(mark):
            return raw.decode(encoding, errors="replace")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def _keep_strings(found: re.Match[str]) -> str:
    return found.group(1) or ""


def _address(part: Buffer) -> int:
    view: npt.NDArray[np.uint8] = np.frombuffer(part, dtype=np.uint8)
    return int(view.ctypes.data)
