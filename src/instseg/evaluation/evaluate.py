"""`instseg val`: mask and box AP of a model on a data set."""

from __future__ import annotations

import copy
import time
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from instseg.core.category_matching import ClassMatch, Match, match_categories
from instseg.core.environment import pick_device
from instseg.core.errors import CheckpointError, ConfigError, DataError
from instseg.core.files import make_writable
from instseg.evaluation.best import best_of
from instseg.evaluation.collect import Share, collect_results, collect_together, joined
from instseg.metrics.coco import CocoMetrics, evaluate_coco
from instseg.metrics.confusion import confusion_matrix

if TYPE_CHECKING:
    from instseg.data.crowds import Crowd
    from instseg.data.dataset import InstanceDataset, OnError
    from instseg.data.workers import Reader
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
    share: Share | None = None,
    reader: Reader | None = None,
) -> dict[str, Any]:
    """Mask and box AP of a model, COCO protocol, every image counted, also those without objects.

    Boxes are those of the predicted masks, or the model's own where it predicts boxes; a detector of boxes has no mask
    AP. Memory grows with the number of objects found, as run-length codes, and not
    with the size or number of images.

    Args:
        model: a model, or what names one (zoo name, file, run folder, ``nuclei``, ``coco``).
        data: a data set, or what names one. Of the data set from which a run held images out, as it does where there is
            no validation split, the images held out are evaluated alone, unless ``split`` is ``"train"``.
        split: the part of ``data`` that is read.
        batch: images a forward pass, at most; only those of one padded size share it.
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
        share: of this process, where several evaluate together.
        reader: of the images of ``data``, a data set that is evaluated again and again (:func:`image_reader`).

    Returns:
        the content of ``metrics.json`` (in another process than the first, nothing): ``segm``, for a model of masks,
        and ``bbox`` (figures of :class:`CocoMetrics`), ``best`` (the figure that chooses among the weights of a run:
        its name, value and direction), ``per_class`` (both together), ``max_dets``, ``classes`` (how they were paired,
        and which exist on one side only), ``held_out`` (None, or how many images of how many were evaluated because
        the run did not see them), ``confusion``, counts and seconds.

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
    how: dict[str, Any] = {"batch": batch, "workers": workers, "progress": progress, "tta": tta, "reader": reader}
    parts = collect_together(model, dataset, classes.ids, share=share, **how)
    if share is not None and share.index:
        return {}
    results, skipped, masks = joined(parts, dataset)
    predicted = time.perf_counter()
    truth = without_images(ground_truth(dataset), skipped)
    report = score_results(truth, results, cap, out=None if out is None else Path(out), masks=masks)
    if (more := dataset.left_out_line()) not in (None, left_out):  # found only while reading
        warnings.warn(f"{more}; `instseg data check` lists them", stacklevel=2)
    report |= {
        "model": model.name,
        "data": dataset.name,
        "split": dataset.split,
        "held_out": held,
        "skipped_images": len(skipped),
        "classes": _paired(classes),
        "seconds": {"predict": predicted - started, "metrics": time.perf_counter() - predicted},
    }
    if out is not None:
        _write(report, Path(out))
    return report


def _paired(classes: ClassMatch) -> dict[str, Any]:
    """How the classes were paired, and which exist on one side only."""
    return {
        "matched_by": classes.by,
        "only_in_model": list(classes.only_model),
        "only_in_data": list(classes.only_data),
    }


def _write(report: dict[str, Any], out: Path) -> None:
    from instseg.results.writers import write_json

    write_json(out / "metrics.json", report, indent=2)


def _open(
    model: InstanceModel, data: str | Path, split: str, on_error: OnError, crowd: Crowd
) -> tuple[InstanceDataset, dict[str, int] | None]:
    """The data set to evaluate on, and how many images of how many it holds where a run held them out."""
    from instseg.data.holdout import KEY, held_out
    from instseg.data.open import open_dataset

    record = model.extra.get(KEY)
    part = split if not record or _has_split(data, split) else "train"
    dataset = open_dataset(data, part, on_error=on_error, crowd=crowd, needs=model.net.needs)
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
    from instseg.data.formats.layout import locate
    from instseg.data.open import data_path

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
    *,
    masks: bool | None = None,
) -> dict[str, Any]:
    """Mask and box figures of COCO results, and how classes are confused.

    Args:
        truth: a COCO data set.
        results: rows with ``segmentation``, ``bbox`` or both. A box that is missing is that of the mask.
        max_dets: detections that count per image and class.
        out: a folder for ``results.json`` and ``plots/``.
        masks: whether masks were predicted; None: where a row has one, or there are no rows.

    Returns:
        ``segm`` (where there are masks), ``bbox``, ``best`` (the figure that chooses among the weights of a run: its
        name, value and direction), ``per_class``, ``confusion``, ``max_dets``, and the numbers of images, objects and
        predictions.
    """
    if masks is None:
        masks = not results or any("segmentation" in row for row in results)
    shapes = [row for row in results if "segmentation" in row]
    segm = evaluate_coco(truth, shapes, "segm", max_dets) if masks else None
    bbox = evaluate_coco(truth, results, "bbox", max_dets)
    first = bbox if segm is None else segm
    confusion = confusion_matrix(truth, results if segm is None else shapes, kind=first.kind)
    if out is not None:
        from instseg.results.writers import write_results
        from instseg.vis.plots import plot_confusion, plot_precision_recall

        # With a box, COCO evaluators would split the sizes of masks by the box.
        write_results(out / "results.json", results if segm is None else [_without_box(row) for row in shapes])
        curves = {f"IoU {iou:.2f}": first.curve(iou) for iou in (0.5, 0.75, 0.9)}
        curves["mean of .50:.95"] = first.curve(None)
        noun = "boxes" if segm is None else "masks"
        plot_precision_recall(curves, out / "plots" / "precision_recall.png", f"Precision and recall of {noun}")
        title = f"Confusion at IoU {confusion.iou:g}, score {confusion.score:g}"
        plot_confusion(confusion.matrix, confusion.names, out / "plots" / "confusion.png", title)
    figures: dict[str, dict[str, Any]] = {kind.kind: _figures(kind) for kind in (segm, bbox) if kind is not None}
    return {
        **figures,
        "best": best_of(figures.get("segm"), figures["bbox"]).to_json(),
        "per_class": _per_class(segm, bbox),
        "max_dets": max_dets,
        "images": len(truth["images"]),
        "instances": sum(row["instances"] for row in first.per_class),
        "predictions": len(results),
        "confusion": confusion.to_dict(),
        "backend": first.backend,
    }


def _without_box(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "bbox"}


def _per_class(segm: CocoMetrics | None, bbox: CocoMetrics) -> list[dict[str, Any]]:
    """The figures of masks under their own names, those of boxes as ``box_...``."""
    if segm is None:
        ours = ("ap", "ap50", "ap75", "ar")
        return [{f"box_{k}" if k in ours else k: v for k, v in row.items()} for row in bbox.per_class]
    return [
        row | {"box_ap": box["ap"], "box_ap50": box["ap50"]}
        for row, box in zip(segm.per_class, bbox.per_class, strict=True)
    ]


def _figures(metrics: CocoMetrics) -> dict[str, Any]:
    content = metrics.to_dict()
    return {key: content[key] for key in content if key not in ("per_class", "max_dets", "backend")}
