"""`instseg predict`: images into files."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from instseg.cli import main


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _predictions(folder: Path) -> Any:
    return json.loads((folder / "predictions.json").read_text())


def test_writes_a_coco_data_set_overlays_and_label_images(
    tiny_model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["predict", str(tiny_model), str(images), "--out", str(out), "--score", "0", "--batch", "2"]) == 0
    content = _predictions(out)
    assert [image["file_name"] for image in content["images"]] == ["0.png", "1.png", "2.png"]
    assert [(image["height"], image["width"]) for image in content["images"]] == [(90, 120), (64, 64), (75, 50)]
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    assert content["annotations"]
    for annotation in content["annotations"]:
        assert annotation["segmentation"]["size"] == sizes[annotation["image_id"]]
        assert annotation["area"] == coco_mask.area(annotation["segmentation"])
    for stem, size in (("0", (120, 90)), ("1", (64, 64)), ("2", (50, 75))):
        assert Image.open(out / "overlays" / f"{stem}.jpg").size == size
        assert np.asarray(Image.open(out / "labels" / f"{stem}.png")).dtype == np.uint16
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"{len(content['annotations'])} objects in 3 images" in last
    assert str(out / "predictions.json") in last


def test_label_images_number_the_objects_of_the_json(tiny_model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["predict", str(tiny_model), str(images / "0.png"), "--out", str(out), "--score", "0"]) == 0
    best = next(a for a in _predictions(out)["annotations"] if a["instance"] == 1)
    labels = np.asarray(Image.open(out / "labels" / "0.png"))
    assert np.array_equal(labels == 1, coco_mask.decode(best["segmentation"]).astype(bool))


def test_results_go_into_the_next_free_folder_of_runs(tiny_model: Path, images: Path, tmp_path: Path) -> None:
    for name in ("predict", "predict2"):
        assert main(["predict", str(tiny_model), str(images / "0.png")]) == 0
        assert (tmp_path / "runs" / name / "predictions.json").is_file()


def test_score_decides_what_is_kept(tiny_model: Path, images: Path, tmp_path: Path) -> None:
    assert main(["predict", str(tiny_model), str(images), "--out", "all", "--score", "0"]) == 0
    scores = sorted(a["score"] for a in _predictions(tmp_path / "all")["annotations"])
    middle = scores[len(scores) // 2]
    assert main(["predict", str(tiny_model), str(images), "--out", "some", "--score", str(middle)]) == 0
    kept = sorted(a["score"] for a in _predictions(tmp_path / "some")["annotations"])
    assert kept == [score for score in scores if score >= middle]


def test_pictures_can_be_left_out(tiny_model: Path, images: Path, tmp_path: Path) -> None:
    assert main(["predict", str(tiny_model), str(images), "--out", "out", "--no-overlays", "--no-labels"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]


def test_a_field_of_the_configuration_is_changed_by_key_value(tiny_model: Path, images: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="max_instances=3"):
        _predict_capped(tiny_model, images / "0.png")
    assert len(_predictions(tmp_path / "out")["annotations"]) == 3


def _predict_capped(model: Path, image: Path) -> None:
    from instseg.cli.options import open_model
    from instseg.predict.predict_files import predict_sources

    predict_sources(open_model(str(model), ["max_instances=3"], "cpu"), [image], "out", score=0.0)


def test_with_annotations_a_plain_results_list_under_their_ids(tiny_model: Path, images: Path, tmp_path: Path) -> None:
    truth = {
        "images": [
            {"id": 70 + i, "file_name": f"{i}.png", "height": h, "width": w}
            for i, (h, w) in enumerate([(90, 120), (64, 64), (75, 50)])
        ],
        "categories": [{"id": 9, "name": "class 1"}, {"id": 4, "name": "unknown"}],
        "annotations": [],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    arguments = ["predict", str(tiny_model), str(images), "--annotations", "truth.json", "--score", "0"]
    assert main([*arguments, "--out", "out"]) == 0
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {row["image_id"] for row in results} <= {70, 71, 72}
    assert {row["category_id"] for row in results} == {9}
    assert not any("bbox" in row for row in results)


def test_a_broken_image_is_named_the_others_are_finished_and_status_is_1(
    tiny_model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:300])
    assert main(["predict", str(tiny_model), str(images), "--out", "out"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("warning: ") and "1.png" in line for line in lines)
    assert lines[-1] == "error: images left out: 1 of 3, each named in a warning above"
    assert [image["file_name"] for image in _predictions(tmp_path / "out")["images"]] == ["0.png", "2.png"]


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_one_broken_image_is_one_line(tiny_model: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "1.png").write_text("not an image")
    assert main(["predict", str(tiny_model), str(images / "1.png")]) == 1
    assert "1.png" in _one_line(capsys)


def test_a_missing_image_is_one_line_and_leaves_no_folder(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tiny_model), "nowhere.png"]) == 1
    assert "nowhere.png" in _one_line(capsys)
    assert not (tmp_path / "runs").exists()


def test_a_model_without_weights_is_refused(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "solov2_light_448_r18", str(images)]) == 1
    assert "has no weights" in _one_line(capsys)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.safetensors", None),
        ("torn.safetensors", b"\x08\x00\x00\x00"),
        ("other.safetensors", b""),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_one_line(
    name: str, content: bytes | None, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["predict", name, str(images)]) == 1
    assert name in _one_line(capsys)


def test_a_truncated_checkpoint_is_one_line(
    tiny_model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tiny_model.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert main(["predict", "cut.safetensors", str(images)]) == 1
    assert "cut.safetensors" in _one_line(capsys)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("max_instance=3", 'Did you mean "max_instances"?'),
        ("max_instances=many", "max_instances"),
        ("tower_channels=8", "tower_channels"),
    ],
)
def test_a_field_that_cannot_be_changed_is_one_line(
    word: str, named: str, tiny_model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tiny_model), str(images), word]) == 1
    assert named in _one_line(capsys)


def test_an_unknown_device_is_one_line(tiny_model: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tiny_model), str(images), "--device", "gpu"]) == 1
    assert '"gpu"' in _one_line(capsys)


def test_an_image_on_standard_input(
    tiny_model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stdin:
        buffer = io.BytesIO((images / "0.png").read_bytes())

    monkeypatch.setattr("sys.stdin", Stdin)
    assert main(["predict", str(tiny_model), "-", "--out", "out"]) == 0
    assert _predictions(tmp_path / "out")["images"][0]["height"] == 90


def test_a_full_disk_is_one_line_and_leaves_no_torn_json(
    tiny_model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import instseg.results.writers as writers

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers.json, "dumps", full)
    assert main(["predict", str(tiny_model), str(images), "--out", "out"]) == 1
    assert "No space left on device" in _one_line(capsys)
    assert not (tmp_path / "out" / "predictions.json").exists()
