"""Published checkpoints are fetched once, here from a server on this machine that does what servers do."""

import hashlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import instseg
from instseg.cli import main
from instseg.core.errors import CheckpointError
from instseg.weights import catalogue, download
from instseg.weights.catalogue import CATALOGUE, obtain, place_of

from .published_files import foreign

Handler = BaseHTTPRequestHandler
Answer = Callable[[Handler, bytes], None]


class Server:
    """Answers every request as ``answers`` say, one after the other, the last one ever after."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.answers: list[Answer] = [whole]
        self.asked: list[str | None] = []  # the Range of each request
        outer = self

        class Serve(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.headers.get("Range"))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                answer(self, outer.content)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Serve)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are meant to
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"


def head(handler: Handler, length: int | None, status: int = 200, **fields: str) -> None:
    handler.send_response(status)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    for name, value in fields.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def whole(handler: Handler, content: bytes) -> None:
    head(handler, len(content))
    handler.wfile.write(content)


def cut(handler: Handler, content: bytes) -> None:
    head(handler, len(content))
    handler.wfile.write(content[: len(content) // 2])


def ranged(handler: Handler, content: bytes) -> None:
    asked = handler.headers.get("Range")
    start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
    status = 206 if asked else 200
    head(handler, len(content) - start, status, Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}")
    handler.wfile.write(content[start : start + len(content) // 3])


def without_length(handler: Handler, content: bytes) -> None:
    head(handler, None)
    handler.wfile.write(content)


def cut_without_length(handler: Handler, content: bytes) -> None:
    head(handler, None)
    handler.wfile.write(content[: len(content) // 2])


def page(handler: Handler, content: bytes) -> None:
    text = b"<!doctype html><title>Log in</title>"
    head(handler, len(text), Content_Type="text/html; charset=utf-8")
    handler.wfile.write(text)


def page_as_a_file(handler: Handler, content: bytes) -> None:
    text = b"\n<html>Log in</html>"
    head(handler, len(text), Content_Type="application/octet-stream")
    handler.wfile.write(text)


def other(handler: Handler, content: bytes) -> None:
    whole(handler, content[:-1] + b"!")


def forbidden(handler: Handler, content: bytes) -> None:
    head(handler, 0, 403)


def slow(handler: Handler, content: bytes) -> None:
    head(handler, len(content))
    for i in range(0, len(content), len(content) // 8 + 1):
        handler.wfile.write(content[i : i + len(content) // 8 + 1])
        handler.wfile.flush()
        time.sleep(0.08)


def stalled(handler: Handler, content: bytes) -> None:
    head(handler, len(content))
    handler.wfile.write(content[:1000])
    handler.wfile.flush()
    time.sleep(3)


@pytest.fixture(scope="module")
def content() -> bytes:
    """A file with the names and shapes of a published SOLOv2; its tensors are single numbers, so that it is small."""
    file = io.BytesIO()
    torch.save({"state_dict": foreign("solov2_light_448_r18", "mmdetection")}, file)
    return file.getvalue()


@pytest.fixture
def server(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves ``coco``, here a small model, whose digest is that of ``content``."""
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(content).hexdigest()[:8]
    served = Server(content)
    entry = CATALOGUE["solov2_light_448_r18_3x_mmdet"]
    entry = replace(entry, url=f"{served.address}/models/{entry.file}", sha256=digest)
    monkeypatch.setitem(CATALOGUE, "coco", entry)
    monkeypatch.setattr(download, "SECONDS", 0.5)
    yield served
    served.http.shutdown()
    served.http.server_close()


def place() -> Path:
    return place_of(CATALOGUE["coco"])


def left_over() -> list[str]:
    """What lies in the cache beside the file."""
    return [p.name for p in place().parent.iterdir() if p != place() and p.suffix != ".lock"]


def refusal() -> str:
    with pytest.raises(CheckpointError) as error:
        obtain("coco")
    line = str(error.value)
    assert "\n" not in line and not place().exists()
    return line


def test_coco_is_the_permissive_solov2_on_r50_and_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    entry = CATALOGUE["coco"]
    assert (entry.model, entry.code, entry.license) == ("solov2_r50", "mmdetection", "Apache-2.0")
    assert entry.sha256 == "fed092d4" and entry.file.endswith("-fed092d4.pth")
    assert main(["models"]) == 0
    assert "coco" in capsys.readouterr().out
    assert main(["models", "coco"]) == 0
    out = capsys.readouterr().out
    assert "Apache-2.0" in out and entry.url in out and "solov2_r50" in out


