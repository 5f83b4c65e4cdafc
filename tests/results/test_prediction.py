from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from instseg.core import rle
from instseg.core.categories import Categories
from instseg.core.errors import ConfigError, DataError
from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.results.prediction import Prediction


@pytest.fixture
def prediction() -> Prediction:
    """A ring of two parts, a square over it, and a faint one."""
    masks = torch.zeros(3, 30, 40, dtype=torch.bool)
    masks[0, 2:20, 2:20] = True
    masks[0, 8:14, 8:14] = False
    masks[0, 2:6, 30:36] = True
    masks[1, 15:25, 15:25] = True
    masks[2, 26:29, 1:5] = True
    found = Instances(torch.tensor([0.9, 0.6, 0.1]), torch.tensor([1, 0, 1]), Masks.from_bool(masks))
    return Prediction(found, Categories(("cat", "dog"), (17, 3)))


def test_it_counts_filters_and_indexes(prediction: Prediction) -> None:
    assert len(prediction) == 3 and prediction.image_size == (30, 40)
    assert prediction.categories == ("cat", "dog") and prediction.category_ids == (17, 3)
    assert prediction.names == ["dog", "cat", "dog"]
    sure = prediction[prediction.scores > 0.5]
    assert len(sure) == 2 and isinstance(sure, Prediction) and sure.categories == prediction.categories
    assert prediction[0].names == ["dog"] and prediction[-1].scores.tolist() == [pytest.approx(0.1)]
    assert prediction[1:].boxes.tolist()[0] == [15, 15, 25, 25]
    assert prediction[torch.tensor([2, 0])].labels.tolist() == [1, 1]
    assert len(list(prediction.masks.polygons())) == 3
    assert "3 objects" in repr(prediction)


def test_coco_results_carry_the_ids_of_the_data_and_go_into_json(prediction: Prediction) -> None:
    rows = json.loads(json.dumps(prediction.to_coco(image_id=77)))
    assert [(r["image_id"], r["category_id"]) for r in rows] == [(77, 3), (77, 17), (77, 3)]
    assert "bbox" not in rows[0]
    assert np.array_equal(rle.decode(rle.from_json(rows[1]["segmentation"])), prediction.masks.bool()[1].numpy())


def test_geojson_keeps_parts_and_holes(prediction: Prediction) -> None:
    features = json.loads(json.dumps(prediction.to_geojson()))["features"]
    ring = features[0]
    assert ring["properties"] == {
        "category": "dog",
        "category_id": 3,
        "score": pytest.approx(0.9),
        "area": 18 * 18 - 36 + 24,
    }
    parts = ring["geometry"]["coordinates"]
    assert ring["geometry"]["type"] == "MultiPolygon" and sorted(len(part) for part in parts) == [1, 2]
    assert all(r[0] == r[-1] for part in parts for r in part)
    outer, hole = next(part for part in parts if len(part) == 2)
    assert shoelace(outer) > 0 > shoelace(hole)


def shoelace(ring: list[list[float]]) -> float:
    x, y = np.array(ring).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2


def test_label_image_numbers_objects_by_rank_and_the_better_one_has_the_pixel(prediction: Prediction) -> None:
    labels = prediction.to_labels()
    assert labels.dtype == np.uint16 and labels.shape == (30, 40)
    assert set(np.unique(labels)) == {0, 1, 2}  # the faint one is not drawn
    assert labels[16, 16] == 1 and labels[22, 22] == 2 and labels[10, 10] == 0
    assert 3 in prediction.to_labels(score=0.05)


def test_supervision_is_named_when_it_is_missing(prediction: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError) as caught:
        prediction.to_supervision()
    assert "pip install" in str(caught.value) and "\n" not in str(caught.value)


