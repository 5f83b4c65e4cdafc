"""Runs of `predict` that are stopped, resumed, repeated, or that find something odd where results should go."""

from __future__ import annotations

import json
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.oracle import picture
from torch import Tensor

from instseg.core.errors import DataError
from instseg.core.instances import Instances
from instseg.predict import predict_files as run
from instseg.predict.journal import JOURNAL
from instseg.predict.predict_files import PredictSummary, predict_sources


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def draw(path: Path, objects: int = 1, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(objects).permute(1, 2, 0).numpy()).save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images with 1 to 6 objects."""
    for number in range(6):
        draw(tmp_path / "photos" / f"{number}.png", number + 1)
    return tmp_path / "photos"


def go(model: Any, *sources: Path | str, out: Path | str | None = "out", **options: Any) -> PredictSummary:
    return predict_sources(model, list(sources), out, progress=False, **options)


def names(folder: Path | str = "out") -> list[str]:
    return [image["file_name"] for image in json.loads((Path(folder) / "predictions.json").read_text())["images"]]


def files(folder: Path | str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


class Stops:
    """Wraps a model's `predict_batch`: before image number `at` something happens."""

    def __init__(self, model: Any, at: int, what: Any) -> None:
        self.model, self.at, self.what, self.seen = model, at, what, 0
        self.predict = model.predict_batch
        model.predict_batch = self

    def __call__(self, images: list[Tensor]) -> list[Instances]:
        if self.seen == self.at:
            self.model.predict_batch = self.predict
            self.what()
        self.seen += 1
        found: list[Instances] = self.predict(images)
        return found


