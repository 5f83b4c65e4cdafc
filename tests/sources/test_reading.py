"""Images read ahead in threads."""

from __future__ import annotations

import threading
from contextlib import closing
from itertools import islice

import pytest
import torch
from torch import Tensor

from instseg.core.errors import DataError
from instseg.sources import reading
from instseg.sources.reading import read_ahead
from instseg.sources.sources import Source


def sources(count: int, threaded: bool = True) -> list[Source]:
    return [Source(f"{i}", f"{i}", lambda rule: torch.zeros(0), threaded=threaded) for i in range(count)]


class Loads:
    """Counts the images that are read."""

    def __init__(self) -> None:
        self.count = 0
        self.lock = threading.Lock()
        self.threads: set[str] = set()

    def __call__(self, source: Source) -> Tensor:
        with self.lock:
            self.count += 1
            self.threads.add(threading.current_thread().name)
        if source.name == "3":
            raise DataError("three")
        if source.name == "4":
            raise ZeroDivisionError("four")
        return torch.full((1000,), int(source.name), dtype=torch.uint8)


def test_order_is_kept_and_errors_are_values() -> None:
    load = Loads()
    read = list(read_ahead(sources(30), load, threads=4, ahead=8))
    assert [source.name for source, _ in read] == [str(i) for i in range(30)]
    assert [int(image[0]) for _, image in read if isinstance(image, Tensor)] == [
        i for i in range(30) if i not in (3, 4)
    ]
    assert str(read[3][1]) == "three" and "4: cannot be read (ZeroDivisionError: four)" in str(read[4][1])
    assert load.threads == {"instseg-reader"}


def test_no_more_is_read_than_was_asked_for() -> None:
    load = Loads()
    with closing(read_ahead(sources(100), load, threads=2, ahead=5)) as images:
        for _ in islice(images, 10):
            pass
    assert load.count <= 10 + 5 + 1


def test_images_that_wait_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "AHEAD_BYTES", 3000)  # three images
    load = Loads()
    with closing(read_ahead(sources(100), load, threads=1, ahead=50)) as images:
        for taken, _ in enumerate(islice(images, 60), 1):
            assert load.count <= taken + 3 + 2  # the two that failed hold no memory


def test_what_must_not_leave_its_thread_does_not() -> None:
    for options in ({"threads": 0}, {"threads": 3}):
        load = Loads()
        assert len(list(read_ahead(sources(9, threaded=not options["threads"]), load, **options))) == 9
        assert load.threads == {threading.current_thread().name}


def test_threads_that_hang_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Hanging:
        def join(self, timeout: float) -> None:
            clock[0] += timeout

    monkeypatch.setattr(reading.time, "monotonic", lambda: clock[0])
    reader = reading._Reader(lambda source: torch.zeros(0), 5)
    reader._threads = [Hanging() for _ in range(5)]  # type: ignore[misc]
    reader.stop()
    assert clock[0] == 2.0
