"""A file is whole or absent, whatever ends its writing."""

import errno

import pytest

from instseg.core.files import atomic, previous_of, reason_of, whole_or_absent


def test_a_file_takes_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "deep" / "a.json"
    with atomic(path, "w") as file:
        file.write("é")
        assert not path.exists()
    assert path.read_text("utf-8") == "é" and [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_whatever_ends_the_writing_the_file_before_stays_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with pytest.raises(type(error)), atomic(path, keep_previous=True) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_previous_file_is_kept_where_asked(tmp_path):
    path = tmp_path / "a"
    for content in (b"1", b"2", b"3"):
        with whole_or_absent(path, keep_previous=True) as part:
            part.write_bytes(content)
    assert (path.read_bytes(), previous_of(path).read_bytes()) == (b"3", b"2")


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    path = tmp_path / "a"
    for _ in range(2):
        with whole_or_absent(path, alone=True) as part:
            part.write_bytes(b"x")
    part.write_bytes(b"left by a kill")
    with whole_or_absent(path, alone=True) as part:
        part.write_bytes(b"y")
    assert path.read_bytes() == b"y" and list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_mode_of_any_other(tmp_path):
    (tmp_path / "other").touch()
    with atomic(tmp_path / "a"):
        pass
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_reason_is_the_systems_own_also_where_a_library_wraps_it():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("enforce fail at inline_container.cc:815") from None
    except RuntimeError as error:
        assert reason_of(error) == "No space left on device"
    assert reason_of(RuntimeError("a\nb")) == "a b"
