"""`model.predict` and `model.stream`: whatever holds images in, predictions out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from torch import Tensor

from instseg.core.categories import Categories
from instseg.core.errors import DataError
from instseg.core.instances import Instances
from instseg.model.ready import Modes, Named, evaluating, require_weights
from instseg.results.prediction import Prediction
from instseg.sources.reading import read_ahead, threads_for
from instseg.sources.sources import Source, find, is_many, names_several

if TYPE_CHECKING:
    from instseg.data.images.read import ImageRule
    from instseg.sources.sources import ImageLike

Predicted: TypeAlias = tuple[Source, Tensor, Instances | DataError]


class Predictor(Modes, Named, Protocol):
    """What predicts: a model as far as this file knows it."""

    categories: Categories

    @property
    def image_rule(self) -> ImageRule:
        """How files become pixels."""
        ...

    def predict_batch(self, images: Sequence[Tensor]) -> list[Instances]:
        """The objects of each image, in evaluation mode."""
        ...


class ImageError(DataError):
    """One of several images that could not be read or predicted; it stands where its prediction would.

    Attributes:
        name: of the image, as among its siblings.
        path: where the image lies, None when it is not a file.
    """

    def __init__(self, message: str, name: str, path: str | None) -> None:
        super().__init__(message)
        self.name = name
        self.path = path


def predict(
    model: Predictor, source: ImageLike | Iterable[ImageLike], *, batch: int = 1
) -> Prediction | list[Prediction | ImageError]:
    """:meth:`instseg.model.instance_model.InstanceModel.predict`. The model predicts in evaluation mode and comes back
    in the modes that it was in."""
    source = list(source) if is_many(source) else source
    found = list(stream(model, source, batch=batch))
    good = [item for item in found if isinstance(item, Prediction)]
    failed = [item for item in found if isinstance(item, ImageError)]
    several = isinstance(source, list) or names_several(source)
    if failed and not good:
        more = f" (and none of the {len(failed) - 1} others can be read)" if len(failed) > 1 else ""
        raise DataError(f"{failed[0]}{more}") from None
    for error in failed:
        warnings.warn(str(error), stacklevel=3)
    if not several:
        return good[0]
    return [item for item in found if isinstance(source, list) or isinstance(item, Prediction)]


def stream(
    model: Predictor,
    source: ImageLike | Iterable[ImageLike],
    *,
    batch: int = 1,
    workers: int | None = None,
) -> Generator[Prediction | ImageError]:
    """:meth:`instseg.model.instance_model.InstanceModel.stream`. The model predicts in evaluation mode; between two
    items it is in the modes that it was in."""
    require_weights(model)
    check_counts(batch, workers)
    if is_many(source) and isinstance(source, Iterator):
        sources: Iterable[Source] = _one_by_one(source, model)
    else:
        sources = find(source, model.image_rule, strict=not is_many(source), once=False).sources
    return _stream(model, predict_images(model, sources, batch=batch, workers=workers))


def _stream(model: Predictor, found: Generator[Predicted]) -> Generator[Prediction | ImageError]:
    try:
        for source, _, result in found:
            path = None if source.path is None else str(source.path)
            if isinstance(result, DataError):
                known = path is not None or source.name in str(result)
                yield ImageError(str(result) if known else f"{source.name}: {result}", source.name, path)
            else:
                yield Prediction(result, model.categories, path, source.rule)
    finally:
        found.close()


def predict_images(
    model: Predictor,
    sources: Iterable[Source],
    *,
    batch: int = 1,
    workers: int | None = None,
    load: Callable[[Source], Tensor] = Source.load,
) -> Generator[Predicted]:
    """Every source in order, its image (3, H, W) uint8, and what was found in it or why nothing could be.

    Args:
        model: with weights; it predicts in evaluation mode and is in its own modes between two items.
        sources: the images.
        batch: images given to the network at once.
        workers: threads that read images; chosen from the cores when None, 0 reads between the batches.
        load: reads an image; may be called in several threads.
    """
    several = not isinstance(sources, Sequence) or len(sources) > 1
    threads = threads_for(workers) if several else 0
    reading = read_ahead(sources, load, threads=threads, ahead=max(2 * threads, batch))
    part: list[tuple[Source, Tensor | DataError]] = []
    try:
        for read in reading:
            part.append(read)
            del read
            if len(part) >= batch:
                yield from _predicted(model, part)
        yield from _predicted(model, part)
    finally:
        reading.close()


def _predicted(model: Predictor, part: list[tuple[Source, Tensor | DataError]]) -> Iterator[Predicted]:
    """Empties ``part``."""
    found: Iterator[Instances | DataError] = iter(())
    images = [image for _, image in part if isinstance(image, Tensor)]
    if images:
        with evaluating(model):
            found = iter(_objects(model, images))
    del images
    while part:
        source, image = part.pop(0)
        if isinstance(image, Tensor):
            yield source, image, next(found)
        else:
            yield source, Tensor(), image


def _objects(model: Predictor, images: list[Tensor]) -> list[Instances | DataError]:
    try:
        return list(model.predict_batch(images))
    except DataError as error:
        if len(images) == 1:
            return [error]
    return [result for image in images for result in _objects(model, [image])]


def check_counts(batch: int, workers: int | None) -> None:
    """Raises DataError for numbers of images or threads that cannot be."""
    if batch < 1:
        raise DataError(f"batch={batch}: give at least one image at once.")
    if workers is not None and workers < 0:
        raise DataError(f"workers={workers}: give the number of threads that read images, or 0 for none.")


def _one_by_one(source: Iterator[Any], model: Predictor) -> Iterator[Source]:
    """The images of an iterator, expanded as they come."""
    for number, item in zip(count(1), source, strict=False):
        for found in find([item], model.image_rule, strict=False, once=False).sources:
            name = f"image-{number}" if found.name == "image-1" and found.path is None else found.name
            yield Source(name, found.stem, found.read, found.path, found.rule, found.threaded)
