"""`instseg data check`: every defect named, and a status that scripts can use."""

from pathlib import Path

import pytest

from instseg.cli import main


def test_a_clean_data_set_is_counted_and_status_is_0(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(dataset)]) == 0
    out = capsys.readouterr().out
    assert "2 images" in out and "2 objects" in out and "cell" in out


def test_statistics_and_pictures_are_written_when_asked_for(dataset: Path, tmp_path: Path) -> None:
    assert main(["data", "check", str(dataset), "--out", str(tmp_path / "report")]) == 0
    suffixes = {path.suffix for path in (tmp_path / "report").iterdir()}
    assert ".json" in suffixes
    assert suffixes & {".png", ".jpg"}


@pytest.mark.parametrize("name", ["nuclei-mini"])
def test_the_bundled_data_set_has_no_defect(name: str) -> None:
    assert main(["data", "check", name]) == 0


def test_a_defect_is_a_line_with_file_and_record_and_status_is_1(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(damaged)]) == 1
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    assert len(found) == 1
    assert "train.json" in found[0]
    assert "annotation 1" in found[0]


def test_an_odd_record_is_a_line_and_status_is_0(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(odd)]) == 0
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert len(found) == 1
    assert "train.json" in found[0]
    assert "annotation 1" in found[0]


def test_a_missing_and_a_truncated_image_are_both_named(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "images" / "1.png").unlink()
    whole = (dataset / "images" / "2.png").read_bytes()
    (dataset / "images" / "2.png").write_bytes(whole[: len(whole) // 2])
    assert main(["data", "check", str(dataset)]) == 1
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    assert any("1.png" in line for line in errors)
    assert any("2.png" in line for line in errors)


@pytest.mark.parametrize("content", ["[1, 2]", "no json", '{"images": 3}'])
def test_a_file_that_is_not_coco_is_named(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    assert main(["data", "check", str(path)]) == 1
    assert "file.json" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in "".join(capsys.readouterr())