def test_it_is_fetched_once_with_its_size_said_before(
    server: Server, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert obtain("coco") == place() and place().read_bytes() == content
    said = capsys.readouterr().err
    assert "coco: downloading" in said and f"{len(content) / 1e6:.2g} MB" in said and str(place()) in said
    obtain("coco")
    assert server.asked == [None] and not left_over()
    assert capsys.readouterr().err == ""


def test_predict_val_and_python_take_the_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco").mkdir()  # a data set of that name does not stand in the way
    Image.new("RGB", (96, 64), (90, 120, 60)).save("photo.jpg")
    sizes = ["input_short=64", "input_long=96"]
    assert main(["predict", "coco", "photo.jpg", "--out", "found", *sizes]) == 0
    assert "objects in 1 images" in capsys.readouterr().out
    assert Path("found/predictions.json").is_file() and len(server.asked) == 1
    model = instseg.load("coco")
    assert model.has_weights and model.categories[0] == "person" and model.category_ids[-1] == 90
    assert instseg.create_model("solov2_light_448_r18", weights="coco").categories[2] == "car"
    assert main(["val", "coco", "nuclei-mini", *sizes]) == 1  # no class in common, and nothing is left behind
    assert "no class in common" in capsys.readouterr().err and not Path("runs").exists()


def test_a_cut_connection_is_resumed_where_the_server_can(server: Server, content: bytes) -> None:
    server.answers = [ranged]
    assert obtain("coco").read_bytes() == content
    third = len(content) // 3
    assert server.asked[:3] == [None, f"bytes={third}-", f"bytes={2 * third}-"]


def test_a_cut_connection_is_begun_again_where_the_server_cannot(server: Server, content: bytes) -> None:
    server.answers = [cut, whole]
    assert obtain("coco").read_bytes() == content and not left_over()


def test_a_file_that_is_always_cut_off_never_gets_the_name_and_the_next_run_resumes(
    server: Server, content: bytes
) -> None:
    server.answers = [cut]
    assert "the connection was cut after" in refusal()
    assert left_over() == [f".{place().name}.part"]
    server.answers, server.asked = [ranged], []
    assert obtain("coco").read_bytes() == content
    assert server.asked[0] == f"bytes={len(content) // 2}-" and not left_over()


def test_an_interrupted_download_resumes(server: Server, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = download._write, []

    def interrupted(file: Any, block: bytes) -> None:
        written.append(len(block))
        if sum(written) > len(content) // 2:
            raise KeyboardInterrupt
        write(file, block)

    server.answers = [slow]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "_write", interrupted)
        obtain("coco")
    assert not place().exists()
    server.answers, server.asked = [whole_or_nothing], []
    assert obtain("coco").read_bytes() == content
    assert server.asked == [f"bytes={sum(written[:-1])}-"]


def test_a_kept_beginning_of_another_file_is_thrown_away(server: Server, content: bytes) -> None:
    place().parent.mkdir(parents=True)
    for beginning in (b"something else", content + b"and more"):
        place().with_name(f".{place().name}.part").write_bytes(beginning)
        server.answers = [whole_or_nothing]
        assert obtain("coco").read_bytes() == content
        place().unlink()


def unavailable(handler: Handler, content: bytes) -> None:
    head(handler, 0, 503)


def too_many(handler: Handler, content: bytes) -> None:
    head(handler, 0, 429)


@pytest.mark.parametrize("fault", [unavailable, too_many, forbidden, page, page_as_a_file])
@pytest.mark.parametrize("first", [True, False], ids=["next run", "same run"])
def test_a_fault_of_the_moment_does_not_cost_what_has_come(
    server: Server, content: bytes, fault: Answer, first: bool
) -> None:
    server.answers = [cut, fault]
    refusal()
    if first:
        server.answers = [fault]
        refusal()
    assert left_over() == [f".{place().name}.part"]
    server.answers, server.asked = [whole_or_nothing], []
    assert obtain("coco").read_bytes() == content and not left_over()
    assert server.asked == [f"bytes={len(content) // 2}-"]


def test_a_full_disk_does_not_cost_what_has_come(
    server: Server, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [cut]
    refusal()

    def full(file: Any, block: bytes) -> None:
        raise download.FetchError("the disk is full")

    for answer in (whole_or_nothing, whole):
        server.answers = [answer]
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
            assert "has room for 10 bytes" in refusal()
    server.answers = [whole_or_nothing]
    with monkeypatch.context() as patch:
        patch.setattr(download, "_write", full)
        assert "the disk is full" in refusal()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert "No space left on device" in refusal()
    server.asked = []
    assert obtain("coco").read_bytes() == content and not left_over()
    assert server.asked == []  # all of it had come before the disk refused


def whole_or_nothing(handler: Handler, content: bytes) -> None:
    asked = handler.headers.get("Range")
    start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
    if start >= len(content):
        head(handler, 0, 416)
    else:
        head(handler, len(content) - start, 206 if asked else 200)
        handler.wfile.write(content[start:])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (other, "is not the published file: sha256 begins with"),
        (cut_without_length, "is not the published file"),
        (page, "a web page came in its place"),
        (page_as_a_file, "a web page came in its place"),
        (forbidden, "the server answered 403 Forbidden"),
        (stalled, "the server was silent for 0.5 seconds"),
    ],
)
def test_what_is_not_the_file_is_one_line_that_says_how_to_have_it(server: Server, answer: Answer, reason: str) -> None:
    server.answers = [answer]
    line = refusal()
    entry = CATALOGUE["coco"]
    assert reason in line
    assert entry.url in line and str(place()) in line  # what to fetch, and where to put it
    assert "nuclei" in line and "training" in line  # what works without
    assert answer is stalled or not left_over()


