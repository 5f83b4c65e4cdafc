"""Data sets as torch sees them: samples out of records."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from instseg.core import rle as rle_codes
from instseg.core.errors import DataError
from instseg.core.meta import Categories
from instseg.data.batch import Batch, Sample, collate
from instseg.data.formats.coco import read_coco
from instseg.data.formats.layout import locate
from instseg.data.formats.layout import splits as _splits
from instseg.data.images import read_image
from instseg.data.records import Annotation, Problem, Record
from instseg.data.transforms import Scene, Shot, Transform, untouched

__all__ = [
    "Annotation",
    "Batch",
    "InstanceDataset",
    "Record",
    "Sample",
    "collate",
    "ground_truth",
    "open_dataset",
    "splits",
]

OnError: TypeAlias = Literal["raise", "skip"]
_NUCLEI_MINI = Path(__file__).parent.parent / "assets" / "nuclei-mini"
Reader: TypeAlias = Callable[[Record], Tensor]


class InstanceDataset(Dataset[Sample]):
    """Images with their objects.

    Masks stay run-length codes until the sample's window is known, so that no more than one mask at image
    size is in memory. Everything random in a sample follows from ``(seed, epoch, index)``, whatever process
    makes it.
    """

    def __init__(
        self,
        records: Sequence[Record],
        categories: Categories,
        transform: Transform | None = None,
        seed: int = 0,
        *,
        name: str = "",
        split: str = "train",
        read: Reader | None = None,
        on_error: OnError = "raise",
    ) -> None:
        """
        Args:
            records: what the data set holds; may be a lazy sequence.
            categories: what the labels of the records mean.
            transform: of :func:`~instseg.data.transforms.build_transform`; None leaves images as they are.
            seed: of the augmentation.
            name: of the data set, for people.
            split: which part of it this is.
            read: gives the image (3, H, W) uint8 of a record; by default its file is read.
            on_error: what happens when an image turns out broken while it is read: ``"raise"`` a DataError,
                or ``"skip"`` it, that is take the next readable image in its place, with a warning.
        """
        self.records = records
        self.categories = categories
        self.transform = transform
        self.seed = seed
        self.name = name
        self.split = split
        self.on_error: OnError = on_error
        self._read = read or read_record
        # Shared with the workers, also with those that live on from epoch to epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __len__(self) -> int:
        return len(self.records)

    def set_epoch(self, epoch: int) -> None:
        """Every epoch augments differently; call it before the epoch's first sample is asked for."""
        self._epoch[0] = epoch

    def with_transform(self, transform: Transform | None) -> "InstanceDataset":
        """The same records, seen through another transform."""
        return InstanceDataset(
            self.records,
            self.categories,
            transform,
            self.seed,
            name=self.name,
            split=self.split,
            read=self._read,
            on_error=self.on_error,
        )

    def image(self, index: int) -> Tensor:
        """The image as annotated, (3, H, W) uint8. Raises DataError when it cannot be read."""
        return self._read(self.records[index])

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):  # which also ends `for sample in dataset`
            raise IndexError(f"sample {index} of {len(self)}")
        rng = np.random.default_rng([self.seed, int(self._epoch[0]), index])
        scene, record = self._scene(index)
        shot: Shot = (self.transform or untouched)(scene, rng, self._other)
        return Sample(shot.image, shot.boxes, shot.labels, shot.masks, record.image_id, index)

    def _other(self, rng: np.random.Generator) -> Scene:
        return self._scene(int(rng.integers(len(self))))[0]

    def _scene(self, index: int) -> tuple[Scene, Record]:
        for step in range(len(self)):
            record = self.records[(index + step) % len(self)]
            try:
                image = self._read(record)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                warnings.warn(f"skipped an image: {error}", stacklevel=2)
                continue
            return Scene(image, [a for a in record.annotations if not a.crowd]), record
        raise DataError(f"{self.name}: no image of split {self.split} can be read; check the files.")


