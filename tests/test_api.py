"""The package's verbs in Python."""

import subprocess
import sys

import pytest

import instseg


def test_the_public_names_are_the_verbs_and_the_words_of_the_project():
    for name in instseg.__all__:
        assert getattr(instseg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'segment'"):
        instseg.segment  # noqa: B018


def test_verbs_stay_functions_whatever_else_is_imported():
    code = "import instseg.training.run, instseg.evaluation.evaluate, instseg; assert callable(instseg.train)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_trains_evaluates_and_predicts_from_python(tmp_path):
    narrow = {"fpn_channels": 16, "tower_channels": 16, "mask_hidden": 16, "mask_channels": 8, "grids": (6, 5, 4, 3, 2)}
    report = instseg.train(
        "nuclei-mini",
        "solov2_light_448_r18",
        out=tmp_path / "run",
        overrides={"epochs": 1},
        backbone="resnet10t",
        backbone_weights="none",
        input_short=64,
        evaluate_every=0,
        progress=False,
        workers=0,
        device="cpu",
        **narrow,
    )
    assert report["epochs"] == 1
    model = instseg.load(tmp_path / "run" / "last.safetensors")
    assert model.categories == ("nucleus",)
    metrics = instseg.evaluate(model, "nuclei-mini", progress=False, out=tmp_path / "val")
    assert 0 <= metrics["segm"]["ap"] <= 1 and (tmp_path / "val" / "metrics.json").is_file()


def test_an_unknown_recipe_field_names_the_nearest(tmp_path):
    with pytest.raises(instseg.InstsegError, match="epochs"):
        instseg.train("shapes", "solov2_r18", out=tmp_path / "run", epoch=1)
