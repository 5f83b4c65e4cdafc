"""Predictions into files: COCO JSON, overlays, label images.

A file appears under its name only when it is complete: it is written beside it and renamed. Nothing here
holds more than one image's objects.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from instseg.core import rle
from instseg.core.errors import DataError
from instseg.core.instances import Instances
from instseg.core.meta import Categories
from instseg.infer.classes import match_categories
from instseg.infer.prediction import coco_rows

JSON_SCORE = 0.05  # least score of a mask in a JSON file
PICTURE_SCORE = 0.25  # least score of a mask in a picture

LABELS_README = """Each PNG holds one 16-bit whole number a pixel.

0 is ground. A pixel with value k belongs to object k of the image: the k-th best by score, counted from 1. In
predictions.json it is the annotation of that image with "instance": k, which names its category and score.
Where objects overlap, the one with the better score has the pixel. Only objects with a score of at least
{score:g} are drawn.

Read it without conversion, for example numpy.asarray(PIL.Image.open("name.png")); most viewers show it as
black.
"""


class WriteError(DataError):
    """A file of results cannot be written, whatever the image."""


@contextmanager
def atomic(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that takes its name when the block ends well, and leaves nothing behind when it does not.

    Raises WriteError when it cannot be written (disk full, no permission).
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(path: Path, content: object, indent: int | None = None) -> None:
    """JSON without NaN or infinity, which JSON does not have. Raises WriteError when the file cannot be
    written."""
    with atomic(path, "w") as file:
        json.dump(content, file, indent=indent, allow_nan=False)


def write_results(path: Path, results: Iterable[Mapping[str, Any]]) -> None:
    """A plain COCO results list, as pycocotools' `loadRes` reads it. RLE counts may be bytes."""
    with atomic(path, "w") as file:
        _write_list(file, ({**row, "segmentation": rle.to_json(dict(row["segmentation"]))} for row in results))


def _write_list(file: IO[str], rows: Iterable[object]) -> None:
    file.write("[")
    for number, row in enumerate(rows):
        file.write((",\n" if number else "\n") + json.dumps(row, allow_nan=False))
    file.write("\n]")


def write_label_image(path: Path, labels: npt.NDArray[np.uint16]) -> None:
    """A 16-bit grey PNG of (H, W) uint16 values."""
    from PIL import Image

    with atomic(path) as file:
        Image.fromarray(labels).save(file, format="PNG")


