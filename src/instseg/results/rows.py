"""The objects of an image as rows of `predictions.json`."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import torch

from instseg.core import rle
from instseg.core.categories import Categories
from instseg.core.category_matching import match_categories
from instseg.core.errors import DataError
from instseg.core.instances import Instances
from instseg.data.images.read import image_size

_HEADERS = 300  # images whose headers show whether a data set was annotated on turned images

Rows = list[dict[str, Any]]


def coco_rows(
    instances: Instances, category_ids: Sequence[int], image_id: int, *, text: bool = False
) -> list[dict[str, Any]]:
    """The objects of one image as COCO results: `image_id`, `category_id`, `score`, `segmentation` (RLE), best first.

    There is no `bbox`: with one, COCO evaluators would split sizes by the box. A mask without a single pixel is left
    out. Where there are no masks, the rows are those of :func:`box_rows`.

    Args:
        instances: the objects.
        category_ids: by label.
        image_id: of the image.
        text: RLE counts are text, as JSON needs them, instead of bytes.
    """
    if instances.masks is None:
        return box_rows(instances, category_ids, image_id)
    scores, labels = instances.scores.tolist(), instances.labels.tolist()
    codes = instances.masks.rle()
    areas, shown = rle.area(codes).tolist(), rle.to_json_all(codes) if text else codes
    return [
        {"image_id": image_id, "category_id": category_ids[label], "score": score, "segmentation": code}
        for score, label, code, area in zip(scores, labels, shown, areas, strict=True)
        if area > 0
    ]


def box_rows(instances: Instances, category_ids: Sequence[int], image_id: int) -> list[dict[str, Any]]:
    """The boxes of one image as COCO results: `image_id`, `category_id`, `score`, `bbox` (xywh), best first."""
    scores, labels = instances.scores.tolist(), instances.labels.tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[label], "score": score, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for score, label, (x0, y0, x1, y1) in zip(scores, labels, instances.boxes.tolist(), strict=True)
    ]


class RowMaker(Protocol):
    """Turns what was found in an image into rows."""

    def rows(self, found: Instances, name: str, path: Path | None, images: int, annotations: int) -> tuple[Any, Rows]:
        """The record of an image and its rows.

        Args:
            found: its objects.
            name: what the image is called.
            path: where it lies.
            images: images before it.
            annotations: rows before its first.

        Raises:
            DataError: the image cannot be taken.
        """


class CocoRows:
    """For a COCO data set.

    An image has ``id`` (from 1 in the order of arrival), ``file_name``, ``width``, ``height``; an annotation the
    category ids of the data that the model was trained on, ``score``, RLE ``segmentation``, ``area``, ``bbox`` (xywh),
    ``iscrowd`` 0, and ``instance``, the value that the object's pixels have in the label image. Without masks there
    is no ``segmentation``, and the area is that of the box.

    Args:
        categories: of the model.
        score: objects below it are left out.
    """

    def __init__(self, categories: Categories, score: float) -> None:
        self.categories = categories
        self.score = score

    def rows(self, found: Instances, name: str, path: Path | None, images: int, annotations: int) -> tuple[Any, Rows]:
        height, width = found.image_size
        image = {"id": images + 1, "file_name": name, "width": width, "height": height}
        return image, list(self._rows(found, images + 1, annotations))

    def _rows(self, found: Instances, image: int, annotations: int) -> Iterator[dict[str, Any]]:
        if found.masks is not None:
            found.masks.rle()  # rendered here once: whatever is chosen from these instances later shares the codes
        kept = found[found.scores >= self.score]
        ids, scores, labels = self.categories.ids, kept.scores.tolist(), kept.labels.tolist()
        boxes = kept.boxes.tolist()
        if kept.masks is None:
            shapes: list[dict[str, Any]] = [{}] * len(kept)
            areas: list[float] = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]
        else:
            codes = kept.masks.rle()
            shapes = [{"segmentation": code} for code in rle.to_json_all(codes)]
            areas = [int(area) for area in rle.area(codes).tolist()]
        for number, (shape, area, (x0, y0, x1, y1)) in enumerate(zip(shapes, areas, boxes, strict=True)):
            if area <= 0:
                continue
            annotations += 1
            yield {
                "id": annotations,
                "image_id": image,
                "category_id": ids[labels[number]],
                "score": scores[number],
                **shape,
                "area": area,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
                "instance": number + 1,
            }


class ResultRows:
    """For an annotation file: rows of a plain COCO results list under that file's image and category ids, ready for
    pycocotools' ``loadRes``; masks without ``bbox``, boxes where there are no masks.

    Args:
        categories: of the model.
        annotations: a COCO JSON.
        score: objects below it are left out.

    Raises:
        DataError: the file is not COCO, or has no class in common with the model.
    """

    def __init__(self, categories: Categories, annotations: Path | str, score: float) -> None:
        self.score = score
        self.known = Path(annotations)
        images, data = read_index(self.known)
        self._ids = match_categories(categories, data).ids
        self._images = ImageIndex(images, self.known)

    def size(self, path: Path) -> tuple[int, int] | None:
        """(H, W) of an image as the file states it, None where it does not."""
        try:
            return _size(self._images.find(str(path)))
        except DataError:
            return None

    def fit_shown(self, paths: Iterable[Path]) -> bool | None:
        """Whether the sizes in the file are those of the images as their EXIF orientation shows them (True), or as they
        are stored (False); None where no image can tell."""
        shown = stored = seen = 0
        for path in paths:
            size = self.size(path)
            if size is None:
                continue
            try:
                turned, kept = image_size(path)
            except DataError:
                continue
            shown += turned != kept and size == turned
            stored += turned != kept and size == kept
            seen += 1
            if seen >= _HEADERS and shown + stored:
                break
        return shown >= stored if shown + stored else None

    def rows(self, found: Instances, name: str, path: Path | None, images: int, annotations: int) -> tuple[Any, Rows]:
        file_name = str(path) if path is not None else name
        image = self._images.find(file_name)
        size = _size(image)
        if size not in (None, tuple(found.image_size)):
            height, width = found.image_size
            raise DataError(
                f"{file_name}: image of {width} x {height} pixels, {self.known.name} says {image['width']} x "
                f"{image['height']}: it is not the image that was annotated."
            )
        if found.masks is not None:
            found.masks.rle()  # rendered here once: whatever is chosen from these instances later shares the codes
        kept = found[found.scores >= self.score]
        kept = kept[torch.tensor([self._ids[label] is not None for label in kept.labels.tolist()], dtype=torch.bool)]
        rows = coco_rows(kept, [-1 if i is None else i for i in self._ids], int(image["id"]), text=True)
        return {"id": int(image["id"]), "file_name": name}, rows


def read_index(path: Path) -> tuple[list[dict[str, Any]], Categories]:
    """The images and categories of a COCO JSON. Raises DataError when it is missing or not COCO."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        images = [dict(image) for image in content["images"]]
        numbered = [(whole(row["id"]), str(row["name"])) for row in content["categories"]]
        wrong = next((i for i, (number, _) in enumerate(numbered) if number is None), None)
        bad = next((image for image in images if "id" not in image or "file_name" not in image), None)
    except OSError as error:
        raise DataError(f"{path}: annotation file cannot be read ({error.strerror}); check the path.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: not a COCO annotation file: it needs images and categories with ids.") from None
    if bad is not None:
        raise DataError(f"{path}: image {bad.get('id', '?')} has no id or file_name; correct the record.")
    if wrong is not None:
        found = json.dumps(content["categories"][wrong]["id"])[:60]
        raise DataError(f"{path}: category {wrong + 1} has the id {found}, not a whole number; correct the record.")
    rows = sorted((number, name) for number, name in numbered if number is not None)
    return [_checked(image, i, path) for i, image in enumerate(images, 1)], Categories(
        tuple(name for _, name in rows), tuple(number for number, _ in rows)
    )


