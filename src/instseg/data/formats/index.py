"""A data set as compact arrays, and its records made on demand."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from instseg.core import rle as rle_codes
from instseg.core.categories import Categories
from instseg.core.errors import DataError
from instseg.data.formats.segmentation import BadSegmentation, NoSegmentation, Segmentation, read_segmentation
from instseg.data.formats.text import parse
from instseg.data.records import Annotation, IntArray, Problem, Problems, Record, Records, Report, Severity

# A file's bbox that overlaps the mask's own box less than this belongs to something else ...
_BOX_AGREES = 0.5
# ... and one that overlaps it this much when its last two numbers are taken for a corner is xyxy.
_IS_XYXY = 0.9


@dataclass(frozen=True)
class Index:
    """What an annotation file holds, without a single mask.

    ``N`` images in the order of the file, ``A`` annotations grouped by image, in the order of the file within each.

    Attributes:
        file: the annotation file.
        stamp: its size in bytes and time of change in ns, which tell whether offsets still hold.
        content: what the offsets point into; None for the file itself.
        categories: names and ids, by label.
        image_ids: (N,) as in the file.
        file_names: as in the file; for those that name their images by address alone, the end of it.
        sizes: (N, 2) int32 H, W of the records; 0 where they do not say.
        starts: (N + 1,) where the annotations of each image begin.
        labels: (A,) int32. crowd: (A,) bool, as in the file. numbers: (A,) int64, the ids.
        parts: (A,) uint8, polygons of each; 0 for an RLE.
        offsets: (A,) int64 and lengths: (A,) int32, the text of each segmentation; of no length where there is a box
            alone (see :func:`with_masks`).
        boxes: (A, 4) float32 x, y, width, height as in the file; NaN where there is none.
        problems: what was found while reading it.
        digest: of the annotations, whatever the file's name and layout.
    """

    file: Path
    stamp: tuple[int, int]
    content: bytes | None
    categories: Categories
    image_ids: npt.NDArray[Any]
    file_names: Sequence[str]
    sizes: npt.NDArray[np.int32]
    starts: IntArray
    labels: npt.NDArray[np.int32]
    crowd: npt.NDArray[np.bool_]
    numbers: IntArray
    parts: npt.NDArray[np.uint8]
    offsets: IntArray
    lengths: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.float32]
    problems: Problems
    digest: str

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def rows(self) -> IntArray:
        """(A,) the image of each annotation."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def texts(self, image: int) -> list[bytes]:
        """The segmentations of an image, as their JSON text. Raises DataError when the file has changed meanwhile."""
        chosen = range(int(self.starts[image]), int(self.starts[image + 1]))
        spans = [(int(self.offsets[i]), int(self.lengths[i])) for i in chosen]
        if self.content is not None:
            return [self.content[start : start + length] for start, length in spans]
        if not spans:
            return []
        try:
            with self.file.open("rb") as file:
                if stamp_of(os.fstat(file.fileno())) != self.stamp:
                    raise DataError(f"{self.file}: the file has changed while it was in use; start again.")
                return [_span(file, start, length) for start, length in spans]
        except OSError as error:
            raise DataError(f"{self.file}: cannot be read ({error.strerror}); is it still there?") from None


