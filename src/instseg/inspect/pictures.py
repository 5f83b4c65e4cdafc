"""Plots and pictures of a data set, for people to look at before they train."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instseg.core.crop import CropTransform
from instseg.core.geometry import scaled
from instseg.data.dataset import InstanceDataset
from instseg.data.transforms.augment import RawSample, take
from instseg.inspect.statistics import Report, SplitStatistics
from instseg.ops.resize import unit_floats

_SHOWN = 12  # pictures a split
_COLUMNS = 4
_CELL = 360  # pixels
_SHOWN_CLASSES = 30


def write_pictures(report: Report, sets: dict[str, InstanceDataset], out: Path) -> list[Path]:
    """``statistics.png`` and one ``{split}.jpg`` with images and their masks; gives the paths."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    if any(statistics.objects for statistics in report.statistics):
        written.append(_plot([s for s in report.statistics if s.objects], out / "statistics.png"))
    for split, dataset in sets.items():
        written.append(_contact_sheet(dataset, out / f"{split}.jpg"))
    return written


def _plot(statistics: list[SplitStatistics], path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    classes, sizes, counts = figure.subplots(1, 3)
    names = sorted(statistics[0].per_class, key=lambda name: -statistics[0].per_class[name])[:_SHOWN_CLASSES]
    height = 0.8 / len(statistics)
    for i, split in enumerate(statistics):
        places = np.arange(len(names)) + (i - (len(statistics) - 1) / 2) * height
        classes.barh(places, [split.per_class.get(name, 0) for name in names], height, label=split.split)
    classes.set_yticks(np.arange(len(names)), names, fontsize=9 if len(names) <= 15 else 6)
    classes.invert_yaxis()
    _histogram(sizes, statistics, [s.sizes for s in statistics], logarithmic=True)
    _histogram(counts, statistics, [[float(n) for n in s.per_image] for s in statistics], logarithmic=False)
    for axes, title in zip(
        (classes, sizes, counts),
        ("objects of each class", "object size: square root of area, pixels", "objects of each image"),
        strict=True,
    ):
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    classes.legend(frameon=False, fontsize=9)
    figure.savefig(path)
    return path


def _histogram(axes: Any, statistics: list[SplitStatistics], values: list[list[float]], *, logarithmic: bool) -> None:
    low = min(min(v) for v in values)
    high = max(max(v) for v in values)
    if logarithmic:
        edges = np.geomspace(max(low, 0.5), max(high, low + 1) * 1.01, 31)
        axes.set_xscale("log")
    else:
        edges = np.linspace(low, high + 1, min(31, int(high - low) + 2))
    for split, v in zip(statistics, values, strict=True):
        weights = np.full(len(v), 100 / len(v))
        axes.hist(v, edges, weights=weights, alpha=0.6, label=split.split)
    axes.set_ylabel("% of the split", fontsize=8)


def _contact_sheet(dataset: InstanceDataset, path: Path) -> Path:
    """Images of the whole split, evenly chosen, each with its masks in colors."""
    from PIL import Image

    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(_SHOWN, len(dataset))).astype(int))
    rows = -(-len(chosen) // _COLUMNS)
    sheet = np.full((rows * _CELL, min(_COLUMNS, len(chosen)) * _CELL, 3), 255, dtype=np.uint8)
    for place, index in enumerate(chosen.tolist()):
        drawn = _drawn(dataset, index)
        top, left = place // _COLUMNS * _CELL, place % _COLUMNS * _CELL
        sheet[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    Image.fromarray(sheet).save(path, quality=90)
    return path


def _drawn(dataset: InstanceDataset, index: int) -> npt.NDArray[np.uint8]:
    """(h, w, 3) of one image, its long side fitted into a cell."""
    record = dataset.records[index]
    factor = (_CELL - 8) / max(record.height, record.width)
    size = (scaled(record.height, factor), scaled(record.width, factor))
    view = CropTransform(0, 0, record.height, record.width, size)
    shot = take(RawSample(dataset.image(index), [a for a in record.annotations if not a.crowd]), view)
    canvas = (unit_floats(shot.image) * 255).permute(1, 2, 0).numpy()
    colors = np.random.default_rng(0).uniform(60, 255, size=(len(shot.masks), 3))
    for mask, color in zip(shot.masks.numpy().astype(bool), colors, strict=True):
        inner = mask.copy()
        inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        canvas[inner] = 0.65 * canvas[inner] + 0.35 * color
        canvas[mask & ~inner] = color
    return canvas.round().clip(0, 255).astype(np.uint8)
