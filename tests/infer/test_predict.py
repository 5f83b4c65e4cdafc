from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from instseg.core.errors import CheckpointError, DataError
from instseg.infer.predict import predict

from .conftest import picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in (2, 3):
        Image.fromarray(picture(number).permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    return tmp_path


def test_one_image_gives_one_prediction_whatever_holds_it(oracle: Any, folder: Path) -> None:
    pixels = picture(2).permute(1, 2, 0).numpy()
    for source in (
        str(folder / "2.png"),
        folder / "2.png",
        pixels,
        picture(2),
        picture(2) / 255,
        Image.fromarray(pixels),
    ):
        prediction = predict(oracle, source)
        assert len(prediction) == 2 and prediction.categories == ("bolt", "nut")
        assert prediction.image_size == (60, 80)
    assert predict(oracle, folder / "2.png").path == str(folder / "2.png")
    assert predict(oracle, np.zeros((9, 9, 3), np.uint8)).path is None


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_list_folder_and_glob_give_a_list_in_order(oracle: Any, folder: Path, batch: int) -> None:
    for source in (folder, str(folder / "*.png"), [folder / "2.png", picture(3)], (folder / "2.png", folder / "3.png")):
        assert [len(prediction) for prediction in predict(oracle, source, batch=batch)] == [2, 3]
    assert isinstance(predict(oracle, [folder / "2.png"]), list)
    assert isinstance(predict(oracle, str(folder / "2*.png")), list)
    assert predict(oracle, []) == []


def test_modes_of_the_model_come_back_also_after_a_failure(oracle: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    oracle.train()
    oracle.frozen.eval()
    predict(oracle, picture(1))
    with pytest.raises(DataError, match=r"a\.png"):
        predict(oracle, tmp_path / "a.png")
    assert oracle.training and oracle.layer.training and not oracle.frozen.training


def test_random_weights_are_refused(oracle: Any) -> None:
    oracle.has_weights = False
    with pytest.raises(CheckpointError, match="no weights"):
        predict(oracle, torch.zeros(3, 8, 8))
