"""Folders for results: each run its own, seen to be writable before the work, gone again where nothing was written."""

import subprocess
import sys
from pathlib import Path

import pytest

from instseg.core.errors import ConfigError
from instseg.core.folders import free_folder, results_folder


def test_the_first_folder_has_no_number_and_the_next_ones_count(tmp_path: Path) -> None:
    names = [free_folder("predict", tmp_path).name for _ in range(3)]
    assert names == ["predict", "predict2", "predict3"]
    assert all((tmp_path / name).is_dir() for name in names)


def test_an_empty_folder_may_belong_to_another_run(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val2").touch()
    (tmp_path / "val3").symlink_to("nowhere")
    assert free_folder("val", tmp_path) == tmp_path / "val4"


def test_runs_that_start_at_once_get_a_folder_each(tmp_path: Path) -> None:
    code = (
        "import sys; from instseg.core.folders import free_folder\n"
        "sys.stdin.readline(); print(*[free_folder('val', sys.argv[1]).name for _ in range(50)])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "runs")]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    names = [name for process in both for name in process.communicate()[0].split()]
    assert len(names) == len(set(names)) == 100


def test_a_folder_of_a_failed_run_is_removed_unless_it_holds_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (None, Path("a/b/c")):
        with pytest.raises(RuntimeError), results_folder(out, "val") as folder:
            assert folder.is_dir()
            raise RuntimeError
        assert not any(tmp_path.iterdir())
    with pytest.raises(RuntimeError), results_folder(None, "val") as folder:
        (folder / "metrics.json").touch()
        raise RuntimeError
    assert (tmp_path / "runs" / "val" / "metrics.json").is_file()


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), results_folder(tmp_path, "val"):
        raise RuntimeError
    assert tmp_path.is_dir() and not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    for out in (None, "runs", "runs/deeper"):
        with pytest.raises(ConfigError, match=r"runs.*choose another folder") as error, results_folder(out, "val"):
            pytest.fail("the work began")
        assert "\n" not in str(error.value)
