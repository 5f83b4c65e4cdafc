"""`instseg val`: mask and box AP of a model on a data set."""

from __future__ import annotations

import copy
import time
import warnings
import zlib
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from instseg.core.category_matching import Match, match_categories
from instseg.core.environment import pick_device
from instseg.core.errors import CheckpointError, ConfigError, DataError
from instseg.core.files import make_writable
from instseg.core.instances import Instances
from instseg.core.progress import progress_bar
from instseg.data.workers import batches_of
from instseg.metrics.coco import CocoMetrics, evaluate_coco
from instseg.metrics.confusion import confusion_matrix
from instseg.model.pipeline import SCALES
from instseg.model.ready import evaluating
from instseg.results.rows import coco_rows

if TYPE_CHECKING:
    from instseg.data.crowds import Crowd
    from instseg.data.dataset import InstanceDataset, OnError
    from instseg.model.instance_model import InstanceModel

__all__ = ["collect_results", "evaluate", "match_categories", "score_results", "without_images"]


def evaluate(
    model: InstanceModel | str | Path,
    data: InstanceDataset | str | Path,
    *,
    split: str = "val",
    batch: int = 1,
    workers: int = 0,
    device: torch.device | str | None = None,
    out: Path | str | None = None,
    progress: bool = True,
    max_dets: int | None = None,
    match: Match = "auto",
    tta: bool = False,
    on_error: OnError = "raise",
    crowd: Crowd = "auto",
) -> dict[str, Any]:
    """Mask and box AP of a model, COCO protocol, every image counted, also those without objects.

    Boxes are those of the predicted masks. Memory grows with the number of objects found, as run-length codes, and not
    with the size or number of images.

    Args:
        model: a model, or what names one (zoo name, file, run folder, ``nuclei``, ``coco``).
        data: a data set, or what names one. Of the data set from which a run held images out, as it does where there is
            no validation split, the images held out are evaluated alone, unless ``split`` is ``"train"``.
        split: the part of ``data`` that is read.
        batch: images a forward pass.
        workers: processes that read images; 0 reads in this one.
        device: where to compute; None leaves a given model where it is, and picks the fastest for a named one.
        out: a folder for ``metrics.json``, ``results.json`` (COCO results, which pycocotools scores the same) and
            ``plots/``.
        progress: draw a bar on a terminal.
        max_dets: detections that count per image and class; None takes the model's own cap, ``config.max_instances``.
        match: how classes are paired, see :func:`instseg.core.category_matching.match_categories`.
        tta: multi-scale testing, see :data:`instseg.model.pipeline.SCALES`.
        on_error: what a defect or an image that cannot be read does to a named data set: ``"raise"``, or ``"skip"`` it
            with a warning.
        crowd: what ``iscrowd`` means in a named data set: ``"auto"``, ``"ignore"`` or ``"object"``.

    Returns:
        the content of ``metrics.json``: ``segm`` and ``bbox`` (figures of :class:`CocoMetrics`), ``per_class`` (both
        together), ``max_dets``, ``classes`` (how they were paired, and which exist on one side only), ``held_out``
        (None, or how many images of how many were evaluated because the run did not see them), ``confusion``, counts
        and seconds.

    Raises:
        DataError: no class is common to model and data, or an image cannot be read or is not of the size that its
            annotations are for.
        CheckpointError: a model with random weights.
        ConfigError: ``out`` cannot be written.
    """
    from instseg.data.dataset import ground_truth
    from instseg.model.load import resolve_model
    from instseg.model.ready import require_weights

    if out is not None:
        make_writable(Path(out), ConfigError)
    if isinstance(model, str | Path) or device is not None:
        model = resolve_model(model, str(pick_device(None if device is None else str(device))))
    require_weights(model)
    held: dict[str, int] | None = None
    if isinstance(data, str | Path):
        dataset, held = _open(model, data, split, on_error, crowd)
    else:
        dataset = data
    dataset = _read_as_trained(dataset, model)
    classes = match_categories(model.categories, dataset.categories, match)
    cap = int(model.config.max_instances) if max_dets is None else max_dets
    started, left_out = time.perf_counter(), dataset.left_out_line()
    results, skipped = collect_results(
        model, dataset, classes.ids, batch=batch, workers=workers, progress=progress, tta=tta
    )
    predicted = time.perf_counter()
    truth = without_images(ground_truth(dataset), skipped)
    report = score_results(truth, results, cap, out=None if out is None else Path(out))
    if (more := dataset.left_out_line()) not in (None, left_out):  # found only while reading
        warnings.warn(f"{more}; `instseg data check` lists them", stacklevel=2)
    report |= {
        "model": model.name,
        "data": dataset.name,
        "split": dataset.split,
        "held_out": held,
        "skipped_images": len(skipped),
        "classes": {
            "matched_by": classes.by,
            "only_in_model": list(classes.only_model),
            "only_in_data": list(classes.only_data),
        },
        "seconds": {"predict": predicted - started, "metrics": time.perf_counter() - predicted},
    }
    if out is not None:
        from instseg.results.writers import write_json

        write_json(Path(out) / "metrics.json", report, indent=2)
    return report


