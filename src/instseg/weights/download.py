"""Fetching a file once: its size is said before, a cut is resumed, and it is in place only when whole and checked."""

import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from instseg.core.cache import only_one
from instseg.core.errors import InstsegError
from instseg.core.files import write_fault

SECONDS = 20.0  # without a single byte until a host counts as out of reach; a slow one may take as long as it needs
ATTEMPTS = 10  # connections to a host that cuts them, each of which has to come further than the one before
BLOCK = 1 << 16  # bytes
HEAD = 64  # bytes that show a web page
_PAGE = "a web page came in its place, as from a proxy or a login"
REPORT_SECONDS = 15.0  # between two lines about the progress where there is no terminal to draw a bar on


class FetchError(Exception):
    """Why a file could not be fetched: a few words, to be put into a sentence that says what to do."""


@dataclass(frozen=True)
class Download:
    """A file to be fetched.

    Attributes:
        url: where it lies.
        path: where it is to lie on this machine.
        label: what the user calls it.
        sha256: the beginning of its digest, or None where it is not known.
    """

    url: str
    path: Path
    label: str
    sha256: str | None = None


def download(wanted: Download, check: Callable[[Path], object]) -> None:
    """Fetches a file into its place; several processes that want it fetch it once.

    Args:
        wanted: which file.
        check: reads the fetched file before it is put in place; what it raises is raised, and a file that it refuses is
            deleted.

    Raises:
        FetchError: the file cannot be had: no connection, refused, silent for ``SECONDS``, a page in its place, another
            digest, no room, or a folder that cannot be written. What came of a file with a digest is kept for the next
            attempt, under another name, unless it turned out to be of another file.
    """
    path = wanted.path
    fault = write_fault(path.parent)
    if fault is not None:
        raise FetchError(f"{path.parent} {fault}; INSTSEG_CACHE names another folder")
    with only_one(path, lambda: _say(f"{wanted.label}: another process is downloading it; waiting ...")) as alone:
        if path.is_file():
            return
        part = path.with_name(f".{path.name}.part" if alone else f".{path.name}.{os.getpid()}.part")
        kept = alone and wanted.sha256 is not None  # nobody else writes it, and a wrong beginning is noticed
        try:
            if not kept:
                part.unlink(missing_ok=True)
            _fetch_and_check(wanted, part)
            check(part)
            os.replace(part, path)
        except BaseException as error:
            if not kept or isinstance(error, _Refused | InstsegError) or _is_empty(part):
                part.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise FetchError(f"{part.parent} cannot be written: {error.strerror or error}") from None
            raise


