"""The check finds and names every defect, with file and record."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from instseg.core.errors import DataError
from instseg.data.open import open_dataset
from instseg.inspect.check import KINDS, Report, check_dataset

Change = Callable[[Any], object]


def image_entry(folder: Any, **fields: Any) -> None:
    folder.content["images"].append({"id": 3, "file_name": "3.png", "width": 40, "height": 30, **fields})


def torn(folder: Any) -> None:
    path = folder.path / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:500])


def garbled(folder: Any) -> None:
    """Pixels destroyed, header and end in place."""
    path = folder.path / "images" / "2.png"
    data = bytearray(path.read_bytes())
    data[200:1200] = bytes(1000)
    path.write_bytes(data)


def other_size(folder: Any) -> None:
    folder.content["images"][1].update(width=41)


ERRORS: list[tuple[str, str, Change]] = [
    ("missing_image", 'image 3 ("3.png")', image_entry),
    ("broken_image", 'image 2 ("2.png")', torn),
    ("broken_image", 'image 2 ("2.png")', garbled),
    ("image_size", 'image 2 ("2.png")', other_size),
    ("duplicate_image_id", 'image 1 ("3.png")', lambda f: image_entry(f, id=1)),
    ("bad_record", "image number 3", lambda f: image_entry(f, id=None)),
    ("bad_record", "image number 3", lambda f: image_entry(f, file_name=None)),
    ("bad_record", "annotation number 3", lambda f: f.annotate(image_id=None)),
    ("unknown_image", "annotation 3 of image 77", lambda f: f.annotate(image_id=77)),
    ("unknown_category", "annotation 3 of image 1", lambda f: f.annotate(category_id=5)),
    ("unknown_category", "annotation 3 of image 1", lambda f: f.annotate(category_id=True)),
    ("duplicate_category", "category 1", lambda f: f.content["categories"].append({"id": 1, "name": "b"})),
    ("rle_size", "annotation 3 of image 1", lambda f: f.annotate(segmentation={"size": [40, 30], "counts": [1200]})),
]
LEFT_OUT: list[tuple[str, str, Change]] = [
    ("no_mask", "annotation 3 of image 1", lambda f: f.annotate(segmentation=[])),
    ("no_mask", "annotation 3 of image 1", lambda f: f.annotate(segmentation=None)),
    ("no_category", "annotation 3 of image 1", lambda f: f.annotate(category_id=None)),
    ("polygon_points", "annotation 3 of image 1", lambda f: f.annotate(segmentation=[[1, 1, 5, 5]])),
    ("polygon_nan", "annotation 3 of image 1", lambda f: f.annotate(segmentation=[[1, 1, float("nan"), 5, 9, 9]])),
    ("polygon_outside", "annotation 3 of image 1", lambda f: f.annotate(segmentation=[[50, 1, 60, 5, 60, 9]])),
    ("polygon_outside", "annotation 3 of image 1", lambda f: f.annotate(segmentation=[[1, 1, 1e9, 1, 1e9, 1e9]])),
    ("rle_counts", "annotation 3 of image 1", lambda f: f.annotate(segmentation={"size": [30, 40], "counts": "~"})),
    ("zero_area", "annotation 3 of image 1", lambda f: f.annotate(segmentation={"size": [30, 40], "counts": [1200]})),
    ("zero_area", "annotation 3 of image 1", lambda f: f.annotate(segmentation=[[5, 5, 5, 5, 5, 5]])),
    ("zero_area", "annotation 3 of image 1", lambda f: f.annotate(segmentation=[[2.1, 5, 20.7, 5, 9, 5, 4, 5]])),
    ("zero_area", "annotation 3 of image 1", lambda f: f.annotate(segmentation=[[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]])),
    ("double", "annotation 3 of image 1", lambda f: f.annotate(segmentation=[[2, 2, 12, 2, 12, 10, 2, 10]])),
    ("double", "annotation 3 of image 1", lambda f: f.annotate(segmentation=[[2.0, 2, 12, 2, 12, 10, 2, 10]])),
]
WARNINGS: list[tuple[str, str, Change]] = [
    ("duplicate_annotation_id", "annotation 1 of image 1", lambda f: f.annotate(id=1)),
    ("duplicate_file", 'image 3 ("2.png")', lambda f: image_entry(f, file_name="2.png")),
    (
        "polygon_outside",
        "annotation 3 of image 1",
        lambda f: f.annotate(segmentation=[[-9, 12, 12, 12, 12, 20, -9, 20]]),
    ),
    ("bbox", "annotation 3 of image 1", lambda f: f.annotate(bbox=[1, 2, -3, 4])),
    ("bbox", "annotation 3 of image 1", lambda f: f.annotate(bbox=["a"])),
    ("bbox", "annotation 3 of image 1", lambda f: f.annotate(bbox=[20, 20, 5, 5])),
    ("duplicate_category", "", lambda f: f.content["categories"].append({"id": 2, "name": "cell"})),
]


def problems(report: Report, severity: str) -> set[tuple[str, str]]:
    return {(p.kind, p.record) for p in report.problems if p.severity == severity}


def test_a_sound_data_set_has_no_problem(folder: Any) -> None:
    report = check_dataset(folder.path)
    assert report.ok
    assert report.problems == []
    assert "0 errors, 0 warnings; training takes it" in report.text()


@pytest.mark.parametrize(
    ("kind", "record", "change"), ERRORS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_training_refuses_is_an_error_with_file_and_record(
    folder: Any, kind: str, record: str, change: Change
) -> None:
    change(folder)
    folder.save()
    report = check_dataset(folder.path)
    assert not report.ok
    assert problems(report, "error") == {(kind, record)}
    assert kind in KINDS
    problem = next(p for p in report.problems if p.kind == kind)
    assert problem.file == str(folder.json)
    assert problem.line in report.text()
    assert "\n" not in problem.line
    with pytest.raises(DataError) as caught:
        dataset = open_dataset(folder.path)
        [dataset[index] for index in range(len(dataset))]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "record", "change"), ERRORS, ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.filterwarnings("ignore:skipped")
def test_skipping_leaves_the_sound_records(folder: Any, kind: str, record: str, change: Change) -> None:
    change(folder)
    folder.save()
    dataset = open_dataset(folder.path, on_error="skip")
    assert len(dataset[0].labels) == 1
    assert len(dataset) in (1, 2)


@pytest.mark.parametrize(
    ("kind", "record", "change"), LEFT_OUT, ids=lambda value: value if isinstance(value, str) else ""
)
def test_an_annotation_that_harms_nothing_is_left_out_counted_and_listed(
    folder: Any, kind: str, record: str, change: Change
) -> None:
    change(folder)
    folder.save()
    report = check_dataset(folder.path)
    assert report.ok
    assert problems(report, "left_out") == {(kind, record)}
    assert problems(report, "error") == set()
    assert kind in KINDS
    assert f"left out [{kind}] {folder.json}: {record}" in report.text()
    assert "1 annotation left out" in report.text().splitlines()[-1]
    with pytest.warns(UserWarning, match="left out 1 annotation") as warned:
        dataset = open_dataset(folder.path)
    assert len(warned) == 1
    assert len(dataset[0].labels) == 1


@pytest.mark.parametrize(
    ("kind", "record", "change"), WARNINGS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_training_takes_is_a_warning(folder: Any, kind: str, record: str, change: Change) -> None:
    change(folder)
    folder.save()
    report = check_dataset(folder.path)
    assert report.ok
    assert problems(report, "warning") == {(kind, record)}
    assert kind in KINDS
    open_dataset(folder.path)


def test_several_defects_are_all_listed(folder: Any) -> None:
    folder.annotate(segmentation=[])
    folder.annotate(category_id=5)
    image_entry(folder)
    torn(folder)
    folder.save()
    found = problems(check_dataset(folder.path), "error")
    assert {kind for kind, _ in found} == {"unknown_category", "missing_image", "broken_image"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\xff\xfe", "not JSON"),
        ("[]", 'no list "images"'),
        ('{"images": [], "annotations": {}, "categories": []}', 'no list "annotations"'),
        ('{"images": [], "annotations": [], "categories": []}', "no category"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1.5, "name": "a"}]}', "category without"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "no usable image"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.filterwarnings("ignore:skipped")
def test_a_file_that_is_not_coco_is_one_clear_line(folder: Any, content: str, says: str, on_error: Any) -> None:
    folder.json.write_bytes(content.encode("latin-1"))
    report = check_dataset(folder.path)
    assert not report.ok
    assert says in report.text()
    with pytest.raises(DataError, match=says) as caught:
        open_dataset(folder.path, on_error=on_error)
    assert str(folder.json) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        report = check_dataset(path)
        assert [p.kind for p in report.problems] == ["not_found"]
        assert not report.ok


def test_train_without_objects_is_an_error(folder: Any) -> None:
    folder.content["annotations"] = []
    folder.save()
    assert problems(check_dataset(folder.path), "error") == {("no_objects", "")}


def test_splits_are_compared(folder: Any) -> None:
    folder.split = "val"
    folder.save()
    assert {kind for kind, _ in problems(check_dataset(folder.path), "warning")} == {"split_overlap"}
    folder.content["categories"] = [{"id": 1, "name": "dog"}]
    folder.save()
    assert problems(check_dataset(folder.path), "error") == {("categories", "")}


def test_images_that_no_record_names_are_told(folder: Any) -> None:
    Image.new("RGB", (4, 4)).save(folder.path / "images" / "9.png")
    report = check_dataset(folder.path)
    assert problems(report, "warning") == {("unused_images", "")}
    assert '"9.png"' in report.text()


def test_photographs_annotated_as_stored_are_told(folder: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = folder.path / "images" / "1.png"
    Image.open(path).copy().save(path, exif=exif)
    assert problems(check_dataset(folder.path), "warning") == {("exif", 'image 1 ("1.png")')}


def test_statistics_count_what_is_there(folder: Any) -> None:
    folder.annotate(iscrowd=1, segmentation={"size": [30, 40], "counts": [0, 600, 600]}, area=600)
    folder.content["categories"].append({"id": 5, "name": "never"})
    folder.content["images"].append({"id": 4, "file_name": "4.png", "width": 40, "height": 30})
    Image.new("RGB", (40, 30)).save(folder.path / "images" / "4.png")
    report = check_dataset(folder.save(), crowd="ignore")
    statistics = report.statistics[0]
    assert "crowd regions    cell 1" in report.text()
    assert (statistics.images, statistics.empty_images) == (3, 1)
    assert (statistics.objects, statistics.crowds) == (2, 1)
    assert statistics.per_class == {"cell": 2, "never": 0}
    assert statistics.per_image == [1, 1, 0]
    assert (statistics.small, statistics.medium, statistics.large) == (2, 0, 0)


def test_report_plots_and_pictures_are_written(folder: Any, tmp_path: Path) -> None:
    folder.annotate(bbox=["a"])
    out = tmp_path / "deep" / "out"
    report = check_dataset(folder.save(), out)
    assert sorted(path.name for path in report.written) == ["report.json", "statistics.png", "train.jpg"]
    assert all(Image.open(path).size[0] > 300 for path in report.written if path.suffix != ".json")
    content = json.loads((out / "report.json").read_text())
    assert content["ok"] is True
    assert content["problems"][0]["kind"] == "bbox"


def test_a_broken_data_set_still_gets_its_report_file(tmp_path: Path) -> None:
    check_dataset(tmp_path / "nowhere", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["ok"] is False


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 90) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["id", "size", "counts"]), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(["id", "image_id", "category_id", "segmentation", "bbox", "area", "iscrowd"])
IMAGE_FIELDS = st.sampled_from(["id", "file_name", "width", "height"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FIELDS, IMAGE_FIELDS, JUNK, st.sampled_from(["annotation", "image", "category", "record"]))
def test_whatever_stands_in_a_field_is_taken_or_named(
    folder: Any, field: str, image_field: str, junk: Any, where: str
) -> None:
    whole = copy.deepcopy(folder.content)
    try:
        if where == "annotation":
            folder.content["annotations"][0][field] = junk
        elif where == "image":
            folder.content["images"][0][image_field] = junk
        elif where == "category":
            folder.content["categories"].append(junk)
        else:
            folder.content["annotations"].append(junk)
        folder.save()
    finally:
        folder.content = whole
    report = check_dataset(folder.path)
    assert all("\n" not in problem.line for problem in report.problems)
    try:
        dataset = open_dataset(folder.path)
    except DataError as error:
        assert "\n" not in str(error)
        assert not report.ok
    else:
        assert report.ok
        for index in range(len(dataset)):
            assert dataset[index].masks.shape[1:] == (30, 40)
