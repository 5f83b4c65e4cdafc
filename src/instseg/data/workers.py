"""Loader processes that leave stop signals to the main process, and never outlive it.

Ctrl-C, ``timeout``, systemd and batch schedulers signal a whole process group. A loader process that dies of such a
signal takes the update under way with it, and torch reports a crash instead of the stop that was asked for.
"""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
# Seconds that a loader process gets to finish what it is reading.
_PATIENCE = 5.0


def batches_of(loader: "DataLoader[Any]") -> Generator[Any]:
    """Iterate over a loader whose processes ignore SIGINT, SIGTERM and SIGHUP.

    The main process decides what a signal means. The loader processes end when the iteration does, whether it is
    exhausted, closed or fails, and when the main process is gone, even if it was killed.

    Args:
        loader: its ``worker_init_fn`` is set here.

    Returns:
        the batches; close the generator (``contextlib.closing``) where the loop may be left early.
    """
    if not loader.num_workers:
        yield from loader
        return
    leaving = torch.zeros(1, dtype=torch.uint8)
    leaving.share_memory_()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    loader.worker_init_fn = partial(_leave_signals_to_the_main_process, leaving)
    before = set(multiprocessing.active_children())
    with _held_back():  # a process that has just been started must not see a signal before it knows what to do
        iterator = iter(loader)
    workers = [child for child in multiprocessing.active_children() if child not in before]

    def end() -> None:
        leaving[0] = 1  # from now on SIGTERM ends them
        for worker in workers:
            with suppress(RuntimeError, ValueError):  # torch's complaint about a death that has been reported already
                if worker.is_alive():
                    worker.terminate()
                worker.join(_PATIENCE)

    atexit.register(end)  # where an exception that ends the program keeps this generator open
    try:
        yield from iterator
    finally:
        atexit.unregister(end)
        leaving[0] = 1
        del iterator  # ends them in peace, unless an exception still holds it
        end()


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
