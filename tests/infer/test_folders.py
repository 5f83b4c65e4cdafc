"""Folders for results when none is named."""

from pathlib import Path

from instseg.infer.folders import free_folder


def test_the_first_folder_has_no_number_and_the_next_ones_count(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        folder = free_folder("predict", tmp_path)
        names.append(folder.name)
        folder.mkdir()
        (folder / "file").touch()
    assert names == ["predict", "predict2", "predict3"]


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    assert free_folder("val", tmp_path) == tmp_path / "val"


def test_nothing_is_made(tmp_path: Path) -> None:
    assert not free_folder("val", tmp_path / "runs").exists()
    assert not (tmp_path / "runs").exists()
