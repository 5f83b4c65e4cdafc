"""`train` from a data set on disk to a run folder."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from instseg.core.errors import CheckpointError, ConfigError, DataError
from instseg.model.load import load
from instseg.model.preprocess import Preprocess
from instseg.models.zoo import build_config
from instseg.training import plan
from instseg.training.checkpoint import load_state
from instseg.training.recipe import Recipe
from instseg.training.run import at_model_scale, train

SMALL: dict[str, Any] = {
    "backbone": "test_resnet", "backbone_weights": "none", "fpn_channels": 32, "tower_channels": 32, "tower_convs": 1,
    "mask_hidden": 32, "mask_channels": 16, "grids": [8, 6], "scale_ranges": [[1, 32], [16, 64]], "input_short": 64,
    "epochs": 1, "batch": 3, "lr": 1e-3, "workers": 0,
}  # fmt: skip


def small(data: Path, out: Path, model: str | None = "solov2_r18", **fields: Any) -> dict[str, Any]:
    named = {k: fields.pop(k) for k in ("resume", "weights", "config", "batch") if k in fields}
    return train(data, model, out=out, device="cpu", progress=False, overrides={**SMALL, **fields}, **named)


@pytest.fixture(scope="module")
def finished(coco_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    result = small(coco_folder, out)
    assert result["epochs"] == 1 and result["folder"] == str(out) and result["best_ap"] is not None
    return out


def test_a_run_folder_holds_what_is_promised(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {
        "config.yaml",
        "metrics.csv",
        "last.ckpt",
        "last.safetensors",
        "best.safetensors",
        "plots",
        "log.txt",
    } <= names
    assert not [name for name in names if "tmp" in name]
    assert list((finished / "plots").iterdir())


def test_saved_weights_know_names_and_ids_of_the_data(finished: Path) -> None:
    model = load(finished / "best.safetensors")
    assert model.categories == ("square",) and model.category_ids == (5,)


def test_config_holds_everything_resolved_and_works_as_a_recipe(
    finished: Path, coco_folder: Path, tmp_path: Path
) -> None:
    text = (finished / "config.yaml").read_text()
    values = yaml.safe_load(text)
    assert set(Recipe.model_fields) <= set(values) and values["model"] == "solov2_r18"
    assert set(build_config("solov2_r18", {}).model_dump()) - {"num_classes"} <= set(values)
    assert "backbone weights" in text
    again = train(coco_folder, out=tmp_path / "b", config=finished, progress=False, device="cpu")
    first, second = (load_state(folder / "last.ckpt")[0] for folder in (finished, Path(again["folder"])))
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])


def test_a_folder_that_holds_a_run_is_not_overwritten(finished: Path, coco_folder: Path) -> None:
    before = (finished / "last.ckpt").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run"):
        small(coco_folder, finished)
    assert (finished / "last.ckpt").read_bytes() == before


def test_resume_wants_the_same_recipe_and_names_what_differs(finished: Path, coco_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"lr was 0\.001, now 0\.1; .*--weights"):
        small(coco_folder, finished, resume=True, lr=0.1)
    with pytest.raises(ConfigError, match=r"tower_channels was 32, now 64"):
        small(coco_folder, finished, resume=True, tower_channels=64)
    with pytest.raises(ConfigError, match="trains solov2_r18, not solov2_r50"):
        small(coco_folder, finished, model="solov2_r50", resume=True)
    with pytest.raises(ConfigError, match='"epochs"'):
        small(coco_folder, finished, resume=True, epoch=7)


def test_resume_lets_the_machine_change(finished: Path, coco_folder: Path) -> None:
    small(coco_folder, finished, resume=True, workers=1, log_every=3, checkpoint_minutes=1)
    assert yaml.safe_load((finished / "config.yaml").read_text())["workers"] == 1


def test_resume_needs_no_field_twice(finished: Path, coco_folder: Path) -> None:
    result = train(coco_folder, out=finished, resume=True, progress=False)
    assert result["epochs"] == 1


def test_resume_on_other_data_is_refused(write_squares: Any, finished: Path, tmp_path: Path) -> None:
    write_squares(tmp_path / "other", 3)
    with pytest.raises(DataError, match="images 6, now 3"):
        small(tmp_path / "other", finished, resume=True)


def test_resume_before_anything_was_saved_starts(coco_folder: Path, tmp_path: Path) -> None:
    assert small(coco_folder, tmp_path / "a", resume=True)["epochs"] == 1


def test_resume_of_a_folder_without_state_is_refused(coco_folder: Path, tmp_path: Path, finished: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes((finished / "best.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"no last\.ckpt"):
        small(coco_folder, tmp_path, resume=True)


def test_resume_from_a_torn_checkpoint_says_so(coco_folder: Path, tmp_path: Path) -> None:
    small(coco_folder, tmp_path, epochs=2)
    whole = load_state(tmp_path / "last.ckpt")[0]
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:5000])
    small(coco_folder, tmp_path, epochs=2, resume=True)
    state = load_state(tmp_path / "last.ckpt")[0]
    assert all(torch.equal(state["model"][name], whole["model"][name]) for name in whole["model"])
    assert "is torn" in (tmp_path / "log.txt").read_text()
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_weights_bring_the_models_structure_whatever_the_default_recipe_says(
    finished: Path, coco_folder: Path, tmp_path: Path
) -> None:
    result = train(
        coco_folder, out=tmp_path, weights=finished, device="cpu", progress=False,
        overrides={"epochs": 1, "lr": 1e-12, "workers": 0, "ema_decay": 0, "candidate_threshold": 0.2},
    )  # fmt: skip
    began, ended = load(finished / "best.safetensors"), load(tmp_path / "last.safetensors")
    assert result["epochs"] == 1 and ended.name == "solov2_r18"
    assert ended.config == began.config.model_copy(update={"candidate_threshold": 0.2})
    assert torch.allclose(ended.net.fpn.lateral[0].weight, began.net.fpn.lateral[0].weight, atol=1e-6)  # type: ignore[union-attr,index]


def test_a_checkpoint_in_place_of_a_name_is_where_training_starts(
    finished: Path, coco_folder: Path, tmp_path: Path
) -> None:
    overrides = {"epochs": 1, "workers": 0, "evaluate_every": 0}
    train(coco_folder, str(finished), out=tmp_path, device="cpu", progress=False, overrides=overrides)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (config["weights"], config["model"], config["tower_channels"]) == (str(finished), "solov2_r18", 32)


def test_a_structure_asked_for_that_is_not_the_checkpoints_is_refused(
    finished: Path, coco_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit|another shape"):
        train(coco_folder, out=tmp_path, weights=finished, progress=False, overrides={"tower_channels": 64})


@pytest.mark.parametrize("weights", ["nowhere.safetensors", "empty"])
def test_weights_that_are_not_there_are_one_line(coco_folder: Path, tmp_path: Path, weights: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"nowhere|empty") as error:
        train(coco_folder, out=tmp_path / "a", weights=tmp_path / weights, progress=False)
    assert "\n" not in str(error.value)


def test_without_a_split_to_evaluate_on_the_run_says_so(write_squares: Any, tmp_path: Path) -> None:
    write_squares(tmp_path / "data", 3)
    result = small(tmp_path / "data", tmp_path / "a")
    assert result["best_ap"] is None
    assert "no evaluation" in (tmp_path / "a" / "log.txt").read_text()
    assert (tmp_path / "a" / "best.safetensors").exists()


def test_a_lone_json_is_not_evaluated_on_what_it_trains_on(write_squares: Any, tmp_path: Path) -> None:
    write_squares(tmp_path / "data", 3)
    result = small(tmp_path / "data" / "annotations" / "train.json", tmp_path / "a", val_split=0)
    assert result["best_ap"] is None
    assert "one split" in (tmp_path / "a" / "log.txt").read_text()


def test_no_class_in_common_is_refused_before_the_first_update(write_squares: Any, tmp_path: Path) -> None:
    write_squares(tmp_path / "data", 3)
    write_squares(tmp_path / "data", 3, name="circle", splits=("val",))
    with pytest.raises(DataError, match="no class in common"):
        small(tmp_path / "data", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_num_classes_comes_from_the_data(coco_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_classes comes from the data, which has 1"):
        small(coco_folder, tmp_path, num_classes=3)


def test_on_error_skip_goes_on_with_the_readable_images(write_squares: Any, tmp_path: Path) -> None:
    write_squares(tmp_path / "data", 4, splits=("train", "val"))
    broken = tmp_path / "data" / "images" / "2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=r"2\.png"):
        small(tmp_path / "data", tmp_path / "a", evaluate_every=0)
    assert not (tmp_path / "a").exists()
    assert small(tmp_path / "data", tmp_path / "b", evaluate_every=0, on_error="skip")["epochs"] == 1
    assert "2.png" in (tmp_path / "b" / "log.txt").read_text()


def test_missing_backbone_weights_are_told_and_recorded(
    coco_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instseg.model.load.imagenet_reachable", lambda backbone: False)
    small(coco_folder, tmp_path, backbone_weights="auto")
    assert "warning: no ImageNet weights" in (tmp_path / "log.txt").read_text()
    config = (tmp_path / "config.yaml").read_text()
    assert "backbone weights that were found: none" in config
    assert yaml.safe_load(config)["frozen_stages"] == 0


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("short", [40, 96])
def test_a_run_sees_the_pixels_that_prediction_will_see(
    coco_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int, antialias: bool
) -> None:
    """Images of 64 pixels, reduced and enlarged."""
    seen: list[torch.Tensor] = []
    batch = Preprocess.batch
    monkeypatch.setattr(Preprocess, "batch", lambda self, images, *a: (seen.extend(images), batch(self, images, *a))[1])
    fields = {"input_short": short, "input_enlarge": True, "antialias": antialias, "evaluate_every": 0}
    plain = dict.fromkeys(("flip", "brightness", "contrast", "saturation", "hue"), 0.0)
    small(coco_folder, tmp_path / "a", **fields, **plain)
    trained, count = list(seen), len(seen)
    model = load(tmp_path / "a" / "last.safetensors")
    model.predict([str(path) for path in sorted((coco_folder / "images").iterdir())[:6]])
    predicted = seen[count:]
    assert count == len(predicted) == 6 and all(image.shape == (3, short, short) for image in trained)
    assert all(any(torch.equal(one, other) for other in predicted) for one in trained)
    assert model.extra["training_resize"] == {"rounded": False, "antialias": antialias}


def test_a_run_of_a_version_that_rounded_says_what_changes(coco_folder: Path, tmp_path: Path) -> None:
    small(coco_folder, tmp_path / "a", evaluate_every=0)
    state = torch.load(tmp_path / "a" / "last.ckpt", weights_only=True)
    del state["model_extra"]["training_resize"]
    torch.save(state, tmp_path / "a" / "last.ckpt")
    for said in (1, 1):  # once, not at every resume
        small(coco_folder, tmp_path / "a", None, resume=True, epochs=2)
        text = (tmp_path / "a" / "log.txt").read_text()
        assert text.count("rounded resized images to whole values") == said


def test_training_size_is_the_models_own_unless_the_recipe_names_one() -> None:
    plain = build_config("solov2_r18", {"input_short": 480, "input_long": 640, "input_enlarge": False})
    scaled = build_config("solov2_r18", {"input_scale": 2.0, "tile": 512})
    derived = at_model_scale(Recipe(train_short=None), plain)
    assert (derived.train_short, derived.train_long, derived.train_enlarge) == ([480], 640, False)
    derived = at_model_scale(Recipe(), scaled)
    assert (derived.enlarge, derived.crop) == (2.0, 512)
    assert at_model_scale(Recipe(crop=256), scaled).crop == 256
    own = Recipe(train_short=[320])
    assert at_model_scale(own, scaled) == own


def test_runs_without_a_folder_are_numbered_and_the_newest_is_resumed(
    coco_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(coco_folder, resume=True, progress=False)
    folders = [
        train(coco_folder, "solov2_r18", progress=False, device="cpu", overrides=SMALL)["folder"] for _ in range(2)
    ]
    assert folders == [str(Path("runs/train")), str(Path("runs/train2"))]
    assert train(coco_folder, resume=True, progress=False)["folder"] == folders[1]


def test_a_run_folder_that_cannot_be_made_is_one_line(coco_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the run folder"):
        small(coco_folder, tmp_path / "file" / "run")


def test_the_seed_decides_the_first_weights(coco_folder: Path, tmp_path: Path) -> None:
    starts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        small(coco_folder, tmp_path / name, seed=seed, epochs=1, lr=1e-12, evaluate_every=0, ema_decay=0)
        starts.append(load_state(tmp_path / name / "last.ckpt")[0]["model"])
    name = next(n for n in starts[0] if n.endswith("lateral.0.weight"))
    assert torch.equal(starts[0][name], starts[1][name]) and not torch.allclose(starts[0][name], starts[2][name])


def test_fields_free_on_resume_exist() -> None:
    assert set(Recipe.model_fields) >= plan.FREE_ON_RESUME
