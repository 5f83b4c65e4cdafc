"""The program as a whole: help, exit status, and one line for what goes wrong."""

import re
import subprocess
import sys

import pytest

from instseg.cli import main
from instseg.core.errors import ConfigError, DataError

VERBS = ["demo", "models", "train", "val", "predict", "benchmark", "data check"]


def _raise(error: BaseException) -> object:
    def call(*args: object, **kwargs: object) -> object:
        raise error

    return call


def _one_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


def test_help_names_every_verb_and_ends_with_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb.split()[0] in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples" in text
    assert re.search(rf"^ +instseg {verb}", text.split("Examples")[1], re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_without_a_verb_help_is_shown_once_and_status_is_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out + err).count("Usage:") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["segment"], "segment"),
        (["predict"], "MODEL"),
        (["predict", "nuclei"], "SOURCE"),
        (["train"], "DATA"),
        (["val", "nuclei"], "DATA"),
        (["predict", "nuclei", "a.png", "--scor", "0.5"], "--scor"),
        (["predict", "nuclei", "a.png", "--score", "high"], "--score"),
        (["predict", "nuclei", "a.png", "--score", "1.5"], "--score"),
        (["predict", "nuclei", "a.png", "--batch", "0"], "--batch"),
        (["train", "shapes", "epochs"], "epochs"),
        (["train", "shapes", "--epochs=3"], "--epochs"),
        (["data", "chek", "shapes"], "chek"),
    ],
)
def test_wrong_usage_is_one_line_that_points_to_help_and_status_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    line = _one_line(capsys.readouterr().err)
    assert named in line
    assert "--help" in line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("a.json: not COCO; give a COCO file."), "error: a.json: not COCO; give a COCO file."),
        (ConfigError("two\nlines"), "error: two lines"),
        (OSError(28, "No space left on device", "runs/x"), "error: No space left on device: runs/x"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "error: No such file or directory: a.png"),
    ],
)
def test_an_error_is_one_line_and_status_1(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("instseg.apps.zoo.find_models", _raise(error))
    assert main(["models"]) == 1
    assert _one_line(capsys.readouterr().err) == expected


def test_an_unexpected_error_is_one_line_that_names_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("instseg.apps.zoo.find_models", _raise(RuntimeError("shapes\ndo not match")))
    assert main(["models"]) == 1
    line = _one_line(capsys.readouterr().err)
    assert "RuntimeError: shapes do not match" in line
    assert "--debug" in line


@pytest.mark.parametrize("arguments", [["--debug", "models"], ["models", "--debug"]])
def test_debug_shows_the_traceback_before_and_after_the_verb(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("instseg.apps.zoo.find_models", _raise(DataError("broken")))
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.rstrip().endswith("DataError: broken")


def test_out_of_memory_says_what_to_make_smaller(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr("instseg.apps.zoo.find_models", _raise(torch.OutOfMemoryError("CUDA out of memory. Tried")))
    assert main(["models"]) == 1
    assert "--batch" in _one_line(capsys.readouterr().err)


def test_ctrl_c_ends_with_one_line_and_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("instseg.apps.zoo.find_models", _raise(KeyboardInterrupt()))
    assert main(["models"]) == 130
    assert len(capsys.readouterr().err.splitlines()) <= 1


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import warnings

    def find(pattern: str) -> list[str]:
        warnings.warn("the cap of 100 objects\nwas hit", stacklevel=2)
        return []

    monkeypatch.setattr("instseg.apps.zoo.find_models", find)
    assert main(["models"]) == 0
    assert _one_line(capsys.readouterr().err) == "warning: the cap of 100 objects was hit"


def test_version_reports_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    import instseg

    assert main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"instseg {instseg.__version__}"
    named = {line.split()[0] for line in lines}
    assert named >= {"python", "torch", "torchvision", "timm", "cuda", "mps", "device", "os", "cores"}


def test_a_reader_that_closes_the_pipe_gets_no_traceback() -> None:
    command = f"{sys.executable} -m instseg models solov2_r18 | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout == "solov2_r18\n"
    assert done.stderr == ""
