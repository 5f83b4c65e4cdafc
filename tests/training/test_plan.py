"""What may change when a run is resumed, and what is not a run."""

import csv
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from instseg.core.errors import CheckpointError, ConfigError, DataError
from instseg.model.load import create_model
from instseg.models.config import RENAMED
from instseg.training.checkpoint import load_state, save_state
from instseg.training.plan import BEFORE, new_plan
from instseg.training.run import train
from instseg.weights.run_folder import read_run_folder

SMALL: dict[str, Any] = {
    "backbone": "test_resnet", "backbone_weights": "none", "fpn_channels": 32, "tower_channels": 32, "tower_convs": 1,
    "mask_hidden": 32, "mask_channels": 16, "grids": [8, 6], "scale_ranges": [[1, 32], [16, 64]], "input_short": 64,
    "epochs": 2, "batch": 3, "lr": 1e-3, "workers": 0, "log_every": 1,
}  # fmt: skip

SOLO = {
    key: SMALL[key] for key in ("backbone", "fpn_channels", "tower_channels", "tower_convs", "grids", "scale_ranges")
}


def small(data: Path, out: Path, **fields: Any) -> dict[str, Any]:
    named = {k: fields.pop(k) for k in ("resume", "weights", "config") if k in fields}
    return train(data, "solov2_r18", out=out, device="cpu", progress=False, overrides={**SMALL, **fields}, **named)


def epochs_of(folder: Path) -> list[str]:
    with open(folder / "metrics.csv", newline="") as file:
        return [row["epoch"] for row in csv.DictReader(file)]


def rewritten(folder: Path, change: Any) -> None:
    """The state of a run as another version or program might have left it."""
    state, _ = load_state(folder / "last.ckpt")
    change(state)
    (folder / "last.ckpt").unlink()
    (folder / "last.ckpt.prev").unlink(missing_ok=True)
    save_state(folder / "last.ckpt", state)


def test_a_run_may_be_made_longer_and_its_schedule_follows(coco_folder: Path, tmp_path: Path) -> None:
    small(coco_folder, tmp_path, epochs=1)
    assert small(coco_folder, tmp_path, resume=True, epochs=3)["epochs"] == 3
    text = (tmp_path / "log.txt").read_text()
    assert "epochs was 1 and is 3 from here on" in text and epochs_of(tmp_path) == ["1", "2", "3"]
    rates = [float(line.split(" lr ")[1].split()[0]) for line in text.splitlines() if " update 1/" in line]
    assert rates[1] > rates[2] > 1e-5 * SMALL["lr"]  # falls over what is left, from where the longer plan is


def test_a_run_that_is_made_shorter_ends_with_its_weights_written(coco_folder: Path, tmp_path: Path) -> None:
    small(coco_folder, tmp_path, epochs=2)
    for name in ("best.safetensors", "last.safetensors"):
        (tmp_path / name).unlink()
    assert small(coco_folder, tmp_path, resume=True, epochs=1, evaluate_every=0)["epochs"] == 2
    assert load_file(tmp_path / "last.safetensors") and epochs_of(tmp_path) == ["1", "2"]


