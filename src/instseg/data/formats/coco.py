"""COCO instance annotations: one JSON with ``images``, ``annotations`` and ``categories``."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from instseg.core import rle as rle_codes
from instseg.core.errors import DataError
from instseg.core.meta import Categories
from instseg.core.rle import RLE
from instseg.data.formats.layout import ROBOFLOW_FILE, Located
from instseg.data.formats.segmentation import BadSegmentation, read_segmentation
from instseg.data.images import image_size
from instseg.data.records import Annotation, Problem, Record, Report

# A file's bbox that overlaps the mask's own box less than this belongs to something else.
_BOX_AGREES = 0.5


def read_coco(located: Located, report: Report) -> tuple[Categories, list[Record]]:
    """Categories (sorted by id, so that holes close up) and records of an annotation file.

    Every defect goes to ``report``; what it concerns is left out when ``report`` returns. Image headers are
    read, so that a missing or torn image is known before training.

    Raises:
        DataError: the file is not COCO at all.
    """
    return _Reader(located, report).read()


class _Reader:
    """One pass over one file; holds what every step needs to name a defect."""

    def __init__(self, located: Located, report: Report) -> None:
        self.located = located
        self.file = str(located.annotations)
        self._report = report

    def error(self, kind: str, record: str, message: str) -> None:
        self._report(Problem(kind, "error", self.file, record, message))

    def warn(self, kind: str, record: str, message: str) -> None:
        self._report(Problem(kind, "warning", self.file, record, message))

    def fail(self, message: str) -> NoReturn:
        problem = Problem("not_coco", "error", self.file, "", message)
        self._report(problem)
        raise DataError(problem.line)

    def read(self) -> tuple[Categories, list[Record]]:
        content = self._load()
        categories = self._categories(content)
        images = self._images(content["images"])
        groups = self._group(content["annotations"], images, set(categories.ids))
        labels = {source: label for label, source in enumerate(categories.ids)}
        records = [
            record
            for entry in images.values()
            if (record := self._record(entry, groups.get(entry["id"], []), labels)) is not None
        ]
        if not records:
            self.error("empty", "", "holds no usable image; add images, or check where they lie.")
        return categories, records

    def _load(self) -> dict[str, Any]:
        try:
            content = json.loads(self.located.annotations.read_bytes())
        except OSError as error:
            self.fail(f"cannot be read ({error.strerror}); check the path.")
        except (ValueError, RecursionError) as error:
            self.fail(f"is not JSON ({' '.join(str(error).split())}); export it again.")
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                self.fail(f'is not COCO instance annotations (no list "{key}"); export it as COCO JSON.')
        return dict(content)

    def _categories(self, content: dict[str, Any]) -> Categories:
        names: dict[int, str] = {}
        for entry in content["categories"]:
            if not isinstance(entry, dict) or not _is_int(entry.get("id")) or not isinstance(entry.get("name"), str):
                self.fail('has a category without an integer "id" and a "name"; correct it.')
            if entry["id"] in names:
                message = f'category id {entry["id"]} occurs twice ("{names[entry["id"]]}" and "{entry["name"]}").'
                self.error("duplicate_category", f"category {entry['id']}", message)
                continue
            names[entry["id"]] = entry["name"]
        if self.located.annotations.name == ROBOFLOW_FILE:
            _drop_roboflow_root(names, content)
        if not names:
            self.fail("has no category; add at least one.")
        twice = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
        if twice:
            self.warn("duplicate_category", "", f"several categories are called {', '.join(twice)}.")
        return Categories(tuple(names[key] for key in sorted(names)), tuple(sorted(names)))

    def _images(self, entries: Sequence[Any]) -> dict[int, dict[str, Any]]:
        images: dict[int, dict[str, Any]] = {}
        for position, entry in enumerate(entries):
            if (
                not isinstance(entry, dict)
                or not _is_int(entry.get("id"))
                or not isinstance(entry.get("file_name"), str)
            ):
                message = 'has no integer "id" and "file_name"; correct or remove it.'
                self.error("bad_record", f"image number {position + 1}", message)
            elif entry["id"] in images:
                message = f'id is already that of "{images[entry["id"]]["file_name"]}"; give every image its own.'
                self.error("duplicate_image_id", _image_name(entry), message)
            else:
                images[entry["id"]] = entry
        return images

    def _group(
        self, entries: Sequence[Any], images: dict[int, dict[str, Any]], known: set[int]
    ) -> dict[int, list[dict[str, Any]]]:
        groups: dict[int, list[dict[str, Any]]] = {}
        seen: set[int] = set()
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict) or not _is_int(entry.get("image_id")):
                message = 'has no integer "image_id"; correct or remove it.'
                self.error("bad_record", f"annotation number {position + 1}", message)
                continue
            record = _annotation_name(entry, position)
            if entry["image_id"] not in images:
                message = f"belongs to image {entry['image_id']}, which is not in the file; correct or remove it."
                self.error("unknown_image", record, message)
                continue
            category = entry.get("category_id")
            if not _is_int(category) or category not in known:
                message = f"has category {category}, which is not in the file; correct or remove it."
                self.error("unknown_category", record, message)
                continue
            if _is_int(entry.get("id")):
                if entry["id"] in seen:
                    self.warn("duplicate_annotation_id", record, "id occurs twice; both are used and renumbered.")
                seen.add(entry["id"])
            groups.setdefault(entry["image_id"], []).append({"position": position, **entry})
        return groups

    def _record(self, entry: dict[str, Any], group: list[dict[str, Any]], labels: dict[int, int]) -> Record | None:
        name = _image_name(entry)
        path = _find(self.located.folders, entry["file_name"])
        if path is None:
            looked = ", ".join(str(folder) for folder in self.located.folders) or "no images' folder"
            self.error("missing_image", name, f"no such file in {looked}; add the image or remove the record.")
            return None
        try:
            shown, stored = image_size(path)
        except DataError as error:
            self.error("broken_image", name, str(error))
            return None
        height, width = (entry.get("height"), entry.get("width"))
        if height is None and width is None:
            height, width = shown
        exif = True
        if (height, width) != shown:
            if (height, width) != stored:
                found = f"{shown[1]} x {shown[0]}, the record says {width} x {height} (width x height)"
                self.error("image_size", name, f"image is {found}; correct the record or the image.")
                return None
            exif = False
            self.warn("exif", name, "annotated without its EXIF rotation; the image is used as stored.")
        assert isinstance(height, int) and isinstance(width, int)
        annotations = self._annotations(group, height, width, labels)
        return Record(entry["id"], path, height, width, annotations, entry["file_name"], exif)

    def _annotations(
        self, group: list[dict[str, Any]], height: int, width: int, labels: dict[int, int]
    ) -> tuple[Annotation, ...]:
        kept: list[tuple[dict[str, Any], RLE]] = []
        for entry in group:
            name = _annotation_name(entry, entry["position"])
            try:
                code, cut = read_segmentation(entry.get("segmentation"), height, width)
            except BadSegmentation as bad:
                self.error(bad.kind, name, bad.message)
                continue
            if cut:
                self.warn("polygon_outside", name, "polygon reaches over the image's border; it is cut there.")
            kept.append((entry, code))
        if not kept:
            return ()
        codes = [code for _, code in kept]
        annotations = []
        for (entry, code), pixels, tight in zip(kept, rle_codes.area(codes), rle_codes.boxes(codes), strict=True):
            name = _annotation_name(entry, entry["position"])
            if pixels == 0:
                self.error("zero_area", name, "mask has no pixel; redraw or remove it.")
                continue
            box = self._box(entry, name, (float(tight[0]), float(tight[1]), float(tight[2]), float(tight[3])))
            area = entry.get("area")
            given = float(area) if isinstance(area, int | float) and math.isfinite(area) and area > 0 else float(pixels)
            number = entry["id"] if _is_int(entry.get("id")) else entry["position"] + 1
            label = labels[entry["category_id"]]
            annotations.append(Annotation(number, label, code, box, given, bool(entry.get("iscrowd", 0))))
        return tuple(annotations)

    def _box(
        self, entry: dict[str, Any], name: str, tight: tuple[float, float, float, float]
    ) -> tuple[float, float, float, float]:
        given = entry.get("bbox")
        if given is None:
            return tight
        try:
            x, y, w, h = (float(value) for value in given)
        except (TypeError, ValueError):
            x = y = w = h = math.nan
        if not (math.isfinite(x + y + w + h) and w > 0 and h > 0):
            self.warn(
                "bbox",
                name,
                "bbox is not [x, y, width, height] with a positive size; the mask's box is used.",
            )
            return tight
        box = (x, y, x + w, y + h)
        if _box_iou(box, tight) < _BOX_AGREES and not entry.get("iscrowd", 0):
            self.warn("bbox", name, "bbox does not fit the mask (is it xyxy instead of x, y, width, height?).")
        return box


def _drop_roboflow_root(names: dict[int, str], content: dict[str, Any]) -> None:
    """Roboflow writes a category 0 that is only the parent of the others: no class, unless an object has it."""
    parents = {entry["id"]: entry.get("supercategory") for entry in content["categories"]}
    others = [key for key in names if key != 0]
    if 0 not in names or parents.get(0) != "none" or not others:
        return
    used = any(isinstance(entry, dict) and entry.get("category_id") == 0 for entry in content["annotations"])
    if not used and all(parents[key] == names[0] for key in others):
        del names[0]


def _find(folders: Sequence[Path], file_name: str) -> Path | None:
    """The image in the first folder that holds it, by its path or else by its bare name."""
    given = Path(file_name)
    if given.is_absolute() and given.is_file():
        return given
    names = [file_name] if given.name == file_name else [file_name, given.name]
    for name in names:
        for folder in folders:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                return Path(path)
    return None


def _box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.clip(high - low, 0, None)))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _image_name(entry: dict[str, Any]) -> str:
    return f'image {entry["id"]} ("{entry["file_name"]}")'


def _annotation_name(entry: dict[str, Any], position: int) -> str:
    where = f" of image {entry['image_id']}"
    return f"annotation {entry['id']}{where}" if "id" in entry else f"annotation number {position + 1}{where}"
