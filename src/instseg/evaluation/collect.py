"""What a model finds in a data set, as rows; several processes may share the images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from instseg.core import rle
from instseg.core.errors import DataError
from instseg.core.instances import Instances
from instseg.core.progress import progress_bar
from instseg.data.workers import Order, Reader, batches_of, loader_of
from instseg.model.pipeline import SCALES
from instseg.model.ready import evaluating
from instseg.results.rows import box_rows, coco_rows

if TYPE_CHECKING:
    from instseg.data.dataset import InstanceDataset
    from instseg.model.instance_model import InstanceModel


@dataclass(frozen=True)
class Part:
    """What was found in one batch of images.

    Attributes:
        number: of the batch.
        rows: COCO results; with ``bbox`` where the boxes are predicted, not those of the masks.
        unread: the ids of the images that could not be read, and why.
        masks: whether the model predicts masks; None where no image was read.
    """

    number: int
    rows: list[dict[str, Any]]
    unread: list[tuple[int, DataError]]
    masks: bool | None


@dataclass(frozen=True)
class Share:
    """One process' share of the work that several do together.

    Attributes:
        index: of this process; process 0 scores what all have found.
        count: number of processes.
        gather: does this process' work, and returns what each process' work returned, in their order; it raises in
            every process what was raised in any.
    """

    index: int
    count: int
    gather: Callable[[Callable[[], list[Part]]], list[list[Part]]]


def batches_of_share(images: int, batch: int, index: int = 0, count: int = 1) -> dict[int, list[int]]:
    """The batches of one process, by number: whole batches of those that one process alone would make.

    So each image passes the network beside the same others, however many processes there are.
    """
    numbers = range(index, -(-images // batch), count)
    return {n: list(range(n * batch, min((n + 1) * batch, images))) for n in numbers}


def collect(
    model: InstanceModel,
    dataset: InstanceDataset,
    category_ids: Sequence[int | None],
    *,
    batch: int = 1,
    workers: int = 0,
    progress: bool = False,
    tta: bool = False,
    share: Share | None = None,
    reader: Reader | None = None,
) -> list[Part]:
    """What a model finds in a data set, or in one process' share of it; arguments as in :func:`collect_results`.

    ``reader``, of :func:`image_reader`, reads the images in its own processes.
    """
    index, count = (0, 1) if share is None else (share.index, share.count)
    batches = batches_of_share(len(dataset), batch, index, count)
    order = list(batches.values())
    once = loader_of(_Images(dataset), Order(order), workers, list)
    images = batches_of(once) if reader is None else reader.batches(order)
    parts = []
    find = partial(model.predict_batch, scales=SCALES) if tta else model.predict_batch
    with evaluating(model), closing(images) as loaded:
        shown = progress_bar(loaded, "evaluate", len(order), progress and index == 0)
        for number, items in zip(batches, shown, strict=True):
            unread = [(image_id, image) for image, image_id in items if isinstance(image, DataError)]
            if unread and dataset.on_error == "raise":
                raise unread[0][1]
            read = [(image, image_id) for image, image_id in items if not isinstance(image, DataError)]
            found = find([image for image, _ in read])
            rows = [
                row for f, (_, image_id) in zip(found, read, strict=True) for row in _rows(f, image_id, category_ids)
            ]
            parts.append(Part(number, rows, unread, found[0].masks is not None if found else None))
    return parts


def collect_together(
    model: InstanceModel,
    dataset: InstanceDataset,
    category_ids: Sequence[int | None],
    *,
    share: Share | None,
    **options: Any,
) -> list[Part]:
    """What all processes find, each in its share; without ``share`` this one finds everything."""
    work = partial(collect, model, dataset, category_ids, share=share, **options)
    return work() if share is None else [part for found in share.gather(work) for part in found]


def joined(parts: Sequence[Part], dataset: InstanceDataset) -> tuple[list[dict[str, Any]], list[int], bool]:
    """All rows in the order of the images, the ids of the images that could not be read, and whether there are masks.

    Raises DataError where no image could be read; warns where some could not.
    """
    parts = sorted(parts, key=lambda part: part.number)
    unread = [one for part in parts for one in part.unread]
    if unread and len(unread) == len(dataset):
        raise DataError(f"{dataset.name}: no image of split {dataset.split} can be read; first: {unread[0][1]}")
    if unread:
        warnings.warn(
            f"{len(unread)} of {len(dataset)} images of split {dataset.split} cannot be read and do not count: AP is "
            f"that of the others; the first: {unread[0][1]}",
            stacklevel=3,
        )
    masks = any(part.masks for part in parts) or not parts
    return [row for part in parts for row in part.rows], [image_id for image_id, _ in unread], masks


def collect_results(
    model: InstanceModel,
    dataset: InstanceDataset,
    category_ids: Sequence[int | None],
    *,
    batch: int = 1,
    workers: int = 0,
    progress: bool = False,
    tta: bool = False,
) -> tuple[list[dict[str, Any]], list[int]]:
    """COCO results of a whole data set, and the ids of the images that could not be read.

    The model comes back in the modes (training or not, module by module) that it was given in, and the global random
    state is not touched, so that a training run evaluates without changing its course.

    Args:
        model: finds the objects.
        dataset: its images; one that cannot be read is left out with a warning where the data set was opened with
            ``on_error="skip"``.
        category_ids: what each label is written as; None leaves its objects out.
        batch: images a forward pass.
        workers: processes that read images.
        progress: draw a bar.
        tta: look at each image at several scales.

    Raises:
        DataError: an image cannot be read, or none can.
    """
    parts = collect(model, dataset, category_ids, batch=batch, workers=workers, progress=progress, tta=tta)
    return joined(parts, dataset)[:2]


def _rows(found: Instances, image_id: int, category_ids: Sequence[int | None]) -> list[dict[str, Any]]:
    known = torch.tensor([category_ids[label] is not None for label in found.labels.tolist()], dtype=torch.bool)
    found, ids = found[known], [-1 if i is None else i for i in category_ids]
    if found.masks is None or found.predicted_boxes is None:
        return coco_rows(found, ids, image_id)
    rows = box_rows(found, ids, image_id)  # also of masks without a pixel: their boxes count
    codes = found.masks.rle()
    for row, code, area in zip(rows, codes, rle.area(codes).tolist(), strict=True):
        if area > 0:
            row["segmentation"] = code
    return rows


def image_reader(dataset: InstanceDataset, workers: int) -> Reader:
    """What reads the images of a data set for one evaluation after the other."""
    return Reader(_Images(dataset), workers, list)


class _Images(torch.utils.data.Dataset[tuple[Tensor | DataError, int]]):
    """The images of a data set with their ids. An error is handed over as a value: raised in a worker
    process, its one line would come back wrapped in a traceback."""

    def __init__(self, dataset: InstanceDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor | DataError, int]:
        image_id = self.dataset.records[index].image_id
        try:
            return self.dataset.image(index), image_id
        except DataError as error:
            return error, image_id
