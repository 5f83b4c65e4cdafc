"""The pages name fields as they are: `field=value` on a page is a field of a model or of a recipe, and the tables of
what differs from the papers state the defaults."""

import re
from pathlib import Path

import pytest

from instseg.data.transforms.augment import Augment
from instseg.models.zoo import build_config, config_fields, list_models
from instseg.training.recipe import Recipe, load_recipe, recipe_names

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [*sorted((DOCS / "methods").glob("*.md")), *(DOCS / "decisions" / f"{n}.md" for n in ("solo", "sodar"))]
NO_FIELDS = {"align_corners", "eps"}  # arguments of functions
MODELS = {name: config_fields(name) for name in list_models()}
KNOWN = {*(field for fields in MODELS.values() for field in fields), *Recipe.model_fields, *Augment.model_fields}


def unknown_fields(text: str) -> set[str]:
    spans = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^instseg .*$", text, flags=re.MULTILINE)
    return {name for span in spans for name in re.findall(r"(?<![-\w])([a-z]\w*)=", span)} - KNOWN - NO_FIELDS


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_every_field_of_a_page_exists(page: Path) -> None:
    assert unknown_fields(page.read_text(encoding="utf-8")) == set()


def test_a_field_that_does_not_exist_is_seen() -> None:
    assert unknown_fields("`nms_pre=500 nms_after=3`") == {"nms_after"}


# What docs/decisions/solo.md states in its last column.
@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        ("solo_r50", "coord_convs", 1),
        ("decoupled_solo_light_r50", "shared_tower", True),
        ("solov2_r50", "kernel_coords", True),
        ("solov2_r50", "feature_coords", True),
        ("solov2_r50", "tower_channels", 512),
        ("solov2_r50", "mask_hidden", 128),
        ("solov2_light_512_r50_dcn", "dcn_towers", "last"),
        ("solov2_r101_dcn", "mask_feature_dcn", True),
        ("solov2_r50", "semantic_weight", 0),
        ("solov2_r50", "shared_cells", "all"),
        ("solo_r50", "center_region", 0.2),
        ("solo_r50", "min_pixels", 1),
        ("solo_r50", "candidate_threshold", 0.1),
        ("solo_r50", "mask_threshold", 0.5),
        ("solov2_r50", "nms_pre", 500),
        ("solov2_r50", "class_agnostic", False),
        ("solov2_r50", "nms_sigma", 2.0),
        ("solov2_r50", "min_score", 0.05),
        ("solov2_r50", "max_instances", 100),
        ("solov2_r50", "antialias", False),
        ("solo_r50", "frozen_stages", 0),
        ("solo_r50", "norm_eval", False),
    ],
)
def test_the_table_of_solo_states_the_defaults(model: str, field: str, value: object) -> None:
    page = (DOCS / "decisions" / "solo.md").read_text(encoding="utf-8")
    assert MODELS[model][field] == value
    written = str(value).lower() if isinstance(value, bool) else f"{value}"
    assert re.search(rf"`[^`]*\b{field}={re.escape(written)}(?![\w.])", page)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith(("solo_", "solov2_"))])
def test_the_recipes_for_coco_are_what_the_table_says(name: str) -> None:
    recipe, _ = load_recipe(name, {}, list(MODELS["solov2_r50"]))
    assert (recipe.clip, recipe.warmup_iterations, recipe.flip) == (35, 500, 0.5)
    assert recipe.warmup_factor == (0.01 if name.startswith("solov2_") else 0.3333)
    assert recipe.decay_norms_and_biases and not recipe.keep_empty and not recipe.average_normalizers
    assert recipe.backbone_weights == "imagenet"


def test_the_schedule_of_table_1_can_be_asked_for_solo() -> None:
    asked = {"epochs": 72, "lr_drops": [54, 66], "train_short": "640..800"}
    recipe, _ = load_recipe("solo_3x", asked, list(MODELS["solo_r50"]))
    longest, _ = load_recipe("solov2_6x", {}, list(MODELS["solov2_r50"]))
    assert (recipe.epochs, recipe.lr_drops) == (longest.epochs, longest.lr_drops) == (72, [54, 66])
    assert build_config("solo_r50", {}).max_instances == 100
