"""Masks and boxes drawn into images. Only the window of each is touched: time follows the objects, not the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from instseg.core import rle
from instseg.core.instances import Instances
from instseg.vis.colors import UInt8Array, class_colors, darker, inks_on, instance_colors

ColorBy = Literal["auto", "instance", "class"]
FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Place = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels

BLEND = 0.45  # share of the color inside a mask
LINE = 0.9  # share of the color on its outline
FEW = 6  # up to so many objects all are named, of more only those large enough to carry a name
MAX_LABELS = 60  # with more objects than this no text is drawn


def draw_instances(
    image: UInt8Array,
    instances: Instances,
    names: Sequence[str],
    score: float = 0.25,
    *,
    color_by: ColorBy = "auto",
    text: bool = True,
    zoom: int = 1,
) -> UInt8Array:
    """A copy of the image with masks, outlines and names of the objects; with boxes where there are no masks.

    image: (H, W, 3) uint8 RGB. names: of the labels. score: objects below it are not drawn.
    color_by: "instance" gives neighbors different colors, "class" every class its own; "auto" is "class" where
        several classes are too many objects for names, else "instance".
    text: names with scores, where there is room: best objects first, none over another, none on objects too small to
        carry one, and none at all among more than 60 objects.
    zoom: the picture is enlarged by this whole number first, and outlines are smoothed, for small images.

    Returns (zoom * H, zoom * W, 3) uint8.
    """
    kept = instances[instances.scores >= score]
    labels = kept.labels.tolist()
    texts = [f"{names[label]}  {value:.2f}" for label, value in zip(labels, kept.scores.tolist(), strict=True)]
    shapes = kept.boxes.double().cpu().numpy() if kept.masks is None else kept.masks.rle()
    return _draw(image, shapes, labels, texts if text else None, color_by, zoom)


def draw_codes(
    image: UInt8Array,
    codes: Sequence[rle.RLE],
    labels: Sequence[int],
    names: Sequence[str],
    *,
    color_by: ColorBy = "auto",
    text: bool = True,
    zoom: int = 1,
) -> UInt8Array:
    """The same for masks as run-length codes of the image's size, as ground truth is kept; see
    :func:`draw_instances`."""
    return _draw(image, codes, labels, [names[label] for label in labels] if text else None, color_by, zoom)


def _draw(
    image: UInt8Array,
    shapes: Sequence[rle.RLE] | FloatArray,
    labels: Sequence[int],
    texts: Sequence[str] | None,
    color_by: ColorBy,
    zoom: int,
) -> UInt8Array:
    """``shapes``: the codes of masks, or boxes (N, 4) xyxy."""
    boxes = shapes if isinstance(shapes, np.ndarray) else rle.boxes(shapes)
    texts = [""] * len(boxes) if texts is None else texts
    named = _carries_name(boxes, image.shape[:2], zoom) & np.array([bool(t) for t in texts], dtype=bool)
    if color_by == "auto":
        several = len(set(labels)) > 1
        color_by = "class" if several and 2 * np.count_nonzero(named) < len(boxes) else "instance"
    by_class = color_by == "class"
    colors = class_colors(np.array(labels, dtype=np.int64)) if by_class else instance_colors(boxes)
    out = _enlarge(image, zoom)
    line = max(zoom, round(min(out.shape[:2]) / 500))
    peaks = boxes[:, 0].copy()  # (N,) the column of each object's uppermost pixels, where its name belongs
    if isinstance(shapes, np.ndarray):
        for index in np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable"):
            _outline(out, boxes[index] * zoom, colors[index], line)
    else:
        order = np.argsort(-rle.area(shapes), kind="stable")  # small objects over large ones
        for first, windows in rle.decode_all([shapes[i] for i in order]):
            for index, (top, left, window) in zip(order[first:].tolist(), windows, strict=False):
                if window.size:
                    inside = _smooth(window, zoom) if zoom > 1 else window.astype(np.float32)
                    _paint(out, top * zoom, left * zoom, inside, colors[index], line)
                    peaks[index] = left + np.flatnonzero(window[0]).mean()
    if named.any():
        shown: list[int] = np.flatnonzero(named).tolist()
        chosen = [texts[i] for i in shown]
        return _write_names(out, boxes[shown] * zoom, peaks[shown] * zoom, colors[shown], chosen)
    return out


def _enlarge(image: UInt8Array, zoom: int) -> UInt8Array:
    if zoom == 1:
        return np.array(image, dtype=np.uint8, copy=True)
    from PIL import Image

    size = (image.shape[1] * zoom, image.shape[0] * zoom)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _smooth(window: BoolArray, zoom: int) -> Float32Array:
    """The window enlarged, its stairs rounded off: the share of each pixel that is covered."""
    from PIL import Image

    padded = Image.fromarray(np.pad(window, 2).astype(np.uint8) * 255)
    large = padded.resize((padded.width * zoom, padded.height * zoom), Image.Resampling.BICUBIC)
    value = np.asarray(large, dtype=np.float32)[2 * zoom : -2 * zoom, 2 * zoom : -2 * zoom] / 255
    # the edge, a ramp as wide as a pixel of the small window, is made one pixel wide
    return np.clip((value - 0.5) * zoom + 0.5, 0, 1)


def _paint(out: UInt8Array, top: int, left: int, inside: Float32Array, color: UInt8Array, line: int) -> None:
    """Blends a color into a window. inside: (h, w) float32, the share of each pixel that is covered."""
    part = out[top : top + inside.shape[0], left : left + inside.shape[1]]
    edge = inside - _eroded(inside, line)
    share = BLEND * inside + (LINE - BLEND) * edge
    rows, columns = np.nonzero(share)
    pixels = part[rows, columns].astype(np.float32)
    pixels += (color.astype(np.float32) - pixels) * share[rows, columns, None]
    part[rows, columns] = np.rint(pixels).astype(np.uint8)


def _outline(out: UInt8Array, box: FloatArray, color: UInt8Array, line: int) -> None:
    """Blends the four sides of a box, ``line`` pixels wide, into the picture."""
    x0, y0, x1, y1 = np.rint(box).astype(int).tolist()
    window = np.zeros((max(y1 - y0, line), max(x1 - x0, line)), dtype=bool)
    window[:line], window[-line:], window[:, :line], window[:, -line:] = True, True, True, True
    window = window[max(-y0, 0) : max(out.shape[0] - y0, 0), max(-x0, 0) : max(out.shape[1] - x0, 0)]
    rows, columns = np.nonzero(window)
    rows, columns = rows + max(y0, 0), columns + max(x0, 0)
    pixels = out[rows, columns].astype(np.float32)
    pixels += (color.astype(np.float32) - pixels) * LINE
    out[rows, columns] = np.rint(pixels).astype(np.uint8)


def _eroded(inside: Float32Array, steps: int) -> Float32Array:
    """The least value of each pixel and its four neighbors, `steps` times; zero lies outside the window."""
    inner = np.pad(inside, 1)
    for _ in range(steps):
        shrunk = inner.copy()
        for here, there in (
            (shrunk[1:], inner[:-1]),
            (shrunk[:-1], inner[1:]),
            (shrunk[:, 1:], inner[:, :-1]),
            (shrunk[:, :-1], inner[:, 1:]),
        ):
            np.minimum(here, there, out=here)
        inner = shrunk
    return inner[1:-1, 1:-1]


def _font_size(size: tuple[int, ...]) -> int:
    return int(np.clip(round(min(size) * 0.024), 10, 40))


def _carries_name(boxes: FloatArray, size: tuple[int, ...], zoom: int) -> BoolArray:
    """Which objects are named (N,): all of a few, of more those large enough, of a crowd none."""
    if len(boxes) > MAX_LABELS:
        return np.zeros(len(boxes), dtype=bool)
    if len(boxes) <= FEW:
        return np.ones(len(boxes), dtype=bool)
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)) * zoom
    large: BoolArray = sides >= 2.5 * _font_size((size[0] * zoom, size[1] * zoom))
    return large


def _write_names(
    out: UInt8Array, boxes: FloatArray, peaks: FloatArray, colors: UInt8Array, texts: Sequence[str]
) -> UInt8Array:
    """Names in the objects' colors, best objects first; one that would cover another, or leave the picture, is
    moved, and left out where no place is free."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(out)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=_font_size(out.shape[:2]))
    taken: list[Place] = []
    grounds = darker(colors, 0.8)
    for box, peak, ground, ink, text in zip(boxes, peaks, grounds, inks_on(grounds), texts, strict=True):
        x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
        pad = (y1 - y0) * 0.35
        place = _free_place(box, float(peak), (x1 - x0 + 2 * pad, y1 - y0 + 2 * pad), picture.size, taken)
        if place is not None:
            taken.append(place)
            draw.rounded_rectangle(place, radius=(place[3] - place[1]) * 0.25, fill=ground)
            middle = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
            draw.text(middle, text, font=font, fill=ink, anchor="mm")
    return np.asarray(picture)


def _free_place(
    box: FloatArray, peak: float, label: tuple[float, float], size: tuple[int, int], taken: Sequence[Place]
) -> Place | None:
    """Over the object's uppermost pixels, right below them, in its middle, or under it: the first place that is free
    and in the picture. label: (w, h); size: (W, H) of the picture."""
    width, height = label
    left, middle = peak - width / 2, (box[0] + box[2] - width) / 2
    for x, y in (
        (left, box[1] - height - 1),
        (left, box[1] + 1),
        (middle, (box[1] + box[3] - height) / 2),
        (middle, box[3] + 1),
        (box[0], box[1] - height - 1),
        (box[2] - width, box[3] + 1),
    ):
        x0, y0 = min(max(float(x), 0.0), size[0] - width), float(y)
        place = (x0, y0, x0 + width, y0 + height)
        if x0 >= 0 and y0 >= 0 and place[3] <= size[1] and not any(_meet(place, other) for other in taken):
            return place
    return None


def _meet(a: Place, b: Place) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
