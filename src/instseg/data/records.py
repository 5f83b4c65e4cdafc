"""What a data set knows about an image before it is read."""

import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import numpy.typing as npt
from torch import Tensor

from instseg.core.rle import RLE

IntArray: TypeAlias = npt.NDArray[np.int64]
Severity: TypeAlias = Literal["error", "left_out", "warning"]

# Problems of one kind that are kept word for word; of the others only the number is known.
MAX_KEPT = 10_000


@dataclass(frozen=True)
class Annotation:
    """One object.

    Attributes:
        id: as in the file.
        label: contiguous, from 0.
        rle: mask at the size of the image.
        box: xyxy in pixels; the file's own ``bbox`` where it fits the mask, else the tight box.
        area: pixels of the mask. COCO splits sizes by it. The file's own ``area`` is not used: several tools write
            that of the box.
        crowd: a region that holds many objects; no training target, ignored in evaluation.
        polygons: its rings, (K, 2) float64 xy each, where the file gives polygons.
        matte: (H, W) float32 in [0, 1], where the data has soft masks.
        has_mask: False for an object of which only the box was read; ``rle`` is then that of the box.
    """

    id: int
    label: int
    rle: RLE
    box: tuple[float, float, float, float]
    area: float
    crowd: bool = False
    polygons: tuple[npt.NDArray[np.float64], ...] = field(default=(), compare=False)  # the mask says the same
    matte: Tensor | None = field(default=None, compare=False)
    has_mask: bool = True


@dataclass(frozen=True)
class Record:
    """One image and its objects.

    Attributes:
        image_id: as in the file.
        path: where the image lies; None when it is drawn.
        height: pixels, as annotated.
        width: pixels, as annotated.
        annotations: in the order of the file.
        file_name: as in the file.
        exif: False when the objects were drawn on the stored pixels, without the image's EXIF orientation, True when
            they were drawn on the image as it is shown; None where that does not show, and the data set's rule decides.
    """

    image_id: int
    path: Path | None
    height: int
    width: int
    annotations: tuple[Annotation, ...]
    file_name: str
    exif: bool | None = None


def whole_text(text: str) -> str:
    """A text that can be printed and stored: halves of characters, which JSON allows, become question marks."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


@dataclass(frozen=True)
class Problem:
    """A defect of a data set.

    Attributes:
        kind: a short name, for example ``"missing_image"`` (all of them: ``instseg.inspect.check.KINDS``).
        severity: ``"error"`` for what training refuses, ``"left_out"`` for a record that it leaves out and counts,
            ``"warning"`` for what is used as it is.
        file: the file that holds the defect.
        record: the image or annotation in that file; empty when the whole file is meant.
        message: what was found and what to do.
    """

    kind: str
    severity: Severity
    file: str
    record: str
    message: str

    @property
    def line(self) -> str:
        """Everything in one line, also when a name in the file holds a line break."""
        parts = (self.file, self.record, self.message) if self.record else (self.file, self.message)
        return whole_text(" ".join(": ".join(parts).split()))


Report: TypeAlias = Callable[[Problem], None]


class Records(Sequence[Record]):
    """The records of a data set, and what can be asked of all of them without making each.

    The methods here make every record; a sequence that knows better overrides them.
    """

    @abstractmethod
    def record(self, position: int) -> Record:
        """The record at a position from ``-len(self)`` to ``len(self) - 1``."""

    @overload
    def __getitem__(self, position: int) -> Record: ...
    @overload
    def __getitem__(self, position: slice) -> list[Record]: ...
    def __getitem__(self, position: int | slice) -> Record | list[Record]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if not -len(self) <= position < len(self):
            raise IndexError(f"record {position} of {len(self)}")
        return self.record(position)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    @property
    def sizes(self) -> IntArray:
        """(N, 2) H, W of each image as annotated."""
        return np.array([(r.height, r.width) for r in self], dtype=np.int64).reshape(-1, 2)

    @property
    def image_ids(self) -> npt.NDArray[Any]:
        """(N,) as in the file."""
        return np.array([record.image_id for record in self])

    def file_name(self, position: int) -> str:
        """As in the file."""
        return self[position].file_name

    def path(self, position: int) -> Path | None:
        """Where an image lies; None when it is drawn."""
        return self[position].path

    def objects(self) -> tuple[IntArray, IntArray]:
        """The image (position) and the label of each object that is not a crowd."""
        found = [(i, a.label) for i, record in enumerate(self) for a in record.annotations if not a.crowd]
        table = np.array(found, dtype=np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    @property
    def has_masks(self) -> bool:
        """Whether any object has a mask, which is read."""
        return any(a.has_mask for record in self for a in record.annotations)

    def digest(self) -> str:
        """Of what is annotated: differs when an object, a class or an image does."""
        digest = hashlib.blake2b(digest_size=16)
        for record in self:
            digest.update(repr((record.image_id, record.file_name)).encode())
            for a in record.annotations:
                digest.update(repr((a.label, a.crowd, a.rle["counts"])).encode())
        return digest.hexdigest()

    @property
    def left_out_while_reading(self) -> int:
        """Annotations that were left out so far because of what their masks hold."""
        return 0


class ListedRecords(Records):
    """Records of any sequence."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def record(self, position: int) -> Record:
        return self.records[position]


