"""Recipes: what they hold, how they are overridden, and what a slip of the pen is answered with."""

import re
from pathlib import Path

import pytest
import yaml

from instseg.core.errors import ConfigError
from instseg.core.values import parse_value
from instseg.data.transforms.augment import Augment
from instseg.models.config import setting_names
from instseg.models.zoo import build_config, config_fields, get_entry, list_models
from instseg.training.recipe import Recipe, load_recipe, read_recipe, recipe_names, write_recipe

CALL_ONLY = {"data", "split", "weights", "device", "workers"}
MODEL_FIELDS = ["tower_channels", "input_short", "candidate_threshold"]


def test_the_bundled_recipes() -> None:
    solo = ["sodar_3x", "sodar_solov2_6x", "solo_1x", "solo_3x", "solo_light_3x"]
    solov2 = ["solov2_1x", "solov2_3x", "solov2_6x", "solov2_light_3x", "solov2_light_512_3x"]
    assert recipe_names() == ["finetune", "nuclei", *solo, *solov2]


@pytest.mark.parametrize("name", recipe_names())
def test_bundled_recipes_are_complete_and_fit_their_model(name: str) -> None:
    assert set(Recipe.model_fields) - CALL_ONLY <= set(read_recipe(name))
    recipe, fields = load_recipe(name, {}, config_fields)
    assert set(fields) <= set(config_fields(recipe.model))


@pytest.mark.parametrize("name", recipe_names())
def test_every_line_of_a_bundled_recipe_says_what_its_number_is(name: str) -> None:
    from importlib import resources

    lines = resources.files("instseg.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = " ".join(line for line in lines if line.startswith("#"))
    assert "Paper" in head and "Ours" in head
    assert all("  # " in line for line in lines if line and not line.startswith("#"))


def test_fields_left_out_take_the_values_of_the_default_recipe() -> None:
    recipe, _ = load_recipe(None, {}, config_fields)
    ours = recipe.model_dump(exclude=set(Augment.model_fields) | CALL_ONLY)
    assert ours == Recipe().model_dump(include=set(ours))


def test_the_papers_recipe() -> None:
    recipe, _ = load_recipe("solov2_3x", {}, config_fields)
    assert (recipe.optimizer, recipe.lr, recipe.base_batch, recipe.batch) == ("sgd", 0.01, 16, 2)
    assert (recipe.momentum, recipe.weight_decay, recipe.decay_norms_and_biases) == (0.9, 1e-4, True)
    assert (recipe.clip, recipe.warmup_iterations, recipe.warmup_factor) == (35.0, 500, 0.01)
    assert (recipe.train_short, recipe.train_long) == ([640, 672, 704, 736, 768, 800], 1333)
    light, _ = load_recipe("solov2_light_3x", {}, config_fields)
    assert (light.train_short, light.train_long) == ([352, 384, 416, 448, 480, 512], 768)


@pytest.mark.parametrize("recipe", recipe_names())
def test_a_bundled_recipe_says_nothing_of_a_network(recipe: str) -> None:
    _, fields = load_recipe(recipe, {}, config_fields)
    assert set(fields) <= setting_names(get_entry(read_recipe(recipe)["model"]).config)


@pytest.mark.parametrize("model", list_models())
@pytest.mark.parametrize("recipe", [None, "nuclei", "solov2_3x"])
def test_a_name_is_trained_as_the_zoo_has_it(model: str, recipe: str | None) -> None:
    _, fields = load_recipe(recipe, {"model": model}, config_fields)
    settings = {"input_enlarge": False} if recipe is None else {}
    assert build_config(model, fields) == build_config(model, settings)
    _, fields = load_recipe(recipe, {"model": model, "tower_convs": 3}, config_fields)
    assert build_config(model, fields) == build_config(model, {**settings, "tower_convs": 3})


def test_fields_of_another_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="mask_channels"):
        load_recipe(None, {"model": "solo_r50", "mask_channels": 8}, config_fields)


def test_a_run_folder_lends_another_model_its_training_and_no_network(tmp_path: Path) -> None:
    recipe, fields = load_recipe("finetune", {"model": "solov2_light_448_r18", "lr": 1e-5}, config_fields)
    chosen = {"grids": (8, 8, 8, 8, 8), "min_score": 0.2, **fields}
    path = tmp_path / "config.yaml"
    path.write_text(write_recipe(recipe, build_config(recipe.model, chosen).model_dump(mode="json"), ["a run"]))
    assert build_config(recipe.model, load_recipe(tmp_path, {}, config_fields)[1]).grids == (8, 8, 8, 8, 8)
    with pytest.warns(UserWarning, match="recipe for solov2_light_448_r18: its grids do not count for solov2_r50"):
        other, fields = load_recipe(tmp_path, {"model": "solov2_r50"}, config_fields)
    assert other.lr == 1e-5
    assert build_config("solov2_r50", fields) == build_config("solov2_r50", {"input_enlarge": False, "min_score": 0.2})


def test_a_recipe_without_a_model_counts_for_any(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("tower_channels: 64\n")
    assert load_recipe(path, {"model": "solo_r50"}, config_fields)[1] == {"tower_channels": 64}
    path.write_text("model: solo_r50\ntower_chanels: 64\n")
    with pytest.raises(ConfigError, match='"tower_channels"'):
        load_recipe(path, {"model": "solov2_r50"}, config_fields)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [("train_short", "112", [112]), ("lr_drops", "9", [9]), ("lr_drops_updates", "[]", []),
     ("freeze", "backbone.*", ["backbone.*"]), ("train_short", "352..512", "352..512"), ("train_short", "null", None)],
)  # fmt: skip
def test_a_single_value_is_a_list_of_one(tmp_path: Path, field: str, text: str, value: object) -> None:
    recipe, fields = load_recipe(None, {field: text}, config_fields)
    assert getattr(recipe, field) == value
    path = tmp_path / "config.yaml"
    path.write_text(write_recipe(recipe, fields, []))
    assert load_recipe(path, {}, config_fields)[0] == recipe
    path.write_text(f"{field}: {text}\n")
    assert getattr(load_recipe(path, {}, config_fields)[0], field) == value


