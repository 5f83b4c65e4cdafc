"""What a user gets for one image, and the ways it leaves the program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from instseg.core import rle
from instseg.core.categories import Categories
from instseg.core.errors import ConfigError, DataError
from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.core.rendering.render import Polygon
from instseg.results.rows import coco_rows

if TYPE_CHECKING:
    from PIL import Image

    from instseg.data.images.read import ImageRule

LABEL_SUFFIX = "-labels.png"


class Prediction:
    """The objects found in one image, best first.

    `len()` counts them; an int, a slice, a boolean or an index tensor selects: `prediction[prediction.scores
    > 0.5]`.
    """

    def __init__(
        self, instances: Instances, categories: Categories, path: str | None = None, rule: ImageRule | None = None
    ) -> None:
        """instances: what the model found; categories: what its labels mean; path: the image's file, where it has one;
        rule: how that file was read."""
        self.instances = instances
        self._categories = categories
        self.path = path
        self.rule = rule

    @property
    def scores(self) -> Tensor:
        """(M,) float32 in [0, 1], descending."""
        return self.instances.scores

    @property
    def labels(self) -> Tensor:
        """(M,) int64, positions in `categories`."""
        return self.instances.labels

    @property
    def boxes(self) -> Tensor:
        """(M, 4) float32 xyxy in pixels of the image as given: as predicted, or the tight extent of each mask."""
        return self.instances.boxes

    @property
    def masks(self) -> Masks | None:
        """The soft masks, rendered on demand; None from a detector of boxes."""
        return self.instances.masks

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        return self._categories.names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's own category ids, by label."""
        return self._categories.ids

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self._categories.names[label] for label in self.labels.tolist()]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the image as given, pixels."""
        return self.instances.image_size

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> Prediction:
        return Prediction(self.instances[index], self._categories, self.path, self.rule)

    def __repr__(self) -> str:
        height, width = self.image_size
        where = f" in {self.path}" if self.path else ""
        kind = "boxes" if self.masks is None else "objects"
        return f"Prediction({len(self)} {kind}{where}, {height}x{width} pixels)"

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results under the data set's own category ids, ready for JSON (RLE counts as text): masks without
        `bbox`, or boxes where there are no masks."""
        return coco_rows(self.instances, self.category_ids, image_id, text=True)

    def to_geojson(self) -> dict[str, Any]:
        """A GeoJSON FeatureCollection in pixel coordinates, x to the right and y down.

        Every object is a feature with a MultiPolygon: all its parts with their holes, or its box where there are no
        masks. Its properties are `category`, `category_id`, `score` and `area` (pixels). Rings are closed; outer rings
        turn one way and holes the other, as RFC 7946 asks for (counter-clockwise outside, in a system whose y goes up).
        """
        features = []
        names, ids = self._categories.names, self._categories.ids
        for score, label, (area, parts) in zip(
            self.scores.tolist(), self.labels.tolist(), self._outlines(), strict=True
        ):
            coordinates = [[_ring(points, outer=number == 0) for number, points in enumerate(part)] for part in parts]
            properties = {"category": names[label], "category_id": ids[label], "score": score, "area": area}
            geometry = {"type": "MultiPolygon", "coordinates": coordinates}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
        return {"type": "FeatureCollection", "features": features}

    def _outlines(self) -> list[tuple[float, list[Polygon]]]:
        """The area and the parts of each object."""
        if self.masks is not None:
            return list(zip(self.masks.areas().tolist(), self.masks.polygons(), strict=True))
        boxes = self.boxes.double().cpu().numpy()
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3, 0, 1]].reshape(-1, 5, 2)
        areas: list[float] = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).tolist()
        return [(area, [[ring]]) for area, ring in zip(areas, corners, strict=True)]

    def to_supervision(self) -> Any:
        """A `supervision.Detections` with boxes, masks, confidences, class ids (labels) and names in
        `data["class_name"]`. Its masks are dense, M x H x W bytes, or None from a detector of boxes.

        Raises ConfigError when supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise ConfigError(
                "to_supervision() needs the package supervision: pip install 'instseg[supervision]'"
            ) from None
        return supervision.Detections(
            xyxy=self.boxes.cpu().numpy().astype(np.float32).reshape(-1, 4),
            mask=None if self.masks is None else self.masks.bool().numpy(),
            confidence=self.scores.cpu().numpy(),
            class_id=self.labels.cpu().numpy().astype(int),
            data={"class_name": np.array(self.names, dtype=np.str_)},
        )

    def to_labels(self, score: float = 0.25) -> npt.NDArray[np.uint16]:
        """(H, W) uint16 label image: 0 is ground, `k` is object number `k` (the k-th best, counted from 1, so
        that `prediction[k - 1]` is it). Where masks overlap the better score wins. Only objects with at least
        `score` are drawn.

        Raises DataError where there are no masks, and above 65,535 objects, which uint16 cannot number.
        """
        return label_image(self.instances, score)

    def plot(self, image: Any = None, score: float = 0.25) -> Image.Image:
        """The image with masks (or boxes), outlines and names drawn in, for the objects with at least `score`.

        image: a path, PIL image, (H, W, 3) uint8 array or (3, H, W) tensor of the size that was predicted on;
            None opens the prediction's own `path`, or draws on gray where there is none.

        Raises DataError when the image has another size.
        """
        from PIL import Image

        from instseg.vis.draw import draw_instances

        return Image.fromarray(draw_instances(self._pixels(image), self.instances, self.categories, score))

    def save(self, path: str | Path, image: Any = None, score: float | None = None) -> Path:
        """Writes one file, of a kind that its name says, and gives its path.

        `*.json`: a COCO data set of this one image, as `instseg predict` writes it. `*.geojson`: polygons.
        `*-labels.png`: the uint16 label image of :meth:`to_labels`. Any other picture suffix: the overlay of
        :meth:`plot` (`image` as there). `score` is the least score that takes part, by default 0.05 in JSON
        files and 0.25 in pictures.

        Raises ConfigError for any other suffix.
        """
        from instseg.results import writers

        target = Path(path)
        suffix = target.suffix.lower()
        if suffix == ".json":
            name = Path(self.path).name if self.path else target.stem
            writers.write_coco(target, self.instances, name, self._categories, _or(score, writers.JSON_SCORE))
        elif suffix == ".geojson":
            kept = self[self.scores >= _or(score, writers.JSON_SCORE)]
            writers.write_json(target, kept.to_geojson())
        elif target.name.lower().endswith(LABEL_SUFFIX):
            writers.write_label_image(target, self.to_labels(_or(score, writers.PICTURE_SCORE)))
        elif suffix in (".png", ".jpg", ".jpeg", ".webp"):
            writers.write_picture(target, np.asarray(self.plot(image, _or(score, writers.PICTURE_SCORE))))
        else:
            raise ConfigError(
                f"{target}: cannot save as {suffix or 'a file without suffix'}; use .json, .geojson, .png or .jpg"
            )
        return target

    def _pixels(self, image: Any) -> npt.NDArray[np.uint8]:
        from instseg.sources.sources import as_tensor

        source = self.path if image is None else image
        if source is None:
            return np.full((*self.image_size, 3), 96, dtype=np.uint8)
        pixels: npt.NDArray[np.uint8] = as_tensor(source, self.rule).permute(1, 2, 0).numpy()
        if pixels.shape[:2] != self.image_size:
            raise DataError(f"image of {pixels.shape[:2]} pixels (height, width) for a prediction on {self.image_size}")
        return np.ascontiguousarray(pixels)


def label_image(instances: Instances, score: float = 0.25) -> npt.NDArray[np.uint16]:
    """The label image of :meth:`Prediction.to_labels`."""
    kept = instances[instances.scores >= score]
    if len(kept) > np.iinfo(np.uint16).max:
        raise DataError(f"{len(kept)} objects do not fit a 16-bit label image: raise the score")
    if kept.masks is None:
        raise DataError("A detector of boxes has no masks to make a label image of; save as .json or a picture.")
    out = np.zeros(kept.image_size, dtype=np.uint16)
    for first, windows in rle.decode_all(kept.masks.rle()):
        for index, (top, left, window) in enumerate(windows, first):
            part = out[top : top + window.shape[0], left : left + window.shape[1]]
            part[window & (part == 0)] = index + 1
    return out


def _ring(points: npt.NDArray[np.float64], outer: bool) -> list[list[float]]:
    """A closed ring as lists. With y down, the shoelace sum of a ring that RFC 7946 wants outside is
    positive."""
    x, y = points[:, 0], points[:, 1]
    if (float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) > 0) != outer:
        points = points[::-1]
    ring: list[list[float]] = points.tolist()
    return ring


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
