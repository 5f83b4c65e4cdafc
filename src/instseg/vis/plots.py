"""Curves and tables as PNG files. No pyplot, so nothing global is set or left open."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#4b5563")
_INK, _GRID = "#1f2937", "#e5e7eb"
_DPI = 150
FEW_CLASSES = 14  # up to so many rows a confusion matrix has its counts written in
Row = dict[str, float]
FloatArray = npt.NDArray[np.float64]


def plot_training(metrics_csv: Path | str, out: Path | str) -> list[Path]:
    """Curves of a run from its `metrics.csv`, one row an epoch: `losses.png` (the total and its parts), `ap.png` (where
    the run was evaluated), `rate.png` (learning rate). Columns that are missing or empty are left out; a table without
    rows gives no file.

    Returns the files written, all in the folder `out`.
    """
    rows = _read(Path(metrics_csv))
    losses = [name for name in _columns(rows) if name == "loss" or name.startswith("loss_")]
    figures = [name for name in _columns(rows) if name in ("ap", "ap50", "ap75", "box_ap")]
    written = []
    for file, title, names, label in (
        ("losses.png", "Training losses", losses, "loss"),
        ("ap.png", "Evaluation", figures, "average precision"),
        ("rate.png", "Learning rate", ["lr"] if "lr" in _columns(rows) else [], "learning rate"),
    ):
        if names:
            written.append(_plot_columns(rows, names, title, label, Path(out) / file))
    return written


def _read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def _columns(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _plot_columns(rows: list[Row], names: list[str], title: str, label: str, path: Path) -> Path:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(title, "epoch", label)
    for color, name in zip(LINES, names, strict=False):
        points = [(row.get("epoch", i + 1), row[name]) for i, row in enumerate(rows) if name in row]
        x, y = zip(*points, strict=True)
        wide = name in ("loss", "ap", "lr")
        marker = "o" if len(points) <= 30 else None
        axes.plot(x, y, color=color, label=_TITLES.get(name, name), lw=2.2 if wide else 1.4, marker=marker, ms=3.5)
        if name == "ap":
            best = max(points, key=lambda point: point[1])
            axes.annotate(
                f"best {best[1]:.3f}, epoch {best[0]:g}", best, xytext=(0, 9), textcoords="offset points",
                ha="right" if best[0] > np.mean(x) else "left", color=color, fontsize=9, fontweight="bold",
            )  # fmt: skip
    if label == "average precision":
        axes.set_ylim(0, min(1.0, max(0.1, axes.get_ylim()[1] * 1.05)))
    elif label == "learning rate":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    else:
        axes.set_ylim(bottom=0)
    epochs = [row.get("epoch", i + 1) for i, row in enumerate(rows)]
    if len(rows) > 1:
        axes.set_xlim(min(epochs), max(epochs))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(names) > 1:
        _legend(axes)
    return _save(figure, path)


_TITLES = {
    "loss": "total",
    "loss_category": "category",
    "loss_mask": "mask",
    "ap": "mask AP",
    "ap50": "mask AP50",
    "ap75": "mask AP75",
    "box_ap": "box AP",
}


def plot_precision_recall(curves: Mapping[str, tuple[FloatArray, FloatArray]], path: Path | str, title: str) -> Path:
    """Precision over recall, one line a name. curves: recall and precision, (R,) each in [0, 1], by name."""
    figure, axes = _figure(title, "recall", "precision")
    for color, (name, (recall, precision)) in zip(_colors(len(curves)), curves.items(), strict=True):
        axes.plot(recall, precision, color=color, lw=2, label=name)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    _legend(axes)
    return _save(figure, Path(path))


def plot_confusion(matrix: npt.NDArray[np.int64], names: Sequence[str], path: Path | str, title: str) -> Path:
    """A confusion matrix (C + 1, C + 1) of counts, rows true, columns predicted, background last.

    A cell is shaded by its share of the objects of its true class. The last row, what was found on background, has no
    such total: it is shaded by its share of the predictions of its class. Cells hold count and share while there are
    few classes.
    """
    count = len(names) + 1
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shares[-1] = matrix[-1] / np.maximum(matrix.sum(axis=0), 1)
    side = float(np.clip(2.4 + 0.75 * count, 4.2, 9) if count <= FEW_CLASSES else np.clip(0.22 * count, 9, 22))
    figure, axes = _figure(title, "predicted", "true", size=(side + 0.8, side))
    axes.grid(False)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels, turned = [*names, "background"], count > 4
    size = 9 if count <= FEW_CLASSES else 7
    axes.set_xticks(range(count), labels, fontsize=size)
    axes.set_yticks(range(count), labels, fontsize=size)
    if turned:
        axes.tick_params(axis="x", labelrotation=60 if count <= FEW_CLASSES else 90)
    if count <= FEW_CLASSES:
        _write_cells(axes, matrix, shares, size)
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, aspect=28, pad=0.03, format=lambda v, _: f"{v:.0%}")
    bar.set_label("share of the true class\n(last row: of the predicted one)", color=_INK, fontsize=8)
    bar.ax.tick_params(labelsize=8, colors=_INK, length=0)
    bar.outline.set_visible(False)
    return _save(figure, Path(path))


def _write_cells(axes: Axes, matrix: npt.NDArray[np.int64], shares: FloatArray, size: int) -> None:
    for row, column in np.ndindex(*matrix.shape):
        number, share = int(matrix[row, column]), shares[row, column]
        ink = "#9ca3af" if not number else "white" if share > 0.55 else _INK
        text = f"{number}\n{share:.0%}" if number else "0"
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=size)


def _colors(count: int) -> list[Any]:
    if count <= len(LINES):
        return list(LINES[:count])
    from matplotlib import colormaps

    return [colormaps["turbo"](0.05 + 0.9 * i / (count - 1)) for i in range(count)]


def _figure(title: str, x: str, y: str, size: tuple[float, float] = (7.2, 4.5)) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=_INK, pad=12)
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.grid(color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0, labelsize=9)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color("#9ca3af")
    return figure, axes


def _legend(axes: Axes) -> None:
    count = len(axes.get_lines())
    axes.legend(frameon=False, fontsize=9 if count <= 12 else 6, labelcolor=_INK, ncols=1 if count <= 12 else 2)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.2)
    return path
