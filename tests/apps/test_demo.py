from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instseg.apps import demo
from instseg.core import rle
from instseg.core.categories import Categories
from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.data.dataset import InstanceDataset
from instseg.data.images.read import ImageRule
from instseg.data.open import open_dataset
from instseg.metrics.coco import evaluate_coco


class Knows(nn.Module):
    """Finds the annotated nuclei, but for the first of every image."""

    def __init__(self, dataset: InstanceDataset) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.categories = Categories(("nucleus",), (1,))
        self.category_ids = self.categories.ids
        self.config = SimpleNamespace(max_instances=500)
        self.name, self.has_weights = "knows", True
        self.image_rule = ImageRule()
        self.answers = [(dataset.image(i), dataset.records[i].annotations) for i in range(len(dataset))]

    def predict_batch(self, images: list[Tensor]) -> list[Instances]:
        found = []
        for image in images:
            known = next(a for i, a in self.answers if i.shape == image.shape and torch.equal(i, image))
            masks = torch.stack([torch.from_numpy(rle.decode(a.rle)) for a in known[1:]])
            scores = torch.linspace(0.9, 0.3, len(masks))
            found.append(Instances(scores, torch.zeros(len(masks), dtype=torch.int64), Masks.from_bool(masks)))
        return found


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the demo asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_demo_writes_pictures_results_and_a_report_and_prints_the_ap_of_its_json(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = open_dataset(demo.DATA, demo.SPLIT)
    dataset.records = dataset.records[1:4]
    monkeypatch.setattr("instseg.data.open.open_dataset", lambda *_: dataset)
    monkeypatch.setattr(demo, "resolve_model", lambda model, device: model)
    metrics = demo.run_demo(tmp_path / "out", model=Knows(dataset), device="cpu", progress=False)  # type: ignore[arg-type]

    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {"report.html", "predictions.json", "metrics.json", "results.json", "plots/confusion.png"} <= written
    for record in dataset.records:
        stem = Path(record.file_name).stem
        assert {f"overlays/{stem}.jpg", f"labels/{stem}.png"} <= written

    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == 3 * 3 + 2 and not re.search(r'(src|href)="(?!data:)', page)
    assert "CC0" in page and f"{metrics['segm']['ap']:.3f}" in page
    printed = capsys.readouterr().out
    assert f"mask AP {metrics['segm']['ap']:.3f}" in printed and "report.html" in printed

    from instseg.data.dataset import ground_truth

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert evaluate_coco(ground_truth(dataset), results, max_dets=500).ap == metrics["segm"]["ap"] > 0.9


def test_demo_reads_its_own_results_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(demo.DATA, demo.SPLIT)
    dataset.records = dataset.records[1:3]
    monkeypatch.setattr("instseg.data.open.open_dataset", lambda *_: dataset)
    monkeypatch.setattr(demo, "resolve_model", lambda model, device: model)
    read: list[str] = []
    opened = Path.open

    def counted(self: Path, mode: str = "r", *args: Any, **named: Any) -> Any:
        if "r" in mode and self.name.startswith("predictions.json"):
            read.append(str(self))
        return opened(self, mode, *args, **named)

    monkeypatch.setattr(Path, "open", counted)
    demo.run_demo(tmp_path / "out", model=Knows(dataset), device="cpu", progress=False)  # type: ignore[arg-type]
    assert len(read) == 1
