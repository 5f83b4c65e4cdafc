"""Several processes that work on one run."""

import csv
import os
import signal
import subprocess
import sys
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