class ChosenRecords(Records):
    """Some of the records of a sequence, in another order, with other labels."""

    def __init__(self, records: Records, chosen: IntArray, labels: IntArray | None = None) -> None:
        """
        Args:
            records: to choose from.
            chosen: positions in it.
            labels: the new label of each old one, -1 for those that are left out; None keeps them.
        """
        self.records, self.chosen, self.labels = records, chosen, labels

    def __len__(self) -> int:
        return len(self.chosen)

    def record(self, position: int) -> Record:
        record = self.records[int(self.chosen[position])]
        if self.labels is None:
            return record
        table = self.labels.tolist()
        kept = tuple(replace(a, label=table[a.label]) for a in record.annotations if table[a.label] >= 0)
        return replace(record, annotations=kept)

    @property
    def sizes(self) -> IntArray:
        return self.records.sizes[self.chosen]

    @property
    def image_ids(self) -> npt.NDArray[Any]:
        ids: npt.NDArray[Any] = self.records.image_ids[self.chosen]
        return ids

    def file_name(self, position: int) -> str:
        return self.records.file_name(int(self.chosen[position]))

    def path(self, position: int) -> Path | None:
        return self.records.path(int(self.chosen[position]))

    def objects(self) -> tuple[IntArray, IntArray]:
        rows, labels = self.records.objects()
        if self.labels is not None:
            labels = self.labels[labels]
            rows, labels = rows[labels >= 0], labels[labels >= 0]
        order = np.argsort(rows, kind="stable")
        rows, labels = rows[order], labels[order]
        first, last = np.searchsorted(rows, self.chosen), np.searchsorted(rows, self.chosen, side="right")
        counts = last - first
        index = np.repeat(first - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) + np.arange(counts.sum())
        return np.repeat(np.arange(len(self.chosen)), counts), labels[index]

    def digest(self) -> str:
        parts = (self.records.digest(), self.chosen.tolist(), None if self.labels is None else self.labels.tolist())
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    @property
    def left_out_while_reading(self) -> int:
        return self.records.left_out_while_reading


@dataclass
class Problems:
    """Defects as they are found, counted by kind; the first ``MAX_KEPT`` of a kind are kept.

    Attributes:
        kept: in the order in which they were found.
        counts: how many of each (severity, kind).
    """

    kept: list[Problem] = field(default_factory=list)
    counts: Counter[tuple[Severity, str]] = field(default_factory=Counter)

    def add(self, problem: Problem) -> None:
        key = (problem.severity, problem.kind)
        self.counts[key] += 1
        if self.counts[key] <= MAX_KEPT:
            self.kept.append(problem)

    def extend(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.add(problem)

    def copy(self) -> "Problems":
        return Problems(list(self.kept), self.counts.copy())

    def of(self, severity: Severity) -> list[Problem]:
        return [problem for problem in self.kept if problem.severity == severity]

    def number(self, severity: Severity) -> int:
        return sum(count for (of, _), count in self.counts.items() if of == severity)

    def kinds(self, severity: Severity) -> str:
        """``"3 zero_area, 1 no_mask"``: the most frequent first."""
        found = Counter({kind: count for (of, kind), count in self.counts.items() if of == severity})
        return ", ".join(f"{count} {kind}" for kind, count in found.most_common())


LEFT_OUT = {
    "zero_area": "without a pixel",
    "double": "that stand twice",
    "no_mask": "without a mask",
    "no_category": "without a category",
    "polygon_points": "of fewer than three points",
    "few_points": "with a part of fewer than three points (that part alone)",
    "polygon_nan": "with coordinates that are not numbers",
    "polygon_outside": "outside their image",
    "rle_counts": "with a damaged RLE",
    "other": "found defective while reading",
}
"""How the line that counts what was left out calls each kind."""


def left_out_text(counts: Sequence[tuple[str, int]]) -> str:
    """What was left out, in words: ``"2 without a pixel, 1 double"``."""
    return ", ".join(f"{count} {LEFT_OUT.get(kind, kind)}" for kind, count in counts if count)
