"""Runs that are killed and stopped at random moments, processes and all, end with the weights of one that was not.

``INSTSEG_KILLS`` sets how many times, ``INSTSEG_KILLS_SEED`` at which moments.
"""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from instseg.training.checkpoint import load_state

KILLS = int(os.environ.get("INSTSEG_KILLS", "10"))
SEED = int(os.environ.get("INSTSEG_KILLS_SEED", "0"))

# Imports once, then forks a run in a session of its own for every folder that it reads, and says its pid and its end.
SERVER = """
import os, sys, traceback
import torch
torch.set_num_threads(1)
import accelerate, accelerate.utils, pycocotools.mask, timm, torchvision, instseg.vis.plots, instseg.evaluation.evaluate
from instseg.training.run import train
from instseg.training.guards import TrainingInterrupted

fields = dict(
    backbone="test_resnet", backbone_weights="none", fpn_channels=32, tower_channels=32, tower_convs=1, mask_hidden=32,
    mask_channels=16, grids=[8, 6], scale_ranges=[[1, 32], [16, 64]], input_short=64, epochs=3, batch=2, lr=1e-3,
    checkpoint_minutes=0, ema_decay=0.9, copy_paste=0.5)
for folder in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        status = 1
        try:
            train(sys.argv[1], "solov2_r18", out=folder.strip(), resume=True, progress=False, device="cpu", workers=2,
                  overrides=fields)
            status = 0
        except TrainingInterrupted:
            status = 3
        except KeyboardInterrupt:  # before there was anything to save
            status = 4
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

# What is sent, to whom (the group is the main process with its loader processes), and how the run may end.
STRIKES = {
    "SIGKILL to the main process": (signal.SIGKILL, False, {-signal.SIGKILL}),
    "SIGKILL to the group": (signal.SIGKILL, True, {-signal.SIGKILL}),
    "SIGTERM to the group": (signal.SIGTERM, True, {0, 3, 4}),
    "SIGHUP to the group": (signal.SIGHUP, True, {0, 3, 4}),
}


class Runs:
    """Starts runs and waits for them."""

    def __init__(self, server: "subprocess.Popen[str]") -> None:
        assert server.stdin is not None and server.stdout is not None
        self.stdin, self.stdout = server.stdin, server.stdout

    def start(self, folder: Path) -> int:
        print(folder, file=self.stdin, flush=True)
        return int(self.stdout.readline())

    def end(self) -> int:
        return int(self.stdout.readline())


@pytest.fixture
def runs(coco_folder: Path, tmp_path: Path) -> Iterator[Runs]:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, str(script), str(coco_folder)]
    with (
        open(tmp_path / "stderr.txt", "w") as stderr,
        subprocess.Popen(
            call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        ) as server,
    ):
        yield Runs(server)
        assert server.stdin is not None
        server.stdin.close()
        server.wait(timeout=60)


def _living(group: int) -> list[int]:
    """The processes of a group that are not only waiting to be reaped."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found


def _all_gone(group: int) -> bool:
    for _ in range(150):
        if not _living(group):
            return True
        time.sleep(0.1)
    return False


def _end(folder: Path) -> dict[str, Tensor]:
    """Weights, averages and the optimizer's memory at the end of a run, and both files of weights."""
    state, _ = load_state(folder / "last.ckpt")
    tensors = {f"{part}.{k}": v for part in ("model", "average") for k, v in state[part].items()}
    for i, memory in state["optimizer"]["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in memory.items()}
    for name in ("best.safetensors", "last.safetensors"):
        tensors |= {f"{name}.{k}": v for k, v in load_file(folder / name).items()}
    return tensors


def _rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


@pytest.mark.slow
def test_killed_and_stopped_at_random_moments_runs_end_bit_equal(runs: Runs, tmp_path: Path) -> None:
    rng, counts, ends, finished = random.Random(SEED), Counter[str](), Counter[int](), 0
    code = 0
    for folder in ("first", "whole"):  # the first one loads libraries
        began = time.monotonic()
        runs.start(tmp_path / folder)
        assert runs.end() == 0, (tmp_path / "stderr.txt").read_text()[-3000:]
        seconds = time.monotonic() - began
    whole, rows = _end(tmp_path / "whole"), _rows(tmp_path / "whole")

    while sum(counts.values()) < KILLS or finished == 0 or code != 0:
        folder = tmp_path / f"cut{finished}"
        pid = runs.start(folder)
        if sum(counts.values()) < KILLS:
            time.sleep(rng.uniform(0, seconds))
            kind = rng.choice(list(STRIKES))
            number, to_all, expected = STRIKES[kind]
            if _living(pid):
                (os.killpg if to_all else os.kill)(pid, number)
                counts[kind] += 1
        else:
            expected = {0}
        code = runs.end()
        ends[code] += 1
        assert code in {0, *expected}, (code, (tmp_path / "stderr.txt").read_text()[-3000:])
        assert _all_gone(pid), "loader processes stay behind"
        if code == 0:
            end = _end(folder)
            assert end.keys() == whole.keys()
            assert [name for name in whole if not torch.equal(whole[name], end[name])] == []
            assert _rows(folder) == rows
            finished += 1
    print(f"\n{dict(counts)}; {finished} runs finished bit-equal; ends {dict(ends)}; one run takes {seconds:.1f} s")
