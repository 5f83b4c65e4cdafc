"""Whatever happens to an annotation file, it is read or refused in one line: no traceback, no hang.

``INSTSEG_MUTATIONS`` sets the number of files; 2,000 take some minutes.
"""

import json
import os
import random
import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instseg.core.errors import DataError
from instseg.data.open import open_dataset
from instseg.inspect.check import check_dataset

JUNK: list[Any] = [
    None, True, -1, 0, 1e308, float("nan"), 2**70, "", "x", "1", [], {}, [[]], [None], {"size": [1, 1], "counts": "0"},
    "\ud800", "a\nb", [1, 2], {"counts": [5]}, [[1e9] * 6], -0.0,
]  # fmt: skip

INSERTED = (b'"', b"{", b"]", b",", b"\\", b"\x00", b"\xff", b"9" * 400, b"//", b"[" * 2000)


def mutate_value(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """A copy with one place somewhere in it changed, removed or doubled."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.9):
        key = rng.choice(list(value))
        changed = dict(value)
        how = rng.random()
        if how < 0.1:
            del changed[key]
        elif how < 0.15:
            changed[f"{key}x"] = changed.pop(key)
        else:
            changed[key] = mutate_value(value[key], rng, depth + 1)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        changed_list = list(value)
        how = rng.random()
        if how < 0.1:
            del changed_list[at]
        elif how < 0.2:
            changed_list.insert(at, changed_list[at])
        else:
            changed_list[at] = mutate_value(value[at], rng, depth + 1)
        return changed_list
    return rng.choice(JUNK)


def mutate_bytes(text: bytes, rng: random.Random) -> bytes:
    changed = bytearray(text)
    for _ in range(rng.choice((1, 1, 3, 20))):
        at = rng.randrange(len(changed))
        how = rng.random()
        if how < 0.5:
            changed[at] = rng.randrange(256)
        elif how < 0.7:
            del changed[at : at + rng.choice((1, 5, 500))]
        elif how < 0.9:
            changed[at:at] = rng.choice(
                (b'"', b"{", b"]", b",", b"\\", b"\x00", b"\xff", b"9" * 400, b"//", b"[" * 2000)
            )
        else:
            del changed[at:]
        if not changed:
            return b""
    return bytes(changed)


@pytest.mark.slow
def test_mutated_annotation_files_are_read_or_refused_in_one_line(
    tmp_path: Path, unpack: Callable[[str, Path], dict[str, Any]]
) -> None:
    count = int(os.environ.get("INSTSEG_MUTATIONS", "200"))
    rng = random.Random(0)
    names = ("cvat-coco_mixed", "pycocotools-rle_compressed", "roboflow-coco_byhand", "lvis-v1_byhand")
    files = {}
    for name in names:
        unpack(name, tmp_path / name)
        files[name] = max((tmp_path / name).rglob("*.json"), key=lambda file: file.stat().st_size)
    originals = {name: file.read_bytes() for name, file in files.items()}
    read = 0
    memory: list[int] = []
    for turn in range(count):
        name = names[turn % len(names)]
        if rng.random() < 0.6:
            value = mutate_value(json.loads(originals[name]), rng)
            files[name].write_bytes(json.dumps(value).encode())
        else:
            files[name].write_bytes(mutate_bytes(originals[name], rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = check_dataset(tmp_path / name)
            assert all("\n" not in problem.line for problem in report.problems)
            try:
                dataset = open_dataset(tmp_path / name)
                for i in range(len(dataset)):
                    assert len(dataset[i].masks) == len(dataset[i].labels)
                read += 1
                assert report.ok
            except DataError as error:
                assert "\n" not in str(error)
                assert not report.ok
        files[name].write_bytes(originals[name])
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert 0.2 * count < read < count
    assert memory[-1] - memory[count // 4] < 100_000  # KiB
