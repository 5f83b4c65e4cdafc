"""The picture of a record is found by its path, however it is written, and never taken from where another lies."""

import unicodedata
from pathlib import Path

import pytest

from instseg.data.formats.files import ImageFinder

NAME = "Größe 1.png"


def touch(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def find(root: Path, *names: str, folders: tuple[str, ...] = ("images", ".")) -> list[str | None]:
    finder = ImageFinder(root, root, [root / folder for folder in folders])
    found = [result.path for result in finder.find_all(names)]
    return [None if path is None else path.relative_to(root).as_posix() for path in found]


@pytest.mark.parametrize(
    "written",
    [
        "images/a b.png",
        "a b.png",
        "./images/a b.png",
        "images\\a b.png",
        "C:\\Users\\me\\set\\images\\a b.png",
        "C:/elsewhere/a b.png",
        "/Volumes/me/set/images/a b.png",
        "/data/upload/1/a b.png",
        "../../label-studio/data/media/upload/1/a b.png",
        "images/a%20b.png",
        "http://host.org/set/images/a%20b.png",
        "https://host.org/a%20b.png?token=1",
        "s3://bucket/key/a%20b.png",
        "IMAGES/A B.PNG",
        "A b.Png",
    ],
)
def test_a_path_of_another_system_finds_the_one_file_that_fits(tmp_path: Path, written: str) -> None:
    touch(tmp_path, "images/a b.png", "images/c.png")
    assert find(tmp_path, written) == ["images/a b.png"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_the_unicode_form_does_not_matter(tmp_path: Path, form: str, on_disk: str) -> None:
    touch(tmp_path, f"images/{unicodedata.normalize(on_disk, NAME)}")
    assert find(tmp_path, unicodedata.normalize(form, NAME)) == [f"images/{unicodedata.normalize(on_disk, NAME)}"]


def test_a_percent_sign_in_a_name_is_tried_as_it_is_first(tmp_path: Path) -> None:
    touch(tmp_path, "images/50%25.png", "images/50%.png")
    assert find(tmp_path, "50%25.png", "50%.png") == ["images/50%25.png", "images/50%.png"]


def test_of_several_files_that_fit_none_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.png", "y/a.png")
    finder = ImageFinder(tmp_path, tmp_path, [tmp_path])
    (found,) = finder.find_all(["a.png"])
    assert found.path is None
    assert "2 files fit" in found.reason


def test_case_decides_where_both_exist(tmp_path: Path) -> None:
    touch(tmp_path, "deep/down/A.png", "deep/down/a.png")
    assert find(tmp_path, "a.png", "A.png") == ["deep/down/a.png", "deep/down/A.png"]


def test_a_file_missing_in_a_folder_that_is_there_is_not_taken_from_another(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.png", "val/b.png")
    assert find(tmp_path, "train/a.png", "train/b.png", folders=(".",)) == ["train/a.png", None]
    assert find(tmp_path, "/somewhere/train/b.png", folders=(".",)) == [None]


def test_a_plain_name_missing_beside_the_others_is_not_taken_from_another_split(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/1.png", "images/val/1.png", "images/val/2.png")
    assert find(tmp_path, "1.png", "2.png", folders=("images/train",)) == ["images/train/1.png", None]


def test_a_folder_that_was_not_copied_is_missing_where_its_siblings_are_here(tmp_path: Path) -> None:
    touch(tmp_path, "siteB/1.png", "siteB/2.png")
    names = ("siteA/1.png", "siteB/1.png", "siteB/2.png", "/elsewhere/cam/1.png")
    assert find(tmp_path, *names, folders=(".",)) == [None, "siteB/1.png", "siteB/2.png", None]


def test_two_records_never_get_one_file_by_search(tmp_path: Path) -> None:
    touch(tmp_path, "pictures/1.png")
    assert find(tmp_path, "/a/cam3/1.png", "/b/cam4/1.png", folders=(".",)) == ["pictures/1.png", None]


def test_pictures_of_another_split_are_not_taken(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/1.png", "train2017/2.png")
    finder = ImageFinder(tmp_path, tmp_path, [tmp_path / "images", tmp_path], others=("train", "training"))
    assert [found.path for found in finder.find_all(["1.png", "valid/2.png"])] == [None, None]
    assert finder.find_all(["train2017/2.png"])[0].path == tmp_path / "train2017" / "2.png"


def test_a_plain_name_is_not_taken_from_below_where_the_others_lie(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.png", "images/thumbs/1.png", "images/thumbs/2.png", "2.png")
    assert find(tmp_path, "1.png", "2.png") == ["images/1.png", None]


def test_the_data_sets_own_folder_is_a_folder_that_is_here(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.png", "train/backup/2.png")
    root = tmp_path / "train"
    found = ImageFinder(root, root, [root]).find_all(["train/1.png", "train/2.png"])
    assert [result.path for result in found] == [root / "1.png", None]


def test_a_file_behind_two_links_is_one(tmp_path: Path) -> None:
    touch(tmp_path, "pics/a.PNG")
    (tmp_path / "current").symlink_to(tmp_path / "pics")
    (tmp_path / "self").symlink_to(tmp_path)
    assert len([path for path in find(tmp_path, "a.png", folders=(".",)) if path]) == 1


def test_plain_names_are_found_in_folders_of_folders(tmp_path: Path) -> None:
    touch(tmp_path, "images/cats/1.png", "images/dogs/2.png")
    assert find(tmp_path, "1.png", "2.png") == ["images/cats/1.png", "images/dogs/2.png"]


def test_the_folder_that_holds_most_comes_first(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.png", *(f"JPEGImages/{n}.png" for n in range(1, 6)))
    names = [f"{n}.png" for n in range(1, 6)]
    assert find(tmp_path, *names, folders=("images", "JPEGImages")) == [f"JPEGImages/{name}" for name in names]


def test_an_absolute_path_that_exists_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.png", "set/images/a.png")
    root = tmp_path / "set"
    (found,) = ImageFinder(root, root, [root / "images"]).find_all([str(tmp_path / "elsewhere" / "a.png")])
    assert found.path == tmp_path / "elsewhere" / "a.png"


def test_a_path_that_leads_out_says_where_to(tmp_path: Path) -> None:
    (found,) = ImageFinder(tmp_path, tmp_path, [tmp_path]).find_all(["../media/upload/1/a.png"])
    assert found.path is None
    assert f"its path leads to {tmp_path.parent / 'media' / 'upload' / '1'}, which is not there" in found.reason


def test_a_link_in_a_circle_ends(tmp_path: Path) -> None:
    touch(tmp_path, "deep/down/a.png")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    finder = ImageFinder(tmp_path, tmp_path, [tmp_path])
    assert finder.find_all(["missing.png"])[0].path is None
