"""Everything that training would refuse or stumble over in a data set, and what is in it."""

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from instseg.core.errors import DataError, InstsegError
from instseg.data.crowds import Crowd
from instseg.data.dataset import InstanceDataset, read_record
from instseg.data.formats.cache import read_index
from instseg.data.formats.index import Index
from instseg.data.formats.layout import Located, locate
from instseg.data.images.read import IMAGE_SUFFIXES, ImageRule
from instseg.data.open import data_path, open_dataset, open_records, siblings_of, splits, why_empty
from instseg.data.records import Problem, Problems, Record
from instseg.inspect.statistics import Report, statistics_of

KINDS = {
    "not_found": "the data set or its annotation file is not there",
    "not_coco": "the file is not COCO instance annotations",
    "empty": "no usable image",
    "no_objects": "images, but no object to train on",
    "bad_record": "an image or annotation without the fields that COCO demands",
    "duplicate_image_id": "two images of one id",
    "duplicate_annotation_id": "two annotations of one id",
    "duplicate_category": "two categories of one id or name",
    "duplicate_file": "two records of one image file",
    "missing_image": "the image file is not there",
    "broken_image": "the image file is not an image, or truncated",
    "image_size": "the image has another size than its record",
    "exif": "annotated on the pixels as stored, without the image's EXIF rotation",
    "unknown_image": "an annotation of an image that is not in the file",
    "unknown_category": "an annotation of a category that is not in the file",
    "text_ids": "ids that are text instead of numbers",
    "no_category": "an annotation without a category",
    "no_mask": "an annotation without a mask",
    "double": "an annotation that stands twice: same image, class and mask",
    "polygon_points": "a polygon with fewer than three points, or of something else than numbers",
    "few_points": "a part of a polygon with fewer than three points, left out alone",
    "polygon_nan": "a polygon with a coordinate that is NaN or infinite",
    "polygon_outside": "a polygon that leaves the image",
    "rle_size": "an RLE of another size than its image",
    "rle_counts": "an RLE whose runs do not fill its image",
    "zero_area": "a mask without a pixel",
    "crowd": "what iscrowd was taken for",
    "bbox": "a bbox that is not that of the mask",
    "categories": "splits with different categories",
    "split_overlap": "one image in several splits",
    "unused_images": "image files that no record names",
}
"""Every kind of problem that a check reports."""

Track: TypeAlias = Callable[[Iterable[Record], int], Iterable[Record]]


def check_dataset(
    data: str | Path, out: Path | None = None, *, track: Track | None = None, crowd: Crowd = "auto"
) -> Report:
    """Look at every file and record of every split of a data set.

    Args:
        data, crowd: as for :func:`~instseg.data.open.open_dataset`.
        out: a folder for ``report.json``, plots of the statistics and pictures with their masks.
        track: wraps the records while their images are read, with their number, for a progress bar.
    """
    report = Report(str(data))
    sets: dict[str, InstanceDataset] = {}
    for split in _splits_to_check(data, report):
        dataset = _check_split(data, split, report, track, crowd)
        report.statistics.append(statistics_of(dataset, split))
        if dataset is not None and str(data) != "shapes":
            report.statistics[-1].file = str(locate(data_path(data), split).annotations)
        if dataset is not None:
            sets[split] = dataset
    _compare(sets, report)
    if len(sets) == len(report.statistics):
        _unused(data, sets, report)
    if out is not None:
        from instseg.inspect.pictures import write_pictures

        report.written = write_pictures(report, sets, out)
        path = out / "report.json"
        path.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        report.written.append(path)
    return report


def _splits_to_check(data: str | Path, report: Report) -> tuple[str, ...]:
    """The splits there are; a data set without one to train on is a problem of its own."""
    names: tuple[str, ...] = ()
    try:
        names = splits(data)
        if "train" not in names or not (str(data) == "shapes" or data_path(data).exists()):
            locate(data_path(data), "train")
    except DataError as error:
        report.problems.append(Problem("not_found", "error", str(data), "", str(error).removeprefix(f"{data}: ")))
        return () if not names or not data_path(data).exists() else names
    return names


