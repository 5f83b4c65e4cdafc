"""COCO instance annotations: one JSON with ``images``, ``annotations`` and ``categories``."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn
from urllib.parse import urlsplit

import msgspec
import numpy as np
import numpy.typing as npt

from instseg.core.categories import Categories
from instseg.core.errors import DataError
from instseg.data.formats.index import Index, digest_of, stamp_of, usable_box
from instseg.data.formats.segmentation import BadSegmentation, NoSegmentation, check_rle_size, rle_size, shape_of
from instseg.data.formats.text import Buffer, NotReadable, Text, parse, read_text
from instseg.data.records import Problem, Problems, Severity, whole_text

# Names by which tools call what is not an object, once spaces and underscores are gone.
_BACKGROUND = frozenset({"background"})
# The pages of the file are given back to the system after so many annotations.
_RELEASE = 100_000


class _Row(msgspec.Struct, gc=False):
    """An annotation without what nobody reads here; its mask stays text."""

    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    image_id: Any = None
    category_id: Any = None
    id: Any = None
    iscrowd: Any = 0
    bbox: Any = None


class _Code(msgspec.Struct, gc=False):
    size: Any = None
    counts: msgspec.Raw = msgspec.Raw(b"null")


_ROW = msgspec.json.Decoder(_Row)
_POLYGONS = msgspec.json.Decoder(list[list[float]])
_CODE = msgspec.json.Decoder(_Code)


def build_index(file: Path) -> Index:
    """Read an annotation file once, without making a mask.

    Every defect that shows without rasterizing is in ``index.problems``; what it concerns is left out.

    Raises:
        DataError: the file cannot be read, or is not COCO at all.
    """
    return _Builder(file).build()


def key_of(value: Any) -> int | str | None:
    """An id as files have it: a whole number, also as a float or a text; any other text; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and value.strip():
        text = value.strip()
        whole = text.removesuffix(".0")
        plain = whole.removeprefix("-").isdecimal() and whole.isascii() and len(whole) < 4000
        return int(whole) if plain and str(int(whole)) == whole else text  # "01" and "1" are two
    return None


