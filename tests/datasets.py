"""Small data sets on disk."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@dataclass
class Folder:
    """A data set in our layout: two images of 40 x 30, one object each."""

    path: Path
    content: dict[str, Any]
    split: str = "train"

    @property
    def json(self) -> Path:
        return self.path / "annotations" / f"{self.split}.json"

    def save(self) -> Path:
        self.json.parent.mkdir(parents=True, exist_ok=True)
        self.json.write_text(json.dumps(self.content))
        return self.path

    def annotate(self, **fields: Any) -> dict[str, Any]:
        """Add an annotation of the first image; fields override a valid one. Those of an image lie side by side."""
        image = fields.get("image_id", 1)
        number = sum(a["image_id"] == image for a in self.content["annotations"])
        x, y = 2 + 11 * (number // 3), 2 + 9 * (number % 3)
        entry = {
            "id": len(self.content["annotations"]) + 1,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": 0,
            "segmentation": [[x, y, x + 10, y, x + 10, y + 8, x, y + 8]],
            "bbox": [x, y, 10, 8],
            "area": 80,
        }
        entry.update(fields)
        self.content["annotations"].append(entry)
        return entry


def write_image(path: Path, width: int = 40, height: int = 30, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def image_file() -> Callable[..., Path]:
    return write_image


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    made = Folder(tmp_path / "cells", content)
    for number in (1, 2):
        write_image(made.path / "images" / f"{number}.png", seed=number)
        content["images"].append({"id": number, "file_name": f"{number}.png", "width": 40, "height": 30})
        made.annotate(image_id=number)
    made.save()
    return made


@pytest.fixture
def unpack() -> Callable[[str, Path], dict[str, Any]]:
    """Lays an export of a labeling tool out in a folder, as its tool does; returns its truth."""
    return unpacked


def unpacked(name: str, to: Path) -> dict[str, Any]:
    with zipfile.ZipFile(Path(__file__).parent / "data" / "exports" / "coco.zip") as archive:
        truth: dict[str, Any] = json.loads(archive.read(f"truth/{name}.json"))
        start = f"sets/{name}/"
        files = {n.removeprefix(start): archive.read(n) for n in archive.namelist() if n.startswith(start)}
        files |= {path: archive.read(f"pictures/{picture}") for path, picture in truth["pictures"].items()}
    for path, content in files.items():
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        (to / path).write_bytes(content)
    return truth
