"""A parameter without a gradient stays as it is, to the last bit: neither decayed nor carried on by momentum."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from instseg.models.base import LossTerms, Step, Target

Make = Callable[..., Any]


class Branches(nn.Module):
    """A layer that is always used, one that never is, and one that is used in chosen calls."""

    needs: ClassVar[frozenset[str]] = frozenset({"masks"})
    optional: ClassVar[frozenset[str]] = frozenset()
    may_leave_unused: ClassVar[bool] = True
    watched_loss: ClassVar[None] = None

    def __init__(self, used: Callable[[int], bool] = lambda call: False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.always, self.never, self.sometimes = (nn.Conv2d(3, 1, 1) for _ in range(3))
        self.used, self.calls = used, 0

    @property
    def net(self) -> "Branches":
        return self

    def loss_terms(self, images: list[Tensor], targets: list[Target], step: Step, *, resize: bool) -> LossTerms:
        x = torch.stack(images).float() / 255
        losses = {"loss_always": self.always(x).float().square().mean()}
        if self.used(self.calls):
            losses["loss_always"] = losses["loss_always"] + self.sometimes(x).float().square().mean()
        self.calls += 1
        return LossTerms(losses)

    def save(self, path: Path) -> None:
        path.write_bytes(b"weights")


def state_of(part: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in part.named_parameters()}


def moved(part: nn.Module, before: dict[str, Tensor]) -> bool:
    return not all(torch.equal(value, before[name]) for name, value in part.named_parameters())


RUNS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw"},
    "momentum": {"optimizer": "sgd", "momentum": 0.9},
    "nesterov": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
    "clipped": {"optimizer": "adamw", "clip": 0.01},
    "averaged": {"optimizer": "adamw", "ema_decay": 0.9},
    "bf16": {"optimizer": "adamw", "precision": "bf16"},
    "accumulated": {"optimizer": "adamw", "accumulate": 2},
    "channels last": {"optimizer": "adamw", "channels_last": True},
}
DECAY = {"weight_decay": 0.5, "decay_norms_and_biases": True, "lr": 0.01}


@pytest.mark.parametrize("run", RUNS)
def test_what_gets_no_gradient_is_not_moved(run: str, trainer: Make, tmp_path: Path) -> None:
    model = Branches()
    before, used = state_of(model.never), state_of(model.always)
    made = trainer(tmp_path, model=model, epochs=1, **{**DECAY, **RUNS[run]})
    made.fit()
    assert not moved(model.never, before) and moved(model.always, used)
    if made.average is not None:
        assert not moved(made.average.module.never, before) and moved(made.average.module.always, used)


@pytest.mark.parametrize("run", RUNS)
def test_a_gradient_of_an_earlier_update_is_forgotten(run: str, trainer: Make, tmp_path: Path) -> None:
    """Eight pictures in twos: the branch learns in the first update of the first epoch alone."""
    seen: list[dict[str, Tensor]] = []
    accumulated = int(RUNS[run].get("accumulate", 1))
    model = Branches(lambda call: call < accumulated)
    terms = model.loss_terms

    def noted(*args: Any, **more: Any) -> LossTerms:
        seen.append(state_of(model.sometimes))
        return terms(*args, **more)

    model.loss_terms = noted  # type: ignore[method-assign]
    before = state_of(model.sometimes)
    made = trainer(tmp_path, model=model, epochs=2, **{**DECAY, **RUNS[run]})
    made.fit()
    assert moved(model.sometimes, before)
    assert not moved(model.sometimes, seen[accumulated])  # as the first update left it
    if made.average is not None:  # which runs after it, and never beyond
        for name, value in made.average.module.sometimes.named_parameters():
            assert (value - seen[-1][name]).abs().max() <= (before[name] - seen[-1][name]).abs().max()


def test_one_use_among_several_passes_of_an_update_counts(trainer: Make, tmp_path: Path) -> None:
    model = Branches(lambda call: call == 0)
    before = state_of(model.sometimes)
    trainer(tmp_path, model=model, epochs=1, optimizer="adamw", accumulate=4, **DECAY).fit()
    assert moved(model.sometimes, before)


def test_nothing_changes_when_a_run_resumes(trainer: Make, tmp_path: Path) -> None:
    fields: dict[str, Any] = {**DECAY, "optimizer": "adamw", "batch": 4}
    first = trainer(tmp_path, model=Branches(lambda call: call == 0), epochs=1, **fields)
    first.fit()
    left = {name: state_of(part) for name, part in first.model.named_children()}
    state = torch.load(tmp_path / "last.ckpt", weights_only=False)
    again = trainer(tmp_path / "again", model=Branches(), epochs=3, **fields)
    again.restore(state)
    again.fit()
    assert not moved(again.model.never, left["never"]) and not moved(again.model.sometimes, left["sometimes"])
    assert moved(again.model.always, left["always"])


SCRIPT = """
import json, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import torch
from conftest import make_trainer
from test_unused import DECAY, RUNS, Branches, moved, state_of
torch.set_num_threads(1)
out, found = Path(sys.argv[3]), {}
for name, fields in RUNS.items():
    # The branch learns in the first update alone, in the second process alone, and in its first pass alone.
    model = Branches(lambda call: call == 0 and rank == 1)
    before, never = state_of(model.sometimes), state_of(model.never)
    made = make_trainer(out / name, model=model, epochs=2, **{**DECAY, **fields, "batch": 1})
    rank = made.accelerator.process_index
    after = []
    step = made.optimizer.step
    made.optimizer.step = lambda *a, **k: (step(*a, **k), after.append(state_of(model.sometimes)))[0]
    made.fit()
    found[name] = {
        "learned": moved(model.sometimes, before),
        "stayed": not moved(model.sometimes, after[0]) and len(after) > 1,
        "never": moved(model.never, never),
        "weights": [value.tolist() for value in state_of(model).values()],
    }
(out / f"{rank}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_in_two_processes_too(tmp_path: Path) -> None:
    (tmp_path / "go.py").write_text(SCRIPT)
    here = Path(__file__).parent
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    call += [str(tmp_path / "go.py"), str(here), str(here.parents[1]), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for name in RUNS:
        assert first[name]["weights"] == second[name]["weights"], name
        assert (first[name]["learned"], first[name]["stayed"], first[name]["never"]) == (True, True, False), name
