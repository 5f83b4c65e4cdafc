"""`instseg predict`: whatever the user names as images, through the model, into files."""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from instseg.core.errors import DataError
from instseg.core.instances import Instances
from instseg.infer.model import InstanceModel, require_weights
from instseg.infer.prediction import label_image
from instseg.infer.progress import progress_bar
from instseg.infer.sources import Source, expand
from instseg.infer.writers import (
    JSON_SCORE,
    LABELS_README,
    PICTURE_SCORE,
    CocoWriter,
    ResultsWriter,
    WriteError,
    atomic,
    write_label_image,
    write_picture,
)
from instseg.vis.draw import draw_instances

PREDICTIONS = "predictions.json"


@dataclass
class PredictSummary:
    """What a run of :func:`predict_sources` did.

    Attributes:
        folder: where the files are.
        sources: number of images asked for.
        images: those that were predicted and written.
        objects: masks in the JSON.
        failed: one line for each image that was left out.
        seconds: the whole run, without loading the model.
    """

    folder: Path
    sources: int
    images: int = 0
    objects: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        """The run in one line."""
        rate = f", {self.images / self.seconds:.1f} images a second" if self.seconds > 0 and self.images else ""
        return f"{self.objects} objects in {self.images} images{rate}: {self.folder / PREDICTIONS}"

    def raise_on_failures(self) -> None:
        """Raises DataError, one line, when an image was left out."""
        if not self.failed:
            return
        if self.sources == 1:
            raise DataError(self.failed[0])
        raise DataError(f"images left out: {len(self.failed)} of {self.sources}, each named in a warning above")


def predict_sources(
    model: InstanceModel,
    sources: Sequence[str | Path],
    out: Path | str,
    *,
    annotations: Path | str | None = None,
    score: float | None = None,
    batch: int = 1,
    overlays: bool = True,
    labels: bool = True,
    progress: bool = True,
) -> PredictSummary:
    """Predicts every image that ``sources`` name and writes the results into the folder ``out``.

    ``predictions.json`` is a COCO data set, or with ``annotations`` (a COCO JSON) a plain results list under that
    file's own image and category ids; ``overlays/NAME.jpg`` and ``labels/NAME.png`` (16 bit) are pictures. An image
    that cannot be read or is not in ``annotations`` is left out with a warning; the summary counts it.

    Args:
        model: with weights, on the device to use.
        sources: as :func:`instseg.infer.sources.expand` takes them.
        out: made when it is not there; files of the same name are replaced.
        score: least score of a mask; by default 0.05 in the JSON and 0.25 in pictures.
        batch: images given to the network at once.
        overlays: draw the masks into a copy of each image.
        labels: write label images.
        progress: draw a bar on a terminal.

    Raises:
        CheckpointError: the model has no weights.
        DataError: a source does not exist, ``annotations`` is not COCO or shares no class with the model, or a file
            cannot be written.
    """
    require_weights(model)
    model.eval()
    images, folder = expand(list(sources), model.image_rule), Path(out)
    drawn = PICTURE_SCORE if score is None else score
    summary = PredictSummary(folder, len(images))
    began = time.perf_counter()
    with _writer(model, folder / PREDICTIONS, annotations, JSON_SCORE if score is None else score) as writer:
        results = _predict(model, images, batch)
        for source, image, found in progress_bar(results, "predicting", len(images), enabled=progress):
            fault = found if isinstance(found, DataError) else _add(writer, source, found)
            if isinstance(found, DataError) or fault is not None:
                summary.failed.append(str(fault))
                if len(images) > 1:
                    warnings.warn(str(fault), stacklevel=2)
                continue
            if overlays:
                pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
                picture = draw_instances(pixels, found, model.categories, drawn)
                write_picture(folder / "overlays" / f"{source.stem}.jpg", picture)
            if labels:
                write_label_image(folder / "labels" / f"{source.stem}.png", label_image(found, drawn))
            summary.images += 1
        summary.objects = writer.annotations
    if labels and summary.images:
        with atomic(folder / "labels" / "README.txt", "w") as file:
            file.write(LABELS_README.format(score=drawn))
    summary.seconds = time.perf_counter() - began
    return summary


def _writer(
    model: InstanceModel, path: Path, annotations: Path | str | None, score: float
) -> CocoWriter | ResultsWriter:
    if annotations is None:
        return CocoWriter(path, model.meta, score)
    return ResultsWriter(path, model.meta, annotations, score)


def _add(writer: CocoWriter | ResultsWriter, source: Source, found: Instances) -> DataError | None:
    """Writes the objects of one image; gives back why its results cannot be taken, if so."""
    by_path = isinstance(writer, ResultsWriter) and source.path is not None
    try:
        writer.add(found, str(source.path) if by_path else source.name)
    except WriteError:  # no fault of this image: the run cannot go on
        raise
    except DataError as error:
        return error
    return None


def _predict(
    model: InstanceModel, sources: Sequence[Source], batch: int
) -> Iterator[tuple[Source, Tensor, Instances | DataError]]:
    """Every source in order, its image (3, H, W) uint8, and what was found or why it could not be read."""
    for i in range(0, len(sources), batch):
        loaded = [(source, _load(source)) for source in sources[i : i + batch]]
        good = [image for _, image in loaded if isinstance(image, Tensor)]
        found = iter(model.predict_batch(good) if good else [])
        for source, image in loaded:
            if isinstance(image, Tensor):
                yield source, image, next(found).to("cpu")
            else:
                yield source, Tensor(), image


def _load(source: Source) -> Tensor | DataError:
    try:
        return source.load()
    except DataError as error:
        return error
