"""Predictions into files: overlays, label images, JSON.

A file appears under its name only when it is complete: it is written beside it and renamed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from instseg.core import files, rle
from instseg.core.categories import Categories
from instseg.core.errors import DataError
from instseg.core.instances import Instances
from instseg.results.rows import CocoRows
from instseg.sources.written import MARK

JSON_SCORE = 0.05  # least score of a mask in a JSON file
PICTURE_SCORE = 0.25  # least score of a mask in a picture

LABELS_README = """Each PNG in this folder holds one 16-bit whole number a pixel.

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
def atomic(path: Path, mode: str = "wb", *, durable: bool = False) -> Iterator[IO[Any]]:
    """A file that takes its name when the block ends well, and leaves nothing behind when it does not.

    Args:
        path: of the file; its folder is made.
        mode: "wb" or "w".
        durable: the content is on the disk before the file takes its name.

    Raises:
        WriteError: it cannot be written (disk full, no permission).
    """
    try:
        with files.atomic(path, mode, durable=durable) as file:
            yield file
    except OSError as error:
        raise unwritable(path, error) from None


def write_json(path: Path, content: object, indent: int | None = None) -> None:
    """JSON without NaN or infinity, which JSON does not have. Raises WriteError when the file cannot be
    written."""
    with atomic(path, "w") as file:
        json.dump(content, file, indent=indent, allow_nan=False)


def write_results(path: Path, results: Iterable[Mapping[str, Any]]) -> None:
    """A plain COCO results list, as pycocotools' `loadRes` reads it. RLE counts may be bytes."""
    rows = [dict(row) for row in results]
    masked = [row for row in rows if "segmentation" in row]
    for row, code in zip(masked, rle.to_json_all([row["segmentation"] for row in masked]), strict=True):
        row["segmentation"] = code
    with atomic(path, "w") as file:
        _write_list(file, rows)


def _write_list(file: IO[str], rows: Iterable[object]) -> None:
    file.write("[")
    for number, row in enumerate(rows):
        file.write((",\n" if number else "\n") + json.dumps(row, allow_nan=False))
    file.write("\n]")


def write_coco(path: Path, instances: Instances, file_name: str, categories: Categories, score: float) -> None:
    """A COCO data set of one image, with the annotations that have at least ``score``."""
    image, rows = CocoRows(categories, score).rows(instances, file_name, None, 0, 0)
    with atomic(path, "w") as file:
        file.write('{"info": {"description": "instseg predictions", "run": {}},\n"categories": ')
        file.write(f'{json.dumps(category_rows(categories))},\n"annotations": ')
        _write_list(file, rows)
        file.write(f',\n"images": [\n{json.dumps(image)}\n]}}\n')


def category_rows(categories: Categories) -> list[dict[str, Any]]:
    """The categories of a COCO data set."""
    pairs = zip(categories.ids, categories.names, strict=True)
    return [{"id": i, "name": name} for i, name in pairs]


def write_label_image(path: Path, labels: npt.NDArray[np.uint16]) -> None:
    """A 16-bit gray PNG of (H, W) uint16 values, marked as written by instseg."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", MARK)
    with atomic(path) as file:
        Image.fromarray(labels).save(file, format="PNG", pnginfo=info)


def write_picture(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """(H, W, 3) uint8 RGB as PNG, JPEG or WebP, by the suffix; PNG and JPEG are marked as written by instseg."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    form = {".png": "PNG", ".webp": "WEBP"}.get(path.suffix.lower(), "JPEG")
    options: dict[str, Any] = {}
    if form == "JPEG":
        options = {"quality": 92, "subsampling": 0, "comment": MARK}
    elif form == "PNG":
        options["pnginfo"] = info = PngInfo()
        info.add_text("Software", MARK)
    with atomic(path) as file:
        Image.fromarray(pixels).save(file, format=form, **options)


def unwritable(path: Path, error: OSError) -> WriteError:
    return WriteError(
        f"{path}: cannot be written ({files.reason_of(error)}); free some space, or choose another folder."
    )
