"""Which class of a model is which category of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from instseg.core.errors import ConfigError, DataError
from instseg.core.meta import Categories

Match = Literal["auto", "names", "ids"]
# Names that a model without metadata carries, or that a converter invents: they say nothing about the object.
_PLACEHOLDERS = ("", "class", "category", "label", "object", "unnamed")


@dataclass(frozen=True)
class ClassMatch:
    """Which class of a model is which category of a data set.

    Attributes:
        ids: for each label of the model the category id in the data set, None where it has no such class.
        by: "names" or "ids".
        only_model: names of the classes that only the model knows; what it finds of them is left out.
        only_data: names of the categories that the model cannot find; they count with AP 0.
    """

    ids: tuple[int | None, ...]
    by: str
    only_model: tuple[str, ...]
    only_data: tuple[str, ...]


def match_categories(model: Categories, data: Categories, match: Match = "auto") -> ClassMatch:
    """Pairs the classes of a model with the categories of a data set.

    By name, where case, spaces, hyphens and underscores do not matter. With "auto", when no name agrees, by
    category id, but only if both have the same ids and the names of one side say nothing (numbers,
    "class_3"): a model of nuclei must not be scored as one of pedestrians because both are number 1. "ids"
    pairs by id whatever the names are.

    Raises DataError when no class is common to both.
    """
    if match not in ("auto", "names", "ids"):
        raise ConfigError(f'match="{match}" is unknown: use "auto", "names" or "ids"')
    by = "ids" if match == "ids" else "names"
    ids = _by_id(model, data) if by == "ids" else _by_name(model, data)
    nameless = _say_nothing(model) or _say_nothing(data)
    if match == "auto" and not any(i is not None for i in ids) and nameless and set(model.ids) == set(data.ids):
        by, ids = "ids", _by_id(model, data)
    found = {i for i in ids if i is not None}
    if not found:
        raise DataError(
            f"no class in common between the model ({_some(model.names)}) and the data ({_some(data.names)}): "
            'evaluate on data of the same classes, rename them, or pair them by category id with match="ids"'
        )
    return ClassMatch(
        ids=ids,
        by=by,
        only_model=tuple(name for name, i in zip(model.names, ids, strict=True) if i is None),
        only_data=tuple(name for name, i in zip(data.names, data.ids, strict=True) if i not in found),
    )


def _by_name(model: Categories, data: Categories) -> tuple[int | None, ...]:
    known: dict[str, int] = {}
    for name, i in zip(data.names, data.ids, strict=True):
        known.setdefault(_plain(name), i)  # of two categories with one name the first
    return tuple(known.pop(_plain(name), None) for name in model.names)


def _by_id(model: Categories, data: Categories) -> tuple[int | None, ...]:
    return tuple(i if i in data.ids else None for i in model.ids)


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _say_nothing(categories: Categories) -> bool:
    return all(_plain(name).rstrip("0123456789 ") in _PLACEHOLDERS for name in categories.names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... {len(names)} in all" if len(names) > 5 else "")
