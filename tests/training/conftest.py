"""A network small enough to train in a blink, on pictures that are drawn from their index."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from instseg.core import rle
from instseg.core.categories import Categories
from instseg.core.errors import DataError
from instseg.data.dataset import InstanceDataset
from instseg.data.records import Annotation, Record
from instseg.data.transforms.augment import build_transform
from instseg.models.base import LossTerms, Step, Target
from instseg.training.loggers import RunLog
from instseg.training.loop import Evaluate, Trainer
from instseg.training.recipe import Recipe
from instseg.training.run import make_accelerator

SIZE = 32


class TinyModel(nn.Module):
    """A backbone, a norm and a head; its losses are means over the images, so batches can be split."""

    needs: ClassVar[frozenset[str]] = frozenset({"masks"})
    optional: ClassVar[frozenset[str]] = frozenset()
    may_leave_unused: ClassVar[bool] = False
    watched_loss: ClassVar[str] = "loss_mask"

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.head = nn.Conv2d(4, 1, 3, padding=1)
        self.dtypes: list[torch.dtype] = []
        self.images: list[Tensor] = []
        self.spoil: Callable[[int], float] = lambda call: 1.0  # what the mask loss of a call is multiplied with
        self.calls = 0
        self.steps: list[tuple[int, int, float]] = []  # update, epoch and a number drawn, of each call

    @property
    def net(self) -> "TinyModel":
        """Model and network in one."""
        return self

    def loss_terms(self, images: list[Tensor], targets: list[Target], step: Step, *, resize: bool) -> LossTerms:
        assert not resize
        x = torch.stack(images).float() / 255
        self.images += [image.clone() for image in images]
        features = self.backbone(x)
        self.dtypes.append(features.dtype)
        logits = self.head(self.norm(features)).float()
        masks = torch.stack([t.masks.amax(0) for t in targets]).float()
        loss = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], masks)
        self.calls += 1
        self.steps.append((step.update, step.epoch, float(torch.rand((), generator=step.generator))))
        losses = {"loss_category": logits.square().mean(), "loss_mask": loss * self.spoil(self.calls)}
        return LossTerms(losses, {"brightness": step.mean(x.mean())})

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path)


def picture(record: Record) -> Tensor:
    rng = np.random.default_rng(record.image_id)
    return torch.from_numpy(rng.integers(0, 255, (3, record.height, record.width), dtype=np.uint8))


def tiny_data(count: int = 8, broken: int | None = None) -> InstanceDataset:
    """``count`` noisy pictures with a square each; reading the one of id ``broken`` fails."""
    records = []
    for i in range(count):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[4 + i % 8 : 20, 4:20] = 1
        annotation = Annotation(i, 0, rle.encode(mask), (4.0, 4.0 + i % 8, 20.0, 20.0), float(mask.sum()), False)
        records.append(Record(i, None, SIZE, SIZE, (annotation,), f"{i}.png"))

    def read(record: Record) -> Tensor:
        if record.image_id == broken:
            raise DataError(f"{record.file_name}: cut short; replace it.")
        return picture(record)

    return InstanceDataset(records, Categories.from_names(["square"]), read=read, name="squares")


def make_trainer(
    folder: Path,
    *,
    model: TinyModel | None = None,
    data: InstanceDataset | None = None,
    evaluate: Evaluate | None = None,
    accelerator: Any = None,
    **fields: Any,
) -> Trainer:
    """A trainer of a tiny model; ``fields`` are the recipe's, plain SGD unless they say otherwise."""
    plain: dict[str, Any] = {
        "epochs": 2, "batch": 2, "optimizer": "sgd", "lr": 0.1, "base_batch": None, "momentum": 0.0,
        "weight_decay": 0.0, "clip": None, "schedule": "constant", "warmup_iterations": 0, "ema_decay": 0.0,
        "channels_last": False, "workers": 0, "device": "cpu", "flip": 0.0, "stuck_updates": 0,
    }  # fmt: skip
    recipe = Recipe(**{**plain, **fields})
    if model is None:
        torch.manual_seed(0)
        model = TinyModel()
    data = data or tiny_data()
    data.seed = recipe.seed
    data = data.with_transform(build_transform(recipe, train=True))
    folder.mkdir(parents=True, exist_ok=True)
    log = RunLog(folder, progress=False, tensorboard=recipe.tensorboard)
    return Trainer(model, data, recipe, folder, accelerator or make_accelerator(recipe), log, evaluate)  # type: ignore[arg-type]


@pytest.fixture
def trainer() -> Callable[..., Trainer]:
    return make_trainer


@pytest.fixture
def tiny_model() -> type[TinyModel]:
    return TinyModel


@pytest.fixture
def squares() -> Callable[..., InstanceDataset]:
    return tiny_data


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads cost tiny tensors more than they give, and sums depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_coco(
    folder: Path, count: int, name: str = "square", splits: tuple[str, ...] = ("train",), first: int = 0
) -> None:
    """Splits of noisy 64-pixel PNGs with a bright square or two each, category id 5."""
    import json

    from PIL import Image

    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for i in range(first, first + count):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 100, (64, 64, 3), dtype=np.uint8)
        for side in (24, 12)[: 1 + i % 2]:
            x, y = (int(v) for v in rng.integers(0, 64 - side, 2))
            pixels[y : y + side, x : x + side] = 220
            corners = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": 5, "segmentation": [corners],
                 "area": side * side, "bbox": [x, y, side, side], "iscrowd": 0}
            )  # fmt: skip
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": name}]}
    for split in splits:
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


@pytest.fixture
def write_squares() -> Callable[..., None]:
    return write_coco


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images to train on, two held out."""
    folder = tmp_path_factory.mktemp("squares")
    write_coco(folder, 6)
    write_coco(folder, 2, splits=("val",), first=6)
    return folder
