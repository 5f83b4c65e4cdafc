"""A page that shows what was found: one HTML file with its pictures inside, readable offline and by mail."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from instseg.vis.colors import UInt8Array


@dataclass(frozen=True)
class Picture:
    """pixels: (H, W, 3) uint8, embedded as JPEG; or the path of a picture file, embedded as it is. caption: plain
    text."""

    pixels: UInt8Array | Path
    caption: str


@dataclass(frozen=True)
class _Part:
    """What the template draws: ``kind`` says how."""

    kind: str
    text: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    plot: bool = False


class Report:
    """An HTML page made from top to bottom; every text is plain, and escaped by the template."""

    def __init__(self, title: str, lead: str) -> None:
        self._title, self._lead = title, lead
        self._parts: list[_Part] = []

    def heading(self, text: str) -> None:
        self._parts.append(_Part("heading", text))

    def paragraph(self, text: str) -> None:
        self._parts.append(_Part("paragraph", text))

    def numbers(self, values: Mapping[str, str]) -> None:
        """Large figures side by side: what they are, and the figure."""
        self._parts.append(_Part("numbers", rows=list(values.items())))

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Columns of figures; the first column names the row."""
        self._parts.append(_Part("table", head=head, rows=list(rows)))

    def facts(self, values: Mapping[str, str]) -> None:
        """Names with a line of text each."""
        self._parts.append(_Part("facts", rows=list(values.items())))

    def pictures(self, pictures: Iterable[Picture], title: str = "", plot: bool = False) -> None:
        """Pictures side by side in one card. plot: they are drawn on white and keep it in the dark."""
        rows = [(_embedded(p.pixels), p.caption) for p in pictures]
        self._parts.append(_Part("pictures", title, rows=rows, plot=plot))

    def code(self, text: str) -> None:
        self._parts.append(_Part("code", text))

    def html(self) -> str:
        """The whole page; it names no other file and no address."""
        from jinja2 import Environment

        text = (files("instseg") / "assets" / "templates" / "report.html").read_text(encoding="utf-8")
        template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
        return template.render(title=self._title, lead=self._lead, parts=self._parts)


def _embedded(pixels: UInt8Array | Path) -> str:
    if isinstance(pixels, Path):
        kind = "png" if pixels.suffix.lower() == ".png" else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(pixels.read_bytes()).decode()}"
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=88, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
