"""What a run trains on and is evaluated on, as its folder and its log say."""

import csv
import json
import multiprocessing
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from instseg.core.errors import ConfigError, DataError
from instseg.data.holdout import KEY, held_out
from instseg.data.open import open_dataset
from instseg.evaluation import collect
from instseg.model.load import load
from instseg.training import data as training_data
from instseg.training import run
from instseg.training.checkpoint import load_state
from instseg.training.run import train

SMALL: dict[str, Any] = {
    "backbone": "test_resnet", "backbone_weights": "none", "fpn_channels": 32, "tower_channels": 32, "tower_convs": 1,
    "mask_hidden": 32, "mask_channels": 16, "grids": [8, 6], "scale_ranges": [[1, 32], [16, 64]], "input_short": 64,
    "epochs": 1, "batch": 3, "lr": 1e-3, "workers": 0,
}  # fmt: skip


def small(data: Path, out: Path, **fields: Any) -> dict[str, Any]:
    named = {k: fields.pop(k) for k in ("resume", "config") if k in fields}
    return train(data, "solov2_r18", out=out, device="cpu", progress=False, overrides={**SMALL, **fields}, **named)


def log_of(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def squares(write_squares: Any, tmp_path: Path) -> Path:
    """Ten images, and a validation split of two."""
    write_squares(tmp_path / "data", 10)
    write_squares(tmp_path / "data", 2, splits=("val",), first=10)
    return tmp_path / "data"


@pytest.fixture
def lone(squares: Path) -> Path:
    """One COCO JSON without a split."""
    return squares / "annotations" / "train.json"


def edited(path: Path, **changes: Any) -> None:
    """Rewrite a COCO JSON with some of its lists changed by functions."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **{key: change(content[key]) for key, change in changes.items()}}))


# --- a part held out ---------------------------------------------------------------------------------------------


def test_a_lone_json_is_evaluated_on_a_tenth_of_its_images_that_are_not_trained_on(lone: Path, tmp_path: Path) -> None:
    result = small(lone, tmp_path / "a")
    assert result["best_ap"] is not None and rows_of(tmp_path / "a")[0]["ap"] != ""
    split = json.loads((tmp_path / "a" / "split.json").read_text())
    assert (len(split["train"]), len(split["val"]), split["seed"], split["fraction"]) == (9, 1, 0, 0.1)
    assert not {*split["train"]} & {*split["val"]}
    (line,) = [line for line in log_of(tmp_path / "a").splitlines() if "held out" in line]
    assert "1 of its 10 images are held out" in line and "val_split=0 trains on all" in line
    assert "9 images of 1 classes" in log_of(tmp_path / "a")


def test_the_weights_know_which_images_were_held_out(lone: Path, tmp_path: Path) -> None:
    small(lone, tmp_path / "a", val_split=0.3, seed=4)
    record = load(tmp_path / "a" / "best.safetensors").extra[KEY]
    assert (record["seed"], record["fraction"], record["held_out"]) == (4, 0.3, 3)
    part = held_out(open_dataset(lone), record)
    assert part is not None
    listed = json.loads((tmp_path / "a" / "split.json").read_text())["val"]
    assert [part.file_name(i) for i in range(len(part))] == listed


def test_a_folder_with_a_training_split_only_is_split_too(squares: Path, tmp_path: Path) -> None:
    (squares / "annotations" / "val.json").unlink()
    assert small(squares, tmp_path / "a")["best_ap"] is not None
    assert (tmp_path / "a" / "split.json").exists()


@pytest.mark.parametrize("fields", [{"val_split": 0}, {"evaluate_every": 0}])
def test_no_image_is_held_out_where_that_is_switched_off(lone: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    result = small(lone, tmp_path / "a", **fields)
    assert result["best_ap"] is None and not (tmp_path / "a" / "split.json").exists()
    assert "10 images of 1 classes" in log_of(tmp_path / "a")
    assert KEY not in load(tmp_path / "a" / "best.safetensors").extra


def test_data_with_a_validation_split_keeps_all_its_training_images(squares: Path, tmp_path: Path) -> None:
    small(squares, tmp_path / "a")
    assert "10 images of 1 classes" in log_of(tmp_path / "a") and not (tmp_path / "a" / "split.json").exists()


def test_of_three_images_none_is_held_out_and_the_log_says_so(write_squares: Any, tmp_path: Path) -> None:
    write_squares(tmp_path / "data", 3)
    assert small(tmp_path / "data", tmp_path / "a")["best_ap"] is None
    assert "of its 3 images none is held out (4 are needed)" in log_of(tmp_path / "a")


def test_images_without_objects_are_held_out_but_not_trained_on_where_the_recipe_says_so(
    lone: Path, tmp_path: Path
) -> None:
    edited(lone, annotations=lambda a: [x for x in a if x["image_id"] < 6])
    small(lone, tmp_path / "a", keep_empty=False, val_split=0.5)
    split = json.loads((tmp_path / "a" / "split.json").read_text())
    assert len(split["val"]) == 5 and 0 < len(split["train"]) < 5


def test_a_resumed_run_trains_on_the_same_part(lone: Path, tmp_path: Path) -> None:
    small(lone, tmp_path / "whole", epochs=2)
    small(lone, tmp_path / "cut", epochs=1)
    before = (tmp_path / "cut" / "split.json").read_text()
    small(lone, tmp_path / "cut", resume=True, epochs=2)
    assert (tmp_path / "cut" / "split.json").read_text() == before == (tmp_path / "whole" / "split.json").read_text()
    with pytest.raises(ConfigError, match=r"val_split was 0\.1, now 0"):
        small(lone, tmp_path / "cut", resume=True, epochs=2, val_split=0)


def test_a_run_from_a_checkpoint_remembers_its_own_split_and_its_own_reading(
    lone: Path, squares: Path, tmp_path: Path
) -> None:
    small(lone, tmp_path / "a")
    start = load(tmp_path / "a" / "best.safetensors")
    start.extra["image_rule"] = {"exif": False, "full_scale": 4095.0}
    start.save(tmp_path / "start.safetensors")
    small(squares, tmp_path / "b", weights=str(tmp_path / "start.safetensors"))
    extra = load(tmp_path / "b" / "best.safetensors").extra
    assert KEY not in extra and extra["image_rule"] == open_dataset(squares).image_rule.to_json()


# --- a validation split with defects -----------------------------------------------------------------------------


def test_a_bad_record_in_the_validation_split_costs_that_record_and_not_the_evaluation(
    squares: Path, tmp_path: Path
) -> None:
    edited(squares / "annotations" / "val.json", images=lambda i: [*i, {**i[0], "id": 99, "file_name": "gone.png"}])
    assert small(squares, tmp_path / "a")["best_ap"] is not None
    (line,) = [line for line in log_of(tmp_path / "a").splitlines() if "WITHOUT" in line]
    assert "warning" in line and "gone.png" in line and "on 2 images" in line


def test_a_validation_split_that_is_not_json_is_refused_before_the_first_update(squares: Path, tmp_path: Path) -> None:
    (squares / "annotations" / "val.json").write_text("{")
    with pytest.raises(DataError, match="evaluate_every=0") as error:
        small(squares, tmp_path / "a")
    assert "\n" not in str(error.value) and not (tmp_path / "a").exists()


def undecodable(image: Path) -> None:
    """Damaged where only decoding finds it: the header and the end are there."""
    content = image.read_bytes()
    image.write_bytes(content[:5000] + bytes(2000) + content[7000:])


def test_an_undecodable_validation_image_costs_itself_and_not_the_ap(squares: Path, tmp_path: Path) -> None:
    undecodable(squares / "images" / "11.png")
    assert small(squares, tmp_path / "a", epochs=2)["best_ap"] is not None
    log = log_of(tmp_path / "a")
    assert all(row["ap"] != "" for row in rows_of(tmp_path / "a")) and "evaluation failed" not in log
    (line,) = [line for line in log.splitlines() if "cannot be read" in line]
    assert "warning: 1 of 2 images of split val" in line and "11.png" in line


def test_an_undecodable_image_that_was_held_out_costs_itself_and_not_the_ap(lone: Path, tmp_path: Path) -> None:
    small(lone, tmp_path / "whole", val_split=0.3)
    name = json.loads((tmp_path / "whole" / "split.json").read_text())["val"][0]
    undecodable(lone.parent.parent / "images" / name)
    assert small(lone, tmp_path / "a", val_split=0.3)["best_ap"] is not None
    (line,) = [line for line in log_of(tmp_path / "a").splitlines() if "cannot be read" in line]
    assert "warning: 1 of 3 images" in line and name in line


def test_a_validation_image_that_is_deleted_meanwhile_costs_itself_and_not_the_ap(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = training_data.make_evaluate

    def then_deleted(*args: Any) -> Any:
        found = opened(*args)
        (squares / "images" / "11.png").unlink()
        return found

    monkeypatch.setattr(run, "make_evaluate", then_deleted)
    assert small(squares, tmp_path / "a")["best_ap"] is not None
    (line,) = [line for line in log_of(tmp_path / "a").splitlines() if "cannot be read" in line]
    assert "11.png" in line and "no such image" in line


def test_only_where_no_validation_image_can_be_read_does_the_evaluation_fail(squares: Path, tmp_path: Path) -> None:
    for name in ("10.png", "11.png"):
        undecodable(squares / "images" / name)
    result = small(squares, tmp_path / "a")
    assert result["epochs"] == 1 and rows_of(tmp_path / "a")[0].get("ap", "") == ""
    (line,) = [line for line in log_of(tmp_path / "a").splitlines() if "evaluation failed" in line]
    assert "no image of split val can be read" in line and "10.png" in line


# --- classes, crowds, the rule for reading -----------------------------------------------------------------------


@pytest.fixture
def two_classes(squares: Path) -> Path:
    """Every second object is a circle."""
    for name in ("train", "val"):
        edited(
            squares / "annotations" / f"{name}.json",
            categories=lambda c: [*c, {"id": 7, "name": "circle"}, {"id": 9, "name": "007"}],
            annotations=lambda a: [{**x, "category_id": 7 if x["id"] % 2 else 5} for x in a],
        )
    return squares


def test_classes_selects_and_orders(two_classes: Path, tmp_path: Path) -> None:
    small(two_classes, tmp_path / "a", classes="[circle,square]")
    model = load(tmp_path / "a" / "last.safetensors")
    assert (model.categories, model.category_ids) == (("circle", "square"), (7, 5))
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["classes"] == ["circle", "square"]


def test_one_class_may_stand_alone_and_look_like_a_number(two_classes: Path, tmp_path: Path) -> None:
    small(two_classes, tmp_path / "a", classes="circle")
    assert load(tmp_path / "a" / "last.safetensors").categories == ("circle",)
    small(two_classes, tmp_path / "b", classes="[circle, 007]")
    assert load(tmp_path / "b" / "last.safetensors").categories == ("circle", "007")
    small(two_classes, tmp_path / "b", resume=True, classes="[circle, 007]")


def test_an_unknown_class_names_the_nearest(two_classes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match='"circle"'):
        small(two_classes, tmp_path / "a", classes="cirle")
    assert not (tmp_path / "a").exists()


def test_a_class_that_the_validation_split_lacks_is_said(two_classes: Path, tmp_path: Path) -> None:
    edited(
        two_classes / "annotations" / "val.json",
        categories=lambda c: c[:1],
        annotations=lambda a: [x for x in a if x["category_id"] == 5],
    )
    small(two_classes, tmp_path / "a", classes=["circle", "square"])
    assert "split val has no class circle" in log_of(tmp_path / "a")


def test_crowd_decides_whether_marked_objects_are_trained_on(squares: Path, tmp_path: Path) -> None:
    for name in ("train", "val"):
        edited(
            squares / "annotations" / f"{name}.json", annotations=lambda a: [{**x, "iscrowd": x["id"] % 2} for x in a]
        )
    ends = {}
    for crowd in ("ignore", "object"):
        small(squares, tmp_path / crowd, crowd=crowd)
        ends[crowd] = load_state(tmp_path / crowd / "last.ckpt")[0]["model"]
    name = next(n for n in ends["object"] if n.endswith("lateral.0.weight"))
    assert not torch.equal(ends["ignore"][name], ends["object"][name])


def test_the_weights_know_how_the_images_were_read(squares: Path, tmp_path: Path) -> None:
    small(squares, tmp_path / "a")
    assert load(tmp_path / "a" / "best.safetensors").extra["image_rule"] == open_dataset(squares).image_rule.to_json()


# --- processes ------------------------------------------------------------------------------------------------------


def test_loader_processes_are_started_once_a_run_and_end_with_it(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that loads what is trained on, one that reads what is evaluated, over two epochs."""
    started: list[str] = []
    start = BaseProcess.start
    monkeypatch.setattr(BaseProcess, "start", lambda self: (started.append(self.name), start(self))[1])
    before = set(multiprocessing.active_children())
    small(squares, tmp_path / "a", epochs=2, workers=1)
    assert len(started) == 2
    assert not set(multiprocessing.active_children()) - before
    small(squares, tmp_path / "b", epochs=2, workers=0)
    assert len(started) == 2
    measured = [[row["ap"] for row in rows_of(tmp_path / name)] for name in ("a", "b")]
    assert len(measured[0]) == 2 and measured[0] == measured[1]


def test_an_evaluation_that_fails_leaves_no_process_and_the_next_has_its_own(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(multiprocessing.active_children())
    score, calls = collect._rows, iter(range(100))

    def failing(*args: Any) -> Any:
        if next(calls) == 1:  # the second image of the first evaluation
            raise RuntimeError("a failure in the middle")
        return score(*args)

    monkeypatch.setattr(collect, "_rows", failing)
    small(squares, tmp_path / "a", epochs=2, workers=1, batch=1)
    assert "a failure in the middle" in log_of(tmp_path / "a")
    assert [row["ap"] != "" for row in rows_of(tmp_path / "a")] == [False, True]
    assert not set(multiprocessing.active_children()) - before