def write_picture(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """(H, W, 3) uint8 RGB as PNG, JPEG or WebP, by the suffix."""
    from PIL import Image

    form = {".png": "PNG", ".webp": "WEBP"}.get(path.suffix.lower(), "JPEG")
    options: dict[str, Any] = {"quality": 92, "subsampling": 0} if form == "JPEG" else {}
    with atomic(path) as file:
        Image.fromarray(pixels).save(file, format=form, **options)


class CocoWriter:
    """`predictions.json`: a COCO data set that any COCO tool opens.

    `images` (id from 1 in the order of arrival, file_name, width, height), `categories` (the ids of the data
    that the model was trained on), `annotations` with `score`, RLE `segmentation`, `area`, `bbox` (xywh),
    `iscrowd` 0, and `instance`, the value that the object's pixels have in the label image. Use it as a
    context: the file appears when the block ends well. Memory does not grow with the number of images.
    """

    def __init__(self, path: Path | str, categories: Categories, score: float = JSON_SCORE) -> None:
        """score: masks below it are left out."""
        self.path = Path(path)
        self.categories = categories
        self.score = score
        self.images = 0
        self.annotations = 0
        self._stack = ExitStack()

    def __enter__(self) -> CocoWriter:
        with ExitStack() as stack:
            self._file = stack.enter_context(atomic(self.path, "w"))
            # The list of images waits here until that of the annotations, in the same file, has ended.
            self._spool = stack.enter_context(_spool(self.path.parent))
            self._stack = stack.pop_all()
        pairs = zip(self.categories.ids, self.categories.names, strict=True)
        categories = [{"id": i, "name": name} for i, name in pairs]
        self._file.write(f'{{"info": {{"description": "instseg predictions"}},\n"categories": {json.dumps(categories)}')
        self._file.write(',\n"annotations": [')
        return self

    def add(self, instances: Instances, file_name: str) -> int:
        """Writes the objects of one image, which is known as `file_name`, and gives the image's id."""
        self.images += 1
        height, width = instances.image_size
        image = {"id": self.images, "file_name": file_name, "width": width, "height": height}
        with _says_when_full(self.path):
            self._spool.write((",\n" if self.images > 1 else "\n") + json.dumps(image))
            for row in self._rows(instances):
                self._file.write((",\n" if self.annotations else "\n") + json.dumps(row, allow_nan=False))
                self.annotations += 1
        return self.images

    def _rows(self, instances: Instances) -> Iterator[dict[str, Any]]:
        instances.masks.rle()  # rendered here once: whatever is chosen from these instances later shares the codes
        kept = instances[instances.scores >= self.score]
        codes = kept.masks.rle()
        boxes, areas = rle.boxes(codes).tolist(), rle.area(codes).tolist()
        scores, labels = kept.scores.tolist(), kept.labels.tolist()
        for number, (code, area) in enumerate(zip(codes, areas, strict=True)):
            if area <= 0:
                continue
            x0, y0, x1, y1 = boxes[number]
            yield {
                "id": self.annotations + 1,
                "image_id": self.images,
                "category_id": self.categories.ids[labels[number]],
                "score": scores[number],
                "segmentation": rle.to_json(code),
                "area": int(area),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
                "instance": number + 1,
            }

    def __exit__(self, *error: Any) -> bool | None:
        if error[0] is None:
            try:
                with _says_when_full(self.path):
                    self._file.write('\n],\n"images": [')
                    self._spool.seek(0)
                    shutil.copyfileobj(self._spool, self._file)
                    self._file.write("\n]}\n")
            except WriteError as full:
                self._stack.__exit__(type(full), full, full.__traceback__)
                raise
        return self._stack.__exit__(*error)


class ResultsWriter:
    """`predictions.json` for an annotation file: a plain COCO results list under that file's image and
    category ids, without `bbox`, ready for pycocotools' `loadRes`. Use it as a context."""

    def __init__(
        self, path: Path | str, categories: Categories, annotations: Path | str, score: float = JSON_SCORE
    ) -> None:
        """categories: of the model; annotations: a COCO JSON; score: masks below it are left out.

        Raises DataError when the file is not COCO, or has no class in common with the model.
        """
        self.path = Path(path)
        self.score = score
        self.known = Path(annotations)
        images, data = read_index(self.known)
        self._ids = match_categories(categories, data).ids
        self._images = ImageIndex(images, self.known)
        self.images = 0
        self.annotations = 0
        self._stack = ExitStack()

    def __enter__(self) -> ResultsWriter:
        with ExitStack() as stack:
            self._file = stack.enter_context(atomic(self.path, "w"))
            self._stack = stack.pop_all()
        self._file.write("[")
        return self

    def add(self, instances: Instances, file_name: str) -> int:
        """Writes the objects of the image whose file is `file_name` (a path), and gives the image's id.

        Raises DataError when the annotation file has no such image, or one of another size.
        """
        image = self._images.find(file_name)
        size = (image.get("height"), image.get("width"))
        if None not in size and size != tuple(instances.image_size):
            height, width = instances.image_size
            raise DataError(
                f"{file_name}: image of {width} x {height} pixels, {self.known.name} says {size[1]} x {size[0]}: "
                "it is not the image that was annotated"
            )
        instances.masks.rle()  # rendered here once: whatever is chosen from these instances later shares the codes
        kept = instances[instances.scores >= self.score]
        kept = kept[torch.tensor([self._ids[label] is not None for label in kept.labels.tolist()], dtype=torch.bool)]
        with _says_when_full(self.path):
            for row in coco_rows(kept, [-1 if i is None else i for i in self._ids], int(image["id"])):
                text = json.dumps({**row, "segmentation": rle.to_json(row["segmentation"])}, allow_nan=False)
                self._file.write((",\n" if self.annotations else "\n") + text)
                self.annotations += 1
        self.images += 1
        return int(image["id"])

    def __exit__(self, *error: Any) -> bool | None:
        if error[0] is None:
            self._file.write("\n]\n")
        return self._stack.__exit__(*error)


def read_index(path: Path) -> tuple[list[dict[str, Any]], Categories]:
    """The images and categories of a COCO JSON. Raises DataError when it is missing or not COCO."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = [dict(image) for image in content["images"]]
        rows = sorted(content["categories"], key=lambda row: int(row["id"]))
        categories = Categories(tuple(str(r["name"]) for r in rows), tuple(int(r["id"]) for r in rows))
        bad = next((image for image in images if "id" not in image or "file_name" not in image), None)
    except OSError as error:
        raise DataError(f"{path}: annotation file cannot be read ({error.strerror}); check the path") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: not a COCO annotation file: it needs images and categories with ids") from None
    if bad is not None:
        raise DataError(f"{path}: image {bad.get('id', '?')} has no id or file_name; correct the record")
    return images, categories


class ImageIndex:
    """Finds the record of an image by the path of its file.

    A record's `file_name` may hold folders; the one that agrees with the most trailing parts of the path
    wins.
    """

    def __init__(self, images: Iterable[dict[str, Any]], source: Path) -> None:
        self.source = source
        self._by_name: dict[str, list[dict[str, Any]]] = {}
        for image in images:
            self._by_name.setdefault(_parts(image["file_name"])[-1], []).append(image)

    def find(self, file_name: str) -> dict[str, Any]:
        """The record. Raises DataError when there is none, or two are as good."""
        parts = _parts(file_name)
        found = self._by_name.get(parts[-1], [])
        if not found:
            raise DataError(f"{file_name}: {self.source.name} has no image of this name; its results are left out")
        agreeing = [_common_tail(parts, _parts(image["file_name"])) for image in found]
        if agreeing.count(max(agreeing)) > 1:
            raise DataError(f"{file_name}: {self.source.name} has several images of this name; predict on their folder")
        return found[agreeing.index(max(agreeing))]


def _parts(file_name: str) -> tuple[str, ...]:
    return PurePosixPath(str(file_name).replace("\\", "/")).parts or ("",)


def _common_tail(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    same = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        same += 1
    return same


@contextmanager
def _spool(folder: Path) -> Iterator[IO[str]]:
    """A nameless text file on the disk of the results, where there is room for them."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder) as file:
        yield file


@contextmanager
def _says_when_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> WriteError:
    return WriteError(
        f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder"
    )
