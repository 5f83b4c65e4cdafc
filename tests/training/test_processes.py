"""Several processes that work on one run."""

import csv
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from instseg.core.stopping import Stop
from instseg.evaluation.evaluate import evaluate
from instseg.training.processes import share_of


class One:
    """Accelerate's view of a lone process."""

    num_processes = 1


def test_a_lone_process_shares_nothing() -> None:
    assert share_of(One(), Stop(at_once=False)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", [None, ValueError("a fault of ours"), KeyboardInterrupt()])
def test_whatever_happens_in_a_share_the_others_get_to_know_it(
    monkeypatch: pytest.MonkeyPatch, fault: BaseException | None
) -> None:
    import accelerate.utils

    told: list[Any] = []
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda mine: told.extend(mine) or [[], *mine])

    class Two:
        num_processes, process_index = 2, 1

    share = share_of(Two(), Stop(at_once=False))  # type: ignore[arg-type]
    assert share is not None and (share.index, share.count) == (1, 2)

    def work() -> Any:
        if isinstance(fault, KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        elif fault is not None:
            raise fault
        return ["found"]

    if fault is None:
        assert share.gather(work) == [[], ["found"]]
        return
    with pytest.raises(type(fault)):
        share.gather(work)
    assert isinstance(told[0], type(fault))


@pytest.mark.slow
def test_two_processes_measure_what_one_does(write_squares: Any, tmp_path: Path) -> None:
    write_squares(tmp_path / "data", 6)
    write_squares(tmp_path / "data", 5, splits=("val",), first=6)
    fields = {
        "backbone": "test_resnet", "backbone_weights": "none", "fpn_channels": 32, "tower_channels": 32,
        "tower_convs": 1, "mask_hidden": 32, "mask_channels": 16, "grids": "[8,6]", "min_score": 0.0,
        "candidate_threshold": 0.01, "scale_ranges": "[[1,32],[16,64]]", "input_short": 64, "epochs": 1, "batch": 2,
    }  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    call = [*launch, "-m", "instseg", "train", str(tmp_path / "data"), "--model", "solov2_r18", "--device", "cpu"]
    call += ["--out", str(tmp_path / "run"), "--workers", "0", *(f"{k}={v}" for k, v in fields.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    report = evaluate(tmp_path / "run" / "last.safetensors", tmp_path / "data", batch=2, device="cpu", progress=False)
    assert report["predictions"] > 0
    for name, value in (
        ("ap", report["segm"]["ap"]),
        ("ap50", report["segm"]["ap50"]),
        ("box_ap", report["bbox"]["ap"]),
    ):
        assert float(row[name]) == float(f"{value:.6g}")


def test_a_process_that_hangs_is_not_waited_for_half_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate

    from instseg.training.recipe import Recipe
    from instseg.training.run import make_accelerator

    asked: list[Any] = []
    monkeypatch.setattr(accelerate, "Accelerator", lambda **fields: asked.append(fields))
    make_accelerator(Recipe(device="cpu"))
    (handler,) = asked[0]["kwargs_handlers"]
    assert timedelta(minutes=30) <= handler.timeout <= timedelta(hours=2)  # scoring takes seconds


PROGRAM = """
import os, sys
import torch.distributed as dist
import instseg
if sys.argv[1] == "the caller's":
    dist.init_process_group("gloo")
found = [
    instseg.train(sys.argv[2], "solov2_r18", out=f"{sys.argv[3]}/{n}", device="cpu", workers=0, progress=False,
                  batch=1, precision=precision, backbone="test_resnet", backbone_weights="none", fpn_channels=32,
                  tower_channels=32, tower_convs=1, mask_hidden=32, mask_channels=16, grids=[8, 6],
                  scale_ranges=[[1, 32], [16, 64]], input_short=64, epochs=1)
    for n, precision in enumerate(["fp32", "bf16"])
]
assert [run["epochs"] for run in found] == [1, 1] and dist.is_initialized()
dist.barrier()
if sys.argv[1] == "the caller's":
    dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("group", ["the caller's", "the run's"])
def test_one_launched_program_trains_twice(write_squares: Any, tmp_path: Path, group: str) -> None:
    """Whether the processes know each other before the first run or not; what is the caller's stays the caller's."""
    write_squares(tmp_path / "data", 4)
    write_squares(tmp_path / "data", 2, splits=("val",), first=4)
    (tmp_path / "go.py").write_text(PROGRAM)
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    call += [str(tmp_path / "go.py"), group, str(tmp_path / "data"), str(tmp_path / "runs")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "destroy_process_group() was not called" not in done.stderr
    assert all((tmp_path / "runs" / str(n) / "best.safetensors").exists() for n in range(2))
