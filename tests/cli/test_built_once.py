"""A verb builds the network of its model once, whatever `key=value` changes."""

from pathlib import Path
from typing import Any

import pytest

from instseg.cli import main
from instseg.core.errors import DataError
from instseg.models.config import ModelConfig
from instseg.models.solo.net import GridNet


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the networks that are built."""
    names: list[str] = []
    original = GridNet.__init__

    def counted(self: GridNet, config: ModelConfig) -> None:
        names.append(type(self).__name__)
        original(self, config)  # type: ignore[arg-type]

    monkeypatch.setattr(GridNet, "__init__", counted)
    return names


FIELDS = ["max_instances=150", "norm_eval=true", "pixel_mean=[0, 0, 0]"]  # a setting, two of the architecture


@pytest.mark.parametrize("field", FIELDS)
def test_predict(field: str, tiny_model: Path, images: Path, tmp_path: Path, built: list[str]) -> None:
    assert main(["predict", str(tiny_model), str(images / "0.png"), field, "--out", str(tmp_path / "out")]) == 0
    assert built == ["SOLOv2"]


WORK = {
    "val": ("instseg.evaluation.evaluate.evaluate", ["val", "MODEL", "nuclei-mini", "FIELD"]),
    "benchmark": ("instseg.apps.benchmark.benchmark", ["benchmark", "MODEL", "FIELD"]),
    "explain": ("instseg.apps.explain.explain_image", ["explain", "MODEL", "image.png", "FIELD"]),
}


@pytest.mark.parametrize("verb", WORK)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kind", ["checkpoint", "zoo"])
def test_other_verbs(
    verb: str,
    field: str,
    kind: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    built: list[str],
) -> None:
    work, words = WORK[verb]
    seen: list[Any] = []

    def stop(model: Any, *args: Any, **named: Any) -> None:
        seen.append(model.config)
        raise DataError("the work is not what is tested here.")

    monkeypatch.setattr(work, stop)
    monkeypatch.chdir(tmp_path)
    model = str(tiny_model) if kind == "checkpoint" else "solov2_light_448_r18"
    assert main([{"MODEL": model, "FIELD": field}.get(word, word) for word in words]) == 1
    assert built == ["SOLOv2"]
    assert seen[0].max_instances == 150 or seen[0].norm_eval or seen[0].pixel_mean == (0, 0, 0)


def test_an_architecture_that_the_weights_do_not_fit_is_one_line(
    tiny_model: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for field in ("tower_channels=64", "num_classes=3", "backbone=r34"):
        assert main(["predict", str(tiny_model), str(images / "0.png"), field]) == 1
        name = field.split("=")[0]
        assert capsys.readouterr().err.splitlines() == [
            f"error: the weights of solov2_r18 do not fit after changing {name}: such fields are set when training."
        ]
