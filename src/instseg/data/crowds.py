"""What ``iscrowd`` means in a file: COCO's regions of many objects, or how a tool marks an ordinary mask."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from instseg.data.index import Index

Crowd: TypeAlias = Literal["auto", "ignore", "object"]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

# COCO numbers its crowds from here, and has no other annotation there.
_COCO_CROWD = 900_100_000_000
# COCO marks a crowd only beside this many objects of its class.
_BESIDE = 10
# About one COCO polygon in eleven has several parts: among this many there is one, but for one set in twenty.
_POLYGONS = 30


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
    return index.numbers >= _COCO_CROWD


def _marked_by_a_tool(indexes: Sequence[Index]) -> str | None:
    """Why the marks of a data set cannot be COCO's; None where they can."""
    for index in indexes:
        marked = index.crowd & ~_numbered_as_crowds(index)
        if not marked.any():
            continue
        place = index.rows * len(index.categories) + index.labels  # one number for each image and class
        places, crowds = np.unique(place[marked], return_counts=True)
        if crowds.max() > 1:
            return "an image has two of one class, which COCO's never have"
        known, counts = np.unique(place[~index.crowd], return_counts=True)
        beside = dict(zip(known.tolist(), counts.tolist(), strict=True))
        if any(beside.get(at, 0) < _BESIDE for at in places.tolist()):
            return f"one stands beside fewer than {_BESIDE} others of its class, which COCO's never do"
    parts = np.concatenate([index.parts[~index.crowd] for index in indexes])
    polygons = parts[parts > 0]
    if len(polygons) >= _POLYGONS and polygons.max() == 1:
        return f"none of {len(polygons)} polygons has several parts, as one in ten of COCO's has"
    return None


def _count(number: int) -> str:
    return f"{number} annotation{'' if number == 1 else 's'}"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