def digest_of(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_empty(part: Path) -> bool:
    return part.is_file() and part.stat().st_size == 0


class _Refused(FetchError):
    """What has come is not the file that was wanted."""


class _Cut(FetchError):
    """The connection ended early: what has come is worth keeping. ``misfit``: it was not, and has been thrown away."""

    def __init__(self, reason: str, misfit: bool = False) -> None:
        super().__init__(reason)
        self.misfit = misfit


def _fetch_and_check(wanted: Download, part: Path) -> None:
    resumed = part.is_file() and not _is_empty(part)
    if resumed and wanted.sha256 is not None and digest_of(part).startswith(wanted.sha256):
        return  # all of it came, and could not be put in place
    _fetch(wanted, part)
    try:
        _check(wanted, part)
    except _Refused:
        if not resumed:
            raise
        part.unlink()  # its beginning, from an earlier attempt, was of another file
        _fetch(wanted, part)
        _check(wanted, part)


def _check(wanted: Download, part: Path) -> None:
    with part.open("rb") as file:
        if _begins_a_page(file.read(HEAD)):
            raise _Refused(_PAGE)
    if wanted.sha256 is None:
        return
    digest = digest_of(part)
    if not digest.startswith(wanted.sha256):
        raise _Refused(
            f"what its server sent is not the published file: sha256 begins with {digest[:8]}, not {wanted.sha256}"
        )


def _fetch(wanted: Download, part: Path) -> None:
    """All of the file into ``part``, from where it ends, over as many connections as it takes."""
    with part.open("ab") as file, _progress(wanted) as show:
        for attempt in range(ATTEMPTS):
            reached = file.tell()
            try:
                _one_connection(wanted, file, show)
                break
            except _Cut as error:
                if attempt + 1 == ATTEMPTS or (file.tell() <= reached and not error.misfit):
                    raise
        file.flush()
        os.fsync(file.fileno())


def _one_connection(wanted: Download, file: IO[bytes], show: "_Show") -> None:
    have = file.tell()
    request = urllib.request.Request(wanted.url, headers={"User-Agent": "instseg"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    total = None
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            _refuse_a_page(answer)
            block = answer.read(HEAD)
            if answer.status != 206:  # from the beginning, whatever was asked for
                if _begins_a_page(block):
                    raise FetchError(_PAGE)
                _need_room(Path(file.name), _total(answer, -have))  # what is kept makes room for it
                have = _empty(file)
            elif not answer.headers.get("Content-Range", f"bytes {have}-").startswith(f"bytes {have}-"):
                _empty(file)
                raise _Cut("the server sent another part than the one asked for", misfit=True)
            total = _total(answer, have)
            _need_room(Path(file.name), None if total is None else total - have)
            show(have, total)
            while block:
                _write(file, block)
                have += len(block)
                show(have, total)
                block = answer.read1(BLOCK)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # what was kept is longer than the file
            _empty(file)
            raise _Cut("the server has less than what was kept", misfit=True) from None
        raise FetchError(f"the server answered {error.code} {error.reason}".rstrip()) from None
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise _Cut(_reason(error, have)) from None
    if total is not None and have < total:
        raise _Cut(f"the connection was cut after {_megabytes(have)} of {_megabytes(total)}")


def _empty(file: IO[bytes]) -> int:
    file.seek(0)
    file.truncate()
    return 0


def _reason(error: Exception, have: int) -> str:
    inner = getattr(error, "reason", None) or error
    if isinstance(inner, TimeoutError):
        after = f" after {_megabytes(have)}" if have else ""
        return f"the server was silent for {SECONDS:g} seconds{after}"
    strerror = getattr(inner, "strerror", None)
    return " ".join(str(strerror or inner).split()) or type(inner).__name__


def _refuse_a_page(answer: Any) -> None:
    """A proxy or a login page answers in the place of a file, with status 200."""
    kind = answer.headers.get_content_type() if answer.headers.get("Content-Type") else ""
    if kind in ("text/html", "application/xhtml+xml"):
        raise FetchError(_PAGE)


def _begins_a_page(head: bytes) -> bool:
    return head.lstrip()[:1] == b"<"


def _total(answer: Any, have: int) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return have + int(length) if length.isdigit() else None


def _need_room(part: Path, more: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if more is not None and more > free:
        raise FetchError(f"{part.parent} has room for {_megabytes(free)}, and {_megabytes(more)} are needed")


def _write(file: IO[bytes], block: bytes) -> None:
    try:
        file.write(block)
    except OSError as error:
        raise FetchError(f"{Path(file.name).parent} cannot be written: {error.strerror}") from None


_Show = Callable[[int, int | None], None]


@contextmanager
def _progress(wanted: Download) -> Iterator[_Show]:
    """Says the size, then draws a bar on a terminal, or writes a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    task = bar.add_task(wanted.label, total=None)
    begun, reported = False, time.monotonic()

    def show(have: int, total: int | None) -> None:
        nonlocal begun, reported
        if not begun:
            size = "a file whose size the server does not state" if total is None else _megabytes(total)
            rest = f", the rest after {_megabytes(have)}" if have else ""
            _say(f"{wanted.label}: downloading {size}{rest}, once: {wanted.url} -> {wanted.path}")
            begun = True
            bar.start()  # only now: it would break that line, whose address and path are there to be copied
        bar.update(task, completed=have, total=total)
        if not console.is_terminal and time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            _say(f"{wanted.label}: {_megabytes(have)}{'' if total is None else f' of {_megabytes(total)}'}")

    try:
        yield show
    finally:
        bar.stop()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 10_000_000 else f"{size / 1e6:.2g} MB" if size >= 1000 else f"{size} bytes"