def test_without_a_network_it_is_one_line_and_exit_status_1(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").touch()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setitem(CATALOGUE, "coco", replace(CATALOGUE["coco"], url=f"http://127.0.0.1:{port}/f.pth"))
    assert main(["predict", "coco", "photo.jpg"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: weights coco cannot be downloaded (Connection refused)") and len(err.split("\n")) == 2
    assert not Path("runs").exists()


@pytest.mark.parametrize("answer", [without_length, slow])
def test_a_slow_server_and_one_that_states_no_size_are_waited_for(
    server: Server, content: bytes, answer: Answer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "REPORT_SECONDS", 0.1)
    server.answers = [answer]
    assert obtain("coco").read_bytes() == content
    lines = capsys.readouterr().err.splitlines()
    if answer is slow:  # longer in all than a silence may be, and said how far it is
        assert any(" MB of " in line for line in lines[1:])
    else:
        assert "size the server does not state" in lines[0]


def test_a_file_put_there_by_hand_is_taken_and_a_wrong_or_cut_off_one_is_not(server: Server, content: bytes) -> None:
    place().parent.mkdir(parents=True)
    place().write_bytes(content)
    assert obtain("coco") == place() and not server.asked
    place().write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"is not the published file.*delete it, and it is downloaded again"):
        obtain("coco")


def test_a_file_without_a_published_digest_is_read_before_it_gets_its_name(
    server: Server, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOGUE, "coco", replace(CATALOGUE["coco"], sha256=None))
    server.answers = [cut_without_length]
    with pytest.raises(CheckpointError, match="truncated"):
        obtain("coco")
    assert not place().exists() and not left_over()
    server.answers = [without_length]
    assert obtain("coco").read_bytes() == content


def test_a_full_disk_and_a_cache_that_cannot_be_written_are_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
        assert "has room for 10 bytes" in refusal()
    (tmp_path / "file").touch()
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CheckpointError, match=r"cannot be written.*INSTSEG_CACHE"):
        obtain("coco")
    assert len(server.asked) == 1


def test_a_cache_that_cannot_be_written_is_enough_where_it_holds_the_file(
    server: Server, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    place().parent.mkdir(parents=True)
    place().write_bytes(content)
    monkeypatch.setattr("pathlib.Path.touch", lambda *_: pytest.fail("written"))
    monkeypatch.setattr("pathlib.Path.mkdir", lambda *_, **__: pytest.fail("written"))
    assert instseg.load("coco").has_weights


def test_a_mirror_stands_in_for_all_addresses(
    server: Server, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(CATALOGUE["coco"], url="http://example.invalid/f.pth")
    monkeypatch.setitem(CATALOGUE, "coco", entry)
    monkeypatch.setenv("INSTSEG_MIRROR", f"{server.address}/copy/")
    assert catalogue.address_of(entry) == f"{server.address}/copy/mmdetection/f.pth"
    assert obtain("coco").read_bytes() == content


def test_two_that_want_it_at_once_fetch_it_once(
    server: Server, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = [slow]
    found: list[Path] = []
    both = [threading.Thread(target=lambda: found.append(obtain("coco"))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert found == [place()] * 2 and place().read_bytes() == content and len(server.asked) == 1
    assert "another process is downloading it; waiting" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_fetch_it_once(server: Server, content: bytes, tmp_path: Path) -> None:
    server.answers = [slow]
    code = (
        "import sys; from dataclasses import replace; from instseg.weights import catalogue\n"
        "catalogue.CATALOGUE['coco'] = replace(catalogue.CATALOGUE['coco'], sha256=sys.argv[1])\n"
        "sys.stdin.readline(); print(len(catalogue.obtain('coco').read_bytes()))"
    )
    entry = CATALOGUE["solov2_r50_3x_mmdet"]
    digest = hashlib.sha256(content).hexdigest()[:8]
    environment = {**os.environ, "INSTSEG_MIRROR": server.address}
    # The check that the file is of the model is not this test's: it is told that any tensors will do.
    code = code.replace("sys.stdin", "catalogue.open_published = lambda *_: None\nsys.stdin")
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, digest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60) for process in both]
    assert [out.strip() for out, _ in told] == [str(len(content))] * 2, told
    assert len(server.asked) == 1 and place_of(entry).is_file()
    assert sum("coco: downloading" in err for _, err in told) == 1
