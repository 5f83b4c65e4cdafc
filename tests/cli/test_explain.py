"""`instseg explain`"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import instseg
from instseg.cli import main


@pytest.fixture(scope="module")
def sodar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    narrow = {"backbone": "resnet10t", "fpn_channels": 16, "tower_channels": 16, "tower_convs": 1}
    low = {"candidate_threshold": 0.005, "min_score": 0.001, "mask_threshold": 0.3}
    model = instseg.create_model("sodar_r50", 2, **narrow, **low, input_short=64, input_long=96)
    path = tmp_path_factory.mktemp("model") / "sodar.safetensors"
    model.save(path)
    return path


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save("cells.png")
    return "cells.png"


def test_a_picture_of_each_object_that_was_asked_for(
    sodar: Path, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(sodar), image, "--score", "0", "--object", "1", "--out", "why"]) == 0
    assert Path("why/cells-1.png").is_file()
    out = capsys.readouterr().out
    assert out.startswith("object 1: class ") and out.rstrip().endswith("why/cells-1.png")


def test_what_cannot_be_explained_is_one_line(
    sodar: Path, image: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        ([str(tiny_model), image], "solov2_r18 aggregates nothing that could be explained"),
        (["sodar_r50", image], "has no weights"),
        ([str(sodar), "none.png"], "none.png"),
        ([str(sodar), image, "--score", "1"], "no object with a score of 1.0 or more"),
    ):
        assert main(["explain", *words]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error, error
    assert not Path("runs").exists()


def test_an_object_number_below_one_is_wrong_usage(sodar: Path, image: str) -> None:
    assert main(["explain", str(sodar), image, "--object", "0"]) == 2
