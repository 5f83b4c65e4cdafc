from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instseg.core.errors import DataError
from instseg.results.writers import atomic, write_json, write_label_image, write_picture
from instseg.sources.written import is_marked


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"), atomic(tmp_path / "file" / "x.png"):
        pass


def test_label_image_keeps_sixteen_bits(tmp_path: Path) -> None:
    labels = np.zeros((5, 6), np.uint16)
    labels[2, 3] = 60000
    write_label_image(tmp_path / "deep" / "labels.png", labels)
    with Image.open(tmp_path / "deep" / "labels.png") as image:
        assert np.array_equal(np.asarray(image), labels)


def test_name_as_long_as_the_file_system_takes_is_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 251}.jpg"
    write_picture(path, np.zeros((4, 5, 3), np.uint8))
    assert path.is_file()


def test_pictures_are_marked_as_written_by_instseg(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", np.zeros((4, 5, 3), np.uint8))
    write_picture(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
    write_label_image(tmp_path / "b.png", np.zeros((4, 5), np.uint16))
    Image.new("RGB", (5, 4)).save(tmp_path / "c.png")
    assert [is_marked(tmp_path / name) for name in ("a.jpg", "a.png", "b.png", "c.png")] == [True, True, True, False]


@pytest.mark.parametrize(("suffix", "form"), [(".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP")])
def test_pictures_are_written_in_the_form_of_their_suffix(tmp_path: Path, suffix: str, form: str) -> None:
    write_picture(tmp_path / f"a{suffix}", np.full((20, 30, 3), 90, np.uint8))
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.format == form and image.size == (30, 20)


def test_json_without_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"ap": float("nan")})
    assert list(tmp_path.iterdir()) == []