def test_a_longer_run_without_evaluation_leaves_no_old_best_weights(
    coco_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(coco_folder, tmp_path, epochs=1, evaluate_every=0)
    monkeypatch.setattr("instseg.training.loop.Trainer._patience_is_out", lambda trainer: trainer.progress.epoch == 2)
    small(coco_folder, tmp_path, resume=True, epochs=9, evaluate_every=0)
    best, last = (load_file(tmp_path / f"{name}.safetensors") for name in ("best", "last"))
    assert all(torch.equal(best[name], last[name]) for name in last)


@pytest.mark.parametrize(
    "change", [{"on_error": "skip"}, {"evaluate_batch": 1}, {"evaluate_every": 0}, {"evaluate_split": "train"}]
)
def test_what_concerns_evaluation_may_change(coco_folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    small(coco_folder, tmp_path, epochs=1)
    assert small(coco_folder, tmp_path, resume=True, epochs=2, **change)["epochs"] == 2
    assert f"{next(iter(change))} was" in (tmp_path / "log.txt").read_text()


def test_what_decides_the_weights_may_not(coco_folder: Path, tmp_path: Path) -> None:
    small(coco_folder, tmp_path, epochs=1)
    for field, value in (("lr", 0.1), ("crowd", "object"), ("classes", "square"), ("batch", 2), ("val_split", 0.5)):
        with pytest.raises(ConfigError, match=f"{field} was .*--weights {tmp_path}") as error:
            small(coco_folder, tmp_path, resume=True, **{"epochs": 1, field: value})
        assert "\n" not in str(error.value)


def test_a_mask_that_was_moved_is_other_data(write_squares: Any, tmp_path: Path) -> None:
    write_squares(tmp_path / "data", 4, splits=("train", "val"))
    small(tmp_path / "data", tmp_path / "a", epochs=1)
    path = tmp_path / "data" / "annotations" / "train.json"
    text = path.read_text()
    path.write_text(text.replace('"segmentation": [[', '"segmentation": [[1, ', 1).replace("[[1, ", "[[0, 0, ", 1))
    with pytest.raises(DataError, match="annotations are not those that the run began with"):
        small(tmp_path / "data", tmp_path / "a", resume=True)
    path.write_text(text)
    assert small(tmp_path / "data", tmp_path / "a", resume=True)["epochs"] == 2


def test_a_run_of_an_older_version_resumes_as_it_was(write_squares: Any, tmp_path: Path) -> None:
    """Its recipe lacks fields, its model's fields have other names, its state no categories and no digest."""
    write_squares(tmp_path / "data", 6)
    data = tmp_path / "data" / "annotations" / "train.json"
    small(data, tmp_path / "a", epochs=2, val_split=0, crowd="ignore")
    small(data, tmp_path / "b", epochs=1, val_split=0, crowd="ignore")

    def age(state: dict[str, Any]) -> None:
        for field in BEFORE:
            del state["recipe"][field]
        for today in RENAMED.values():
            former = next(old for old, new in RENAMED.items() if new == today)
            if today in state["model_config"]:
                state["model_config"][former] = state["model_config"].pop(today)
        assert "score_threshold" in state["model_config"]
        del state["categories"], state["data_fingerprint"]["annotations"], state["progress"]["failed"]
        del state["progress"]["best_name"]
        del state["model_extra"]["image_rule"]

    rewritten(tmp_path / "b", age)
    assert small(data, tmp_path / "b", resume=True, config="finetune")["epochs"] == 2
    assert "6 images of 1 classes" in (tmp_path / "b" / "log.txt").read_text()
    ends = [load_file(tmp_path / name / "last.safetensors") for name in ("a", "b")]
    assert ends[0].keys() == ends[1].keys()


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


@pytest.mark.parametrize("kind", ["pickle", "objects", "tensor", "list", "zip", "text", "half"])
def test_a_state_that_is_not_ours_is_one_line_and_nothing_in_it_is_run(
    coco_folder: Path, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import zipfile

    path = tmp_path / "last.ckpt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"epoch": 3, "model": Evil()}))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    elif kind == "text":
        path.write_text("not a checkpoint")
    else:
        contents: dict[str, Any] = {"objects": {"model": Evil()}, "tensor": torch.zeros(3), "list": [1, 2], "half": {}}
        torch.save(contents[kind] if kind != "half" else {"format": "instseg training state 1", "model": 3}, path)
    with pytest.raises(CheckpointError) as error:
        small(coco_folder, tmp_path, resume=True)
    assert "\n" not in str(error.value) and "last.ckpt" in str(error.value) and len(str(error.value)) < 600
    assert "executed" not in capfd.readouterr().out
    with pytest.raises(CheckpointError):
        read_run_folder(tmp_path)


def test_a_state_of_another_model_is_one_line(coco_folder: Path, tmp_path: Path) -> None:
    small(coco_folder, tmp_path, epochs=1)
    rewritten(tmp_path, lambda state: state["model"].pop(next(iter(state["model"]))))
    with pytest.raises(CheckpointError, match="does not fit the run") as error:
        small(coco_folder, tmp_path, resume=True)
    assert "\n" not in str(error.value)


def test_training_starts_from_a_run_that_was_stopped(coco_folder: Path, tmp_path: Path) -> None:
    small(coco_folder, tmp_path / "a", epochs=1)
    for name in ("best.safetensors", "last.safetensors"):
        (tmp_path / "a" / name).unlink()
    assert small(coco_folder, tmp_path / "b", epochs=1, weights=tmp_path / "a")["epochs"] == 1


def test_a_run_lends_another_model_its_training_and_not_its_weights(coco_folder: Path, tmp_path: Path) -> None:
    small(coco_folder, tmp_path / "a", epochs=1)
    small(coco_folder, tmp_path / "b", epochs=1, weights=tmp_path / "a", lr=3e-4)
    given = {"model": "solov2_r34", **SMALL, "data": str(coco_folder)}
    del given["lr"]
    with pytest.warns(UserWarning, match=r"recipe for solov2_r18: its .*weights=") as said:
        plan = new_plan(tmp_path / "b", given)
    assert (plan.recipe.model, plan.recipe.weights, plan.recipe.lr, plan.start) == ("solov2_r34", None, 3e-4, None)
    assert len(said) == 1


def test_a_run_begun_from_another_models_folder_is_resumed_by_the_same_call(coco_folder: Path, tmp_path: Path) -> None:
    def go(epochs: int, resume: bool) -> dict[str, Any]:
        fields = {key: SMALL[key] for key in ("backbone", "backbone_weights")} | {"epochs": epochs, "evaluate_every": 0}
        return train(coco_folder, "solov2_tiny_r18", out=tmp_path / "b", config=tmp_path / "a", device="cpu",
                     progress=False, resume=resume, overrides=fields)  # fmt: skip

    small(coco_folder, tmp_path / "a", epochs=1, tower_channels=16)
    with pytest.warns(UserWarning, match="tower_channels"):
        go(1, False)
    with pytest.warns(UserWarning, match="tower_channels"):
        assert go(2, True)["epochs"] == 2


def test_a_run_of_any_model_is_resumed_with_the_default_recipe(coco_folder: Path, tmp_path: Path) -> None:
    small(coco_folder, tmp_path, epochs=1)
    fields = {key: value for key, value in SMALL.items() if key != "epochs"}
    assert train(coco_folder, out=tmp_path, config="finetune", resume=True, device="cpu", progress=False,
                 overrides={**fields, "epochs": 2})["epochs"] == 2  # fmt: skip


def test_what_a_run_kept_of_its_weights_is_trained_where_nothing_is_loaded(coco_folder: Path, tmp_path: Path) -> None:
    small(coco_folder, tmp_path, epochs=1, frozen_stages=1, norm_eval=True)
    given = {"backbone_weights": "none", "data": str(coco_folder)}
    plan = new_plan(tmp_path, given)
    assert not {"frozen_stages", "norm_eval"} & set(plan.fields)
    assert new_plan(tmp_path, {**given, "frozen_stages": 2}).fields["frozen_stages"] == 2


def test_the_recipes_model_says_how_the_weights_are_read(coco_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: sodar_r50_cls\n")
    create_model("solo_r50", 2, overrides={**SOLO, "norm_eval": True}).save(tmp_path / "host.safetensors")
    plan = new_plan(tmp_path / "mine.yaml", {"weights": str(tmp_path / "host.safetensors"), "data": str(coco_folder)})
    assert plan.recipe.model == "sodar_r50_cls" and plan.fields["norm_eval"] is True


def test_a_recipe_without_a_model_takes_the_one_of_the_weights(coco_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("lr: 3e-4\nmin_score: 0.2\n")
    create_model("decoupled_solo_r50", 2, overrides=SOLO).save(tmp_path / "a.safetensors")
    plan = new_plan(tmp_path / "mine.yaml", {"weights": str(tmp_path / "a.safetensors"), "data": str(coco_folder)})
    assert (plan.recipe.model, plan.recipe.lr) == ("decoupled_solo_r50", 3e-4)
    assert plan.fields["min_score"] == 0.2 and plan.fields["tower_channels"] == SOLO["tower_channels"]
