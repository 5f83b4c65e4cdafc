"""Data sets as torch sees them: samples out of records."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from instseg.core import rle as rle_codes
from instseg.core.categories import Categories
from instseg.core.errors import DataError, did_you_mean
from instseg.data.batch import Batch, Sample, collate
from instseg.data.crowds import Crowd, decide_crowds
from instseg.data.formats.cache import read_index
from instseg.data.formats.index import Index, IndexedRecords
from instseg.data.formats.layout import Located, locate
from instseg.data.formats.layout import splits as _splits
from instseg.data.images.read import ImageRule, read_image
from instseg.data.opening import HEADERS, open_pictures
from instseg.data.records import (
    Annotation,
    ChosenRecords,
    IntArray,
    ListedRecords,
    Problems,
    Record,
    Records,
    Severity,
    left_out_text,
)
from instseg.data.transforms.augment import RawSample, Shot, Transform, untouched

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
# Of a data set of at most this many bytes of masks all records are made when it is opened.
_KEPT_BYTES = 16 << 20


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
        self._read = read
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
        scene, record = self._scene(index)
        shot: Shot = (self.transform or untouched)(scene, rng, self._other)
        return Sample(shot.image, shot.boxes, shot.labels, shot.masks, record.image_id, index)

    def _other(self, rng: np.random.Generator) -> RawSample:
        return self._scene(int(rng.integers(len(self))))[0]

    def _scene(self, index: int) -> tuple[RawSample, Record]:
        for step in range(len(self)):
            record = self.records[(index + step) % len(self)]
            try:
                image = self._image(record)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                warnings.warn(f"skipped an image: {error}", stacklevel=2)
                continue
            return RawSample(image, [a for a in record.annotations if not a.crowd]), record
        raise DataError(f"{self.name}: no image of split {self.split} can be read; check the files.")


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


def open_dataset(
    data: str | Path,
    split: str = "train",
    *,
    on_error: OnError = "raise",
    keep_empty: bool = True,
    size: int | None = None,
    seed: int = 0,
    crowd: Crowd = "auto",
    classes: Sequence[str] | None = None,
) -> InstanceDataset:
    """Open one split of a data set.

    What cannot be trained on and harms nothing is left out and counted, with one warning: annotations without a mask,
    a pixel or a category, and those that stand twice. What would make the result wrong is an error: unknown ids,
    missing images, masks and records of another size than the image.

    Args:
        data: a folder that holds COCO JSON files, a COCO JSON, a data YAML
            (see :func:`~instseg.data.formats.layout.locate`), ``"shapes"`` or ``"nuclei-mini"``.
        split: ``train``, ``val`` or ``test``.
        on_error: ``"raise"`` a DataError at the first error, or ``"skip"`` what is defective with one warning that
            counts it.
        keep_empty: keep images without objects.
        size: how many pictures, for ``"shapes"``.
        seed: of the augmentation, and of the pictures of ``"shapes"``.
        crowd: what ``iscrowd`` means, see :func:`~instseg.data.crowds.decide_crowds`.
        classes: the classes to use and their order; None uses all.

    Raises:
        DataError: nothing there, not COCO, nothing left, an unknown class, or a defect with ``on_error="raise"``.
    """
    if str(data) == "shapes":
        from instseg.data.shapes import ShapesConfig, shapes

        drawn = shapes(split, size, ShapesConfig(seed=seed), seed=seed)
        return drawn if classes is None else drawn.with_classes(classes)
    located = locate(data_path(data), split)
    index = read_index(located.annotations)
    if split == "train" and len(index) and not len(index.labels) and not index.problems.number("error"):
        raise DataError(f"{index.file}: no image has an object to train on{why_empty(index)}.")
    siblings = siblings_of(data_path(data), split) if crowd == "auto" and index.crowd.any() else []
    records, problems, rule = open_records(index, located, crowd, siblings)
    _raise_or_warn(problems, on_error)
    if not len(records):
        raise DataError(f"{index.file}: holds no usable image; look at it with `instseg data check`.")
    dataset = InstanceDataset(
        records,
        index.categories,
        seed=seed,
        name=located.name,
        split=split,
        on_error=on_error,
        image_rule=rule,
        problems=problems,
    )
    if classes is not None:
        dataset = dataset.with_classes(classes)
    with_objects = np.unique(dataset.objects()[0])
    if not len(with_objects) and (split == "train" or not keep_empty):
        raise DataError(f"{index.file}: no image has an object to train on; annotate some.")
    line = dataset.left_out_line()
    if line is not None:
        warnings.warn(f"{line}; `instseg data check` lists them", stacklevel=2)
    return dataset if keep_empty else dataset.subset(with_objects)


def open_records(
    index: Index, located: Located, crowd: Crowd = "auto", siblings: Sequence[Index] = (), *, all_now: bool = False
) -> tuple[IndexedRecords, Problems, ImageRule]:
    """The records of an index with their images, and every defect found on the way.

    Those of a small data set are all made now, so that its defects are known; ``all_now`` does so for any.
    """
    problems = Problems()
    problems.extend(index.problems.kept)
    problems.counts = index.problems.counts.copy()
    opened = open_pictures(index, located, problems.add)
    crowds, line = decide_crowds(index, crowd, siblings)
    if line is not None:
        warnings.warn(line, stacklevel=3)
    records = IndexedRecords(index, opened.pictures, crowds)
    if all_now or (len(records) <= HEADERS and int(index.lengths.sum()) <= _KEPT_BYTES):
        records.keep(problems.add)
    return records, problems, opened.rule


def siblings_of(data: Path, split: str) -> list[Index]:
    """The indexes of a data set's other splits, as far as they can be read."""
    found = []
    for other in _splits(data):
        if other == split or data.suffix.lower() == ".json":
            continue
        try:
            found.append(read_index(locate(data, other).annotations))
        except DataError:
            continue
    return found


def _raise_or_warn(problems: Problems, on_error: OnError) -> None:
    """Raise the first error, or count all of them in a warning."""
    errors = problems.of("error")
    if not errors:
        return
    first = errors[0]
    if on_error == "raise":
        whole = not first.record
        raise DataError(first.line if whole else f"{first.line} (on_error=skip leaves it out)")
    severity: Severity = "error"
    number, kinds = problems.number(severity), problems.kinds(severity)
    warnings.warn(f"skipped {number} defective records ({kinds}); first: {first.line}", stacklevel=3)


def why_empty(index: Index) -> str:
    """Why the file of a data set without an object has none, to append to a sentence; empty where that shows."""
    if index.problems.number("left_out"):
        counts = [(kind, n) for (severity, kind), n in index.problems.counts.items() if severity == "left_out"]
        return f" (left out: {left_out_text(counts)})"
    if not len(index.labels):
        return " (its list of annotations is empty; masks drawn with a brush need an export with RLE)"
    return ""


def splits(data: str | Path) -> tuple[str, ...]:
    """The splits that a data set has, of train, val and test; a single JSON counts as ``("train",)``."""
    if str(data) == "shapes":
        return ("train", "val", "test")
    return _splits(data_path(data))


def data_path(data: str | Path) -> Path:
    """Where a data set lies on disk; ``"nuclei-mini"`` lies inside the package."""
    return _NUCLEI_MINI if str(data) == "nuclei-mini" else Path(data)


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
