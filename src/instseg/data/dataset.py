"""Data sets as torch sees them: samples out of records."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from instseg.core import rle as rle_codes
from instseg.core.categories import Categories
from instseg.core.errors import DataError, InstsegError, did_you_mean
from instseg.core.target import MASKS, SHAPES, Need
from instseg.data.batch import Batch, Sample, collate
from instseg.data.images.read import ImageRule, read_image
from instseg.data.records import (
    Annotation,
    ChosenRecords,
    IntArray,
    ListedRecords,
    Problems,
    Record,
    Records,
    left_out_text,
)
from instseg.data.transforms.augment import RawSample, Transform, untouched

__all__ = ["Annotation", "Batch", "InstanceDataset", "Record", "Sample", "collate", "ground_truth"]

OnError: TypeAlias = Literal["raise", "skip"]
Reader: TypeAlias = Callable[[Record], Tensor]
SemanticReader: TypeAlias = Callable[[Record], Tensor | None]


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
        image_rule: ImageRule | None = None,
        problems: Problems | None = None,
        needs: frozenset[Need] = MASKS,
        read_semantic: SemanticReader | None = None,
    ) -> None:
        """
        Args:
            records: what the data set holds; may be a lazy sequence.
            categories: what the labels of the records mean.
            transform: of :func:`~instseg.data.transforms.augment.build_transform`; None leaves images as they are.
            seed: of the augmentation.
            name: of the data set, for people.
            split: which part of it this is.
            read: gives the image (3, H, W) uint8 of a record; by default its file is read.
            on_error: what happens when an image turns out broken while it is read: ``"raise"`` a DataError,
                or ``"skip"`` it, that is take the next readable image in its place, with a warning.
            image_rule: how its files become pixels; by default as
                :func:`~instseg.data.images.read.read_image` does alone.
            problems: what was found when it was opened.
            needs: what samples hold besides boxes and labels; nothing else is decoded.
            read_semantic: returns the class of each pixel of a record's image, (H, W) int64, 255 where it is
                ignored, or None.
        """
        self.records = records
        self.categories = categories
        self.transform = transform
        self.seed = seed
        self.name = name
        self.split = split
        self.on_error: OnError = on_error
        self.image_rule = image_rule or ImageRule()
        self.problems = problems or Problems()
        self.needs = needs
        self._read = read
        self._read_semantic = read_semantic
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
        return self._with(self.records, self.categories, transform)

    def subset(self, indices: Sequence[int] | IntArray) -> "InstanceDataset":
        """Some of the images, in the order of ``indices`` (positions)."""
        chosen = np.asarray(indices, dtype=np.int64)
        return self._with(ChosenRecords(self._table, chosen), self.categories, self.transform)

    def with_classes(self, names: Sequence[str]) -> "InstanceDataset":
        """The same images with the objects of some classes only; labels follow the order of ``names``.

        Raises:
            DataError: a class that the data set does not have, or one that is named twice.
        """
        known: dict[str, list[int]] = {}
        for label, name in enumerate(self.categories.names):
            known.setdefault(name, []).append(label)
        for name in names:
            if name not in known:
                have = ", ".join(self.categories.names[:20]) + (", ..." if len(self.categories) > 20 else "")
                raise DataError(f'{self.name}: has no class "{name}".{did_you_mean(name, known)} It has: {have}.')
        if len(set(names)) < len(names) or not names:
            raise DataError(f"{self.name}: classes={list(names)} must name at least one class, and each once.")
        labels = np.full(len(self.categories), -1, dtype=np.int64)
        for label, name in enumerate(names):
            labels[known[name]] = label  # all classes of that name
        categories = Categories(tuple(names), tuple(self.categories.ids[known[name][0]] for name in names))
        everything = np.arange(len(self), dtype=np.int64)
        return self._with(ChosenRecords(self._table, everything, labels), categories, self.transform)

    def _with(
        self, records: Sequence[Record], categories: Categories, transform: Transform | None
    ) -> "InstanceDataset":
        return InstanceDataset(
            records,
            categories,
            transform,
            self.seed,
            name=self.name,
            split=self.split,
            read=self._read,
            on_error=self.on_error,
            image_rule=self.image_rule,
            problems=self.problems,
            needs=self.needs,
            read_semantic=self._read_semantic,
        )

    # -- what is in it, without reading an image -----------------------------------------------------------

    @property
    def _table(self) -> Records:
        return self.records if isinstance(self.records, Records) else ListedRecords(self.records)

    @property
    def sizes(self) -> IntArray:
        """(N, 2) H, W of each image as annotated."""
        return self._table.sizes

    @property
    def image_ids(self) -> npt.NDArray[Any]:
        """(N,) as in the annotation file."""
        return self._table.image_ids

    def file_name(self, index: int) -> str:
        """Of an image, as in the annotation file."""
        return self._table.file_name(index)

    def path(self, index: int) -> Path | None:
        """Where an image lies; None when it is drawn."""
        return self._table.path(index)

    def objects(self) -> tuple[IntArray, IntArray]:
        """The image (position) and the label of each object that is not a crowd."""
        return self._table.objects()

    @property
    def has_masks(self) -> bool:
        """Whether any object has a mask, which samples can hold."""
        return not SHAPES.isdisjoint(self.needs) and self._table.has_masks

    def fingerprint(self) -> dict[str, Any]:
        """What tells whether a data set is the one it was: ``images``, ``categories``, ``annotations`` (a digest)."""
        names = list(self.categories.names)
        return {"images": len(self), "categories": names, "annotations": self._table.digest()}

    def left_out_line(self) -> str | None:
        """A line that counts the annotations left out so far, at opening and, in whatever process, while reading; None
        where there are none."""
        counts = [(kind, n) for (severity, kind), n in self.problems.counts.most_common() if severity == "left_out"]
        counts.append(("other", self._table.left_out_while_reading))
        total = sum(n for _, n in counts)
        if not total:
            return None
        noun = "annotation" if total == 1 else "annotations"
        return f"{self.name}, {self.split}: left out {total} {noun}: {left_out_text(counts)}"

    # -- samples -------------------------------------------------------------------------------------------

    def image(self, index: int) -> Tensor:
        """The image as annotated, (3, H, W) uint8. Raises DataError when it cannot be read."""
        return self._image(self.records[index])

    def _image(self, record: Record) -> Tensor:
        return self._read(record) if self._read is not None else read_record(record, self.image_rule)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):  # which also ends `for sample in dataset`
            raise IndexError(f"sample {index} of {len(self)}")
        rng = np.random.default_rng([self.seed, int(self._epoch[0]), index])
        raw, record = self._raw(index)
        sample = (self.transform or untouched)(raw, rng, self._other)
        return replace(sample, image_id=record.image_id, index=index)

    def _other(self, rng: np.random.Generator) -> RawSample:
        return self._raw(int(rng.integers(len(self))))[0]

    def _raw(self, index: int) -> tuple[RawSample, Record]:
        for step in range(len(self)):
            record = self.records[(index + step) % len(self)]
            try:
                image = self._image(record)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                warnings.warn(f"skipped an image: {error}", stacklevel=2)
                continue
            semantic = None
            if "semantic" in self.needs and self._read_semantic is not None:
                semantic = self._read_semantic(record)
            objects = [a for a in record.annotations if not a.crowd]
            return RawSample(image, objects, semantic, self.needs), record
        raise DataError(f"{self.name}: no image of split {self.split} can be read; check the files.")


class Readable(Dataset[Sample | InstsegError]):
    """A data set whose unreadable images come as the error itself.

    An exception raised in a loader process would reach the user wrapped in a traceback; a value does not.
    """

    def __init__(self, data: InstanceDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample | InstsegError:
        try:
            return self.data[index]
        except InstsegError as error:
            return error


def collate_readable(loaded: list[Sample | InstsegError]) -> Batch | InstsegError:
    """A batch, or the first error among the samples: raising is left to the main process."""
    errors = [item for item in loaded if isinstance(item, InstsegError)]
    return errors[0] if errors else collate([item for item in loaded if not isinstance(item, InstsegError)])


def read_record(record: Record, rule: ImageRule | None = None) -> Tensor:
    """The image of a record, (3, H, W) uint8; ``rule.exif`` counts where the record itself does not decide.

    Raises DataError when it cannot be read or has another size.
    """
    assert record.path is not None
    rule = rule or ImageRule()
    exif, scale = rule.exif if record.exif is None else record.exif, rule.full_scale
    image = read_image(record.path, exif=exif, full_scale=scale)
    size = (record.height, record.width)
    if tuple(image.shape[1:]) == size:
        return image
    if tuple(image.shape[:0:-1]) == size:  # of a large set not every header is read when it is opened
        turned = read_image(record.path, exif=not exif, full_scale=scale)
        if tuple(turned.shape[1:]) == size:
            return turned
    found = f"{image.shape[2]} x {image.shape[1]}, the record says {record.width} x {record.height}"
    raise DataError(f"{record.path}: image is {found} (width x height); correct the record or the image.")


def ground_truth(dataset: InstanceDataset) -> dict[str, Any]:
    """A data set as a COCO dict with the source file's image and category ids.

    Crowds are kept. Annotations are numbered from 1, because pycocotools takes id 0 for "no match". ``area`` is the
    mask's number of pixels, by which COCO splits sizes; ``bbox`` is the file's own where it fits the mask.
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
