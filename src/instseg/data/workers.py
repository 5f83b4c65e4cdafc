"""Loader processes that leave stop signals to the main process, and never outlive it.

Ctrl-C, ``timeout``, systemd and batch schedulers signal a whole process group. A loader process that dies of such a
signal takes the update under way with it, and torch reports a crash instead of the stop that was asked for.
"""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from instseg.core.stopping import STOP_SIGNALS

# Seconds that a loader process gets to finish what it is reading.
_PATIENCE = 5.0


class LoaderProcesses:
    """A loader whose processes ignore SIGINT, SIGTERM and SIGHUP: the main process decides what a signal means.

    The processes of a loader with ``persistent_workers`` read one pass after the other until :meth:`close`, those of
    any other one pass; a pass after that starts others. They end, too, when the main process is gone, even if it was
    killed.

    Args:
        loader: its ``worker_init_fn`` is set here.
    """

    def __init__(self, loader: "DataLoader[Any]") -> None:
        self._loader = loader
        self._leaving = torch.zeros(1, dtype=torch.uint8)
        self._leaving.share_memory_()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._iterator: Any = None
        self._workers: list[multiprocessing.process.BaseProcess] = []
        if loader.num_workers:
            loader.worker_init_fn = partial(_leave_signals_to_the_main_process, self._leaving)

    def batches(self) -> Iterator[Any]:
        """Iterates over the loader once."""
        if not self._loader.num_workers:
            yield from self._loader
            return
        if not self._workers:
            self._leaving[0] = 0
            atexit.register(self.close)  # where an exception that ends the program keeps this object alive
        before = set(multiprocessing.active_children())
        with _held_back():  # a process that has just been started must not see a signal before it knows what to do
            self._iterator = iter(self._loader)
        self._workers += [child for child in multiprocessing.active_children() if child not in before]
        yield from self._iterator

    def close(self) -> None:
        """Ends the processes."""
        atexit.unregister(self.close)
        self._leaving[0] = 1  # from now on SIGTERM ends them
        self._iterator = self._loader._iterator = None  # ends them in peace, unless an exception still holds it
        workers, self._workers = self._workers, []
        for worker in workers:
            with suppress(RuntimeError, ValueError):  # torch's complaint about a death that has been reported already
                if worker.is_alive():
                    worker.terminate()
                worker.join(_PATIENCE)


class Reader:
    """Reads batches of a data set, one list of them after the other, in this process or in processes that live on.

    The processes see each order, since it is handed to them batch by batch.

    Args:
        data: what is read.
        workers: processes; 0 reads in this one.
        collate: makes a batch of a list of items.
        pin: put batches into page-locked memory.
    """

    def __init__(
        self, data: Dataset[Any], workers: int, collate: Callable[[list[Any]], Any], pin: bool = False
    ) -> None:
        self._order = Order()
        loader = loader_of(data, self._order, workers, collate, pin_memory=pin, persistent_workers=workers > 0)
        self._processes = LoaderProcesses(loader)

    def batches(self, order: list[list[int]]) -> Generator[Any]:
        """The batches of an order. Where not all are asked for, the processes end, and the next order starts others."""
        self._order.batches = order
        try:
            yield from self._processes.batches()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the processes."""
        self._processes.close()


def loader_of(
    data: Dataset[Any], order: "Order", workers: int, collate: Callable[[list[Any]], Any], **more: bool
) -> "DataLoader[Any]":
    """torch's loader, which leaves the global generator of random numbers alone."""
    generator = torch.Generator().manual_seed(0)
    how: dict[str, Any] = {"num_workers": workers, "collate_fn": collate, "generator": generator, **more}
    return DataLoader(data, batch_sampler=order, **how)


class Order(Sampler[list[int]]):
    """The batches that a loader reads in its next pass."""

    def __init__(self, batches: list[list[int]] | None = None) -> None:
        self.batches = batches or []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def batches_of(loader: "DataLoader[Any]") -> Generator[Any]:
    """Iterate over a loader once, as :class:`LoaderProcesses` do; its processes end when the iteration does.

    Returns:
        the batches; close the generator (``contextlib.closing``) where the loop may be left early.
    """
    processes = LoaderProcesses(loader)
    try:
        yield from processes.batches()
    finally:
        processes.close()


@contextmanager
def _held_back() -> Iterator[None]:
    """Keep stop signals pending, here and in the processes started meanwhile, which let them in when they are ready."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to_the_main_process(leaving: Tensor, worker: int) -> None:
    """Set up a loader process; ``leaving`` is shared with the main process, which sets it when the work is done."""

    def terminated(number: int, frame: FrameType | None) -> None:
        if leaving[0]:
            os._exit(0)

    for number in STOP_SIGNALS:
        signal.signal(number, terminated if number == signal.SIGTERM else signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()


def _end_with_the_main_process() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)