def fail() -> None:
    raise RuntimeError("out of luck")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_run_keeps_its_images_says_so_and_resumes_to_the_same_result(
    oracle: Any, photos: Path, number: signal.Signals
) -> None:
    go(oracle, photos, out="whole")
    Stops(oracle, 4, lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as caught:
        go(oracle, photos)
    assert str(caught.value) == "interrupted, 4 of 6 images in out; continue with --resume"
    assert signal.getsignal(number) == before
    assert names() == ["0.png", "1.png", "2.png", "3.png"]
    counting = Stops(oracle, 99, None)
    summary = go(oracle, photos, resume=True)
    assert counting.seen == 2 and (summary.images, summary.resumed, summary.objects) == (6, 4, 21)
    assert "21 objects in 6 images" in summary.line()
    assert Path("out/predictions.json").read_bytes() == Path("whole/predictions.json").read_bytes()
    assert files("out") == files("whole")
    for name in files("whole"):
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()


def test_predictions_are_whole_and_current_after_every_image(
    oracle: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instseg.predict.journal._SHARE", 0)
    seen: list[list[str]] = []
    predict = oracle.predict_batch

    def watched(images: list[Tensor]) -> list[Instances]:
        if Path("out/predictions.json").exists():
            seen.append(names())
        found: list[Instances] = predict(images)
        return found

    oracle.predict_batch = watched
    go(oracle, photos)
    assert [len(done) for done in seen] == [1, 2, 3, 4, 5]


def test_any_error_keeps_what_was_finished(oracle: Any, photos: Path) -> None:
    Stops(oracle, 3, fail)
    with pytest.raises(RuntimeError), pytest.warns(UserWarning, match=r"3 of 6 images in out; continue with --resume"):
        go(oracle, photos)
    assert len(names()) == 3


def test_run_stopped_before_its_first_image_leaves_nothing(oracle: Any, photos: Path, tmp_path: Path) -> None:
    Stops(oracle, 0, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted, 0 of 6 images in runs.predict$"):
        go(oracle, photos, out=None)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_resume_without_a_folder_takes_the_newest_unfinished_run_or_starts(oracle: Any, photos: Path) -> None:
    assert go(oracle, photos, out=None, resume=True).folder == Path("runs/predict")
    Stops(oracle, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(oracle, photos, out=None)
    assert go(oracle, photos / "0.png", out=None).folder == Path("runs/predict3")
    assert go(oracle, photos, out=None, resume=True).folder == Path("runs/predict2")
    assert len(names("runs/predict2")) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"score": 0.5}, "another score (none, now 0.5)"),
        ({"overlays": False}, "another overlays"),
        ({"model": True}, "other weights"),
    ],
)
def test_resume_with_another_model_or_option_is_one_line(
    oracle: Any, photos: Path, options: dict[str, Any], words: str
) -> None:
    Stops(oracle, 2, fail)
    with pytest.raises(RuntimeError), pytest.warns(UserWarning):
        go(oracle, photos)
    if options.pop("model", False):
        oracle.layer.weight.data += 1
    with pytest.raises(DataError) as caught:
        go(oracle, photos, resume=True, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert len(names()) == 2


def test_resume_with_other_images_is_one_line_and_changed_ones_are_done_again(oracle: Any, photos: Path) -> None:
    other = draw(Path("other/z.png"))
    Stops(oracle, 3, fail)
    with pytest.raises(RuntimeError), pytest.warns(UserWarning):
        go(oracle, photos)
    with pytest.raises(DataError, match=r"of other images \(the first is 0.png\)"):
        go(oracle, other, resume=True)
    draw(photos / "1.png", 6)
    with pytest.warns(UserWarning, match="files have changed: 1"):
        assert go(oracle, photos, resume=True).objects == 1 + 6 + 3 + 4 + 5 + 6
    assert sorted(names()) == [f"{i}.png" for i in range(6)]


def test_image_that_failed_before_is_tried_again_on_resume(oracle: Any, photos: Path) -> None:
    whole = (photos / "1.png").read_bytes()
    (photos / "1.png").write_bytes(whole[:40])
    with pytest.warns(UserWarning, match=r"1\.png"):
        assert go(oracle, photos).images == 5
    (photos / "1.png").write_bytes(whole)
    assert go(oracle, photos, resume=True).images == 6


def test_folder_predicted_again_holds_the_same_images(oracle: Any, photos: Path) -> None:
    for out in (photos / "out", photos / "out", photos / "deep/er", photos / "runs/predict", photos):
        assert go(oracle, photos, out=out).images == 6
    summary = go(oracle, photos, str(photos / "**" / "*.*g"))
    assert summary.images == 6 and len(summary.written) == 4 * 12
    assert "48 pictures" in summary.notes()[0]


def test_marks_are_known_wherever_pictures_were_moved(oracle: Any, photos: Path) -> None:
    go(oracle, photos)
    Path("out/overlays").rename(photos / "checked")
    Path("out/labels/0.png").rename(photos / "zero.png")
    assert go(oracle, photos, out="again").images == 6
    assert go(oracle, photos / "zero.png", out="one").images == 1  # named itself


def test_folders_of_photographs_are_predicted_whatever_they_are_called(oracle: Any, tmp_path: Path) -> None:
    for folder in ("overlays", "labels", "plots", "runs/predict/overlays"):
        draw(tmp_path / "photos" / folder / "a.png")
    assert go(oracle, tmp_path / "photos").images == 4
    assert go(oracle, tmp_path / "photos", out=tmp_path / "photos" / "runs" / "predict2").images == 4


def test_pictures_of_results_without_marks_are_left_out(oracle: Any, photos: Path) -> None:
    for number in ("", "2"):
        folder = photos / "runs" / f"predict{number}"
        draw(folder / "overlays" / "0.jpg")
        draw(folder / "labels" / "0.png")
        head = (
            '{"info": {"description": "instseg predictions"},\n"categories": [],\n"annotations": [\n],\n"images": [\n]}'
        )
        (folder / "predictions.json").write_text(head)
    draw(photos / "runs" / "train" / "plots" / "losses.png")
    for name in ("config.yaml", "metrics.csv"):
        (photos / "runs" / "train" / name).write_text("")
    assert go(oracle, photos).images == 6


def test_folder_of_results_alone_is_one_line(oracle: Any, photos: Path) -> None:
    go(oracle, photos)
    with pytest.raises(DataError, match="every picture in this folder is a result of instseg"):
        go(oracle, "out", out="again")


def test_results_never_replace_an_image_that_is_predicted(oracle: Any, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    photograph = draw(tmp_path / "overlays" / "a.jpg")
    content = photograph.read_bytes()
    with pytest.raises(DataError, match=r"overlays.a\.jpg: is an image to predict"):
        go(oracle, tmp_path, out=tmp_path)
    assert photograph.read_bytes() == content and not (tmp_path / "predictions.json").exists()


def test_new_run_takes_the_pictures_of_the_one_before_away_and_nothing_else(oracle: Any, photos: Path) -> None:
    go(oracle, photos)
    mine = draw(Path("out/overlays/mine.jpg"))
    go(oracle, photos / "0.png")
    assert files("out") == [
        "labels/0.png",
        "labels/README.txt",
        "overlays/0.jpg",
        "overlays/mine.jpg",
        "predictions.json",
    ]
    assert mine.exists() and names() == ["0.png"]


@pytest.mark.parametrize("where", ["file", "file/deep", "out/overlays", "out/predictions.json", "\0", " "])
def test_folder_that_cannot_take_results_is_one_line_before_the_model_is_loaded(
    photos: Path, tmp_path: Path, where: str
) -> None:
    Path("file").write_text("")
    out: Path | str = where
    if where.startswith("out/"):
        Path("out").mkdir()
        Path(where).write_text("") if where.endswith("s") else Path(where).mkdir()
        out = "out"

    def model() -> Any:
        raise AssertionError("loaded")

    with pytest.raises(DataError) as caught:
        go(model, photos, out=out)
    assert "\n" not in str(caught.value) and "choose another" in str(caught.value)


def test_full_disk_is_found_before_the_model_is_loaded(photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("instseg.predict.output.os.fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        go(lambda: pytest.fail("loaded"), photos)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize("sources", [[], [""], [" "], ["photos", ""], ["\t\n"]])
def test_no_source_is_one_line_and_not_the_current_folder(oracle: Any, photos: Path, sources: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        go(oracle, *sources)
    assert "\n" not in str(caught.value).replace("\t\n", "") and not Path("out").exists()


def test_image_that_cannot_be_a_jpeg_gets_a_png_overlay(oracle: Any, tmp_path: Path) -> None:
    Image.new("L", (65_600, 2)).save(tmp_path / "wide.png")
    draw(tmp_path / "a.png")
    assert go(oracle, tmp_path / "wide.png", tmp_path / "a.png").images == 2
    assert "overlays/wide.png" in files("out")


def annotated(path: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    images = [{"id": i, "file_name": n, "height": h, "width": w} for i, (n, (h, w)) in enumerate(sizes.items(), 7)]
    categories = [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    return path


@pytest.mark.parametrize(("size", "stored"), [((60, 80), True), ((80, 60), False)])
def test_exif_rotation_follows_the_sizes_of_the_annotation_file(
    oracle: Any, tmp_path: Path, size: tuple[int, int], stored: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(tmp_path / "photos" / "a.png", 2, exif=exif)
    draw(tmp_path / "photos" / "square.png", 1)
    known = annotated(tmp_path / "val.json", {"a.png": size, "square.png": (60, 80)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(oracle, tmp_path / "photos", annotations=known)
    rows = json.loads(Path("out/predictions.json").read_text())
    assert {tuple(row["segmentation"]["size"]) for row in rows if row["image_id"] == 7} == {size}


def test_annotated_run_is_resumed_to_the_same_list(oracle: Any, photos: Path, tmp_path: Path) -> None:
    known = annotated(tmp_path / "val.json", {f"{i}.png": (60, 80) for i in range(6)})
    go(oracle, photos, out="whole", annotations=known)
    Stops(oracle, 3, fail)
    with pytest.raises(RuntimeError), pytest.warns(UserWarning):
        go(oracle, photos, annotations=known)
    assert {row["image_id"] for row in json.loads(Path("out/predictions.json").read_text())} == {7, 8, 9}
    with pytest.raises(DataError, match="begun with --annotations"):
        go(oracle, photos, resume=True)
    go(oracle, photos, resume=True, annotations=known)
    assert Path("out/predictions.json").read_bytes() == Path("whole/predictions.json").read_bytes()


def stop_after(model: Any, count: int, *sources: Path | str, **options: Any) -> None:
    Stops(model, count, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(model, *sources, **options)


@pytest.fixture
def others(photos: Path, tmp_path: Path) -> Path:
    """Images of the same names as ``photos``, all with one object."""
    for path in photos.iterdir():
        draw(tmp_path / "others" / path.name)
    return tmp_path / "others"


@pytest.mark.parametrize("finished", [True, False])
def test_resume_with_other_images_of_the_same_names_is_refused_and_loses_nothing(
    oracle: Any, photos: Path, others: Path, finished: bool
) -> None:
    if finished:
        go(oracle, photos)
    else:
        stop_after(oracle, 3, photos)
    before = {name: Path("out", name).read_bytes() for name in files("out")}
    with pytest.raises(DataError, match="the run to resume was of other images"):
        go(oracle, others, resume=True)
    assert {name: Path("out", name).read_bytes() for name in files("out")} == before


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("finished", [True, False])
def test_resume_says_how_many_images_are_predicted_again_because_they_changed(
    oracle: Any, photos: Path, tmp_path: Path, finished: bool, known: bool
) -> None:
    options: dict[str, Any] = {}
    if known:
        options["annotations"] = annotated(tmp_path / "val.json", {f"{i}.png": (60, 80) for i in range(6)})
    if finished:
        go(oracle, photos, **options)
    else:
        stop_after(oracle, 4, photos, **options)
    draw(photos / "1.png", 6)
    with pytest.warns(UserWarning, match=r"predicted again because their files have changed: 1, the first is 1\.png"):
        summary = go(oracle, photos, resume=True, **options)
    assert summary.objects == 1 + 6 + 3 + 4 + 5 + 6 and summary.images == 6
    assert summary.resumed == (5 if finished else 3)


@pytest.mark.parametrize("finished", [True, False])
def test_an_image_on_standard_input_is_never_done_already(
    oracle: Any, photos: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    def piped(number: int) -> None:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=(photos / f"{number - 1}.png").open("rb")))

    piped(2)
    if finished:
        assert go(oracle, "-").objects == 2
    else:
        stop_after(oracle, 1, "-", photos)
    piped(5)
    summary = go(oracle, "-", resume=True)
    assert (summary.images, summary.objects, summary.resumed, names()) == (1, 5, 0, ["stdin"])


def test_addresses_that_end_alike_are_different_images(
    oracle: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = (f"http://localhost/{number}/img.png" for number in (1, 2, 3))
    monkeypatch.setattr(
        "instseg.sources.sources._read_url", lambda url, rule: picture(int(url.removesuffix("/img.png")[-1]))
    )
    assert go(oracle, one).objects == 1
    with pytest.raises(DataError, match="of other images"):
        go(oracle, two, resume=True)
    assert go(oracle, one, two, resume=True).objects == 3
    with pytest.warns(UserWarning, match="no longer there are kept: 1"):
        assert go(oracle, two, three, resume=True).objects == 6
    assert names() == ["img.png", "img-2.png", "img-2-2.png"]
    assert sorted(path.name for path in Path("out/labels").glob("*.png")) == ["img-2-2.png", "img-2.png", "img.png"]


def test_a_file_of_the_same_name_that_goes_or_comes_changes_no_other_image(oracle: Any, tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / "a" / f"{number}.png", number + 1)
        draw(tmp_path / "b" / f"{number}.png", number + 4)
    stop_after(oracle, 5, "a", "b")
    for path in (tmp_path / "b").iterdir():
        path.unlink()
    draw(tmp_path / "b" / "9.png")
    with pytest.warns(UserWarning, match="no longer there are kept: 2"):
        summary = go(oracle, "a", "b", resume=True)
    assert (summary.resumed, summary.images, summary.objects) == (5, 6, 1 + 2 + 3 + 4 + 5 + 1)
    draw(tmp_path / "b" / "2.png", 6)
    with pytest.warns(UserWarning, match="no longer there"):
        assert go(oracle, "a", "b", resume=True).images == 7
    assert len(set(names())) == 7 and len(list(Path("out/labels").rglob("*.png"))) == 7


def test_an_image_called_as_one_that_is_gone_gets_a_name_of_its_own(oracle: Any, tmp_path: Path) -> None:
    draw(tmp_path / "a" / "1.png", 1)
    draw(tmp_path / "a" / "2.png", 2)
    go(oracle, "a")
    (tmp_path / "a" / "2.png").unlink()
    draw(tmp_path / "b" / "2.png", 5)
    with pytest.warns(UserWarning, match="no longer there"):
        assert go(oracle, "a", "b", resume=True).objects == 8
    assert names() == ["1.png", "2.png", "2-2.png"]
    assert np.asarray(Image.open("out/labels/2.png")).max() == 2


def test_second_run_into_a_folder_is_refused_while_the_first_is_running(oracle: Any, photos: Path) -> None:
    said: list[str] = []

    def second() -> None:
        for resume in (False, True):
            with pytest.raises(DataError) as caught:
                go(lambda: pytest.fail("loaded"), photos, resume=resume)
            said.append(str(caught.value))

    Stops(oracle, 2, second)
    assert go(oracle, photos).images == 6
    assert said == ["out: another run writes its results here; wait for it, or choose another --out."] * 2


@pytest.mark.parametrize("known", [True, False])
def test_resume_of_a_finished_run_says_that_all_is_done(oracle: Any, photos: Path, tmp_path: Path, known: bool) -> None:
    options: dict[str, Any] = {"resume": True}
    if known:
        options["annotations"] = annotated(tmp_path / "val.json", {f"{i}.png": (60, 80) for i in range(6)})
    go(oracle, photos, **options)
    before = {name: Path("out", name).read_bytes() for name in files("out")}
    for _ in range(2):
        summary = go(oracle, photos, **options)
        assert summary.objects == 21 and summary.notes()[-1] == "all 6 images are done"
        assert {name: Path("out", name).read_bytes() for name in files("out")} == before


def test_resume_of_an_annotated_run_whose_list_was_changed_is_one_line(
    oracle: Any, photos: Path, tmp_path: Path
) -> None:
    known = annotated(tmp_path / "val.json", {f"{i}.png": (60, 80) for i in range(6)})
    go(oracle, photos, annotations=known)
    Path("out/predictions.json").write_text("[]")
    with pytest.raises(DataError, match="has been changed since it was written; leave out --resume"):
        go(oracle, photos, annotations=known, resume=True)


def test_resume_with_another_annotation_file_says_so_without_digests(oracle: Any, photos: Path, tmp_path: Path) -> None:
    sizes = {f"{i}.png": (60, 80) for i in range(6)}
    stop_after(oracle, 2, photos, annotations=annotated(tmp_path / "val.json", sizes))
    known = annotated(tmp_path / "val.json", {**sizes, "new.png": (60, 80)})
    with pytest.raises(DataError) as caught:
        go(oracle, photos, resume=True, annotations=known)
    assert str(caught.value) == (
        "out: the annotation file has changed since the run to resume was begun; use the same, or choose another --out."
    )


def test_no_thread_is_left_after_a_run(oracle: Any, photos: Path) -> None:
    Stops(oracle, 2, fail)
    with pytest.raises(RuntimeError), pytest.warns(UserWarning):
        go(oracle, photos, workers=3)
    assert not [thread for thread in threading.enumerate() if thread.name == "instseg-reader"]


def test_signal_during_the_writing_of_results_waits_for_its_end(
    oracle: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh = run.Journal.refresh

    def hit(self: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        refresh(self)

    monkeypatch.setattr(run.Journal, "refresh", hit)
    with pytest.raises(KeyboardInterrupt, match="1 of 6 images"):
        go(oracle, photos)
    assert names() == ["0.png"] and (Path("out") / JOURNAL).exists()


def test_images_in_subfolders_keep_their_names_in_every_file(oracle: Any, tmp_path: Path) -> None:
    def every() -> Iterator[str]:
        yield from ("a.png", "b/a.png", "b/a.bmp", "c d/ä é.png")

    for name in every():
        draw(tmp_path / "photos" / name)
    go(oracle, tmp_path / "photos")
    assert sorted(names()) == sorted(every())
    assert len([name for name in files("out") if name.startswith("overlays/")]) == 4
    labels = np.asarray(Image.open("out/labels/b/a_png.png"))
    assert labels.dtype == np.uint16 and labels.max() == 1
