"""`instseg train` on the command line."""

from typing import Any

import pytest

from instseg.cli import main
from instseg.training import run
from instseg.training.guards import TrainingInterrupted


def test_a_run_that_was_stopped_ends_with_status_130_and_the_word_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*arguments: Any, **named: Any) -> None:
        raise TrainingInterrupted("interrupted in epoch 2 after update 3 of 9; everything is in runs/a/last.ckpt")

    monkeypatch.setattr(run, "train", stopped)
    assert main(["train", "shapes"]) == 130
    error = capsys.readouterr().err
    assert error.startswith("interrupted in epoch 2") and error.count("\n") == 1


def test_a_stop_before_training_has_begun_is_interrupted_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    import os
    import signal

    def struck(*arguments: Any, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run, "open_training_data", struck)
    assert main(["train", "shapes", "--out", str(tmp_path / "a")]) == 130
    assert "interrupted" in capsys.readouterr().err and not (tmp_path / "a").exists()
