"""The objects of images as rows, and the journal that `predictions.json` is made from."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from instseg.core import rle
from instseg.core.categories import Categories
from instseg.core.errors import DataError
from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.predict import journal as journals
from instseg.predict.journal import JOURNAL, Journal, unfinished
from instseg.results.rows import CocoRows, ResultRows, box_rows, coco_rows
from instseg.results.writers import category_rows


def found(size: tuple[int, int] = (30, 40)) -> Instances:
    """Three objects and one mask without a pixel; scores 0.9, 0.5, 0.2, 0.04."""
    masks = torch.zeros(4, *size, dtype=torch.bool)
    masks[0, 2:10, 3:9] = True
    masks[2, 12:20, 3:30] = True
    masks[3, 1:5, 20:30] = True
    return Instances(torch.tensor([0.9, 0.5, 0.2, 0.04]), torch.tensor([0, 1, 1, 0]), Masks.from_bool(masks))


@pytest.fixture
def categories() -> Categories:
    return Categories(("cat", "dog"), (17, 3))


def annotations(folder: Path, **changes: Any) -> Path:
    content = {
        "images": [
            {"id": 31, "file_name": "left/a.png", "width": 40, "height": 30},
            {"id": 32, "file_name": "right/a.png", "width": 40, "height": 30},
            {"id": 33, "file_name": "b.png", "width": 99, "height": 30},
        ],
        "categories": [{"id": 8, "name": "Dog"}, {"id": 5, "name": "cat"}],
        "annotations": [],
    }
    path = folder / "val.json"
    path.write_text(json.dumps(content | changes))
    return path


def write(
    folder: Path,
    maker: CocoRows | ResultRows,
    names: list[str],
    *,
    resume: bool = False,
    finish: bool = True,
    results: Instances | None = None,
) -> None:
    """A run that takes the images of these names which are not done."""
    categories = category_rows(maker.categories) if isinstance(maker, CocoRows) else None
    with Journal(folder, {"model": "m", "score": maker.score}, categories) as journal:
        journal.resume() if resume else journal.begin()
        for name in names:
            if name not in journal.done:
                path = Path(name) if isinstance(maker, ResultRows) else None
                objects = found()[:0] if "empty" in name else found() if results is None else results
                journal.add(*maker.rows(objects, name, path, journal.images, journal.annotations), None)
        if finish:
            journal.finish()
        else:
            journal.make()


def content(folder: Path) -> Any:
    return json.loads((folder / "predictions.json").read_text())


def test_predictions_are_a_coco_data_set_that_pycocotools_opens(tmp_path: Path, categories: Categories) -> None:
    write(tmp_path / "new", CocoRows(categories, 0.05), ["a.png", "deep/empty.png", "c.png"])
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "new" / "predictions.json"))
    assert [coco.imgs[i]["file_name"] for i in (1, 2, 3)] == ["a.png", "deep/empty.png", "c.png"]
    assert coco.imgs[2] == {"id": 2, "file_name": "deep/empty.png", "width": 40, "height": 30}
    assert {c["id"]: c["name"] for c in coco.dataset["categories"]} == {17: "cat", 3: "dog"}
    first, second = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert first["category_id"] == 17 and first["score"] == pytest.approx(0.9)
    assert first["bbox"] == [3, 2, 6, 8] and first["area"] == 48 and first["iscrowd"] == 0
    assert coco.annToMask(first).sum() == 48
    assert second["category_id"] == 3 and second["instance"] == 3  # the mask without a pixel is left out
    assert sorted(coco.anns) == [1, 2, 3, 4]


def test_least_score_decides_what_is_kept(tmp_path: Path, categories: Categories) -> None:
    for score, kept in ((0.0, 3), (0.05, 2), (0.25, 1), (0.95, 0)):
        write(tmp_path, CocoRows(categories, score), ["a.png"])
        assert len(content(tmp_path)["annotations"]) == kept


def test_no_image_at_all_is_valid_json(tmp_path: Path, categories: Categories) -> None:
    write(tmp_path, CocoRows(categories, 0.05), [])
    assert content(tmp_path)["images"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]


@pytest.mark.parametrize(
    "name", ['say "so".png', 'x", "source": ["y.png', "tab\there, \t.png", "zürich 写真.png", "\udcff.png"]
)
def test_any_file_name_survives(tmp_path: Path, categories: Categories, name: str) -> None:
    write(tmp_path, CocoRows(categories, 0.05), [name, "b.png"])
    assert [image["file_name"] for image in content(tmp_path)["images"]] == [name, "b.png"]
    assert len(content(tmp_path)["annotations"]) == 4


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("cut", [1, 5, 60, 0])
def test_run_resumed_after_a_torn_line_equals_one_that_was_not_interrupted(
    tmp_path: Path, categories: Categories, cut: int, plain: bool
) -> None:
    maker = ResultRows(categories, annotations(tmp_path), 0.05) if plain else CocoRows(categories, 0.05)
    names = ["left/a.png", "right/a.png"] if plain else ["a.png", "empty.png", "c.png"]
    write(tmp_path / "whole", maker, names)
    write(tmp_path / "torn", maker, names[:2], finish=False)
    lines = (tmp_path / "torn" / JOURNAL).read_bytes()
    (tmp_path / "torn" / JOURNAL).write_bytes(lines[: len(lines) - cut])
    write(tmp_path / "torn", maker, names, resume=True)
    whole, torn = ((tmp_path / name / "predictions.json").read_bytes() for name in ("whole", "torn"))
    assert whole == torn
    beside = ["predictions.run.json"] if plain else []
    assert sorted(path.name for path in (tmp_path / "torn").iterdir()) == ["predictions.json", *beside]


def test_finished_run_takes_images_that_came_later(tmp_path: Path, categories: Categories) -> None:
    maker, names = CocoRows(categories, 0.05), ["a.png", "empty.png", "c.png", "d.png"]
    write(tmp_path / "whole", maker, names)
    for some in ([], names[:1], names[:2], names, names):
        write(tmp_path / "grown", maker, some, resume=True)
    assert content(tmp_path / "whole") == content(tmp_path / "grown")


def test_results_of_others_are_not_resumed(tmp_path: Path, categories: Categories) -> None:
    for text in ("old", '{"images": [], "annotations": [], "categories": []}', "[\n]\n"):
        (tmp_path / "predictions.json").write_text(text)
        with pytest.raises(DataError, match="leave out --resume"):
            write(tmp_path, CocoRows(categories, 0.05), ["a.png"], resume=True)
        assert (tmp_path / "predictions.json").read_text() == text


def test_another_score_on_resume_is_one_line(tmp_path: Path, categories: Categories) -> None:
    write(tmp_path, CocoRows(categories, 0.05), ["a.png"], finish=False)
    with pytest.raises(DataError, match=r"another score \(0\.05, now 0\.5\)"):
        write(tmp_path, CocoRows(categories, 0.5), ["a.png"], resume=True)


def test_new_run_does_not_replace_an_unfinished_one(tmp_path: Path, categories: Categories) -> None:
    write(tmp_path, CocoRows(categories, 0.05), ["a.png", "b.png"], finish=False)
    assert unfinished(tmp_path) == 2 and unfinished(tmp_path / "none") == 0
    with pytest.raises(DataError, match=r"unfinished run of 2 images; continue it with --resume"):
        write(tmp_path, CocoRows(categories, 0.05), ["a.png"])
    assert len(content(tmp_path)["images"]) == 2


def test_two_runs_in_one_folder_are_one_line(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, []) as first, Journal(tmp_path, {}, []) as second:
        first.begin()
        for start in (second.begin, second.resume):
            with pytest.raises(DataError, match="another run"):
                start()


def test_images_whose_files_changed_are_taken_out_and_the_others_numbered_again(
    tmp_path: Path, categories: Categories
) -> None:
    maker = CocoRows(categories, 0.05)
    with Journal(tmp_path, {}, category_rows(categories)) as journal:
        journal.begin()
        for name in ("a.png", "b.png", "c.png"):
            journal.add(*maker.rows(found(), name, None, journal.images, journal.annotations), [3, 4])
        journal.forget(["a.png"])
        assert list(journal.done) == ["b.png", "c.png"]
        journal.add(*maker.rows(found(), "a.png", None, journal.images, journal.annotations), None)
        journal.finish()
    assert [(i["id"], i["file_name"]) for i in content(tmp_path)["images"]] == [
        (1, "b.png"),
        (2, "c.png"),
        (3, "a.png"),
    ]
    assert [(a["id"], a["image_id"]) for a in content(tmp_path)["annotations"]] == [
        (1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3),
    ]  # fmt: skip


def test_disk_that_fills_up_keeps_every_finished_image(
    tmp_path: Path, categories: Categories, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.FileIO):
        room = 1500

        def write(self, data: Any) -> int:
            part = bytes(data)[: max(1, min(len(data), self.room))]
            if self.room <= 0:
                raise OSError(28, "No space left on device")
            Full.room -= len(part)
            return super().write(part)

    maker, done = CocoRows(categories, 0.05), 0
    with Journal(tmp_path, {}, category_rows(categories)) as journal:
        journal.begin()
        journal._file = Full(journal.path, "r+b")
        journal._file.seek(0, 2)
        with pytest.raises(DataError, match="No space left"):
            for number in range(9):
                journal.add(*maker.rows(found(), f"{number}.png", None, number, journal.annotations), None)
                done += 1
        assert 0 < done == journal.images
        journal.make()
    assert (tmp_path / JOURNAL).read_bytes().endswith(b"]}\n")
    assert len(content(tmp_path)["images"]) == done


def test_json_is_made_rarely_when_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made = [0.0], []

    def make(self: Journal, durable: bool = False) -> None:
        made.append(self.images)
        clock[0] += 0.1 * self.images  # the longer the file, the longer it takes

    monkeypatch.setattr(journals.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Journal, "make", make)
    with Journal(tmp_path, {}, []) as journal:
        journal.begin()
        for number in range(3000):
            clock[0] += 1
            journal.add({"id": number, "file_name": f"{number}"}, [], None)
            journal.refresh()
    assert clock[0] < 3000 * 1.1  # a twentieth, and the last making
    assert made[:3] == [1, 4, 13]  # seconds: a tenth an image, twenty times that between two


def test_results_for_an_annotation_file_use_its_ids_and_hold_no_box(tmp_path: Path, categories: Categories) -> None:
    known = annotations(tmp_path)
    write(tmp_path, ResultRows(categories, known, 0.05), ["/data/right/a.png", "/data/left/a.png"])
    rows = content(tmp_path)
    assert [(r["image_id"], r["category_id"]) for r in rows] == [(32, 5), (32, 8), (31, 5), (31, 8)]
    assert all(set(r) == {"image_id", "category_id", "score", "segmentation"} for r in rows)
    assert rle.area([rle.from_json(rows[0]["segmentation"])])[0] == 48
    with contextlib.redirect_stdout(io.StringIO()):
        COCO(str(known)).loadRes(str(tmp_path / "predictions.json"))


@pytest.mark.parametrize(
    ("name", "words"),
    [("/data/z.png", "no image of this name"), ("a.png", "several images"), ("b.png", "99 x 30")],
)
def test_image_that_is_not_the_annotated_one_is_one_line(
    tmp_path: Path, categories: Categories, name: str, words: str
) -> None:
    maker = ResultRows(categories, annotations(tmp_path), 0.05)
    with pytest.raises(DataError) as caught:
        maker.rows(found(), "x", Path(name), 0, 0)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"images": 3}, {"categories": [{"name": "cat"}]}, {"images": [{"id": 3}]}, {"categories": []}]
)
def test_file_that_is_not_coco_or_shares_no_class_is_one_line(
    tmp_path: Path, categories: Categories, changes: dict[str, Any]
) -> None:
    with pytest.raises(DataError) as caught:
        ResultRows(categories, annotations(tmp_path, **changes), 0.05)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        ResultRows(categories, tmp_path / "missing.json", 0.05)


def test_name_is_found_in_whatever_unicode_form_it_was_written(tmp_path: Path, categories: Categories) -> None:
    known = annotations(tmp_path, images=[{"id": 7, "file_name": "zu\u0308rich.png"}])
    record, _ = ResultRows(categories, known, 0.05).rows(found(), "x", tmp_path / "z\u00fcrich.png", 0, 0)
    assert record["id"] == 7


def test_sizes_of_an_annotation_file_show_whether_images_were_turned(tmp_path: Path, categories: Categories) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for path in paths:
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path, exif=exif)
    for size, expected in (((40, 30), False), ((30, 40), True), ((30, 30), None)):
        images = [{"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}, {"id": 2, "file_name": "b.jpg"}]
        assert ResultRows(categories, annotations(tmp_path, images=images), 0.05).fit_shown(paths) is expected


def with_ids(folder: Path, image: object, category: object = 8) -> Path:
    images = [{"id": 1, "file_name": "a.png"}, {"id": image, "file_name": "b.png", "width": 40.0, "height": 30.0}]
    return annotations(folder, images=images, categories=[{"id": 5, "name": "cat"}, {"id": category, "name": "Dog"}])


@pytest.mark.parametrize("value", ["x", None, 2.5, True, [1], {}, "", "1.5", "1_0", float("nan"), float("inf")])
def test_an_id_that_is_not_a_whole_number_is_one_line(tmp_path: Path, categories: Categories, value: object) -> None:
    with pytest.raises(DataError) as caught:
        ResultRows(categories, with_ids(tmp_path, value), 0.05)
    assert str(caught.value) == (
        f"{tmp_path / 'val.json'}: image 2 (b.png) has the id {json.dumps(value)}, not a whole number; "
        "correct the record."
    )
    with pytest.raises(DataError, match=r"val\.json: category 2 has the id .*, not a whole number"):
        ResultRows(categories, with_ids(tmp_path, 2, value), 0.05)


@pytest.mark.parametrize("value", [7, 7.0, "7", " 7 "])
def test_whole_numbers_are_read_however_they_are_written(tmp_path: Path, categories: Categories, value: object) -> None:
    rows = ResultRows(categories, with_ids(tmp_path, value, value), 0.05)
    record, made = rows.rows(found(), "b.png", None, 0, 0)
    assert record["id"] == 7 and {row["image_id"] for row in made} == {7}
    assert {row["category_id"] for row in made} == {5, 7}
    assert rows.size(Path("b.png")) == (30, 40)


def test_a_file_name_that_is_not_a_text_is_one_line(tmp_path: Path, categories: Categories) -> None:
    with pytest.raises(DataError, match=r"image 1 has the file_name 3, not a text"):
        ResultRows(categories, annotations(tmp_path, images=[{"id": 1, "file_name": 3}]), 0.05)


def test_rows_of_masks_carry_no_box_though_boxes_were_predicted_and_the_data_set_has_both(
    categories: Categories,
) -> None:
    plain = found()
    boxes = plain.boxes + 0.25
    both = Instances(plain.scores, plain.labels, plain.masks, boxes=boxes)
    assert all(set(row) == {"image_id", "category_id", "score", "segmentation"} for row in coco_rows(both, (17, 3), 1))
    assert coco_rows(both, categories.ids, 1) == coco_rows(plain, categories.ids, 1)
    _, rows = CocoRows(categories, 0.0).rows(both, "a.png", None, 0, 0)
    x0, y0, x1, y1 = boxes[0].tolist()
    assert rows[0]["bbox"] == [x0, y0, x1 - x0, y1 - y0] and "segmentation" in rows[0]
    assert box_rows(both, categories.ids, 1)[0]["bbox"] == rows[0]["bbox"]
