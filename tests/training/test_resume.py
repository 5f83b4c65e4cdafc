"""A run that was killed and goes on ends as one that never stopped."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from instseg.evaluation.best import Best, Measured
from instseg.training.checkpoint import load_state
from instseg.training.guards import TrainingInterrupted
from instseg.training.loop import Trainer

Make = Callable[..., Trainer]
# Everything with a memory: momentum of AdamW, averages, a schedule, augmentation, norms, accumulation.
FIELDS: dict[str, Any] = {
    "epochs": 3, "optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "schedule": "cosine", "warmup_iterations": 3,
    "ema_decay": 0.9, "flip": 0.5, "brightness": 0.3, "clip": 1.0, "checkpoint_minutes": 0.0, "batch": 1,
    "accumulate": 2, "channels_last": True,
}  # fmt: skip


class Killed(BaseException):
    """As a kill is: nothing that the loop may catch."""


def measured_ap(value: float) -> Measured:
    return Measured({"ap": value, "ap50": 0.0, "ap75": 0.0, "box_ap": 0.0}, Best("ap", value), {})


def _evaluate(model: Any) -> Measured:
    return measured_ap(float(model.backbone.weight.detach().mean()))


def _end(run: Trainer) -> dict[str, Tensor]:
    assert run.average is not None
    tensors = {**run.model.state_dict(), **{f"average.{k}": v for k, v in run.average.state_dict().items()}}
    for i, state in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
    return {name: value.clone() for name, value in tensors.items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without what the clock decides."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


@pytest.mark.parametrize("call", [1, 2, 7, 8, 9, 16, 17, 23])
def test_killed_at_any_forward_pass_it_ends_the_same(trainer: Make, tiny_model: Any, tmp_path: Path, call: int) -> None:
    whole = trainer(tmp_path / "whole", evaluate=_evaluate, **FIELDS)
    whole.fit()

    def kill(now: int) -> float:
        if now == call:
            raise Killed
        return 1.0

    torch.manual_seed(0)
    model = tiny_model()
    model.spoil = kill
    with pytest.raises(Killed):
        trainer(tmp_path / "cut", model=model, evaluate=_evaluate, **FIELDS).fit()
    torch.manual_seed(99)  # a resumed run must not depend on how it was built
    again = trainer(tmp_path / "cut", model=tiny_model(), evaluate=_evaluate, **FIELDS)
    again.restore(load_state(tmp_path / "cut" / "last.ckpt")[0])
    again.fit()
    assert _same(_end(whole), _end(again))
    assert _rows(tmp_path / "whole") == _rows(tmp_path / "cut")
    assert len(_rows(tmp_path / "cut")) == 3
    assert (whole.progress.best, whole.progress.best_epoch) == (again.progress.best, again.progress.best_epoch)


def test_only_what_is_left_of_the_epoch_is_loaded(trainer: Make, tiny_model: Any, tmp_path: Path) -> None:
    model = tiny_model()
    run = trainer(tmp_path, model=model, **FIELDS)
    model.spoil = lambda call: setattr(run.interrupt, "asked", call >= 5) or 1.0  # type: ignore[func-returns-value]
    with pytest.raises(TrainingInterrupted):
        run.fit()
    rest = tiny_model()
    again = trainer(tmp_path, model=rest, **{**FIELDS, "epochs": 1})
    again.restore(load_state(tmp_path / "last.ckpt")[0])
    again.fit()
    assert len(rest.images) == 8 - 6


def test_a_killed_evaluation_is_made_again(trainer: Make, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", evaluate=_evaluate, **FIELDS)
    whole.fit()
    calls: list[int] = []

    def dies(model: Any) -> Measured:
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return _evaluate(model)

    with pytest.raises(Killed):
        trainer(tmp_path / "cut", evaluate=dies, **FIELDS).fit()
    again = trainer(tmp_path / "cut", evaluate=_evaluate, **FIELDS)
    again.restore(load_state(tmp_path / "cut" / "last.ckpt")[0])
    assert (again.progress.epoch, again.progress.update) == (1, 4)
    again.fit()
    assert _same(_end(whole), _end(again)) and _rows(tmp_path / "whole") == _rows(tmp_path / "cut")


def test_early_stopping_counts_on_over_a_resume(trainer: Make, tmp_path: Path) -> None:
    def falling(model: Any) -> Measured:
        left.pop()
        return measured_ap(len(left) / 10)

    left = [0] * 9
    fields = {**FIELDS, "epochs": 9, "patience": 3}
    trainer(tmp_path, evaluate=falling, **{**fields, "epochs": 2}).fit()
    again = trainer(tmp_path, evaluate=falling, **fields)
    again.restore(load_state(tmp_path / "last.ckpt")[0])
    assert again.fit().epoch == 4


def test_a_finished_run_that_is_resumed_changes_nothing(trainer: Make, tmp_path: Path) -> None:
    run = trainer(tmp_path, evaluate=_evaluate, **FIELDS)
    run.fit()
    rows = _rows(tmp_path)
    again = trainer(tmp_path, evaluate=_evaluate, **FIELDS)
    again.restore(load_state(tmp_path / "last.ckpt")[0])
    again.fit()
    assert _same(_end(run), _end(again)) and _rows(tmp_path) == rows


SCRIPT = """
import sys
from instseg.training.run import train
train(sys.argv[1], "solov2_r18", out=sys.argv[2], resume=True, progress=False, device="cpu", workers=1, overrides=dict(
    backbone="test_resnet", backbone_weights="none", fpn_channels=32, tower_channels=32, tower_convs=1, mask_hidden=32,
    mask_channels=16, grids=[8, 6], scale_ranges=[[1, 32], [16, 64]], input_short=64, epochs=3, batch=2, lr=1e-3,
    evaluate_every=2, checkpoint_minutes=0))
"""


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_no_bit(coco_folder: Path, tmp_path: Path) -> None:
    go = tmp_path / "go.py"
    go.write_text(SCRIPT)

    def start(folder: str) -> subprocess.Popen[str]:
        call = [sys.executable, str(go), str(coco_folder), str(tmp_path / folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(call, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)

    whole = start("whole")
    assert whole.wait(timeout=300) == 0, whole.stderr and whole.stderr.read()
    with open(tmp_path / "whole" / "metrics.csv", newline="") as file:
        seconds = sum(float(line["seconds"]) for line in csv.DictReader(file))

    rng, log = random.Random(), tmp_path / "cut" / "log.txt"
    for start_number in range(1, 5):
        run = start("cut")
        while run.poll() is None and not (log.exists() and log.read_text().count("run folder") == start_number):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4 * seconds))
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)  # its loader processes too
        run.wait()
    last = start("cut")
    assert last.wait(timeout=300) == 0, last.stderr and last.stderr.read()
    assert log.read_text().count("resuming") >= 3
    states = [load_state(tmp_path / folder / "last.ckpt")[0] for folder in ("whole", "cut")]
    assert _same(states[0]["model"], states[1]["model"]) and _same(states[0]["average"], states[1]["average"])
    assert _rows(tmp_path / "whole") == _rows(tmp_path / "cut")
    for name in ("last.safetensors", "best.safetensors"):
        assert _same(load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name))
