from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from instseg.vis.report import Picture, Report


def test_page_is_complete_in_itself(tmp_path: Path) -> None:
    Image.new("RGB", (7, 5)).save(tmp_path / "plot.png")
    report = Report("Demo", "what it is")
    report.numbers({"AP": "0.5"})
    report.table(["", "AP"], [["masks", "0.5"]])
    report.facts({"license": "CC0"})
    report.pictures([Picture(np.zeros((5, 7, 3), np.uint8), "prediction"), Picture(tmp_path / "plot.png", "plot")])
    page = report.html()
    assert "http" not in page and str(tmp_path) not in page
    embedded = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', page)
    assert [kind for kind, _ in embedded] == ["jpeg", "png"]
    for _, content in embedded:
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert image.size == (7, 5)
    for text in ("Demo", "what it is", "0.5", "CC0", "prediction"):
        assert text in page


def test_text_is_escaped() -> None:
    report = Report("<b>", "a & b")
    report.paragraph("<script>")
    report.code('x < y "z"')
    page = report.html()
    assert "<script>" not in page and "&lt;script&gt;" in page and "a &amp; b" in page and "<b>" not in page