def read_record(record: Record) -> Tensor:
    """The image of a record, (3, H, W) uint8. Raises DataError when it cannot be read or has another size."""
    assert record.path is not None
    image = read_image(record.path, exif=record.exif)
    if tuple(image.shape[1:]) != (record.height, record.width):
        found = f"{image.shape[2]} x {image.shape[1]}, the record says {record.width} x {record.height}"
        raise DataError(f"{record.path}: image is {found} (width x height); correct the record or the image.")
    return image


def open_dataset(
    data: str | Path,
    split: str = "train",
    *,
    on_error: OnError = "raise",
    keep_empty: bool = True,
    size: int | None = None,
    seed: int = 0,
) -> InstanceDataset:
    """Open one split of a data set.

    Args:
        data: a folder in COCO, Roboflow or our layout, a COCO JSON, a data YAML
            (see :func:`~instseg.data.formats.layout.locate`), ``"shapes"`` or ``"nuclei-mini"``.
        split: ``train``, ``val`` or ``test``.
        on_error: ``"raise"`` a DataError at the first defect, or ``"skip"`` what is defective with one
            warning that counts it.
        keep_empty: keep images without objects.
        size: how many pictures, for ``"shapes"``.
        seed: of the augmentation, and of the pictures of ``"shapes"``.

    Raises:
        DataError: nothing there, not COCO, nothing left, or a defect with ``on_error="raise"``.
    """
    if str(data) == "shapes":
        from instseg.data.shapes import ShapesConfig, shapes

        return shapes(split, size, ShapesConfig(seed=seed), seed=seed)
    located = locate(data_path(data), split)
    problems: list[Problem] = []

    def report(problem: Problem) -> None:
        if problem.severity == "error" and on_error == "raise":
            whole = problem.kind in ("not_coco", "empty")
            raise DataError(problem.line if whole else f"{problem.line} (on_error=skip goes on without it)")
        problems.append(problem)

    categories, records = read_coco(located, report)
    _warn_skipped([p for p in problems if p.severity == "error"])
    with_objects = [r for r in records if any(not a.crowd for a in r.annotations)]
    if not records:
        raise DataError(f"{located.annotations}: holds no usable image; look at it with `instseg data check`.")
    if not with_objects and (split == "train" or not keep_empty):
        raise DataError(f"{located.annotations}: no image has an object to train on; annotate some.")
    records = records if keep_empty else with_objects
    return InstanceDataset(records, categories, seed=seed, name=located.name, split=split, on_error=on_error)


def splits(data: str | Path) -> tuple[str, ...]:
    """The splits that a data set has, of train, val and test; a single JSON counts as ``("train",)``."""
    if str(data) == "shapes":
        return ("train", "val", "test")
    return _splits(data_path(data))


def data_path(data: str | Path) -> Path:
    """Where a data set lies on disk; ``"nuclei-mini"`` lies inside the package."""
    return _NUCLEI_MINI if str(data) == "nuclei-mini" else Path(data)


def _warn_skipped(skipped: Sequence[Problem]) -> None:
    if not skipped:
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(p.kind for p in skipped).most_common())
    text = f"skipped {len(skipped)} defective records ({kinds}); first: {skipped[0].line}"
    warnings.warn(text, stacklevel=3)


def ground_truth(dataset: InstanceDataset) -> dict[str, Any]:
    """A data set as a COCO dict with the source file's image and category ids.

    Crowds are kept. Annotations are numbered from 1, because pycocotools takes id 0 for "no match". ``bbox``
    and ``area`` are the file's own, so that AP equals what pycocotools says for the user's file.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in dataset.records:
        images.append(
            {
                "id": record.image_id,
                "file_name": record.file_name,
                "height": record.height,
                "width": record.width,
            }
        )
        for annotation in record.annotations:
            x0, y0, x1, y1 = annotation.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": dataset.categories.ids[annotation.label],
                    "segmentation": rle_codes.to_json(annotation.rle),
                    "area": annotation.area,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": int(annotation.crowd),
                }
            )
    pairs = zip(dataset.categories.ids, dataset.categories.names, strict=True)
    categories = [{"id": number, "name": name} for number, name in pairs]
    return {"images": images, "annotations": annotations, "categories": categories}
