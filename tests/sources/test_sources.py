from __future__ import annotations

import io
import sys
import threading
import unicodedata
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from instseg.core.errors import DataError
from instseg.data.images.read import ImageRule
from instseg.sources.sources import as_tensor, expand


def write(path: Path, color: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def names(*sources: Any) -> list[str]:
    return [source.name for source in expand(list(sources))]


def test_file_folder_and_glob_name_their_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "deep/c.tif", ".hidden/d.png", "._a.jpg"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert names(tmp_path / "b.png") == ["b.png"]
    assert names(tmp_path) == ["a.jpg", "b.png", "deep/c.tif"]
    assert names(str(tmp_path / "*.png")) == ["b.png"]
    assert names(str(tmp_path / "**" / "*.tif")) == ["deep/c.tif"]
    source = expand(tmp_path / "b.png")[0]
    assert source.path == tmp_path / "b.png" and source.load().shape == (3, 6, 8)


def test_file_named_twice_is_taken_once(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    assert names(tmp_path / "a.png", tmp_path, str(tmp_path / "*.png")) == ["a.png"]


def test_same_names_in_different_folders_stay_apart(tmp_path: Path) -> None:
    for folder in ("one/left", "two/left", "three"):
        write(tmp_path / folder / "a.png")
    found = expand([tmp_path / "one/left", tmp_path / "two/left", tmp_path / "three/a.png"])
    assert [source.name for source in found] == ["one/left/a.png", "two/left/a.png", "three/a.png"]


def test_output_names_differ_when_only_the_suffix_or_the_case_does(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "B.png", "b.png"):
        write(tmp_path / name)
    found = expand(tmp_path)
    stems = [source.stem.casefold() for source in found]
    assert len(set(stems)) == len(stems) == 4
    assert {"a_png", "a_jpg"} <= set(stems)


def test_images_in_memory_get_numbers_and_keep_their_order() -> None:
    pictures = [np.zeros((4, 5, 3), np.uint8), torch.zeros(3, 4, 5), Image.new("L", (5, 4))]
    found = expand(pictures)
    assert [source.name for source in found] == ["image-1", "image-2", "image-3"]
    assert all(source.load().shape == (3, 4, 5) and source.path is None for source in found)


@pytest.mark.parametrize("what", ["missing.png", "none/*.png"])
def test_what_is_not_there_is_one_line(tmp_path: Path, what: str) -> None:
    with pytest.raises(DataError) as caught:
        expand(str(tmp_path / what))
    assert str(tmp_path / what) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["", " ", "\t", "a\0b", "x" * 5000])
def test_path_that_cannot_be_is_one_line_and_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    write(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for sources in (what, [what], ["a.png", what]):
        with pytest.raises(DataError):
            expand(sources)
    assert names(".") == ["a.png"]


def test_user_that_is_not_known_is_a_missing_file() -> None:
    with pytest.raises(DataError, match="no such image"):
        expand("~nobody-of-this-name/a.png")


def test_names_that_differ_in_unicode_form_do_not_share_output_files(tmp_path: Path) -> None:
    for folder, name in (("one", "z\u00fcrich.png"), ("two", "zu\u0308rich.png")):
        write(tmp_path / folder / name)
    stems = [source.stem for source in expand([tmp_path / "one", tmp_path / "two"])]
    assert len({unicodedata.normalize("NFC", stem) for stem in stems}) == 2


def test_long_names_leave_room_for_what_output_files_add(tmp_path: Path) -> None:
    for suffix in (".png", ".bmp"):
        write(tmp_path / f"{'x' * 251}{suffix}")
    stems = [source.stem for source in expand(tmp_path)]
    assert len(set(stems)) == 2 and all(len(stem.encode()) < 240 for stem in stems)


def test_links_to_folders_that_hold_them_end(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "again").symlink_to(tmp_path)
    assert names(tmp_path) == ["a.png"]


def test_image_is_read_by_the_rule_it_is_given(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png", exif=exif)
    source = expand(tmp_path / "a.png", ImageRule(exif=False))[0]
    assert source.load().shape == (3, 6, 8) and source.load(ImageRule()).shape == (3, 8, 6)


def test_folder_without_images_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image in this folder"):
        expand(tmp_path)


def test_broken_image_fails_only_when_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    write(tmp_path / "b.png")
    bad, good = expand(tmp_path)
    with pytest.raises(DataError, match=r"a\.png"):
        bad.load()
    assert good.load().shape == (3, 6, 8)


def test_arrays_of_every_common_kind_become_uint8_rgb() -> None:
    gray = np.full((4, 5), 128, np.uint8)
    assert as_tensor(gray)[:, 0, 0].tolist() == [128, 128, 128]
    rgb = np.zeros((4, 5, 3), np.uint8)
    rgb[..., 0] = 200
    assert as_tensor(rgb)[:, 0, 0].tolist() == [200, 0, 0]
    assert as_tensor(rgb[..., ::-1])[:, 0, 0].tolist() == [0, 0, 200]
    assert as_tensor(rgb.astype(np.float32) / 255)[0, 0, 0] == 200
    assert as_tensor(np.full((4, 5), 65535, np.uint16))[0, 0, 0] == 255
    transparent = np.zeros((4, 5, 4), np.uint8)
    assert as_tensor(transparent)[:, 0, 0].tolist() == [255, 255, 255]  # laid over white
    assert as_tensor(gray).dtype == torch.uint8


def test_tensors_and_pil_images_become_uint8_rgb() -> None:
    assert as_tensor(torch.full((3, 4, 5), 0.5))[0, 0, 0] == 128
    assert as_tensor(torch.full((1, 4, 5), 7, dtype=torch.uint8)).shape == (3, 4, 5)
    assert as_tensor(Image.new("CMYK", (5, 4))).shape == (3, 4, 5)
    turned = Image.new("RGB", (8, 6))
    turned.getexif()[0x0112] = 6
    assert as_tensor(turned).shape == (3, 8, 6)


@pytest.mark.parametrize(
    ("image", "hint"),
    [
        (np.zeros((3, 40, 50), np.uint8), "transposed"),
        (np.full((4, 5, 3), 200.0), "scale it"),
        (np.full((4, 5, 3), np.nan), "scale it"),
        (torch.full((3, 4, 5), 200.0), "scale it"),
        (torch.zeros(2, 3, 4, 5), "one image a tensor"),
        (torch.zeros(3, 4, 5, dtype=torch.complex64), "uint8"),
        (np.zeros((0, 5, 3), np.uint8), "shape"),
        (np.array(["x"], dtype=object).reshape(1, 1, 1), "object"),
        ({"image": 1}, "dict is not an image"),
    ],
)
def test_what_is_no_image_is_one_line_with_a_hint(image: Any, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        as_tensor(image)
    assert hint in str(caught.value) and "\n" not in str(caught.value)


def test_image_comes_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = write(tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    source = expand("-")[0]
    assert source.name == "stdin" and source.load().shape == (3, 6, 8)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    with pytest.raises(DataError, match="standard input"):
        source.load()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_image_comes_from_an_address(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    write(tmp_path / "street view.png")
    (tmp_path / "page.html").write_text("<p>")
    source = expand(f"{address}/street%20view.png?size=3")[0]
    assert source.name == "street view.png" and source.load().shape == (3, 6, 8)
    for what in ("missing.png", "page.html"):
        with pytest.raises(DataError) as caught:
            expand(f"{address}/{what}")[0].load()
        assert f"{address}/{what}" in str(caught.value) and "\n" not in str(caught.value)
