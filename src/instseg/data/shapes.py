"""The built-in data set ``shapes``: colored shapes covering each other on a textured ground, drawn on demand."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from instseg.core import rle as rle_codes
from instseg.core.categories import Categories
from instseg.core.errors import ConfigError
from instseg.data.dataset import InstanceDataset
from instseg.data.records import Annotation, IntArray, Record, Records

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

DEFAULT_SIZES = {"train": 64, "val": 16, "test": 16}
# An object keeps at least this part of its pixels when others are drawn on top.
_VISIBLE = 0.3
_ATTEMPTS = 50
_SPLIT_STREAMS = {"train": 0, "val": 1, "test": 2}


def _circle(x: FloatArray, y: FloatArray) -> BoolArray:
    return x * x + y * y <= 0.25


def _square(x: FloatArray, y: FloatArray) -> BoolArray:
    return np.maximum(np.abs(x), np.abs(y)) <= 0.5


def _triangle(x: FloatArray, y: FloatArray) -> BoolArray:
    # Equilateral with altitude 1, its center at the origin: each side lies a third of the altitude away.
    slanted = np.abs(x) * math.sin(math.pi / 3) - y * 0.5
    return (y <= 1 / 3) & (slanted <= 1 / 3)


def _ring(x: FloatArray, y: FloatArray) -> BoolArray:
    square = x * x + y * y
    return (square <= 0.25) & (square >= 0.06)


# Every shape is 1 wide where it is narrowest; the reach is the distance of its furthest point from the origin.
_SHAPES: dict[str, tuple[Callable[[FloatArray, FloatArray], BoolArray], float]] = {
    "circle": (_circle, 0.5),
    "square": (_square, math.sqrt(0.5)),
    "triangle": (_triangle, 2 / 3),
    "ring": (_ring, 0.5),
}
CATEGORIES = Categories.from_names(tuple(_SHAPES))


@dataclass(frozen=True)
class ShapesConfig:
    """What the pictures look like.

    Attributes:
        image_size: side of the square picture, pixels.
        count: fewest and most objects a picture.
        min_size: narrowest width of an object before others cover it, pixels.
        max_size: the same for the largest objects, pixels; by default 0.4 of the side.
        overlap: objects may cover each other (each keeps at least 30 % of its pixels); without it they stay apart.
        seed: of the pictures.
    """

    image_size: int = 256
    count: tuple[int, int] = (3, 12)
    min_size: int = 20
    max_size: int | None = None
    overlap: bool = True
    seed: int = 0

    @property
    def largest(self) -> int:
        return self.max_size if self.max_size is not None else max(self.min_size, int(0.4 * self.image_size))


@dataclass(frozen=True)
class Picture:
    """One drawn picture: (3, H, W) uint8 image, and its record."""

    image: Tensor
    record: Record


class ShapesRecords(Records):
    """The records of a split, each drawn when it is asked for: the same for the same seed, split and index."""

    def __init__(self, config: ShapesConfig, split: str, size: int) -> None:
        self.config = config
        self.split = split
        self.size = size

    def __len__(self) -> int:
        return self.size

    @property
    def sizes(self) -> IntArray:
        return np.full((self.size, 2), self.config.image_size, dtype=np.int64)

    @property
    def image_ids(self) -> IntArray:
        return np.arange(1, self.size + 1)

    def digest(self) -> str:
        return f"{self.config} {self.split} {self.size}"  # what is drawn follows from these

    def record(self, position: int) -> Record:
        return draw_picture(self.config, self.split, position % self.size).record

    def read(self, record: Record) -> Tensor:
        """The picture of a record, (3, H, W) uint8."""
        return draw_picture(self.config, self.split, record.image_id - 1).image.clone()


def shapes(
    split: str = "train", size: int | None = None, config: ShapesConfig | None = None, *, seed: int = 0
) -> InstanceDataset:
    """The data set ``shapes``.

    Args:
        split: ``train``, ``val`` or ``test``; each has pictures of its own.
        size: how many pictures; by default 64 for training and 16 for the others.
        config: what they look like.
        seed: of the augmentation (the pictures follow ``config.seed``).

    Raises:
        ConfigError: a split that does not exist, or a config whose objects do not fit into its pictures.
    """
    config = config or ShapesConfig()
    if split not in _SPLIT_STREAMS:
        raise ConfigError(f'shapes: no split "{split}"; it has: {", ".join(_SPLIT_STREAMS)}.')
    number = DEFAULT_SIZES[split] if size is None else size
    if number < 1:
        raise ConfigError(f"shapes: a size of {number} pictures; ask for at least 1.")
    low, high = config.count
    if not 1 <= low <= high or not 4 <= config.min_size <= config.largest or 1.5 * config.largest > config.image_size:
        raise ConfigError(f"shapes: objects do not fit ({config}); reduce max_size or count, or enlarge image_size.")
    records = ShapesRecords(config, split, number)
    return InstanceDataset(records, CATEGORIES, seed=seed, name="shapes", split=split, read=records.read)


@lru_cache(maxsize=80)  # the default set: about 16 MB
def draw_picture(config: ShapesConfig, split: str, index: int) -> Picture:
    """The picture ``index`` of a split; depends on nothing but the arguments."""
    rng = np.random.default_rng([config.seed, _SPLIT_STREAMS[split], index])
    for _ in range(_ATTEMPTS):
        canvas = _Canvas(config.image_size, rng)
        if all([canvas.draw(label, config, rng) for label in _draw_order(config, rng)]):
            break
    pixels = canvas.pixels + rng.normal(0, 4, size=canvas.pixels.shape)
    image = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()
    return Picture(image, canvas.record(split, index))


def _draw_order(config: ShapesConfig, rng: np.random.Generator) -> list[int]:
    """The classes of the objects from the lowest to the topmost; three objects are of three classes."""
    number = int(rng.integers(config.count[0], config.count[1] + 1))
    kinds = rng.permutation(len(_SHAPES))[: min(number, 3)]
    rest = rng.integers(len(_SHAPES), size=number - len(kinds))
    return [int(label) for label in rng.permutation(np.concatenate([kinds, rest]))]


class _Canvas:
    """A picture being drawn, and which object owns each of its pixels."""

    def __init__(self, side: int, rng: np.random.Generator) -> None:
        self.pixels = _ground(side, rng)  # side, side, 3
        self.owner = np.full((side, side), -1, dtype=np.int16)
        self.labels: list[int] = []
        self.drawn: list[int] = []  # pixels of each object before others covered it

    def draw(self, label: int, config: ShapesConfig, rng: np.random.Generator) -> bool:
        """Draw an object on top of the others at a place where it hides none of them; False when none was found."""
        shape, reach = list(_SHAPES.values())[label]
        side, ratio = config.image_size, config.largest / config.min_size
        for attempt in range(_ATTEMPTS):
            # Crowded pictures get smaller objects rather than fewer.
            size = config.min_size * ratio ** (float(rng.random()) * (1 - attempt / _ATTEMPTS))
            radius = reach * size
            x, y = (float(v) for v in rng.uniform(radius, side - radius, size=2))
            turn = float(rng.uniform(0, 2 * math.pi))
            rows = slice(int(y - radius), min(side, math.ceil(y + radius)))
            columns = slice(int(x - radius), min(side, math.ceil(x + radius)))
            # The center of a pixel lies half a pixel from its corner.
            dy = (np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + (0.5 - y)) / size
            dx = (np.arange(columns.start, columns.stop, dtype=np.float32)[None] + (0.5 - x)) / size
            cos, sin = math.cos(turn), math.sin(turn)
            inside = shape(dx * cos - dy * sin, dx * sin + dy * cos)
            window = self.owner[rows, columns]
            if not self._fits(window, inside, config.overlap):
                continue
            window[inside] = len(self.labels)
            self.pixels[rows, columns][inside] = _surface(inside.shape, rng)[inside]
            self.labels.append(label)
            self.drawn.append(int(inside.sum()))
            return True
        return False

    def _fits(self, window: npt.NDArray[np.int16], inside: BoolArray, overlap: bool) -> bool:
        """True when the objects below stay visible."""
        if not overlap:
            return not bool((window >= 0).any())
        covered = window[inside]
        for below in np.unique(covered[covered >= 0]):
            left = np.count_nonzero(self.owner == below) - np.count_nonzero(covered == below)
            if left < _VISIBLE * self.drawn[below]:
                return False
        return True

    def record(self, split: str, index: int) -> Record:
        """The record with the visible pixels of every object as its mask."""
        side = len(self.owner)
        codes = [rle_codes.encode(self.owner == number) for number in range(len(self.labels))]
        annotations = []
        for number, (label, code) in enumerate(zip(self.labels, codes, strict=True)):
            x0, y0, x1, y1 = (float(v) for v in rle_codes.boxes([code])[0])
            area = float(rle_codes.area([code])[0])
            annotations.append(Annotation(number + 1, label, code, (x0, y0, x1, y1), area))
        return Record(index + 1, None, side, side, tuple(annotations), f"shapes-{split}-{index:06d}.png")


def _ground(side: int, rng: np.random.Generator) -> FloatArray:
    """A muted ground with clouds and stripes: (side, side, 3) in 0-255."""
    base = rng.uniform(60, 190, size=3).astype(np.float32)
    clouds = _clouds((side, side), 8, rng)
    along = np.arange(side, dtype=np.float32)
    turn, period = rng.uniform(0, math.pi), rng.uniform(8, 40)
    phase = along[:, None] * math.sin(turn) + along[None] * math.cos(turn)
    stripes = np.sin(phase * (2 * math.pi / period)).astype(np.float32)
    tint = rng.uniform(-1, 1, size=(2, 3)).astype(np.float32)
    ground: FloatArray = base + 45 * clouds[..., None] * (1 + 0.5 * tint[0]) + 12 * stripes[..., None] * (1 + tint[1])
    return ground


def _surface(size: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    """A strong color with some light and shade: (h, w, 3) in 0-255."""
    hue, saturation, value = rng.uniform(0, 6), rng.uniform(0.6, 1), rng.uniform(0.55, 1)
    channels = np.array([5, 3, 1]) + hue
    wheel = np.clip(np.minimum(channels % 6, 4 - channels % 6), 0, 1)
    color = (255 * value * (1 - saturation * wheel)).astype(np.float32)
    shade = 1 + 0.15 * _clouds((size[0], size[1]), 3, rng)
    surface: FloatArray = color * shade[..., None]
    return surface


def _clouds(size: tuple[int, int], cells: int, rng: np.random.Generator) -> FloatArray:
    """Smooth noise (h, w), mostly between -1 and 1."""
    coarse = torch.from_numpy(rng.normal(0, 0.6, size=(1, 1, cells, cells)).astype(np.float32))
    smooth: FloatArray = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")[0, 0].numpy()
    return smooth
