"""The verbs hand what they are given to the library, and print what comes back."""

import json
from pathlib import Path
from typing import Any

import pytest

from instseg.cli import main
from instseg.models.zoo import list_models


class Recorder:
    """Stands for a function of the library and remembers how it was called."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.arguments: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.arguments, self.options = arguments, options
        return self.result


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_train_hands_over_options_and_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("instseg.training.run.train", recorder)
    words = "train cells epochs=3 lr=1e-3 --model solov2_r18 --out runs/a --config mine.yaml --resume --weights w"
    words += " --device cpu --batch 2 --workers 0 --split train2 name=a=b"
    assert main(words.split()) == 0
    assert recorder.arguments == ("cells", "solov2_r18")
    assert recorder.options == {
        "out": Path("runs/a"),
        "config": "mine.yaml",
        "resume": True,
        "weights": "w",
        "device": "cpu",
        "workers": 0,
        "batch": 2,
        "overrides": {"epochs": "3", "lr": "1e-3", "name": "a=b"},
        "split": "train2",
    }


def test_train_leaves_to_the_recipe_what_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("instseg.training.run.train", recorder)
    assert main(["train", "cells"]) == 0
    assert recorder.arguments == ("cells", None)
    assert recorder.options.pop("overrides") == {}
    assert recorder.options.pop("resume") is False
    assert set(recorder.options.values()) == {None}


METRICS: dict[str, Any] = {
    "segm": {"ap": 0.4321, "ap50": 0.7, "ap75": 0.5, "ap_small": 0.3, "ap_medium": 0.5, "ap_large": -1.0, "ar": 0.6},
    "bbox": {"ap": 0.4, "ap50": 0.7, "ap75": 0.5, "ap_small": 0.3, "ap_medium": 0.5, "ap_large": None, "ar": 0.6},
    "per_class": [
        {"name": "cat", "instances": 3, "ap": 0.111, "ap50": 0.5, "box_ap": 0.3},
        {"name": "dog", "instances": 4, "ap": 0.222, "ap50": 0.5, "box_ap": None},
    ],
    "max_dets": 500,
    "images": 2,
    "instances": 7,
}


def test_val_prints_the_figures_and_where_they_are(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(METRICS)
    monkeypatch.setattr("instseg.evaluation.evaluate.evaluate", recorder)
    assert main(["val", str(tiny_model), "cells", "--split", "test", "--batch", "3", "max_instances=7"]) == 0
    model, data = recorder.arguments
    assert (model.config.max_instances, data) == (7, "cells")
    assert (recorder.options["split"], recorder.options["batch"]) == ("test", 3)
    out = capsys.readouterr().out
    assert "0.432" in out
    assert "cat" in out and "0.111" in out
    assert "500" in out
    assert str(Path("runs/val")) in out


def test_val_says_what_was_evaluated_and_which_classes_were_not(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = {"only_in_data": ["cow"], "only_in_model": ["emu", "yak"]}
    recorder = Recorder({**METRICS, "held_out": {"images": 2, "of": 20}, "classes": classes})
    monkeypatch.setattr("instseg.evaluation.evaluate.evaluate", recorder)
    assert main(["val", str(tiny_model), "cells", "--on-error", "skip", "--crowd", "object", "--out", "a"]) == 0
    assert (recorder.options["on_error"], recorder.options["crowd"]) == ("skip", "object")
    lines = capsys.readouterr().out.splitlines()
    assert any("the 2 of 20 images of cells that the run held out" in line for line in lines)
    assert any("does not know, counted as AP 0: cow" in line for line in lines)
    assert any("the data does not have, left out: emu, yak" in line for line in lines)


def test_val_that_fails_leaves_no_folder_and_an_out_that_cannot_be_written_is_found_first(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["val", str(tiny_model), "nowhere", "--device", "cpu"]) == 1
    assert "nowhere" in capsys.readouterr().err and not Path("runs").exists()
    Path("file").touch()
    assert main(["val", "no-such-model", "nowhere", "--out", "file/deeper"]) == 1
    assert capsys.readouterr().err == "error: file/deeper cannot be written (not a directory); choose another folder.\n"


def test_models_is_a_table_of_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "*light*"]) == 0
    out = capsys.readouterr().out
    assert all((name in out) == ("light" in name) for name in list_models())
    row = next(line for line in out.splitlines() if line.startswith("solov2_light_448_r18 "))
    assert row.split()[-1] == "29.6"


def test_models_with_a_name_lists_its_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "solov2_r50"]) == 0
    out = capsys.readouterr().out
    assert "46,592,912" in out
    assert "max_instances" in out


def test_models_with_an_unknown_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "solov2_r5"]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert 'Did you mean "solov2_r50"?' in err


def test_benchmark_splits_the_steps_and_says_what_it_timed(
    tiny_model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["benchmark", str(tiny_model), "--source", str(images), "--repeat", "1", "--out", "b/figures.json"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for word in ("read", "preprocess", "network", "decode", "render", "encode", "Not timed", "64 x 64"):
        assert word in out
    figures = json.loads(Path("b/figures.json").read_text())
    assert figures["images"] == 3
    assert set(figures["steps"]) == {"read", "preprocess", "network", "decode", "render", "encode"}
    assert figures["total"][0] == pytest.approx(sum(figures["steps"].values()))
    assert figures["objects"] > 0 and figures["flops"] > 0 and figures["memory"] > 0


def test_benchmark_of_random_weights_says_so(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = ["fpn_channels=32", "tower_channels=32", "tower_convs=1", "input_short=64", "input_long=64"]
    words = ["benchmark", "solov2_r18", "--source", str(images), "--repeat", "1", *fields]
    assert main(words) == 0
    assert "Random weights" in capsys.readouterr().out
