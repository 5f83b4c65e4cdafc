"""What ``iscrowd`` means in a file: COCO's regions of many objects, or how a tool marks an ordinary mask."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from instseg.data.formats.index import Index

Crowd: TypeAlias = Literal["auto", "ignore", "object"]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

# COCO numbers its crowds in this range, and has no other annotation there.
_COCO_CROWDS = (900_100_000_000, 900_101_000_000)
# COCO marks a crowd only beside this many objects of its class.
_BESIDE = 10
# About one COCO polygon in eleven has several parts: among this many there is one, but for one set in twenty.
_POLYGONS = 30
# A crowd's box is this many times as large as those of the objects of its class, in the median of all.
_MANY = 6.0


def decide_crowds(index: Index, crowd: Crowd, siblings: Sequence[Index] = ()) -> tuple[BoolArray, str | None]:
    """Which annotations of a file are crowds, and a line that says what was decided and why.

    CVAT and datumaro write every brush mask with ``iscrowd: 1``, supervision and Darwin the objects with a hole or
    several parts. COCO marks a crowd at most once a class and image, beside ten or more objects of that class, in
    files that have polygons of several parts. With ``"auto"`` marks that break one of these rules are those of a tool.

    Args:
        index: of the file.
        crowd: ``"ignore"``: what is marked is a crowd; ``"object"``: it is an object; ``"auto"``: as decided.
        siblings: indexes of the data set's other splits, which the same tool wrote: what is true there is true here.

    Returns:
        (A,) True for crowds; the line, None where nothing is marked or nothing was decided.
    """
    marked = index.crowd
    count = int(marked.sum())
    if crowd == "object" or not count:
        return np.zeros_like(marked), None
    if crowd == "ignore":
        return marked, None
    sure = marked & _numbered_as_crowds(index)
    reason = _marked_by_a_tool((index, *siblings))
    if reason is None or sure.sum() == count:
        return marked, (
            f"{index.file}: {_count(count)} marked iscrowd {_is(count)} left out: crowds, as COCO marks them; "
            "crowd=object trains on them."
        )
    taken = count - int(sure.sum())
    rest = f", {int(sure.sum())} numbered as COCO numbers its crowds {_is(int(sure.sum()))} not" if sure.any() else ""
    return sure, (
        f"{index.file}: {_count(taken)} marked iscrowd {_is(taken)} taken as objects ({reason}){rest}; crowd=ignore "
        "leaves them out."
    )


def _numbered_as_crowds(index: Index) -> BoolArray:
    low, high = _COCO_CROWDS
    inside = (index.numbers >= low) & (index.numbers < high)
    return inside if not (inside & ~index.crowd).any() else np.zeros_like(inside)


def _marked_by_a_tool(indexes: Sequence[Index]) -> str | None:
    """Why the marks of a data set cannot be COCO's; None where they can.

    A filter (small objects removed, classes merged) breaks COCO's rules for a few crowds. So one of the rules must be
    broken by half of the marks, or what is marked must be as large as one object and not as large as many.
    """
    marks, doubled, alone = 0, 0, 0
    ratios: list[float] = []
    for index in indexes:
        marked = index.crowd & ~_numbered_as_crowds(index)
        if not marked.any():
            continue
        place = index.rows * len(index.categories) + index.labels  # one number for each image and class
        places, crowds = np.unique(place[marked], return_counts=True)
        known, counts = np.unique(place[~index.crowd], return_counts=True)
        beside = dict(zip(known.tolist(), counts.tolist(), strict=True))
        marks += int(marked.sum())
        doubled += int(crowds[crowds > 1].sum())
        alone += sum(n for at, n in zip(places.tolist(), crowds.tolist(), strict=True) if beside.get(at, 0) < _BESIDE)
        ratios += _sizes_over_objects(index, marked)
    if not marks:
        return None
    small = not ratios or float(np.median(ratios)) < _MANY
    for broken, why in (
        (doubled, "an image has two of one class, which COCO's never have"),
        (alone, f"they stand beside fewer than {_BESIDE} others of their class, which COCO's never do"),
    ):
        if broken and (2 * broken >= marks or small):
            return why
    parts = np.concatenate([index.parts[~index.crowd] for index in indexes])
    polygons = parts[parts > 0]
    if small and len(polygons) >= _POLYGONS and polygons.max() == 1:
        return f"none of {len(polygons)} polygons has several parts, as one in ten of COCO's has"
    return None


def _sizes_over_objects(index: Index, marked: BoolArray) -> list[float]:
    """The box area of each marked annotation over the median of the unmarked ones of its class."""
    areas = index.boxes[:, 2].astype(np.float64) * index.boxes[:, 3]
    ratios = []
    for label in np.unique(index.labels[marked]).tolist():
        others = areas[(index.labels == label) & ~index.crowd]
        others = others[others > 0]
        if len(others):
            ratios += (areas[marked & (index.labels == label)] / np.median(others)).tolist()
    return [ratio for ratio in ratios if ratio > 0]


def _count(number: int) -> str:
    return f"{number} annotation{'' if number == 1 else 's'}"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
