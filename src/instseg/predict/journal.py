"""Results that survive an interruption: a journal of finished images, and the `predictions.json` made from it.

The journal, ``predictions.partial.jsonl``, is JSON lines: what the run is, then one line for each finished image.
An image is finished when its line is whole. ``predictions.json`` is made from the journal and replaced as a whole, so
that a reader never meets half of it: after every image while that is cheap, in a long run so rarely that it takes a
twentieth of the time. The end of a run makes it once more and removes the journal.

What a later ``--resume`` must know stays with the results: in a COCO data set in ``info.run`` and the images'
``source``, beside a plain results list in ``predictions.run.json``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from instseg.core.errors import DataError
from instseg.results.writers import WriteError, atomic, unwritable

PREDICTIONS = "predictions.json"
JOURNAL = "predictions.partial.jsonl"
RUN = "predictions.run.json"  # beside a plain results list

_SHARE = 20  # of the time that one making of predictions.json took passes before the next
_SYNCED = 5.0  # seconds of work that a power failure may cost
_IMAGE, _SOURCE, _ROWS = b'{"image": ', b', "source": ', b', "annotations": ['
_BETWEEN = ",\t"  # rows of a line; a tab is no part of any JSON string

# A digest of where an image is, bytes and modification time of its file; None for one that cannot be known again.
Signature = list[Any] | None


class Journal:
    """What has been finished of a run; use it as a context.

    Args:
        folder: of the results.
        header: what the run is: JSON that a run that resumes it must share.
        categories: of the COCO data set; None for a plain list of results.

    Attributes:
        done: the finished images: their names, with their signatures.
        images: how many there are.
        annotations: rows in all.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], categories: list[dict[str, Any]] | None) -> None:
        self.path = folder / JOURNAL
        self.target = folder / PREDICTIONS
        self.beside = folder / RUN
        self.header = header
        self.categories = categories
        self.done: dict[str, Signature] = {}
        self.images = 0
        self.annotations = 0
        self._made_at = self._cost = 0.0
        self._synced_at = time.monotonic()
        self._made = -1  # images in predictions.json as it is now
        self._restored = False
        self._file: IO[bytes] | None = None

    def begin(self) -> None:
        """Starts a run. Raises DataError when the folder holds an unfinished one or another process writes there."""
        check_new(self.path.parent)
        with _says_when_full(self.path):
            self._open("wb")
            self._write_header()

    def resume(self) -> None:
        """Continues the run in the folder, if there is one, else starts.

        Raises:
            DataError: the run there was begun with another model or other options, or another process writes there.
        """
        if not self.path.exists() and self.target.exists():
            self._from_finished()
        with _says_when_full(self.path):
            self._open("r+b" if self.path.exists() else "wb")
        assert self._file is not None
        end = self._count_lines()
        with _says_when_full(self.path):
            self._file.truncate(end)
            self._file.seek(end)
            if not end:
                self._write_header()

    def refuse(self) -> None:
        """Leaves the folder as it was before :meth:`resume`."""
        if self._restored:
            self.discard()
        self.close()

    def add(self, image: Mapping[str, Any], rows: list[dict[str, Any]], signature: Signature) -> None:
        """Appends a finished image. Raises WriteError when it cannot be written; the journal is as before then."""
        with _says_when_full(self.path):
            head = f'{{"image": {_dumped(image)}, "source": {_dumped(signature)}, "annotations": ['
            self._write((head + _BETWEEN.join(_dumped(row) for row in rows) + "]}\n").encode())
        self.done[str(image["file_name"])] = signature
        self.images += 1
        self.annotations += len(rows)

    def refresh(self) -> None:
        """Makes ``predictions.json`` if it is time to."""
        now = time.monotonic()
        if now - self._made_at >= _SHARE * self._cost:
            self.make()
            self._cost, self._made_at = time.monotonic() - now, time.monotonic()
        if now - self._synced_at >= _SYNCED and self._file is not None:
            self._synced_at = now
            with _says_when_full(self.path):
                os.fsync(self._file.fileno())

    def make(self, durable: bool = False) -> None:
        """Makes ``predictions.json`` from all finished images, on the disk before it returns if ``durable``.

        Raises WriteError when there is no room for it.
        """
        if self._made == self.images and not durable:
            return
        with atomic(self.target, durable=durable) as out:
            out.write(self._head().encode())
            _write_joined(out, self._parts(rows=True))
            out.write(b"\n]")
            if self.categories is not None:
                out.write(b',\n"images": [')
                _write_joined(out, self._parts(rows=False))
                out.write(b"\n]}")
            out.write(b"\n")
        self._made = self.images

    def finish(self) -> None:
        """The run is complete: ``predictions.json`` is whole and the journal goes."""
        self.make(durable=True)
        if self.categories is None:
            self._write_beside()
        else:
            with suppress(OSError):
                self.beside.unlink(missing_ok=True)
        self.discard()

    def discard(self) -> None:
        """Removes the journal."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self.close()

    def forget(self, names: Iterable[str]) -> None:
        """Takes images out whose files have changed, and numbers the others again."""
        gone = set(names)
        if not gone:
            return
        with self.path.open("rb") as file, atomic(self.path) as out:
            out.write(file.readline())
            self.done, self.images, self.annotations = {}, 0, 0
            for line in file:
                content = json.loads(line)
                image, rows = content["image"], content["annotations"]
                if image["file_name"] in gone:
                    continue
                if self.categories is not None:
                    image["id"] = self.images + 1
                    for number, row in enumerate(rows, self.annotations + 1):
                        row["id"], row["image_id"] = number, image["id"]
                out.write(_line(image, content["source"], rows))
                self._count(content)
        self.close()
        with _says_when_full(self.path):
            self._open("r+b")
            assert self._file is not None
            self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self, mode: str) -> None:
        """Opens the journal for this process alone; what is in it goes only once that is sure."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("r+b" if mode == "r+b" else "ab", buffering=0)
        try:
            _lock(file)
            if os.stat(self.path).st_ino != os.fstat(file.fileno()).st_ino:  # its run has just ended
                raise BlockingIOError
        except OSError:
            file.close()
            raise _busy(self.path.parent) from None
        if mode == "wb":
            file.truncate(0)
            file.seek(0)
        self._file = file

    def _write_header(self) -> None:
        self._write(json.dumps({"run": self.header}).encode() + b"\n")

    def _count_lines(self) -> int:
        """Takes in what has been finished; returns where it ends, 0 where no run has begun."""
        with self.path.open("rb") as file:
            begun = _header(file.readline())
            if begun is None:
                return 0
            self._check_same(begun)
            end = file.tell()
            for line in file:
                image = _parsed(line)
                if image is None:
                    break  # the line that was being written; what would follow it is done again
                end += len(line)
                self._count(image)
            return end

    def _write_beside(self) -> None:
        """What a plain results list cannot say: the run, and of each image its signature and its number of rows."""
        with self.path.open("rb") as file, atomic(self.beside, "w", durable=True) as out:
            file.readline()
            head = {"run": self.header, "bytes": self.target.stat().st_size}
            out.write(f'{_dumped(head)[:-1]},\n"images": [')
            for number, line in enumerate(file):
                content = json.loads(line)
                row = {**content["image"], "source": content["source"], "annotations": len(content["annotations"])}
                out.write((",\n" if number else "\n") + _dumped(row))
            out.write("\n]}\n")

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        begin = self._file.tell()
        try:
            rest = memoryview(line)
            while rest:  # a disk that fills up takes a part
                rest = rest[self._file.write(rest) :]
        except BaseException:
            self._file.truncate(begin)
            self._file.seek(begin)
            raise

    def _head(self) -> str:
        """What stands before the annotations."""
        if self.categories is None:
            return "["
        info = {"description": "instseg predictions", "run": self.header}
        return f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(self.categories)},\n"annotations": ['

    def _count(self, content: Mapping[str, Any]) -> None:
        self.done[str(content["image"]["file_name"])] = content["source"]
        self.images += 1
        self.annotations += len(content["annotations"])

    def _parts(self, rows: bool) -> Iterator[bytes]:
        """The text of every image's rows, or of its record, without decoding them."""
        with self.path.open("rb") as file:
            file.readline()
            for line in file:
                split = line.index(_ROWS)  # inside of a string the quotes would be escaped
                if not rows:
                    middle = line.rindex(_SOURCE, 0, split)
                    image, source = line[len(_IMAGE) : middle], line[middle + len(_SOURCE) : split]
                    yield image if source == b"null" else image[:-1] + _SOURCE + source + b"}"
                elif text := line[split + len(_ROWS) : -len(b"]}\n")]:
                    yield text.replace(_BETWEEN.encode(), b",\n")

    def _check_same(self, begun: Mapping[str, Any]) -> None:
        for name in {**self.header, **begun}:
            before, now = begun.get(name), self.header.get(name)
            if before != now:
                raise DataError(
                    f"{self.path.parent}: {_difference(name, before, now)}; use the same, or choose another --out."
                )

    def _from_finished(self) -> None:
        """A journal of what a finished run wrote, for images that have come since."""
        with self.target.open("rb") as file:
            begun = _header_of_results(file.readline())
        beside = None if begun is not None else _beside(self.beside)
        if beside is not None:
            begun = beside["run"]
        if begun is None:
            raise DataError(
                f"{self.target}: results are here already, and not of a run that can be resumed; leave out --resume to "
                "replace them, or choose another --out."
            )
        self._check_same(begun)
        try:
            with atomic(self.path) as out:
                out.write(json.dumps({"run": begun}).encode() + b"\n")
                finished = _read_results(self.target) if beside is None else _read_list(self.target, beside)
                for image, rows in finished:
                    out.write(_line(image, image.pop("source", None), rows))
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{self.target}: has been changed since it was written; leave out --resume.") from None
        self._restored = True


def check_new(folder: Path) -> None:
    """Raises DataError when a folder holds an unfinished run, whose results a new one would replace."""
    check_free(folder)
    count = unfinished(folder)
    if count:
        raise DataError(
            f"{folder}: holds an unfinished run of {count} images; continue it with --resume, choose another --out, or "
            f"remove {JOURNAL} to begin again."
        )


def check_free(folder: Path) -> None:
    """Raises DataError when another process writes its results into a folder."""
    with suppress(FileNotFoundError, PermissionError), (folder / JOURNAL).open("rb") as file:
        try:
            _lock(file)
        except BlockingIOError:
            raise _busy(folder) from None


def _busy(folder: Path) -> DataError:
    return DataError(f"{folder}: another run writes its results here; wait for it, or choose another --out.")


def _difference(name: str, before: object, now: object) -> str:
    """How a run differs from the one that it would resume."""
    if name == "annotations" and before is not None and now is not None:
        return "the annotation file has changed since the run to resume was begun"
    if name == "annotations":
        return f"the run to resume was begun {'without' if before is None else 'with'} --annotations"
    if name == "weights":
        return "the run to resume was of other weights"
    return f"the run to resume was begun with another {name} ({_said(before)}, now {_said(now)})"


def unfinished(folder: Path) -> int:
    """Finished images of a run that has not ended; 0 where there is none."""
    try:
        with (folder / JOURNAL).open("rb") as file:
            return sum(line.endswith(b"\n") for line in file) if _header(file.readline()) is not None else 0
    except OSError:
        return 0


def _header(line: bytes) -> dict[str, Any] | None:
    return _run_of(line, "run")


def _header_of_results(line: bytes) -> dict[str, Any] | None:
    return _run_of(line.rstrip(b",\n") + b"}", "info", "run")


def _run_of(line: bytes, *path: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
        for name in path:
            content = content[name]
    except (ValueError, KeyError, TypeError):
        return None
    return content if isinstance(content, dict) else None


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The content of a line of the journal; None for one that was not written to its end."""
    if not line.endswith(b"]}\n") or not line.startswith(_IMAGE):
        return None
    try:
        content = json.loads(line)
        return content if {"image", "source", "annotations"} <= set(content) else None
    except (ValueError, TypeError):
        return None


def _read_results(path: Path) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The images of a finished ``predictions.json`` with their rows, line by line."""
    with path.open("rb") as images, path.open("rb") as annotations:
        while not images.readline().startswith(b'"images": ['):
            if images.tell() == os.fstat(images.fileno()).st_size:
                raise ValueError("no images")
        while not annotations.readline().startswith(b'"annotations": ['):
            pass
        row = _row(annotations)
        for line in images:
            if line.startswith(b"]"):
                break
            image = json.loads(line.rstrip(b",\n"))
            rows = []
            while row is not None and row["image_id"] == image["id"]:
                rows.append(row)
                row = _row(annotations)
            yield image, rows
        if row is not None:
            raise ValueError("rows of no image")


def _read_list(path: Path, beside: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The images of a finished plain results list with their rows."""
    if path.stat().st_size != beside["bytes"]:
        raise ValueError("changed")
    with path.open("rb") as file:
        file.readline()
        for image in beside["images"]:
            rows = [_row(file) for _ in range(image.pop("annotations"))]
            if None in rows:
                raise ValueError("too few rows")
            yield image, [row for row in rows if row is not None]
        if _row(file) is not None:
            raise ValueError("rows of no image")


def _beside(path: Path) -> dict[str, Any] | None:
    """What stands beside a plain results list; None where nothing usable does."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    usable = isinstance(content, dict) and {"run", "bytes", "images"} <= set(content)
    return content if usable and isinstance(content["run"], dict) else None


def _row(file: IO[bytes]) -> dict[str, Any] | None:
    line = file.readline()
    return None if line.startswith(b"]") else json.loads(line.rstrip(b",\n"))


def _line(image: Mapping[str, Any], signature: Signature, rows: list[dict[str, Any]]) -> bytes:
    head = f'{{"image": {_dumped(image)}, "source": {_dumped(signature)}, "annotations": ['
    return (head + _BETWEEN.join(_dumped(row) for row in rows) + "]}\n").encode()


def _dumped(content: object) -> str:
    return json.dumps(content, allow_nan=False)


def _write_joined(out: IO[Any], parts: Iterable[bytes]) -> None:
    for number, part in enumerate(parts):
        out.write((b",\n" if number else b"\n") + part)


def _said(value: object) -> str:
    return "none" if value is None else str(value)


def _lock(file: IO[bytes]) -> None:
    """Keeps other processes out until the file is closed or this process is gone. OSError when one is there."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return


@contextmanager
def _says_when_full(path: Path) -> Iterator[None]:
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise unwritable(path, error) from None
