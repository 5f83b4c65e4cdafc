"""Indexes of large annotation files, kept on the disk: read once a machine and not once a process."""

import hashlib
import json
import os
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from instseg.core.cache import cache_folder, only_one
from instseg.core.categories import Categories
from instseg.core.errors import DataError
from instseg.core.files import atomic
from instseg.data.formats.coco import build_index
from instseg.data.formats.index import Index, stamp_of, with_masks
from instseg.data.records import Problem, Problems

# Smaller annotation files are read each time, which takes less than a second.
MIN_BYTES = 8 << 20
_VERSION = 2
_COLUMNS = ("image_ids", "sizes", "starts", "labels", "crowd", "numbers", "parts", "offsets", "lengths", "boxes")


def read_index(file: Path, boxes: bool = False) -> Index:
    """The index of an annotation file: from this process' memory, from the cache, or read from the file.

    Args:
        file: the annotation file.
        boxes: annotations that have a box and no segmentation count; else they are left out.

    Raises:
        DataError: the file is missing, or not COCO.
    """
    try:
        stamp = stamp_of(os.stat(file))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path.") from None
    found = _remembered(file, stamp)
    return found if boxes else with_masks(found)


@lru_cache(maxsize=4)
def _remembered(file: Path, stamp: tuple[int, int]) -> Index:
    if stamp[0] < MIN_BYTES:
        return build_index(file)
    path = _cached_path(file, stamp)
    found = _load(path, file, stamp)
    if found is not None:
        return found
    with only_one(path):
        found = _load(path, file, stamp)  # another process may have made it meanwhile
        if found is None:
            found = build_index(file)
            _save(path, found)
    return found


def _cached_path(file: Path, stamp: tuple[int, int]) -> Path:
    name = hashlib.blake2b(str(file.resolve()).encode(errors="surrogateescape"), digest_size=12).hexdigest()
    return cache_folder() / "index" / f"{name}-{stamp[0]}-{stamp[1]}-{_VERSION}.npz"


def _save(path: Path, index: Index) -> None:
    if index.image_ids.dtype == object:
        return
    about = {
        "names": list(index.categories.names),
        "ids": list(index.categories.ids),
        "file_names": list(index.file_names),
        "problems": [asdict(problem) for problem in index.problems.kept],
        "counts": [[*key, count] for key, count in index.problems.counts.items()],
        "digest": index.digest,
    }
    columns: dict[str, Any] = {name: getattr(index, name) for name in _COLUMNS}
    columns["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    if index.content is not None:
        columns["content"] = np.frombuffer(index.content, dtype=np.uint8)
    try:
        with atomic(path, durable=False) as file:
            np.savez(file, **columns)
        for old in path.parent.glob(f"{path.name.split('-')[0]}-*.npz"):  # of earlier states of the same file
            if old != path:
                old.unlink(missing_ok=True)
    except OSError:  # a full or read-only disk: the index is made again next time
        return


def _load(path: Path, file: Path, stamp: tuple[int, int]) -> Index | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in _COLUMNS}
            about = json.loads(archive["about"].tobytes())
            content = archive["content"].tobytes() if "content" in archive else None
    except (OSError, ValueError, KeyError, EOFError, ImportError):
        return None
    except Exception as error:  # zipfile and zlib have error classes of their own
        if type(error).__module__ in ("zipfile", "zlib"):
            return None
        raise
    problems = Problems([Problem(**problem) for problem in about["problems"]])
    problems.counts.update({(severity, kind): count for severity, kind, count in about["counts"]})
    categories = Categories(tuple(about["names"]), tuple(about["ids"]))
    return Index(
        file=file,
        stamp=stamp,
        content=content,
        categories=categories,
        file_names=about["file_names"],
        problems=problems,
        digest=about["digest"],
        **columns,
    )