def test_a_single_value_is_a_list_of_one_in_a_model_too() -> None:
    single = {"grids": 24, "scale_ranges": [[1, 1e6]], "pyramid": False}
    assert build_config("solo_r50", single) == build_config("solo_r50", {**single, "grids": (24,)})
    with pytest.raises(ConfigError, match=r"^solo_r50: grids and scale_ranges must have one entry for each"):
        build_config("solo_r50", {"grids": 24})


@pytest.mark.parametrize(
    "text", ["512..352", "a..b", "352...512", "352-512", "352..", "16..64", "32..99999", "[]", "true", "352.5"]
)
def test_what_is_no_range_of_sides_says_how_one_is_written(text: str) -> None:
    with pytest.raises(ConfigError, match="train_short") as error:
        load_recipe(None, {"train_short": text}, config_fields)
    assert re.search(r"640\.\.800|32 to 16384|integer|list", str(error.value)) and "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_fields_go_to_training_augmentation_and_model() -> None:
    recipe, fields = load_recipe(None, {"epochs": "3", "flip": "0", "tower_channels": "64"}, config_fields)
    assert (recipe.epochs, recipe.flip) == (3, 0.0)
    assert fields["tower_channels"] == 64 and "epochs" not in fields


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("5E4", 5e4), ("-2e-1", -0.2), ("3", 3), ("0.5", 0.5), ("true", True), ("[9, 11]", [9, 11]),
     ("null", None), ("adamw", "adamw"), ("runs/1e3x", "runs/1e3x"), ("[half", "[half")],
)  # fmt: skip
def test_values_are_read_as_people_write_them(text: str, value: object) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("text", "names"),
    [("[car,person]", ["car", "person"]), ("car", ["car"]), ("[traffic light, no]", ["traffic light", "no"]),
     ("7", ["7"]), ("[007, 1e3, 2020-01-01]", ["007", "1e3", "2020-01-01"]), ("yes", ["yes"]), ("null", None),
     ("[a: b, *c]", ["a: b", "*c"]), ("['a, b']", ["a, b"])],
)  # fmt: skip
def test_names_of_classes_are_taken_as_they_are_written(text: str, names: list[str] | None) -> None:
    recipe, _ = load_recipe(None, {"classes": text}, config_fields)
    assert recipe.classes == names


def test_names_of_classes_in_a_file_are_taken_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("classes: [no, 007, car]\n")
    recipe, _ = load_recipe(path, {}, MODEL_FIELDS)
    assert recipe.classes == ["no", "007", "car"]
    path.write_text(write_recipe(recipe, {}, []))
    assert load_recipe(path, {}, MODEL_FIELDS)[0].classes == ["no", "007", "car"]
    assert load_recipe(None, {"classes": [1, "car"]}, config_fields)[0].classes == ["1", "car"]
    assert load_recipe(None, {"classes": 7}, config_fields)[0].classes == ["7"]


@pytest.mark.parametrize("text", ["[]", "[car, car]"])
def test_no_class_or_one_twice_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="classes") as error:
        load_recipe(None, {"classes": text}, config_fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "near"), [("epoch", "epochs"), ("tower_chanels", "tower_channels"), ("Flip", "flip")]
)
def test_a_misspelt_field_names_the_nearest(field: str, near: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe(None, {field: 1}, config_fields)
    assert field in str(error.value) and f'"{near}"' in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [("epochs", "many", "integer"), ("epochs", 2.5, "integer"), ("lr", -1, "greater than 0"),
     ("optimizer", "lion", "'sgd' or 'adamw'"), ("lr_drops", "nine", "integer"), ("flip", 2, "less than or equal to 1"),
     ("ema_decay", 1.0, "less than 1"), ("lr", "nan", "number")],
)  # fmt: skip
def test_a_wrong_value_names_field_value_and_what_is_wanted(field: str, value: object, wanted: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe(None, {field: value}, config_fields)
    text = str(error.value)
    assert field in text and str(value) in text and wanted in text and "\n" not in text


def test_a_recipe_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 1e-4  # no dot\nbackbone_weights: none\ninput_short: 320\n")
    recipe, fields = load_recipe(path, {"lr": "2e-4"}, MODEL_FIELDS)
    assert recipe.lr == 2e-4 and recipe.backbone_weights is None and fields == {"input_short": 320}


@pytest.mark.parametrize(
    ("text", "fault"), [("- 1\n- 2\n", "flat list"), ("a: [1\n", "not YAML"), ("lr: {a: 1}\n", "lr")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=fault) as error:
        load_recipe(path, {}, MODEL_FIELDS)
    assert "mine.yaml" in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match='"solov2_3x"'):
        load_recipe("solov2_3", {}, MODEL_FIELDS)


def test_a_written_recipe_reads_back(tmp_path: Path) -> None:
    recipe, fields = load_recipe("nuclei", {"lr": 1e-5, "data": "2018"}, config_fields)
    path = tmp_path / "config.yaml"
    path.write_text(write_recipe(recipe, fields, ["by hand"]))
    assert load_recipe(path, {}, config_fields) == (recipe, fields)
    assert recipe.data == "2018"
    assert yaml.safe_load(path.read_text())["model"] == "solov2_tiny_r10t_nuclei"
