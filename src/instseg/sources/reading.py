"""Images read ahead of the network, in threads and in bounded memory."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from instseg.core.errors import DataError
from instseg.sources.sources import Source

AHEAD_BYTES = 256 << 20  # of decoded images that wait
_MOST_THREADS = 4
_PATIENCE = 2.0  # seconds for all threads together to finish the images that they are reading

Read: TypeAlias = tuple[Source, Tensor | DataError]


@dataclass
class _Slot:
    source: Source
    result: Tensor | DataError | None = None


def threads_for(workers: int | None) -> int:
    """The number of threads that read images: ``workers``, or as the cores suggest. 0 reads between the batches."""
    return min(_MOST_THREADS, os.cpu_count() or 1) if workers is None else workers


def read_ahead(
    sources: Iterable[Source], load: Callable[[Source], Tensor], *, threads: int, ahead: int = 4
) -> Generator[Read]:
    """Every source in order with its image, (3, H, W) uint8, or why it cannot be read.

    Closing the generator, or leaving it by an error, stops the threads.

    Args:
        sources: those that are not ``threaded`` are read in the consumer's thread when it is their turn.
        load: reads one; may be called in several threads.
        threads: 0 reads everything in the consumer's thread.
        ahead: images beyond the current one that are read at most; none is begun while those that wait hold
            ``AHEAD_BYTES``.
    """
    reader = _Reader(load, threads)
    rest = iter(sources)
    slots: deque[_Slot] = deque()
    more, fault = True, None
    try:
        while True:
            while more and (not slots or (threads and slots[-1].source.threaded and len(slots) <= ahead)):
                try:
                    slot = _Slot(next(rest))
                except StopIteration:
                    more = False
                    break
                except Exception as error:  # of the caller's own iterator: after the images before it
                    more, fault = False, error
                    break
                slots.append(slot)
                if threads and slot.source.threaded:
                    reader.begin(slot)
            if not slots:
                break
            slot = slots.popleft()
            result = reader.wait(slot) if threads and slot.source.threaded else _loaded(load, slot.source)
            slot.result = None
            yield slot.source, result
            del result  # may be large, and the next one is about to be waited for
        if fault is not None:
            raise fault
    finally:
        reader.stop()


class _Reader:
    """Threads that fill slots."""

    def __init__(self, load: Callable[[Source], Tensor], threads: int) -> None:
        self._load = load
        self._most = threads
        self._threads: list[threading.Thread] = []
        self._todo: deque[_Slot] = deque()
        self._changed = threading.Condition()
        self._wanted: _Slot | None = None
        self._waiting = 0  # bytes
        self._stopped = False

    def begin(self, slot: _Slot) -> None:
        with self._changed:
            self._todo.append(slot)
            self._changed.notify_all()
        if len(self._threads) < self._most:
            # Daemons: a thread that hangs in a network must not keep the program from ending.
            thread = threading.Thread(target=self._work, name="instseg-reader", daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait(self, slot: _Slot) -> Tensor | DataError:
        with self._changed:
            self._wanted = slot
            self._changed.notify_all()
            while slot.result is None:
                self._changed.wait()
            self._waiting -= _bytes(slot.result)
            self._changed.notify_all()
            return slot.result

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._todo.clear()
            self._changed.notify_all()
        end = time.monotonic() + _PATIENCE
        for thread in self._threads:  # one that hangs in a network is left behind
            thread.join(max(0.0, end - time.monotonic()))

    def _may_read(self) -> bool:
        """Whether there is room for one more; there always is for the one that the consumer waits for."""
        return bool(self._todo) and (self._waiting < AHEAD_BYTES or self._todo[0] is self._wanted)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and not self._may_read():
                    self._changed.wait()
                if self._stopped:
                    return
                slot = self._todo.popleft()
            result = _loaded(self._load, slot.source)
            with self._changed:
                slot.result = result
                self._waiting += _bytes(result)
                self._changed.notify_all()
            del slot, result


def _bytes(result: Tensor | DataError) -> int:
    return result.nbytes if isinstance(result, Tensor) else 0


def _loaded(load: Callable[[Source], Tensor], source: Source) -> Tensor | DataError:
    try:
        return load(source)
    except DataError as error:
        return error
    except Exception as error:  # whatever is wrong with one image, the others are read
        return DataError(f"{source.name}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())}).")
