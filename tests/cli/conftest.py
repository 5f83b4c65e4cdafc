"""A model and images that are small enough to run the real program on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SIZES = [(90, 120), (64, 64), (75, 50)]  # (H, W) of the images


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained SOLOv2 that finds something everywhere, because its thresholds are almost zero."""
    import torch

    import instseg

    torch.manual_seed(0)
    model = instseg.create_model(
        "solov2_r18",
        num_classes=2,
        tower_convs=1,
        tower_channels=32,
        fpn_channels=32,
        mask_channels=16,
        mask_hidden=32,
        grids=(8, 6, 4, 3, 2),
        input_short=64,
        input_long=96,
        candidate_threshold=0.005,
        min_score=0.001,
        max_instances=200,
    )
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    model.save(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with three noise images, 0.png to 2.png."""
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder of two images with a square each, without a defect; train and val are the same."""
    folder = tmp_path / "cells"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for number in (1, 2):
        name = f"{number}.png"
        Image.fromarray(np.full((40, 50, 3), 60 * number, np.uint8)).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "height": 40, "width": 50})
        square = [[5, 5, 25, 5, 25, 25, 5, 25]]
        annotations.append(
            {"id": number, "image_id": number, "category_id": 3, "segmentation": square, "bbox": [5, 5, 20, 20]}
            | {"area": 400, "iscrowd": 0}
        )
    categories = [{"id": 3, "name": "cell"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder


def _replaced(field: str, value: object) -> Callable[[Any], None]:
    def damage(content: Any) -> None:
        content["annotations"][0][field] = value

    return damage


DEFECTS: dict[str, Callable[[Any], None]] = {
    "unknown_image": _replaced("image_id", 99),
    "unknown_category": _replaced("category_id", 8),
    "rle_of_the_wrong_size": _replaced("segmentation", {"size": [30, 50], "counts": [700, 100, 700]}),
}
ODD: dict[str, Callable[[Any], None]] = {
    "no_mask": _replaced("segmentation", []),
    "no_category": _replaced("category_id", None),
    "polygon_of_two_points": _replaced("segmentation", [[5, 5, 25, 25]]),
    "polygon_with_nan": _replaced("segmentation", [[5, 5, float("nan"), 5, 25, 25]]),
    "polygon_outside": _replaced("segmentation", [[205, 205, 225, 205, 225, 225]]),
    "polygon_of_no_height": _replaced("segmentation", [[5, 5, 25, 5, 15, 5]]),
    "mask_without_a_pixel": _replaced("segmentation", {"size": [40, 50], "counts": [2000]}),
}


@pytest.fixture(params=DEFECTS)
def damaged(request: pytest.FixtureRequest, dataset: Path) -> Path:
    """The data set with one defect in the first annotation of train."""
    path = dataset / "annotations" / "train.json"
    content = json.loads(path.read_text())
    DEFECTS[request.param](content)
    path.write_text(json.dumps(content))
    return dataset


@pytest.fixture(params=ODD)
def odd(request: pytest.FixtureRequest, dataset: Path) -> Path:
    """The data set with one record in train that harms nothing and is left out."""
    path = dataset / "annotations" / "train.json"
    content = json.loads(path.read_text())
    ODD[request.param](content)
    path.write_text(json.dumps(content))
    return dataset
