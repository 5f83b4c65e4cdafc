from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instseg.vis.plots import plot_confusion, plot_precision_recall, plot_training

CSV = """epoch,updates,lr,loss,loss_category,loss_mask,grad_norm,ap,ap50
1,10,0.001,3.0,1.0,2.0,5,,
2,20,0.01,2.0,0.6,1.4,5,0.1,0.3
3,30,0.01,1.5,0.5,1.0,5,0.2,0.5
"""


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    return path.suffix == ".png" and min(pixels.shape) > 200 and pixels.std() > 5


def test_training_curves_are_drawn_also_where_some_epochs_were_not_evaluated(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(CSV)
    written = plot_training(tmp_path / "metrics.csv", tmp_path / "plots")
    assert [p.name for p in written] == ["losses.png", "ap.png", "rate.png"]
    assert all(is_picture(path) for path in written)


def test_run_without_evaluation_has_no_ap_plot(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,3.0\n")
    assert [p.name for p in plot_training(tmp_path / "metrics.csv", tmp_path)] == ["losses.png"]


def test_run_without_an_epoch_has_no_plots(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,loss\n")
    assert plot_training(tmp_path / "metrics.csv", tmp_path) == []


def test_precision_recall_curves_are_drawn(tmp_path: Path) -> None:
    recall = np.linspace(0, 1, 101)
    curves = {f"class {i}": (recall, 1 - recall**i) for i in range(1, 12)}
    assert is_picture(plot_precision_recall(curves, tmp_path / "new" / "pr.png", "Precision and recall"))


@pytest.mark.parametrize("classes", [1, 3, 40])
def test_confusion_of_any_number_of_classes_is_drawn(tmp_path: Path, classes: int) -> None:
    matrix = np.diag(np.arange(classes + 1)).astype(np.int64)
    names = [f"class {i}" for i in range(classes)]
    assert is_picture(plot_confusion(matrix, names, tmp_path / "confusion.png", "Confusion"))


def test_no_global_state_of_matplotlib_is_touched(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_confusion(np.eye(2, dtype=np.int64), ["a"], tmp_path / "confusion.png", "Confusion")
    assert dict(matplotlib.rcParams) == before