def with_masks(index: Index) -> Index:
    """The index without the annotations that have a box and no segmentation; each is noted as left out."""
    alone = index.lengths == 0
    if not alone.any():
        return index
    problems = index.problems.copy()
    for i in np.flatnonzero(alone).tolist():
        name = f"annotation {index.numbers[i]} of image {index.image_ids[int(index.rows[i])]}"
        bad = NoSegmentation()
        problems.add(Problem(bad.kind, bad.severity, str(index.file), name, bad.message))
    counts = np.bincount(index.rows[~alone], minlength=len(index))
    columns: dict[str, Any] = {
        name: getattr(index, name)[~alone]
        for name in ("labels", "crowd", "numbers", "parts", "offsets", "lengths", "boxes")
    }
    columns["starts"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return replace(index, **columns, problems=problems)


def stamp_of(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def _span(file: Any, start: int, length: int) -> bytes:
    file.seek(start)
    text: bytes = file.read(length)
    return text


def image_name(index: Index, image: int) -> str:
    """What a message calls an image."""
    return f'image {index.image_ids[image]} ("{index.file_names[image]}")'


@dataclass(frozen=True)
class Pictures:
    """The image files of an index, as far as they are known.

    Attributes:
        paths: where each image lies; None where it does not.
        sizes: (N, 2) int32 H, W as annotated; 0 where neither the record nor the file says.
        exif: (N,) int8, 0 where the objects were drawn on the stored pixels, 1 where on those that are shown, -1 where
            the size does not tell one from the other.
        usable: (N,) bool.
    """

    paths: Sequence[Path | None]
    sizes: npt.NDArray[np.int32]
    exif: npt.NDArray[np.int8]
    usable: npt.NDArray[np.bool_]


class IndexedRecords(Records):
    """The records of the usable images of an index, each made when it is asked for.

    What turns out to be without a pixel or damaged is left out and counted, in whatever process that happens.
    """

    def __init__(
        self, source: Index, pictures: Pictures, crowd: npt.NDArray[np.bool_], *, read_shapes: bool = True
    ) -> None:
        """
        Args:
            source: the index.
            pictures: its image files.
            crowd: (A,) which annotations are crowds.
            read_shapes: False where only boxes are wanted: no segmentation is decoded that has a box beside it.
        """
        self.source = source
        self.read_shapes = read_shapes
        self.pictures = pictures
        self.crowd = crowd
        self.images = np.flatnonzero(pictures.usable)
        self._kept: list[Record] | None = None
        # Of each image, how many annotations were left out while reading it. Workers share it; an image always gives
        # the same number, so that it does not matter which of them writes it.
        self._left_out = torch.zeros(len(source), dtype=torch.uint8)
        self._left_out.share_memory_()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __len__(self) -> int:
        return len(self.images)

    def record(self, position: int) -> Record:
        return self.read(int(self.images[position])) if self._kept is None else self._kept[position]

    def read(self, image: int, report: Report | None = None) -> Record:
        """The record of an image of the index; every defect of its annotations goes to ``report``."""
        left_out = 0

        def count(problem: Problem) -> None:
            nonlocal left_out
            left_out += problem.severity != "warning"
            if report is not None:
                report(problem)

        height, width = self.pictures.sizes[image].tolist()
        exif = int(self.pictures.exif[image])
        annotations = _annotations(self.source, image, (height, width), self.crowd, count, self.read_shapes)
        if report is None:
            self._left_out[image] = min(255, left_out)
        return Record(
            int(self.source.image_ids[image]),
            self.pictures.paths[image],
            height,
            width,
            annotations,
            self.source.file_names[image],
            None if exif < 0 else bool(exif),
        )

    def keep(self, report: Report) -> None:
        """Read all records now and keep them, which is right for a small set: every defect is known at once."""
        self._kept = [self.read(image, report) for image in self.images.tolist()]

    @property
    def sizes(self) -> IntArray:
        return self.pictures.sizes[self.images].astype(np.int64)

    @property
    def image_ids(self) -> npt.NDArray[Any]:
        ids: npt.NDArray[Any] = self.source.image_ids[self.images]
        return ids

    def file_name(self, position: int) -> str:
        return self.source.file_names[int(self.images[position])]

    def path(self, position: int) -> Path | None:
        return self.pictures.paths[int(self.images[position])]

    def objects(self) -> tuple[IntArray, IntArray]:
        if self._kept is not None:
            return super().objects()
        position = np.full(len(self.source), -1, dtype=np.int64)
        position[self.images] = np.arange(len(self.images))
        rows = position[self.source.rows]
        chosen = (rows >= 0) & ~self.crowd
        return rows[chosen], self.source.labels[chosen].astype(np.int64)

    @property
    def has_masks(self) -> bool:
        return super().has_masks if self._kept is not None else self.read_shapes and bool(self.source.lengths.any())

    def digest(self) -> str:
        parts: list[bytes | npt.NDArray[Any]] = [self.source.digest.encode(), self.images, self.crowd]
        return digest_of(parts if self.source.lengths.all() else [*parts, self.source.boxes])

    @property
    def left_out_while_reading(self) -> int:
        return int(self._left_out.sum())


def _annotations(
    index: Index,
    image: int,
    size: tuple[int, int],
    crowd: npt.NDArray[np.bool_],
    report: Report,
    read_shapes: bool,
) -> tuple[Annotation, ...]:
    first = int(index.starts[image])
    kept: list[tuple[int, Segmentation]] = []
    boxes: list[Annotation] = []
    for i, text in enumerate(index.texts(image), first):
        say = _speaker(index, image, i, report)
        if not text or (not read_shapes and usable_box(index.boxes[i])):
            box = _boxed(index, i, size, bool(crowd[i]), say)
            boxes += [] if box is None else [box]
            continue
        try:
            found = read_segmentation(parse(text), *size)
        except BadSegmentation as bad:
            say(bad.kind, bad.severity, bad.message)
            continue
        except (ValueError, RecursionError):
            say("no_mask", "left_out", "has a mask that is not JSON; export it again.")
            continue
        if found.cut:
            say("polygon_outside", "warning", "polygon reaches over the image's border; it is cut there.")
        if found.lost:
            parts = "a part" if found.lost == 1 else f"{found.lost} parts"
            say("few_points", "left_out", f"{parts} of fewer than three points; the rest is used.")
        kept.append((i, found))
    return (*_masked(index, image, kept, crowd, report), *boxes)


def _masked(
    index: Index,
    image: int,
    kept: Sequence[tuple[int, Segmentation]],
    crowd: npt.NDArray[np.bool_],
    report: Report,
) -> list[Annotation]:
    """The annotations of segmentations that hold a pixel and stand once."""
    codes = [found.rle for _, found in kept]
    if not codes:
        return []
    seen: set[tuple[int, bool, bytes]] = set()
    annotations = []
    for (i, found), pixels, tight in zip(kept, rle_codes.area(codes), rle_codes.boxes(codes), strict=True):
        code = found.rle
        say = _speaker(index, image, i, report)
        if pixels == 0:
            say("zero_area", "left_out", "mask has no pixel.")
            continue
        key = (int(index.labels[i]), bool(crowd[i]), code["counts"])
        if key in seen:
            say("double", "left_out", "stands twice: the same mask and class as one before it.")
            continue
        seen.add(key)
        box = _box(index.boxes[i].tolist(), tight.tolist(), bool(crowd[i]), say)
        annotations.append(
            Annotation(
                int(index.numbers[i]),
                int(index.labels[i]),
                code,
                box,
                float(pixels),
                bool(crowd[i]),
                found.polygons,
            )
        )
    return annotations


def usable_box(box: npt.NDArray[np.float32]) -> bool:
    """Whether a bbox (4,) x, y, width, height has an area."""
    return bool(np.isfinite(box).all() and box[2] > 0 and box[3] > 0)


def _boxed(index: Index, i: int, size: tuple[int, int], crowd: bool, say: "Say") -> Annotation | None:
    """An annotation of which only the box counts, cut at the image; None where nothing of it lies there."""
    height, width = size
    x, y, w, h = index.boxes[i].tolist()
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    if not (x1 > x0 and y1 > y0):
        say("zero_area", "left_out", "box has no area inside the image.")
        return None
    code = rle_codes.from_polygons([[x0, y0, x1, y0, x1, y1, x0, y1]], height, width)
    number, label = int(index.numbers[i]), int(index.labels[i])
    return Annotation(number, label, code, (x0, y0, x1, y1), (x1 - x0) * (y1 - y0), crowd, has_mask=False)


Say = Callable[[str, Severity, str], None]


def _speaker(index: Index, image: int, annotation: int, report: Report) -> Say:
    def say(kind: str, severity: Severity, message: str) -> None:
        name = f"annotation {index.numbers[annotation]} of image {index.image_ids[image]}"
        report(Problem(kind, severity, str(index.file), name, message))

    return say


def _box(given: list[float], tight: list[float], crowd: bool, say: Say) -> tuple[float, float, float, float]:
    """The file's own box where it fits the mask, else the mask's."""
    x, y, w, h = given
    of_mask = (tight[0], tight[1], tight[2], tight[3])
    if x != x:  # NaN: none given
        return of_mask
    box = (x, y, x + w, y + h)
    fits = box_iou(box, of_mask) if w > 0 and h > 0 else 0.0
    # A box is worth a word only where it is of another kind; a pixel more or less is a matter of taste.
    as_corners = box_iou((x, y, w, h), of_mask)
    if as_corners >= _IS_XYXY and as_corners > fits:
        say("bbox", "warning", "bbox is xyxy instead of x, y, width, height; the mask's box is used.")
        return of_mask
    if fits >= _BOX_AGREES:
        return box
    if not _apart(box, of_mask):
        return of_mask
    if not (w > 0 and h > 0):
        message = "bbox is not [x, y, width, height] with a positive size; the mask's box is used."
        say("bbox", "warning", message)
    elif not crowd:
        say("bbox", "warning", "bbox does not fit the mask; the mask's box is used.")
    return of_mask


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two boxes xyxy."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def _apart(a: Sequence[float], b: Sequence[float]) -> bool:
    """True where two boxes differ by more than two pixels on a side."""
    return any(abs(p - q) > 2 for p, q in zip(a, b, strict=True))


def digest_of(parts: Iterable[bytes | npt.NDArray[Any]]) -> str:
    """A short digest of bytes and arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
