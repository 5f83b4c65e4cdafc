"""One run at a time in a folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from instseg.core.errors import ConfigError
from instseg.core.lock import NAME, locked

HOLD = """
import sys, time
from pathlib import Path
from instseg.core.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    return process


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused_until_the_first_is_gone_even_by_sigkill(
    holder: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error, locked(tmp_path):
        pass
    assert f"process {holder.pid} " in str(error.value) and str(tmp_path) in str(error.value)
    assert "--out" in str(error.value) and "\n" not in str(error.value)
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        assert (tmp_path / NAME).exists()
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_trains_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import fcntl

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_left_to_the_first_checkpoint(tmp_path: Path) -> None:
    with locked(tmp_path / "nowhere"):
        pass


def test_a_system_without_fcntl_trains_without_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locked(tmp_path):
        assert not list(tmp_path.iterdir())
