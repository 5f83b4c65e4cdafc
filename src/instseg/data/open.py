"""What users name as a data set, opened."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from instseg.core.errors import DataError
from instseg.core.target import MASKS, SHAPES, Need
from instseg.data.crowds import Crowd, decide_crowds
from instseg.data.dataset import InstanceDataset, OnError
from instseg.data.formats.cache import read_index
from instseg.data.formats.index import Index, IndexedRecords
from instseg.data.formats.layout import Located, locate
from instseg.data.formats.layout import splits as _splits
from instseg.data.images.read import ImageRule
from instseg.data.opening import HEADERS, open_pictures
from instseg.data.records import Problems, Severity, left_out_text
from instseg.data.shapes import ShapesConfig, shapes

_NUCLEI_MINI = Path(__file__).parent.parent / "assets" / "nuclei-mini"
# Of a data set of at most this many bytes of masks all records are made when it is opened.
_KEPT_BYTES = 16 << 20


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
    needs: frozenset[Need] = MASKS,
    read_shapes: bool = True,
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
        needs: what samples hold besides boxes and labels. Where it names no shapes, annotations of a box alone count.
        read_shapes: False, with such ``needs``, decodes no segmentation that has a box beside it.

    Raises:
        DataError: nothing there, not COCO, nothing left, an unknown class, or a defect with ``on_error="raise"``.
    """
    if str(data) == "shapes":
        drawn = shapes(split, size, ShapesConfig(seed=seed), seed=seed)
        drawn.needs = needs
        return drawn if classes is None else drawn.with_classes(classes)
    located = locate(data_path(data), split)
    boxes = needs.isdisjoint(SHAPES)
    index = read_index(located.annotations, boxes)
    if split == "train" and len(index) and not len(index.labels) and not index.problems.number("error"):
        raise DataError(f"{index.file}: no image has an object to train on{why_empty(index)}.")
    siblings = siblings_of(data_path(data), split) if crowd == "auto" and index.crowd.any() else []
    reads = read_shapes or not boxes
    records, problems, rule = open_records(index, located, crowd, siblings, read_shapes=reads)
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
        needs=needs,
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
    index: Index,
    located: Located,
    crowd: Crowd = "auto",
    siblings: Sequence[Index] = (),
    *,
    all_now: bool = False,
    read_shapes: bool = True,
) -> tuple[IndexedRecords, Problems, ImageRule]:
    """The records of an index with their images, and every defect found on the way.

    Those of a small data set are all made now, so that its defects are known; ``all_now`` does so for any.
    ``read_shapes`` is that of :class:`IndexedRecords`.
    """
    problems = Problems()
    problems.extend(index.problems.kept)
    problems.counts = index.problems.counts.copy()
    opened = open_pictures(index, located, problems.add)
    crowds, line = decide_crowds(index, crowd, siblings)
    if line is not None:
        warnings.warn(line, stacklevel=3)
    records = IndexedRecords(index, opened.pictures, crowds, read_shapes=read_shapes)
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
