"""What `train` and `val` cannot use is one line, with file and record, and nothing is lost."""

import json
from pathlib import Path

import pytest

from instseg.cli import main

SMALL = [
    *("fpn_channels=32", "tower_channels=32", "tower_convs=1", "mask_channels=16", "mask_hidden=32", "epochs=1"),
    *("backbone_weights=none", "workers=0", "device=cpu", "batch=2", "input_short=64", "input_long=64"),
    *("train_short=[64]", "train_long=64", "evaluate_every=0"),
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _train(data: object, *words: str) -> int:
    return main(["train", str(data), "--model", "solov2_r18", "--out", "run", *SMALL, *words])


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors == err.splitlines()[-1:], err
    return errors[0]


def test_train_refuses_a_data_set_with_a_defect(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _train(damaged) == 1
    line = _error(capsys)
    assert "train.json" in line and "annotation 1" in line
    assert "on_error=skip" in line


def test_train_leaves_an_odd_record_out_and_says_so(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _train(odd) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "left out 1 annotation" in line]
    assert len(said) == 1
    assert "left out 1 annotation" in Path("run/log.txt").read_text()
    assert Path("run/last.safetensors").is_file()


@pytest.mark.parametrize("damaged", ["unknown_category"], indirect=True)
def test_train_skips_a_defect_when_told_and_counts_it(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _train(damaged, "on_error=skip") == 0
    assert any("1" in line and "skip" in line for line in capsys.readouterr().err.splitlines())
    assert Path("run/last.safetensors").is_file()


@pytest.mark.parametrize("whole", [True, False])
def test_train_refuses_a_missing_and_a_truncated_image(
    whole: bool, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = dataset / "images" / "2.png"
    if whole:
        image.unlink()
    else:
        image.write_bytes(image.read_bytes()[:60])
    assert _train(dataset) == 1
    assert "2.png" in _error(capsys)


@pytest.mark.parametrize("content", ["[1, 2]", "no json", '{"images": []}', '{"annotations": []}'])
def test_train_refuses_a_file_that_is_not_coco(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.json").write_text(content)
    assert _train("file.json") == 1
    assert "file.json" in _error(capsys)


def test_train_refuses_an_empty_data_set(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dataset / "annotations" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": [], "annotations": []}))
    assert _train(dataset) == 1
    assert "train.json" in _error(capsys)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("epohcs=3", 'Did you mean "epochs"?'),
        ("tower_chanels=8", 'Did you mean "tower_channels"?'),
        ("epochs=many", "epochs"),
        ("lr=-1", "lr"),
    ],
)
def test_train_names_a_field_that_is_misspelt_or_impossible(
    word: str, named: str, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(dataset, word) == 1
    assert named in _error(capsys)


def test_train_names_a_misspelt_field_of_a_recipe_file(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("epohcs: 3\n")
    assert _train(dataset, "--config", "mine.yaml") == 1
    line = _error(capsys)
    assert "mine.yaml" in line and 'Did you mean "epochs"?' in line


def test_train_never_writes_over_a_run(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _train(dataset) == 0
    before = Path("run/last.safetensors").read_bytes()
    capsys.readouterr()
    assert _train(dataset) == 1
    assert "--resume" in _error(capsys)
    assert Path("run/last.safetensors").read_bytes() == before


def test_val_without_a_class_in_common_names_both_sides(
    tiny_model: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["val", str(tiny_model), str(dataset)]) == 1
    line = _error(capsys)
    assert "cell" in line and "class 0" in line


def test_train_from_a_checkpoint_of_another_model_is_refused(
    tiny_model: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(dataset), "--model", "solov2_r34", "--weights", str(tiny_model), "--out", "run"]
    assert main([*words, "backbone=r34", "epochs=1", "workers=0", "device=cpu"]) == 1
    assert "tiny.safetensors" in _error(capsys)


@pytest.mark.parametrize("content", [b"", b"\x80\x04junk", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_train_from_a_file_that_is_no_checkpoint_is_refused(
    content: bytes, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other.safetensors").write_bytes(content)
    assert _train(dataset, "--weights", "other.safetensors") == 1
    assert "other.safetensors" in _error(capsys)


@pytest.mark.parametrize("data", ["nowhere", "nowhere.json", "shape", "notes.txt"])
def test_a_data_set_that_is_not_there_is_named(
    data: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert main(["val", str(tiny_model), data]) == 1
    assert data in _error(capsys)
