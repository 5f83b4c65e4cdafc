"""What a model's labels mean."""

from collections.abc import Sequence
from dataclasses import dataclass

from instseg.core.errors import ConfigError


@dataclass(frozen=True)
class Categories:
    """Names and source ids of the classes: contiguous label ``l`` is called ``names[l]`` and the user's own
    annotation file knows it as category ``ids[l]``.

    Raises:
        ConfigError: when ``names`` and ``ids`` differ in length or an id occurs twice.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.ids):
            raise ConfigError(f"{len(self.names)} category names but {len(self.ids)} category ids: give one id a name.")
        if len(set(self.ids)) != len(self.ids):
            raise ConfigError(f"category ids {list(self.ids)} are not unique: give every category its own id.")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_names(cls, names: Sequence[str]) -> "Categories":
        """Categories whose source ids are the labels themselves, ``0 .. C-1``."""
        return cls(tuple(names), tuple(range(len(names))))
