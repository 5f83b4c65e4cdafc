"""What a data set knows about an image before it is read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from instseg.core.rle import RLE

Severity: TypeAlias = Literal["error", "warning"]


@dataclass(frozen=True)
class Annotation:
    """One object.

    Attributes:
        id: as in the file.
        label: contiguous, from 0.
        rle: mask at the size of the image.
        box: xyxy in pixels; the file's own ``bbox`` where it has a usable one, else the tight box.
        area: the file's own ``area`` where it is positive, else the mask's pixels. COCO splits sizes by it.
        crowd: a region that holds many objects; no training target, ignored in evaluation.
    """

    id: int
    label: int
    rle: RLE
    box: tuple[float, float, float, float]
    area: float
    crowd: bool = False


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
        exif: False when the objects were drawn on the stored pixels, without the image's EXIF orientation.
    """

    image_id: int
    path: Path | None
    height: int
    width: int
    annotations: tuple[Annotation, ...]
    file_name: str
    exif: bool = True


@dataclass(frozen=True)
class Problem:
    """A defect of a data set.

    Attributes:
        kind: a short name, for example ``"missing_image"`` (all of them: ``instseg.data.check.KINDS``).
        severity: ``"error"`` for what training refuses, ``"warning"`` for what is used as it is.
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
        return " ".join(": ".join(parts).split())


Report: TypeAlias = Callable[[Problem], None]
