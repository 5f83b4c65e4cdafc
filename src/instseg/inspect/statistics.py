"""What a check of a data set found, in figures and in words."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from instseg.data.dataset import InstanceDataset
from instseg.data.records import Problem, left_out_text

# More lines of one kind than this are counted, not printed; the file report.json holds all of them.
_MAX_LINES = {"error": 1000, "left_out": 100, "warning": 20}
_SPOKEN = {"error": "error", "left_out": "left out", "warning": "warning"}
# COCO's borders between small, medium and large objects, pixels.
_MEDIUM, _LARGE = 32**2, 96**2


@dataclass
class SplitStatistics:
    """What one split holds.

    Attributes:
        split: train, val or test.
        file: its annotation file; empty where it is drawn.
        images: usable ones.
        empty_images: of these, without an object.
        objects: usable ones, without crowds.
        crowds: crowd regions.
        small, medium, large: objects of less than 32 x 32, less than 96 x 96, and more pixels.
        per_class: objects of each category.
        crowds_per_class: crowd regions of each category that has some.
        per_image: objects of each image.
        sizes: square root of each object's area, pixels.
        image_sizes: (H, W) of each image.
    """

    split: str
    file: str = ""
    images: int = 0
    empty_images: int = 0
    objects: int = 0
    crowds: int = 0
    small: int = 0
    medium: int = 0
    large: int = 0
    per_class: dict[str, int] = field(default_factory=dict)
    crowds_per_class: dict[str, int] = field(default_factory=dict)
    per_image: list[int] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    image_sizes: list[tuple[int, int]] = field(default_factory=list)

    def text(self) -> str:
        """A few lines for people."""
        if not self.images:
            return f"{self.split}: nothing usable"
        lines = [
            f"{self.split}: {counted(self.images, 'image')} ({self.empty_images} without objects), "
            f"{counted(self.objects, 'object')}, {counted(self.crowds, 'crowd region')}",
            *([f"  annotations      {self.file}"] if self.file else []),
            f"  image sides      {_spread([side for size in self.image_sizes for side in size])} pixels",
            f"  objects an image {_spread(self.per_image)}",
        ]
        if self.objects:
            sizes = f"{self.small} small, {self.medium} medium, {self.large} large"
            lines.append(f"  object sizes     {_spread(self.sizes)} pixels (square root of area); {sizes}")
        ranked = sorted(self.per_class.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {count}" for name, count in ranked[:30])
        more = f", and {len(ranked) - 30} more classes" if len(ranked) > 30 else ""
        lines.append(f"  {counted(len(ranked), 'class', 'classes')}: {shown}{more}")
        if self.crowds:
            crowds = sorted(self.crowds_per_class.items(), key=lambda item: -item[1])
            lines.append(f"  crowd regions    {', '.join(f'{name} {count}' for name, count in crowds[:30])}")
        return "\n".join(lines)


@dataclass
class Report:
    """What a check found.

    Attributes:
        data: the data set, as asked for.
        problems: every defect, in the order of the files.
        statistics: one entry a split.
        written: the files written to the output folder.
    """

    data: str
    problems: list[Problem] = field(default_factory=list)
    statistics: list[SplitStatistics] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when training would take the data set as it is."""
        return not any(problem.severity == "error" for problem in self.problems)

    def text(self) -> str:
        """Statistics, every problem in a line with its file and record, and a verdict."""
        lines = [statistics.text() for statistics in self.statistics]
        for severity in ("warning", "left_out", "error"):
            groups: dict[str, list[Problem]] = defaultdict(list)
            for problem in self.problems:
                if problem.severity == severity:
                    groups[problem.kind].append(problem)
            for kind, members in groups.items():
                limit = _MAX_LINES[severity]
                lines += [f"{_SPOKEN[severity]} [{kind}] {problem.line}" for problem in members[:limit]]
                if len(members) > limit:
                    lines.append(
                        f"{_SPOKEN[severity]} [{kind}] ... and {len(members) - limit} more; --out DIR writes all"
                    )
        counts = Counter(problem.severity for problem in self.problems)
        found = f"{counted(counts['error'], 'error')}, {counted(counts['warning'], 'warning')}"
        if counts["left_out"]:
            kinds = Counter(problem.kind for problem in self.problems if problem.severity == "left_out")
            found += f", {counted(counts['left_out'], 'annotation')} left out ({left_out_text(kinds.most_common())})"
        lines.append(f"{self.data}: {found}; {self._verdict()}")
        return "\n".join(lines)

    def _verdict(self) -> str:
        if self.ok:
            return "training takes it"
        left = any(statistics.objects for statistics in self.statistics)
        return f"training refuses it{'; on_error=skip leaves what is defective out' if left else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "data": self.data,
            "ok": self.ok,
            "problems": [asdict(problem) for problem in self.problems],
            "statistics": [asdict(statistics) for statistics in self.statistics],
        }


def statistics_of(dataset: InstanceDataset | None, split: str) -> SplitStatistics:
    """What a split holds; nothing where it could not be read."""
    statistics = SplitStatistics(split)
    if dataset is None:
        return statistics
    statistics.per_class = dict.fromkeys(dataset.categories.names, 0)
    for record in dataset.records:
        objects = [annotation for annotation in record.annotations if not annotation.crowd]
        statistics.images += 1
        statistics.empty_images += not objects
        statistics.objects += len(objects)
        for annotation in record.annotations:
            if annotation.crowd:
                name = dataset.categories.names[annotation.label]
                statistics.crowds += 1
                statistics.crowds_per_class[name] = statistics.crowds_per_class.get(name, 0) + 1
        statistics.per_image.append(len(objects))
        statistics.image_sizes.append((record.height, record.width))
        for annotation in objects:
            statistics.per_class[dataset.categories.names[annotation.label]] += 1
            statistics.sizes.append(round(annotation.area**0.5, 2))
            statistics.small += annotation.area < _MEDIUM
            statistics.medium += _MEDIUM <= annotation.area < _LARGE
            statistics.large += annotation.area >= _LARGE
    return statistics


def _spread(values: Sequence[float]) -> str:
    low, median, high = np.percentile(values, (0, 50, 100))
    return f"{low:.0f} to {high:.0f}, median {median:.0f}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """``"1 image"``, ``"2 images"``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
