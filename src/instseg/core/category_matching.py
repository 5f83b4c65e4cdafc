"""Which class of a model is which category of a data set."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from instseg.core.categories import Categories
from instseg.core.errors import ConfigError, DataError

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

    By name, as :func:`pair_names` does. With "auto", when no name agrees, by category id, but only if both have the
    same ids and the names of one side say nothing (numbers, "class_3"): a model of nuclei must not be scored as one of
    pedestrians because both are number 1.

    Args:
        model: names and ids of the model's classes.
        data: names and ids of the data set's categories.
        match: "auto"; "names" alone; or "ids", whatever the names are.

    Raises:
        DataError: no class is common to both.
        ConfigError: ``match`` is none of the three.
    """
    if match not in ("auto", "names", "ids"):
        raise ConfigError(f'match="{match}" is unknown: use "auto", "names" or "ids".')
    by = "ids" if match == "ids" else "names"
    ids = _by_id(model, data) if by == "ids" else _by_name(model, data)
    nameless = say_nothing(model.names) or say_nothing(data.names)
    if match == "auto" and not any(i is not None for i in ids) and nameless and set(model.ids) == set(data.ids):
        by, ids = "ids", _by_id(model, data)
    found = {i for i in ids if i is not None}
    if not found:
        raise DataError(
            f"no class in common between the model ({_some(model.names)}) and the data ({_some(data.names)}): "
            'evaluate on data of the same classes, rename them, or pair them by category id with match="ids".'
        )
    return ClassMatch(
        ids=ids,
        by=by,
        only_model=tuple(name for name, i in zip(model.names, ids, strict=True) if i is None),
        only_data=tuple(name for name, i in zip(data.names, data.ids, strict=True) if i not in found),
    )


def pair_names(ours: Sequence[str], theirs: Sequence[str]) -> tuple[int | None, ...]:
    """Which name of ``theirs`` each name of ``ours`` is: its position, or None.

    Equal names are paired first, repeated ones in order. Then names that differ in how they are encoded or in spaces
    around them, then in case, spaces, hyphens and underscores: those only where exactly one is left on either side, so
    that "car" beside "Car" keeps both apart and "t shirt" is still found as "t-shirt".
    """
    pairs: list[int | None] = [None] * len(ours)
    free = dict.fromkeys(range(len(theirs)))
    ways: tuple[Callable[[str], str], ...] = (str, _trimmed, _plain, _joined)
    for number, same in enumerate(ways):
        left, right = _places(same, ours), _places(same, theirs)
        for key, places in left.items():
            mine = [i for i in places if pairs[i] is None]
            others = [j for j in right.get(key, []) if j in free]
            if number and (len(mine) != 1 or len(others) != 1):
                continue
            for i, j in zip(mine, others, strict=False):
                pairs[i] = j
                del free[j]
    return tuple(pairs)


def say_nothing(names: Sequence[str]) -> bool:
    """Whether names are those that a model without metadata carries, or that a converter invents."""
    return all(_plain(name).rstrip("0123456789 ") in _PLACEHOLDERS for name in names)


def _by_name(model: Categories, data: Categories) -> tuple[int | None, ...]:
    return tuple(None if j is None else data.ids[j] for j in pair_names(model.names, data.names))


def _by_id(model: Categories, data: Categories) -> tuple[int | None, ...]:
    return tuple(i if i in data.ids else None for i in model.ids)


def _places(same: Callable[[str], str], names: Sequence[str]) -> dict[str, list[int]]:
    """The positions of the names that are the same, for one meaning of "the same"."""
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(same(name), []).append(i)
    return places


def _trimmed(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).split())


def _plain(name: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(folded.replace("_", " ").replace("-", " ").split())


def _joined(name: str) -> str:
    return _plain(name).replace(" ", "")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... {len(names)} in all" if len(names) > 5 else "")
