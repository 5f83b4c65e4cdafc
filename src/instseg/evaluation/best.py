"""What is best in a run: a figure with a name and a direction, as the report of an evaluation states it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["max", "min"]
# Columns of metrics.csv, and where a report has them: for masks, and for a detector of boxes.
_MASKS = {"ap": ("segm", "ap"), "ap50": ("segm", "ap50"), "ap75": ("segm", "ap75"), "box_ap": ("bbox", "ap")}
_BOXES = {"box_ap": ("bbox", "ap"), "box_ap50": ("bbox", "ap50"), "box_ap75": ("bbox", "ap75")}
_TITLES = {"ap": "mask AP", "box_ap": "box AP"}


@dataclass(frozen=True)
class Best:
    """The figure by which the weights of a run are chosen.

    Attributes:
        name: its column in metrics.csv.
        value: below 0 or NaN where it could not be measured.
        direction: whether more or less is better.
    """

    name: str
    value: float
    direction: Direction = "max"

    def to_json(self) -> dict[str, Any]:
        """As reports hold it."""
        return {"name": self.name, "value": self.value, "direction": self.direction}

    @property
    def title(self) -> str:
        """What people call it."""
        return _TITLES.get(self.name, self.name)


def better(value: float, than: float, direction: Direction) -> bool:
    """Whether one value is truly better than another."""
    return value > than if direction == "max" else value < than


@dataclass(frozen=True)
class Measured:
    """What an evaluation during training finds.

    Attributes:
        columns: of metrics.csv; a value below 0 or NaN could not be measured.
        best: the figure among them that chooses the weights.
        more: further columns by what they are called in the line of an epoch.
    """

    columns: Mapping[str, float]
    best: Best
    more: Mapping[str, str]


def best_of(segm: Mapping[str, Any] | None, bbox: Mapping[str, Any]) -> Best:
    """Mask AP, or box AP where there are no masks."""
    if segm is None:
        return Best("box_ap", float(bbox["ap"]))
    return Best("ap", float(segm["ap"]))


def measured(report: Mapping[str, Any]) -> Measured:
    """The part of a report that a training run keeps."""
    best = Best(**report["best"])
    figures = _MASKS if report.get("segm") is not None else _BOXES
    columns = {name: float(report[kind][key]) for name, (kind, key) in figures.items()}
    fifty = f"{best.name}50"
    return Measured(columns | {best.name: best.value}, best, {"AP50": fifty} if fifty in columns else {})