def test_supervision_gets_boxes_masks_and_names(prediction: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("supervision")
    module.Detections = lambda **fields: SimpleNamespace(**fields)
    monkeypatch.setitem(sys.modules, "supervision", module)
    detections = prediction.to_supervision()
    assert detections.xyxy.shape == (3, 4) and detections.mask.shape == (3, 30, 40)
    assert detections.class_id.tolist() == [1, 0, 1] and detections.data["class_name"].tolist() == ["dog", "cat", "dog"]


def test_plot_draws_into_any_kind_of_image(prediction: Prediction, tmp_path: Path) -> None:
    pixels = np.full((30, 40, 3), 50, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for image in (pixels, torch.from_numpy(pixels).permute(2, 0, 1), Image.fromarray(pixels), tmp_path / "a.png", None):
        drawn = prediction.plot(image)
        assert drawn.size == (40, 30) and np.asarray(drawn).std() > 0
    prediction.path = str(tmp_path / "a.png")
    assert np.array_equal(np.asarray(prediction.plot()), np.asarray(prediction.plot(pixels)))


def test_plot_refuses_an_image_of_another_size(prediction: Prediction) -> None:
    with pytest.raises(DataError, match="prediction on"):
        prediction.plot(np.zeros((10, 10, 3), np.uint8))


def test_save_writes_what_the_name_says(prediction: Prediction, tmp_path: Path) -> None:
    for name in ("a.json", "a.geojson", "a-labels.png", "a.png", "a.jpg"):
        assert prediction.save(tmp_path / name) == tmp_path / name
    assert len(json.loads((tmp_path / "a.json").read_text())["annotations"]) == 3
    assert len(json.loads((tmp_path / "a.geojson").read_text())["features"]) == 3
    with Image.open(tmp_path / "a-labels.png") as labels, Image.open(tmp_path / "a.png") as overlay:
        assert np.array_equal(np.asarray(labels), prediction.to_labels())
        assert overlay.mode == "RGB"
    prediction.save(tmp_path / "a.json", score=0.5)
    assert len(json.loads((tmp_path / "a.json").read_text())["annotations"]) == 2


def test_save_refuses_other_suffixes(prediction: Prediction, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot save"):
        prediction.save(tmp_path / "a.xlsx")


@pytest.fixture
def boxed() -> Prediction:
    """What a detector of boxes finds."""
    boxes = torch.tensor([[2.0, 3.5, 20, 23.5], [15, 5, 39, 29]])
    found = Instances(torch.tensor([0.9, 0.6]), torch.tensor([1, 0]), boxes=boxes, image_size=(30, 40))
    return Prediction(found, Categories(("cat", "dog"), (17, 3)))


def test_a_detector_of_boxes_has_no_masks(boxed: Prediction) -> None:
    assert boxed.masks is None and boxed.image_size == (30, 40) and len(boxed) == 2
    assert boxed[1].boxes.tolist() == [[15, 5, 39, 29]]
    assert repr(boxed) == "Prediction(2 boxes, 30x40 pixels)"
    with pytest.raises(DataError, match="no masks"):
        boxed.to_labels()


def test_boxes_go_into_coco_results_and_geojson(boxed: Prediction) -> None:
    rows = json.loads(json.dumps(boxed.to_coco(image_id=7)))
    assert rows[0] == {"image_id": 7, "category_id": 3, "score": pytest.approx(0.9), "bbox": [2, 3.5, 18, 20]}
    assert "segmentation" not in rows[1]
    feature = json.loads(json.dumps(boxed.to_geojson()))["features"][0]
    assert feature["properties"]["area"] == 360 and feature["geometry"]["type"] == "MultiPolygon"
    ((ring,),) = feature["geometry"]["coordinates"]
    assert ring[0] == ring[-1] and shoelace(ring) == 360
    assert {tuple(point) for point in ring} == {(2, 3.5), (20, 3.5), (20, 23.5), (2, 23.5)}


def test_boxes_go_into_supervision_without_masks(boxed: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("supervision")
    module.Detections = lambda **fields: SimpleNamespace(**fields)
    monkeypatch.setitem(sys.modules, "supervision", module)
    detections = boxed.to_supervision()
    assert detections.mask is None and detections.xyxy.tolist() == boxed.boxes.tolist()


def test_boxes_are_drawn_and_saved(boxed: Prediction, tmp_path: Path) -> None:
    assert np.asarray(boxed.plot()).std() > 0
    for name in ("a.json", "a.geojson", "a.png"):
        boxed.save(tmp_path / name)
    first, second = json.loads((tmp_path / "a.json").read_text())["annotations"]
    assert first["bbox"] == [2, 3.5, 18, 20] and first["area"] == 360 and second["area"] == 576
    assert "segmentation" not in first
