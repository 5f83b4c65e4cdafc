"""`instseg predict` as a process of its own that is stopped or killed, or whose disk is full."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

IMAGES = 60


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(IMAGES):
        noise = random.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{number:02d}.png")
    return tmp_path / "photos"


def start(model: Path, photos: Path, *options: str, **process: Any) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "instseg", "predict", str(model), str(photos), "--score", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, cwd=photos.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **process
    )


def names(folder: Path) -> list[str]:
    return [image["file_name"] for image in json.loads((folder / "predictions.json").read_text())["images"]]


def reach(process: "subprocess.Popen[str]", folder: Path, count: int) -> None:
    """Waits until so many images are in predictions.json, which can be read at every moment."""
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if (folder / "predictions.json").exists() and len(names(folder)) >= count:
            return
        time.sleep(0.005)
    raise AssertionError(process.communicate())


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def whole(tiny_model: Path, photos: Path) -> dict[str, bytes]:
    """The files of a run that nothing interrupts."""
    process = start(tiny_model, photos, "--out", "whole")
    assert process.wait(300) == 0
    return everything(photos.parent / "whole")


Stop = Callable[["subprocess.Popen[str]"], None]
STOPS: dict[str, Stop] = {
    "SIGINT": lambda process: process.send_signal(signal.SIGINT),
    "SIGTERM": lambda process: process.send_signal(signal.SIGTERM),
    "SIGTERM to the group": lambda process: os.killpg(process.pid, signal.SIGTERM),
    "SIGINT to the group, twice": lambda process: [os.killpg(process.pid, signal.SIGINT) for _ in range(2)] and None,
}


@pytest.mark.slow
@pytest.mark.parametrize("stop", STOPS)
def test_stopped_run_says_how_far_it_came_and_resumes(
    tiny_model: Path, photos: Path, whole: dict[str, bytes], stop: str
) -> None:
    out = photos.parent / "out"
    process = start(tiny_model, photos, "--out", "out", start_new_session=True)
    reach(process, out, 10)
    STOPS[stop](process)
    _, errors = process.communicate(timeout=60)
    done = len(names(out))
    assert process.returncode == 130 and 10 <= done < IMAGES
    assert errors.splitlines()[-1] == f"interrupted, {done} of {IMAGES} images in out; continue with --resume"
    assert "Traceback" not in errors
    again = start(tiny_model, photos, "--out", "out", "--resume")
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and f"objects in {IMAGES} images" in output
    assert everything(out) == whole


@pytest.mark.slow
def test_killed_run_keeps_what_it_wrote_and_resumes_however_often(
    tiny_model: Path, photos: Path, whole: dict[str, bytes]
) -> None:
    out = photos.parent / "out"
    for reached in (5, 12, 30, 31):
        process = start(tiny_model, photos, "--out", "out", "--resume", start_new_session=True)
        reach(process, out, reached)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert len(names(out)) >= reached
    refused = start(tiny_model, photos, "--out", "out")
    assert refused.wait(60) == 1 and "continue it with --resume" in refused.communicate()[1]
    assert start(tiny_model, photos, "--out", "out", "--resume").wait(300) == 0
    assert everything(out) == whole


@pytest.mark.slow
def test_disk_that_fills_up_is_one_line_and_loses_nothing(
    tiny_model: Path, photos: Path, whole: dict[str, bytes]
) -> None:
    out = photos.parent / "out"
    limit = len(whole["predictions.json"]) // 2

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(tiny_model, photos, "--out", "out", preexec_fn=small_files)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1 and f"of {IMAGES} images in out; continue with --resume" in errors
    assert 0 < len(names(out)) < IMAGES
    assert start(tiny_model, photos, "--out", "out", "--resume").wait(300) == 0
    assert everything(out) == whole


@pytest.mark.slow
def test_runs_started_at_once_do_not_share_a_folder(tiny_model: Path, photos: Path) -> None:
    runs = [start(tiny_model, photos / f"0{number}.png") for number in range(3)]
    assert [process.wait(300) for process in runs] == [0, 0, 0]
    found = {name for folder in (photos / "runs").iterdir() for name in names(folder)}
    assert found == {"00.png", "01.png", "02.png"}