def _open(
    model: InstanceModel, data: str | Path, split: str, on_error: OnError, crowd: Crowd
) -> tuple[InstanceDataset, dict[str, int] | None]:
    """The data set to evaluate on, and how many images of how many it holds where a run held them out."""
    from instseg.data.dataset import open_dataset
    from instseg.data.holdout import KEY, held_out

    record = model.extra.get(KEY)
    part = split if not record or _has_split(data, split) else "train"
    dataset = open_dataset(data, part, on_error=on_error, crowd=crowd)
    if not record or split == "train":
        return dataset, None
    try:
        found = held_out(dataset, record)
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
        reason = " ".join(str(error).split())[:100]
        raise CheckpointError(
            f"the checkpoint's record of the images held out cannot be read ({reason}): it is damaged; name the images "
            "to evaluate on with --split."
        ) from None
    if found is not None:
        return found, {"images": len(found), "of": len(dataset)}
    if part != split:
        warnings.warn(
            f"{data} has no split {split}, and its images are not those that the run was given: all {len(dataset)} are "
            "evaluated, and the run may have been trained on some of them.",
            stacklevel=3,
        )
    return dataset, None


def _has_split(data: str | Path, split: str) -> bool:
    from instseg.data.dataset import data_path
    from instseg.data.formats.layout import locate

    if str(data) == "shapes":
        return True
    try:
        locate(data_path(data), split)
    except DataError:
        return False
    return True


def _read_as_trained(dataset: InstanceDataset, model: InstanceModel) -> InstanceDataset:
    """The data set, read as the model's training read its images, as prediction reads them: the white of wide samples,
    and EXIF orientation where the size of an image does not show whether its objects were drawn with it."""
    if "image_rule" not in model.extra:
        return dataset
    again = copy.copy(dataset)
    again.image_rule = model.image_rule
    return again


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

    category_ids: what each label is written as; None leaves its objects out. tta: look at each image at several scales.

    An unreadable image raises its DataError, or is left out with one warning when the data set was opened with
    `on_error="skip"`; it is an error when no image can be read. The model comes back in the modes (training or not,
    module by module) that it was given in, and the global random state is not touched, so that a training run
    evaluates without changing its course.
    """
    loader = torch.utils.data.DataLoader(
        _Images(dataset),
        batch_size=batch,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # else every pass draws a seed from the global generator
    )
    results: list[dict[str, Any]] = []
    unread: list[DataError] = []
    skipped: list[int] = []
    find = partial(model.predict_batch, scales=SCALES) if tta else model.predict_batch
    with evaluating(model), closing(batches_of(loader)) as batches:
        for items in progress_bar(batches, "evaluate", len(loader), progress):
            images, ids = [], []
            for image, image_id in items:
                if isinstance(image, DataError):
                    if dataset.on_error == "raise":
                        raise image
                    unread.append(image)
                    skipped.append(image_id)
                else:
                    images.append(image)
                    ids.append(image_id)
            results += _rows(find(images), ids, category_ids)
    if unread and len(unread) == len(dataset):
        raise DataError(f"{dataset.name}: no image of split {dataset.split} can be read; first: {unread[0]}")
    if unread:
        warnings.warn(
            f"{len(unread)} of {len(dataset)} images of split {dataset.split} cannot be read and do not count: AP is "
            f"that of the others; the first: {unread[0]}",
            stacklevel=3,
        )
    return results, skipped


def _rows(
    found: Sequence[Instances], ids: Sequence[int], category_ids: Sequence[int | None]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for image_id, instances in zip(ids, found, strict=True):
        known = torch.tensor([category_ids[label] is not None for label in instances.labels.tolist()], dtype=torch.bool)
        rows += coco_rows(instances[known], [-1 if i is None else i for i in category_ids], image_id)
    return rows


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


def without_images(truth: dict[str, Any], image_ids: Sequence[int]) -> dict[str, Any]:
    """A COCO data set without the named images and their annotations."""
    gone = set(image_ids)
    if not gone:
        return truth
    return truth | {
        "images": [image for image in truth["images"] if image["id"] not in gone],
        "annotations": [a for a in truth["annotations"] if a["image_id"] not in gone],
    }


def score_results(
    truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    max_dets: int,
    out: Path | None = None,
) -> dict[str, Any]:
    """Mask and box figures of COCO results with masks, and how classes are confused; with `out`, also
    `results.json` and `plots/` there. Boxes are the tight boxes of the masks.

    Returns `segm`, `bbox`, `per_class`, `confusion`, `max_dets`, and the numbers of images, objects and
    predictions.
    """
    segm = evaluate_coco(truth, results, "segm", max_dets)
    bbox = evaluate_coco(truth, results, "bbox", max_dets)
    confusion = confusion_matrix(truth, results)
    if out is not None:
        from instseg.results.writers import write_results
        from instseg.vis.plots import plot_confusion, plot_precision_recall

        write_results(out / "results.json", results)
        curves = {f"IoU {iou:.2f}": segm.curve(iou) for iou in (0.5, 0.75, 0.9)} | {"mean of .50:.95": segm.curve(None)}
        plot_precision_recall(curves, out / "plots" / "precision_recall.png", "Precision and recall of masks")
        title = f"Confusion at IoU {confusion.iou:g}, score {confusion.score:g}"
        plot_confusion(confusion.matrix, confusion.names, out / "plots" / "confusion.png", title)
    return {
        "segm": _figures(segm),
        "bbox": _figures(bbox),
        "per_class": [
            row | {"box_ap": box["ap"], "box_ap50": box["ap50"]}
            for row, box in zip(segm.per_class, bbox.per_class, strict=True)
        ],
        "max_dets": max_dets,
        "images": len(truth["images"]),
        "instances": sum(row["instances"] for row in segm.per_class),
        "predictions": len(results),
        "confusion": confusion.to_dict(),
        "backend": segm.backend,
    }


def _figures(metrics: CocoMetrics) -> dict[str, Any]:
    content = metrics.to_dict()
    return {key: content[key] for key in content if key not in ("per_class", "max_dets", "backend")}