def _check_split(
    data: str | Path, split: str, report: Report, track: Track | None, crowd: Crowd
) -> InstanceDataset | None:
    """The usable records of a split; None when there is nothing."""
    if str(data) == "shapes":
        return open_dataset(data, split)
    try:
        located = locate(data_path(data), split)
        index = read_index(located.annotations)
    except DataError as error:
        kind = "not_coco" if "COCO" in str(error) or "JSON" in str(error) else "not_found"
        report.problems.append(Problem(kind, "error", str(data), "", str(error).removeprefix(f"{data}: ")))
        return None
    file = str(located.annotations)
    found, problems, rule = _open(index, located, crowd, siblings_of(data_path(data), split), report)
    report.problems += problems.kept
    records = _readable(found, file, rule, report, track)
    _same_files(records, file, report)
    no_objects = not any(not a.crowd for record in records for a in record.annotations)
    if split == "train" and (no_objects if records else not len(index.labels)):
        message = f"no image has an object{why_empty(index) or '; annotate some'}."
        report.problems.append(Problem("no_objects", "error", file, "", message))
    if not records:
        message = "holds no usable image; add images, or check where they lie."
        report.problems.append(Problem("empty", "error", file, "", message))
        return None
    return InstanceDataset(records, index.categories, name=located.name, split=split, image_rule=rule)


def _open(
    index: Index, located: Located, crowd: Crowd, siblings: Sequence[Index], report: Report
) -> tuple[list[Record], Problems, ImageRule]:
    """All records of an index; what was decided about crowds becomes a line of the report."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        records, problems, rule = open_records(index, located, crowd, siblings, all_now=True)
    for warning in said:
        text = str(warning.message).removeprefix(f"{index.file}: ")
        report.problems.append(Problem("crowd", "warning", str(index.file), "", text))
    return list(records), problems, rule


def _readable(records: list[Record], file: str, rule: ImageRule, report: Report, track: Track | None) -> list[Record]:
    """The records whose image can be decoded to its end."""

    def broken(record: Record) -> Problem | None:
        try:
            read_record(record, rule)
        except InstsegError as error:
            name = f'image {record.image_id} ("{record.file_name}")'
            return Problem("broken_image", "error", file, name, str(error))
        return None

    with ThreadPoolExecutor() as pool:
        watched = records if track is None else track(records, len(records))
        found = [(record, problem) for record, problem in zip(watched, pool.map(broken, records), strict=True)]
    report.problems += [problem for _, problem in found if problem is not None]
    return [record for record, problem in found if problem is None]


def _same_files(records: Sequence[Record], file: str, report: Report) -> None:
    first: dict[Path | None, Record] = {}
    for record in records:
        other = first.setdefault(record.path, record)
        if other is not record:
            message = f"is the same file as image {other.image_id}; its objects are split over both."
            name = f'image {record.image_id} ("{record.file_name}")'
            report.problems.append(Problem("duplicate_file", "warning", file, name, message))


def _compare(sets: dict[str, InstanceDataset], report: Report) -> None:
    """Categories and images of the splits against those of the first."""
    if len(sets) < 2:
        return
    (first, base), *others = sets.items()
    paths = {record.path.resolve() for record in base.records if record.path is not None}
    for split, dataset in others:
        names, known = set(dataset.categories.names), set(base.categories.names)
        if not names & known:
            message = f'splits "{first}" and "{split}" have no category in common; name them alike.'
            report.problems.append(Problem("categories", "error", report.data, "", message))
        elif names != known:
            only = ", ".join(sorted(names ^ known))
            message = f'splits "{first}" and "{split}" differ in: {only}.'
            report.problems.append(Problem("categories", "warning", report.data, "", message))
        shared = [r for r in dataset.records if r.path is not None and r.path.resolve() in paths]
        if shared:
            message = (
                f'{len(shared)} images of split "{split}" are in "{first}" too, the first "{shared[0].file_name}".'
            )
            report.problems.append(Problem("split_overlap", "warning", report.data, "", message))


def _unused(data: str | Path, sets: dict[str, InstanceDataset], report: Report) -> None:
    """Images that lie beside those of the records, but that no split names."""
    if str(data) == "shapes" or not data_path(data).is_dir():
        return
    used = {record.path for dataset in sets.values() for record in dataset.records if record.path is not None}
    named = {problem.record.split('"')[1] for problem in report.problems if '"' in problem.record}
    for folder in sorted({image.parent for image in used}):
        extra = [
            entry
            for entry in sorted(folder.iterdir())
            if entry.suffix.lower() in IMAGE_SUFFIXES and entry not in used and entry.name not in named
        ]
        if extra:
            are = "image is" if len(extra) == 1 else "images are"
            message = f'{len(extra)} {are} in no annotation file, the first "{extra[0].name}"; not used.'
            report.problems.append(Problem("unused_images", "warning", str(folder), "", message))
