"""A page that shows what was found: one HTML file with its pictures inside, readable offline and by mail."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from instseg.vis.colors import UInt8Array

_STYLE = """
:root { color-scheme: light dark; --ink: #111827; --soft: #6b7280; --line: #e5e7eb; --card: #ffffff; --page: #f6f7f9;
  --strong: #2563eb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --soft: #9ca3af; --line: #2a3140; --card: #171c26;
  --page: #0e1219; --strong: #7aa2ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 44px 0 12px; }
p { margin: 0 0 12px; max-width: 76ch; }
.soft, figcaption { color: var(--soft); font-size: 14px; }
.numbers { display: flex; flex-wrap: wrap; gap: 12px; margin: 24px 0; }
.number, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.number { padding: 14px 16px; flex: 1 1 150px; }
.number b { display: block; font-size: 26px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.number span { color: var(--soft); font-size: 13px; }
.card { padding: 14px; margin-bottom: 16px; overflow-x: auto; }
.card h3 { font-size: 14px; margin: 0 0 10px; font-weight: 600; }
.row { display: flex; flex-wrap: wrap; gap: 12px; }
figure { margin: 0; flex: 1 1 240px; min-width: 0; }
figure img { width: 100%; display: block; border-radius: 6px; background: #0002; }
.plot img { background: #fff; }
figcaption { margin-top: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; }
.facts td { text-align: left; white-space: normal; }
.facts td:first-child { color: var(--soft); width: 200px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; overflow-x: auto;
  font: 13px/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 0 0 16px; }
a { color: var(--strong); }
"""


@dataclass(frozen=True)
class Picture:
    """pixels: (H, W, 3) uint8, embedded as JPEG; or the path of a picture file, embedded as it is. caption: plain
    text."""

    pixels: UInt8Array | Path
    caption: str


class Report:
    """An HTML page made from top to bottom; every text is plain and escaped here."""

    def __init__(self, title: str, lead: str) -> None:
        self._title = title
        self._parts: list[str] = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(lead)}</p>']

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        self._parts.append(f"<p>{escape(text)}</p>")

    def numbers(self, values: Mapping[str, str]) -> None:
        """Large figures side by side: what they are, and the figure."""
        cells = [f'<div class="number"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in values.items()]
        self._parts.append(f'<div class="numbers">{"".join(cells)}</div>')

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Columns of figures; the first column names the row."""
        top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
        self._parts.append(f'<div class="card"><table><tr>{top}</tr>{body}</table></div>')

    def facts(self, values: Mapping[str, str]) -> None:
        """Names with a line of text each."""
        rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in values.items())
        self._parts.append(f'<div class="card"><table class="facts">{rows}</table></div>')

    def pictures(self, pictures: Iterable[Picture], title: str = "", plot: bool = False) -> None:
        """Pictures side by side in one card. plot: they are drawn on white and keep it in the dark."""
        figures = [
            f'<figure><img src="{_embedded(p.pixels)}" alt="{escape(p.caption)}" loading="lazy">'
            f"<figcaption>{escape(p.caption)}</figcaption></figure>"
            for p in pictures
        ]
        top = f"<h3>{escape(title)}</h3>" if title else ""
        kind = "row plot" if plot else "row"
        self._parts.append(f'<div class="card">{top}<div class="{kind}">{"".join(figures)}</div></div>')

    def code(self, text: str) -> None:
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def html(self) -> str:
        """The whole page; it names no other file and no address."""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self._title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
            + "\n".join(self._parts)
            + "\n</main></body></html>\n"
        )


def _embedded(pixels: UInt8Array | Path) -> str:
    if isinstance(pixels, Path):
        kind = "png" if pixels.suffix.lower() == ".png" else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(pixels.read_bytes()).decode()}"
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=88, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
