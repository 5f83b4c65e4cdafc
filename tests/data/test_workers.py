"""Loader processes and signals."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from instseg.data.workers import STOP_SIGNALS, LoaderProcesses, Order, batches_of


class Slow(Dataset[Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(0.01)
        return torch.tensor([index])


@pytest.fixture
def loaded() -> Iterator[Iterator[Tensor]]:
    with closing(batches_of(DataLoader(Slow(), num_workers=2))) as batches:
        yield batches


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_leaves_loader_processes_at_work(loaded: Iterator[Tensor], number: signal.Signals) -> None:
    seen = [int(next(loaded))]
    for _ in range(2):  # `timeout` sends its signal twice
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, number)
    seen += [int(batch) for batch in loaded]
    assert seen == list(range(8))


def test_no_loader_process_is_left_when_a_loop_is_left_early() -> None:
    before = set(multiprocessing.active_children())
    with closing(batches_of(DataLoader(Slow(), num_workers=2))) as batches:
        next(batches)
        assert set(multiprocessing.active_children()) - before
    assert not set(multiprocessing.active_children()) - before


def test_signals_are_let_in_again_once_the_processes_have_started(loaded: Iterator[Tensor]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    next(loaded)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_loader_without_processes_is_as_it_was() -> None:
    assert [int(batch) for batch in batches_of(DataLoader(Slow()))] == list(range(8))


def test_persistent_processes_read_pass_after_pass_and_leave_signals_alone_also_after_a_new_start() -> None:
    before = set(multiprocessing.active_children())
    order = Order([[0], [1]])
    loader = DataLoader(Slow(), batch_sampler=order, num_workers=1, persistent_workers=True, collate_fn=list)
    processes = LoaderProcesses(loader)
    seen: list[list[int]] = []
    for batches in ([[0], [1]], [[5]], [[2], [3]]):
        order.batches = batches
        loaded = processes.batches()
        first = next(loaded)
        children = set(multiprocessing.active_children()) - before
        for child in children:
            os.kill(child.pid or 0, signal.SIGTERM)
        seen.append([int(one) for batch in (first, *loaded) for one in batch])
        if batches == [[5]]:
            processes.close()
            assert not set(multiprocessing.active_children()) - before
    processes.close()
    assert seen == [[0, 1], [5], [2, 3]]
    assert not set(multiprocessing.active_children()) - before


SCRIPT = """
import torch
from torch.utils.data import DataLoader
from instseg.data.workers import batches_of
batches = batches_of(DataLoader(torch.arange(40), num_workers=2))
next(batches)
raise SystemExit("the program ends while the loader is open")
"""


@pytest.mark.slow
def test_a_program_that_ends_in_the_middle_does_not_wait_for_loader_processes() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr.strip() == "the program ends while the loader is open"
