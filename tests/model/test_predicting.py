from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.oracle import picture

from instseg.core.errors import CheckpointError, DataError
from instseg.model.predicting import ImageError, predict, stream
from instseg.results.prediction import Prediction


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


def test_broken_image_of_a_list_keeps_its_place_and_the_others_are_returned(oracle: Any, folder: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "2.png").read_bytes()[:60])
    sources = [folder / "2.png", folder / "broken.png", "", folder / "missing.png", None, picture(3), folder / "2.png"]
    with pytest.warns(UserWarning) as warned:
        found = predict(oracle, sources, batch=2)
    assert [len(item) if isinstance(item, Prediction) else "-" for item in found] == [2, "-", "-", "-", "-", 3, 2]
    assert [str(warning.message) for warning in warned] == [str(item) for item in found[1:5]]
    assert found[1].path == str(folder / "broken.png") and found[4].name == "image-5" and "image-5" in str(found[4])
    assert all("\n" not in str(item) for item in found[1:5])


def test_broken_image_of_a_folder_or_glob_is_left_out_with_a_warning(oracle: Any, folder: Path) -> None:
    (folder / "1.png").write_bytes(b"nothing")
    for source in (folder, str(folder / "*.png")):
        with pytest.warns(UserWarning, match=r"1\.png"):
            assert [len(prediction) for prediction in predict(oracle, source)] == [2, 3]


def test_nothing_but_broken_images_is_an_error(oracle: Any, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"nothing")
    for source in (tmp_path / "a.png", [tmp_path / "a.png"], tmp_path, [tmp_path / "a.png", "missing.png"]):
        with pytest.raises(DataError, match=r"a\.png"):
            predict(oracle, source)


@pytest.mark.parametrize("source", ["", " ", "\n", None, b"", {}, 3])
def test_what_names_no_image_is_one_line(oracle: Any, source: Any, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    for call in (predict, lambda model, source: list(stream(model, [source])), lambda *a: list(stream(*a))):
        try:
            caught = next(iter(call(oracle, source)))
        except DataError as error:
            caught = error
        assert isinstance(caught, DataError) and "\n" not in str(caught).replace('"\n"', "")


def test_whatever_is_iterated_over_is_several_images(oracle: Any, folder: Path) -> None:
    paths = [folder / "2.png", folder / "3.png"]
    for source in (iter(paths), (p for p in paths), dict.fromkeys(paths).keys(), folder.glob("3.png")):
        assert len(predict(oracle, source)) in (1, 2)
        assert [len(item) for item in stream(oracle, iter(paths))] == [2, 3]


@pytest.mark.parametrize(("batch", "workers"), [(1, None), (1, 0), (3, 2), (7, 4), (100, 1)])
def test_stream_yields_predictions_and_errors_in_order(oracle: Any, tmp_path: Path, batch: int, workers: int) -> None:
    for number in range(20):
        path = tmp_path / f"{number:02d}.png"
        Image.fromarray(picture(number % 5).permute(1, 2, 0).numpy()).save(path)
        if number in (0, 7, 8, 19):
            path.write_bytes(path.read_bytes()[: 3 * number])
    found = list(stream(oracle, tmp_path, batch=batch, workers=workers))
    assert [str(item.path) for item in found] == [str(tmp_path / f"{number:02d}.png") for number in range(20)]
    errors = [number for number, item in enumerate(found) if isinstance(item, ImageError)]
    assert errors == [0, 7, 8, 19]
    assert all(len(item) == number % 5 for number, item in enumerate(found) if number not in errors)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "instseg-reader"]


def test_leaving_a_stream_early_stops_its_threads(oracle: Any, folder: Path) -> None:
    items = stream(oracle, [folder / "2.png"] * 50, workers=3)
    next(items)
    assert readers()
    items.close()
    assert not readers()
    for _ in stream(oracle, [folder / "2.png"] * 50, workers=3):
        break
    gc.collect()
    assert not readers()


def test_endless_iterator_is_taken_as_it_comes(oracle: Any, folder: Path) -> None:
    taken: list[int] = []

    def camera() -> Iterator[Any]:
        for number in itertools.count():
            taken.append(number)
            yield picture(number % 3)

    found = [len(item) for item in itertools.islice(stream(oracle, camera()), 5)]
    assert found == [0, 1, 2, 0, 1] and len(taken) <= 6
    paths = itertools.cycle([folder / "2.png", folder / "3.png"])
    assert [len(item) for item in itertools.islice(stream(oracle, paths, workers=2), 5)] == [2, 3, 2, 3, 2]


def test_error_of_the_callers_iterator_comes_after_the_images_before_it(oracle: Any, folder: Path) -> None:
    def broken() -> Iterator[Any]:
        yield folder / "2.png"
        yield folder / "3.png"
        raise RuntimeError("mine")

    found = []
    with pytest.raises(RuntimeError, match="mine"):
        for item in stream(oracle, broken(), workers=2):
            found.append(len(item))
    assert found == [2, 3]


def test_image_that_the_model_refuses_does_not_stop_its_batch(oracle: Any) -> None:
    answer = oracle.predict_batch

    def refusing(images: list[Any]) -> Any:
        if any(image.shape[-1] == 3 for image in images):
            raise DataError("too small")
        return answer(images)

    oracle.predict_batch = refusing
    found = list(stream(oracle, [picture(2), torch.zeros(3, 3, 3), picture(1)], batch=3))
    assert [isinstance(item, ImageError) for item in found] == [False, True, False]
    assert str(found[1]) == "image-2: too small"


def test_model_is_in_its_own_modes_between_two_items(oracle: Any) -> None:
    oracle.train()
    oracle.frozen.eval()
    for _ in stream(oracle, [picture(1)] * 3):
        assert oracle.training and oracle.layer.training and not oracle.frozen.training


@pytest.mark.parametrize("options", [{"batch": 0}, {"batch": -1}, {"workers": -1}])
def test_impossible_numbers_are_one_line(oracle: Any, options: dict[str, int]) -> None:
    with pytest.raises(DataError, match="="):
        stream(oracle, picture(1), **options)


def test_random_weights_are_refused(oracle: Any) -> None:
    oracle.has_weights = False
    with pytest.raises(CheckpointError, match="no weights"):
        predict(oracle, torch.zeros(3, 8, 8))