class _Builder:
    """One pass over one file; holds what every step needs to name a defect."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.problems = Problems()
        self.images: dict[int | str, int] = {}  # row of each id
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.labels: dict[int | str, int] = {}

    def note(self, kind: str, severity: Severity, record: str, message: str) -> None:
        self.problems.add(Problem(kind, severity, str(self.file), record, message))

    def fail(self, message: str) -> NoReturn:
        raise DataError(Problem("not_coco", "error", str(self.file), "", message).line)

    def build(self) -> Index:
        try:
            stamp = stamp_of(os.stat(self.file))
            text = read_text(self.file)
        except OSError as error:
            self.fail(f"cannot be read ({error.strerror}); check the path.")
        except NotReadable as error:
            self.fail(f"{error}.")
        categories = self._categories(text)
        self._images(text.images)
        table = _Table(self, text)
        for position, row in enumerate(text.annotations):
            table.add(row, position)
            if position % _RELEASE == 0:
                text.release()
        columns = table.columns()
        image_ids = self._image_ids()
        return Index(
            file=self.file,
            stamp=stamp,
            content=None if text.in_file else bytes(text.content),
            categories=categories,
            image_ids=image_ids,
            file_names=self.names,
            sizes=np.array(self.sizes, dtype=np.int32).reshape(-1, 2),
            problems=self.problems,
            digest=digest_of(
                [repr(categories).encode(), "\0".join(self.names).encode(errors="replace"), *columns.pop("hashed")]
            ),
            **columns,
        )

    # -- categories ----------------------------------------------------------------------------------------

    def _categories(self, text: Text) -> Categories:
        names: dict[int | str, str] = {}
        parents: dict[int | str, Any] = {}
        for entry in text.categories:
            key = key_of(entry.get("id")) if isinstance(entry, dict) else None
            if key is None or not isinstance(entry.get("name"), str | int | float):
                self.fail('has a category without an "id" and a "name"; correct it.')
            name = whole_text(str(entry["name"]))
            if names.get(key) == name:
                continue  # merged files repeat their categories
            if key in names:
                message = f'category id {key} occurs twice ("{names[key]}" and "{name}").'
                self.note("duplicate_category", "error", f"category {key}", message)
                continue
            names[key], parents[key] = name, entry.get("supercategory")
        for key in _not_classes(names, parents, text):
            del names[key]
        if not names:
            self.fail("has no category; add at least one.")
        twice = sorted(name for name, count in Counter(names.values()).items() if count > 1)
        if twice:
            self.note("duplicate_category", "warning", "", f"several categories are called {', '.join(twice)}.")
        if any(isinstance(key, str) for key in names):
            message = "category ids are text; the categories are numbered from 1, in the order of the file."
            self.note("text_ids", "warning", "", message)
            self.labels = {key: label for label, key in enumerate(names)}
            return Categories(tuple(names.values()), tuple(range(1, len(names) + 1)))
        ordered = sorted(key for key in names if isinstance(key, int))
        self.labels = {key: label for label, key in enumerate(ordered)}
        return Categories(tuple(names[key] for key in ordered), tuple(ordered))

    # -- images --------------------------------------------------------------------------------------------

    def _images(self, entries: Sequence[Buffer]) -> None:
        for position, raw in enumerate(entries):
            try:
                entry = parse(raw)
            except (ValueError, RecursionError):
                entry = None
            key = key_of(entry.get("id")) if isinstance(entry, dict) else None
            name = _file_name(entry) if isinstance(entry, dict) else None
            if key is None or name is None:
                message = 'has no "id" and "file_name"; correct or remove it.'
                self.note("bad_record", "error", f"image number {position + 1}", message)
                continue
            record = f'image {key} ("{name}")'
            if key in self.images:
                message = f'id is already that of "{self.names[self.images[key]]}"; give every image its own.'
                self.note("duplicate_image_id", "error", record, message)
                continue
            size = [_side(entry.get(side)) for side in ("height", "width")]
            if None in size:
                shown = f"{entry.get('width')!r} x {entry.get('height')!r}"
                message = f"width x height {shown} are not whole numbers; they are taken from the image."
                self.note("image_size", "warning", record, message)
            height, width = (side or 0 for side in size)
            self.images[key] = len(self.names)
            self.names.append(name)
            self.sizes.append((height, width))

    def _image_ids(self) -> npt.NDArray[Any]:
        keys = list(self.images)
        if any(isinstance(key, str) for key in keys):
            message = "image ids are text; the images are numbered from 1, in the order of the file."
            self.note("text_ids", "warning", "", message)
            return np.arange(1, len(keys) + 1, dtype=np.int64)
        try:
            return np.array(keys, dtype=np.int64)
        except OverflowError:  # a digest, say
            return np.array(keys, dtype=object)


class _Table:
    """The annotations as columns. Plain lists of numbers while they grow: 860,000 rows take a few dozen MB."""

    def __init__(self, builder: _Builder, text: Text) -> None:
        self.builder = builder
        self.text = text
        self.seen: set[int] = set()
        size = len(text.annotations)
        self.rows = np.zeros(size, dtype=np.int64)
        self.labels = np.zeros(size, dtype=np.int32)
        self.crowd = np.zeros(size, dtype=bool)
        self.numbers = np.zeros(size, dtype=np.int64)
        self.parts = np.zeros(size, dtype=np.uint8)
        self.offsets = np.zeros(size, dtype=np.int64)
        self.lengths = np.zeros(size, dtype=np.int32)
        self.boxes = np.full((size, 4), np.nan, dtype=np.float32)
        self.hashes = np.zeros(size, dtype=np.int64)  # of the text, to find what stands twice
        self.size = 0

    def add(self, raw: Buffer, position: int) -> None:
        """Take in one annotation, or note why not."""
        row = _row(raw)
        key = key_of(row.image_id) if row is not None else None
        if row is None or key is None:
            message = 'has no "image_id"; correct or remove it.'
            self.builder.note("bad_record", "error", f"annotation number {position + 1}", message)
            return
        image = self.builder.images.get(key)
        label = self.builder.labels.get(_key_or_text(row.category_id))
        number = key_of(row.id)
        if image is None or label is None:
            self._refuse(row, position, image)
            return
        crowd = _truth(row.iscrowd)
        box = self._box(row, position)
        try:
            size = self.builder.sizes[image]
            parts = _look(row.segmentation, size if all(size) else (0, 0))
        except BadSegmentation as bad:
            if not isinstance(bad, NoSegmentation) or box is None or not usable_box(box):
                self.builder.note(bad.kind, bad.severity, _name(row, position), bad.message)
                return
            parts, row.segmentation = 0, msgspec.Raw()  # a box alone
        if not isinstance(number, int) or abs(number) >= 1 << 62:
            number = position + 1
        elif number in self.seen:
            message = "id occurs twice; both are used and renumbered."
            self.builder.note("duplicate_annotation_id", "warning", _name(row, position), message)
        self.seen.add(number)
        i = self.size
        text = bytes(row.segmentation)
        self.rows[i], self.labels[i], self.crowd[i], self.parts[i] = image, label, crowd, parts
        self.numbers[i], self.hashes[i] = number, hash(text if text or box is None else box.tobytes())
        self.offsets[i], self.lengths[i] = self.text.offset(row.segmentation) if text else 0, len(text)
        if box is not None:
            self.boxes[i] = box
        self.size += 1

    def _box(self, row: _Row, position: int) -> npt.NDArray[np.float32] | None:
        """The bbox of an annotation, (4,) x, y, width, height; None where it has none."""
        if row.bbox in (None, []):
            return None
        try:
            box = np.asarray(row.bbox, dtype=np.float32)
            if box.shape != (4,):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            message = "bbox is not [x, y, width, height]; the mask's box is used."
            self.builder.note("bbox", "warning", _name(row, position), message)
            return None
        return box

    def _refuse(self, row: _Row, position: int, image: int | None) -> None:
        name, note = _name(row, position), self.builder.note
        if image is None:
            message = f"belongs to image {row.image_id}, which is not in the file; correct or remove it."
            note("unknown_image", "error", name, message)
        elif row.category_id in (None, "", "NaN"):
            note("no_category", "left_out", name, "has no category.")
        else:
            message = f"has category {row.category_id}, which is not in the file; correct or remove it."
            note("unknown_category", "error", name, message)

    def columns(self) -> dict[str, Any]:
        """The fields of an index that have a row per annotation, grouped by image, and what its digest is of."""
        chosen = np.flatnonzero(self._first_of_each())
        order = chosen[np.argsort(self.rows[chosen], kind="stable")]
        counts = np.bincount(self.rows[order], minlength=len(self.builder.names))
        columns: dict[str, Any] = {
            name: getattr(self, name)[order]
            for name in ("labels", "crowd", "numbers", "parts", "offsets", "lengths", "boxes")
        }
        columns["starts"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        masked = columns["lengths"] > 0  # boxes alone do not count: what is trained on masks stays the same data set
        starts = np.concatenate([[0], np.cumsum(masked)])[columns["starts"]].astype(np.int64)
        texts = digest_of(self._text(i) for i in chosen.tolist() if self.lengths[i])
        columns["hashed"] = (starts, columns["labels"][masked], columns["crowd"][masked], texts.encode())
        return columns

    def _first_of_each(self) -> npt.NDArray[np.bool_]:
        """(rows so far,) False for what stands twice: same image, class and text of the mask."""
        n = self.size
        order = np.lexsort((np.arange(n), self.hashes[:n], self.labels[:n], self.rows[:n]))
        keep = np.ones(n, dtype=bool)
        same = np.ones(max(0, n - 1), dtype=bool)
        for column in (self.rows, self.labels, self.crowd, self.hashes):
            values = column[:n][order]
            same &= values[1:] == values[:-1]
        images = list(self.builder.images) if same.any() else []
        for i in np.flatnonzero(same).tolist():
            first, again = int(order[i]), int(order[i + 1])
            if self._text(first) == self._text(again):
                keep[again] = False
                name = f"annotation {self.numbers[again]} of image {images[int(self.rows[again])]}"
                message = f"stands twice: the same mask and class as annotation {self.numbers[first]}."
                self.builder.note("double", "left_out", name, message)
        return keep

    def _text(self, i: int) -> bytes:
        start = int(self.offsets[i])
        return bytes(self.text.content[start : start + int(self.lengths[i])])


def _row(raw: Buffer) -> _Row | None:
    try:
        return _ROW.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _look(raw: Buffer, size: tuple[int, int]) -> int:
    """How many usable polygons a segmentation has, 0 for an RLE. Raises BadSegmentation for what has no pixel and for
    what does not belong to an image of ``size`` (0, 0 where that is not known); looks at extents only."""
    try:
        parts = _POLYGONS.decode(raw)
    except msgspec.MsgspecError:
        return _look_closer(raw, size)
    usable = [part for part in parts if len(part) >= 6 and len(part) % 2 == 0]
    if not usable:
        return _look_closer(raw, size)
    solid = False
    left = top = float("inf")
    right = bottom = -left
    for part in usable:
        xs, ys = part[0::2], part[1::2]
        x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
        solid |= x1 > x0 and y1 > y0
        left, top, right, bottom = min(left, x0), min(top, y0), max(right, x1), max(bottom, y1)
    if not solid:
        raise BadSegmentation("zero_area", "mask has no pixel (a polygon of no width or height).")
    height, width = size
    if height and (left >= width or top >= height or right <= 0 or bottom <= 0):
        extent = f"x {left:g} to {right:g}, y {top:g} to {bottom:g} in an image of {width} x {height}"
        raise BadSegmentation("polygon_outside", f"polygon lies outside the image ({extent}); correct or remove it.")
    return min(255, len(usable))


def _look_closer(raw: Buffer, size: tuple[int, int]) -> int:
    """As :func:`_look`, for RLE and everything that is not plainly a list of polygons."""
    try:
        code = _CODE.decode(raw)
        of = rle_size(code.size)
    except msgspec.MsgspecError:
        of = None
    if of is not None:
        if size[0]:
            check_rle_size(of, *size)
        return 0
    try:
        found = shape_of(parse(raw))
    except (ValueError, RecursionError):
        raise BadSegmentation("no_mask", "has a mask that is not JSON; export it again.") from None
    return 0 if isinstance(found, dict) or isinstance(found[0], dict) else min(255, len(found))


def _not_classes(names: dict[int | str, str], parents: dict[int | str, Any], text: Text) -> list[int | str]:
    """Categories without an object that stand for the ground, or for all the others (Roboflow's category 0)."""
    ground = [key for key, name in names.items() if name.strip("_ ").casefold() in _BACKGROUND]
    roots = [
        key
        for key, name in names.items()
        if len(names) > 1
        and parents[key] in (None, "", "none", "None")
        and all(parents[other] == name for other in names if other != key)
    ]
    candidates = set(ground) | set(roots)
    if not candidates or len(candidates) == len(names):
        return []
    for raw in text.annotations:
        row = _row(raw)
        if row is not None:
            candidates.discard(_key_or_text(row.category_id))
        if not candidates:
            break
    return sorted(candidates, key=str)


def _file_name(entry: dict[str, Any]) -> str | None:
    for field in ("file_name", "filename", "path", "name"):
        value = entry.get(field)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    for field in ("coco_url", "url"):  # LVIS
        if isinstance(entry.get(field), str) and "/" in entry[field]:
            return "/".join(PurePosixPath(urlsplit(entry[field]).path).parts[-2:]).lstrip("/")
    return None


def _side(value: Any) -> int | None:
    """A side in pixels; 0 where the record does not say; None for something else than a whole number."""
    if value in (None, "", "NaN"):
        return 0
    found = key_of(value)
    return max(0, found) if isinstance(found, int) and found < 1 << 31 else None


def _truth(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().casefold() in ("1", "1.0", "true", "yes", "y", "t")
    return value == value and bool(value)  # NaN, from a table, is not a mark


def _key_or_text(value: Any) -> int | str:
    key = key_of(value)
    return "" if key is None else key


def _name(row: _Row, position: int) -> str:
    where = f" of image {row.image_id}"
    return f"annotation number {position + 1}{where}" if row.id is None else f"annotation {row.id}{where}"
