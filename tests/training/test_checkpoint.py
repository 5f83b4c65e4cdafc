"""Checkpoints are whole or absent."""

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from instseg.core.errors import CheckpointError
from instseg.training.checkpoint import load_state, previous_of, replace_file, replace_with, save_state


def _state(number: int) -> dict[str, Any]:
    return {"weights": torch.full((1000,), float(number)), "number": number}


@pytest.fixture
def saved_twice(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    save_state(path, _state(1))
    save_state(path, _state(2))
    return path


def test_the_newest_state_is_read_without_unpickling_code(saved_twice: Path) -> None:
    state, notice = load_state(saved_twice)
    assert state["number"] == 2 and notice is None
    assert torch.load(saved_twice, weights_only=True)["number"] == 2
    assert [p.name for p in sorted(saved_twice.parent.iterdir())] == ["last.ckpt", "last.ckpt.prev"]


@pytest.mark.parametrize("keep", [0, 1, 100, 3000, -1])
def test_a_torn_file_is_noticed_and_the_previous_used(saved_twice: Path, keep: int) -> None:
    saved_twice.write_bytes(saved_twice.read_bytes()[:keep])
    state, notice = load_state(saved_twice)
    assert state["number"] == 1
    assert notice is not None and "torn" in notice and "last.ckpt.prev" in notice and "\n" not in notice


def test_a_flipped_byte_is_noticed_and_the_previous_used(saved_twice: Path) -> None:
    content = bytearray(saved_twice.read_bytes())
    at = content.find(torch.full((1000,), 2.0).numpy().tobytes()) + 1000
    content[at] ^= 1
    saved_twice.write_bytes(content)
    state, notice = load_state(saved_twice)
    assert state["number"] == 1 and notice is not None and "damaged" in notice


def test_a_hole_of_zeros_as_a_power_cut_leaves_it_is_noticed(saved_twice: Path) -> None:
    content = bytearray(saved_twice.read_bytes())
    at = content.find(torch.full((1000,), 2.0).numpy().tobytes())
    content[at : at + 2048] = bytes(2048)
    saved_twice.write_bytes(content)
    assert load_state(saved_twice)[0]["number"] == 1


def test_a_kill_between_the_two_moves_leaves_the_previous(saved_twice: Path) -> None:
    saved_twice.unlink()
    state, notice = load_state(saved_twice)
    assert state["number"] == 1 and notice is not None and "missing" in notice


def test_two_torn_files_are_one_clear_error(saved_twice: Path) -> None:
    for path in (saved_twice, previous_of(saved_twice)):
        path.write_bytes(b"half a")
    with pytest.raises(CheckpointError, match=r"last.ckpt is torn.*last.ckpt.prev is torn"):
        load_state(saved_twice)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="not a training state"):
        load_state(tmp_path / "last.ckpt")


def test_full_disk_leaves_the_file_before_and_says_so(saved_twice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError, match=r"No space left on device.*intact.*last\.ckpt"):
        replace_file(saved_twice, full, keep_previous=True)
    assert load_state(saved_twice)[0]["number"] == 2
    assert not list(saved_twice.parent.glob("*.tmp*"))


def test_full_disk_while_weights_are_saved_leaves_the_weights_before(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    path.write_bytes(b"before")

    def full(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError, match="No space left on device"):
        replace_with(path, full)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["best.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_a_write_that_the_system_cuts_short_is_one_line(tmp_path: Path) -> None:
    # A limit on the size of files fails the write inside torch's own writer, as a full disk does.
    script = f"""
        import resource, pathlib, torch
        from instseg.core.errors import CheckpointError
        from instseg.training.checkpoint import load_state, save_state
        path = pathlib.Path({str(tmp_path / "last.ckpt")!r})
        save_state(path, {{"number": 1}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save_state(path, {{"number": 2, "weights": torch.zeros(1_000_000)}})
        except CheckpointError as error:
            print(error)
        print(load_state(path)[0]["number"], sorted(p.name for p in path.parent.iterdir()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    message, rest = done.stdout.splitlines()
    assert "File too large" in message and "intact" in message
    assert rest == "1 ['last.ckpt']", done.stderr
