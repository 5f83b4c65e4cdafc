"""A model that finds exactly what a data set holds, and small data sets in memory."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from instseg.core import rle
from instseg.core.categories import Categories
from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.data.dataset import InstanceDataset
from instseg.data.images.read import ImageRule
from instseg.data.records import Annotation, Record


class Oracle(nn.Module):
    """The picture's colors are its objects: value 10 k in the red channel is object k, green holds its label."""

    def __init__(self, categories: Categories, cap: int = 100) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.frozen = nn.BatchNorm2d(1).eval()
        self.categories = categories
        self.config = SimpleNamespace(max_instances=cap)
        self.net = SimpleNamespace(needs=frozenset({"masks"}))
        self.name = "oracle"
        self.has_weights = True
        self.extra: dict[str, object] = {}
        self.image_rule = ImageRule()
        self.net = SimpleNamespace(needs=frozenset({"masks"}), optional=frozenset())

    @property
    def category_ids(self) -> tuple[int, ...]:
        return self.categories.ids

    def predict_batch(self, images: list[Tensor]) -> list[Instances]:
        assert not self.training
        torch.rand(1, generator=torch.Generator())
        return [self._found(image) for image in images]

    def _found(self, image: Tensor) -> Instances:
        values = [v for v in image[0].unique().tolist() if v]
        masks = torch.stack([image[0] == v for v in values]) if values else torch.zeros(0, *image.shape[1:]).bool()
        labels = [int(image[1][mask][0]) for mask in masks]
        scores = torch.linspace(0.95, 0.3, len(values))
        return Instances(scores, torch.tensor(labels, dtype=torch.int64), Masks.from_bool(masks))


def picture(number: int) -> Tensor:
    """(3, 60, 80) with `number` objects of labels 0, 1, 0, 1, ..."""
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    for k in range(number):
        y, x = 4 + 28 * (k // 4), 3 + 19 * (k % 4)
        image[0, y : y + 18 + k, x : x + 9 + k] = 10 * (k + 1)
        image[1, y : y + 18 + k, x : x + 9 + k] = k % 2
    return image


def records(numbers: list[int]) -> list[Record]:
    out: list[Record] = []
    for i, number in enumerate(numbers):
        image = picture(number)
        annotations = []
        for k in range(number):
            mask = (image[0] == 10 * (k + 1)).numpy().astype(np.uint8)
            code = rle.encode(mask)
            x0, y0, x1, y1 = rle.boxes([code])[0].tolist()
            annotations.append(Annotation(k, k % 2, code, (x0, y0, x1, y1), float(mask.sum())))
        out.append(Record(100 + i, None, 60, 80, tuple(annotations), f"{i}.png"))
    return out


@pytest.fixture
def categories() -> Categories:
    return Categories(("bolt", "nut"), (4, 9))


@pytest.fixture
def oracle(categories: Categories) -> Oracle:
    return Oracle(categories)


@pytest.fixture
def dataset(categories: Categories) -> InstanceDataset:
    """Four images, the third without objects."""
    return InstanceDataset(
        records([3, 6, 0, 2]), categories, name="parts", split="val", read=lambda r: picture(len(r.annotations))
    )