def whole(value: object) -> int | None:
    """A whole number that JSON holds as such, as 7.0 or as "7"; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _checked(image: dict[str, Any], number: int, path: Path) -> dict[str, Any]:
    """The record of an image with a whole id and, where it has one, a whole size."""
    identity = whole(image["id"])
    if identity is None:
        found = json.dumps(image["id"])[:60]
        raise DataError(
            f"{path}: image {number} ({image['file_name']}) has the id {found}, not a whole number; correct the record."
        )
    if not isinstance(image["file_name"], str):
        found = json.dumps(image["file_name"])[:60]
        raise DataError(f"{path}: image {number} has the file_name {found}, not a text; correct the record.")
    size: dict[str, Any] = {name: whole(image[name]) for name in ("height", "width") if name in image}
    return {**image, "id": identity, **size}


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
            raise DataError(f"{file_name}: {self.source.name} has no image of this name; its results are left out.")
        agreeing = [_common_tail(parts, _parts(image["file_name"])) for image in found]
        if agreeing.count(max(agreeing)) > 1:
            raise DataError(
                f"{file_name}: {self.source.name} has several images of this name; predict on their folder."
            )
        return found[agreeing.index(max(agreeing))]


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _parts(file_name: str) -> tuple[str, ...]:
    text = unicodedata.normalize("NFC", str(file_name)).replace("\\", "/")
    return PurePosixPath(text).parts or ("",)


def _common_tail(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    same = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        same += 1
    return same
