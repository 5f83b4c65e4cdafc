"""What a model's labels mean."""

from collections.abc import Iterable, Sequence

from instseg.core.errors import ConfigError


class Categories(tuple[str, ...]):
    """The names of the classes, by label, with the ids that the user's own annotation file gives them.

    It is a tuple of names: label ``l`` is called ``categories[l]``, and equals any tuple of the same names. Two
    ``Categories`` are equal when their ids are, too.

    Attributes:
        ids: the category id of each label in the user's file.
    """

    ids: tuple[int, ...]

    def __new__(cls, names: Iterable[str], ids: Iterable[int]) -> "Categories":
        """Raises ConfigError when ``names`` and ``ids`` differ in length or an id occurs twice."""
        made = super().__new__(cls, names)
        made.ids = tuple(ids)
        if len(made) != len(made.ids):
            raise ConfigError(f"{len(made)} category names but {len(made.ids)} category ids: give one id a name.")
        if len(set(made.ids)) != len(made.ids):
            raise ConfigError(f"category ids {list(made.ids)} are not unique: give every category its own id.")
        return made

    @classmethod
    def from_names(cls, names: Sequence[str]) -> "Categories":
        """Categories whose source ids are the labels themselves, ``0 .. C-1``."""
        return cls(names, range(len(names)))

    @property
    def names(self) -> tuple[str, ...]:
        """The names alone."""
        return tuple(self)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == other and (not isinstance(other, Categories) or self.ids == other.ids)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Categories(names={tuple(self)!r}, ids={self.ids!r})"

    def __reduce__(self) -> tuple[type["Categories"], tuple[tuple[str, ...], tuple[int, ...]]]:
        return Categories, (tuple(self), self.ids)
