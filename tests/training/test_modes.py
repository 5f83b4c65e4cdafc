"""A run leaves the modes of a model's parts as they were, however it ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instseg.evaluation.best import Best, Measured
from instseg.training.guards import TrainingError

Make = Callable[..., Any]


def modes(model: Any) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("whole", [True, False], ids=["in training", "in evaluation"])
def test_after_the_last_epoch(trainer: Make, tiny_model: Any, tmp_path: Path, whole: bool) -> None:
    model = tiny_model().train(whole)
    model.norm.train(not whole)
    before, seen = modes(model), []
    run = trainer(
        tmp_path,
        model=model,
        evaluate=lambda given: seen.append(modes(given)) or Measured({}, Best("ap", 0.5), {}),
    )
    run.fit()
    assert seen and not any(map(any, seen)) and modes(model) == before


def test_after_a_run_that_fails(trainer: Make, tiny_model: Any, tmp_path: Path) -> None:
    model = tiny_model().eval()
    model.norm.train()
    model.spoil = lambda call: float("nan") if call == 3 else 1.0
    with pytest.raises(TrainingError):
        trainer(tmp_path, model=model).fit()
    assert not model.training and model.norm.training and not model.head.training


def test_an_evaluation_that_fails_changes_none(trainer: Make, tiny_model: Any, tmp_path: Path) -> None:
    model = tiny_model().eval()

    def broken(_: Any) -> Any:
        raise RuntimeError("of the evaluation")

    trainer(tmp_path, model=model, evaluate=broken).fit()
    assert not any(modes(model))
