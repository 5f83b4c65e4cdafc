"""`instseg val`: mask and box AP of a model on a data set."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from instseg.core.errors import DataError
from instseg.core.meta import Categories
from instseg.data.workers import batches_of
from instseg.infer.classes import Match, match_categories
from instseg.infer.environment import pick_device
from instseg.infer.prediction import coco_rows
from instseg.infer.progress import progress_bar
from instseg.infer.tta import multi_scale
from instseg.metrics.coco import CocoMetrics, evaluate_coco
from instseg.metrics.confusion import confusion_matrix

if TYPE_CHECKING:
    from instseg.data.dataset import InstanceDataset
    from instseg.infer.model import InstanceModel

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
) -> dict[str, Any]:
    """Mask and box AP of a model, COCO protocol, every image counted, also those without objects.

    model: a model, or what names one (zoo name, .safetensors, run folder, `nuclei`).
    data: a data set, or what names one; `split` is the part of it that is read.
    batch: images a forward pass; workers: processes that read images (0: this one).
    device: where to compute; None leaves a given model where it is, and picks the fastest device for a named
    one. out: a folder for `metrics.json`, `results.json` (COCO results, which pycocotools scores the same)
    and `plots/`. max_dets: detections that count per image and class; None takes the model's own cap,
    `config.max_instances`. match: how classes are paired, see :func:`instseg.infer.classes.match_categories`.
    tta: multi-scale testing, see :func:`instseg.infer.tta.predict_scales`.

    Returns the content of `metrics.json`: `segm` and `bbox` (figures of :class:`CocoMetrics`), `per_class`
    (both together), `max_dets`, `classes` (how they were paired, and which exist on one side only),
    `confusion`, counts and seconds. Boxes are those of the predicted masks. Memory grows with the number of
    objects found, as run-length codes, and not with the size or number of images.

    Raises DataError when no class is common to model and data, or an image cannot be read or is not of the size
    that its annotations are for; CheckpointError for a model with random weights.
    """
    from instseg.data.dataset import ground_truth, open_dataset
    from instseg.infer.model import require_weights, resolve_model

    if isinstance(model, str | Path) or device is not None:
        model = resolve_model(model, str(pick_device(None if device is None else str(device))))
    require_weights(model)
    dataset = open_dataset(data, split=split) if isinstance(data, str | Path) else data
    classes = match_categories(Categories(model.categories, model.category_ids), dataset.categories, match)
    cap = int(model.config.max_instances) if max_dets is None else max_dets
    started = time.perf_counter()
    with multi_scale(model) if tta else nullcontext():
        results, skipped = collect_results(model, dataset, classes.ids, batch=batch, workers=workers, progress=progress)
    predicted = time.perf_counter()
    truth = without_images(ground_truth(dataset), skipped)
    report = score_results(truth, results, cap, out=None if out is None else Path(out))
    report |= {
        "model": model.name,
        "data": dataset.name,
        "split": dataset.split,
        "skipped_images": len(skipped),
        "classes": {
            "matched_by": classes.by,
            "only_in_model": list(classes.only_model),
            "only_in_data": list(classes.only_data),
        },
        "seconds": {"predict": predicted - started, "metrics": time.perf_counter() - predicted},
    }
    if out is not None:
        from instseg.infer.writers import write_json

        write_json(Path(out) / "metrics.json", report, indent=2)
    return report


def collect_results(
    model: InstanceModel,
    dataset: InstanceDataset,
    category_ids: Sequence[int | None],
    *,
    batch: int = 1,
    workers: int = 0,
    progress: bool = False,
) -> tuple[list[dict[str, Any]], list[int]]:
    """COCO results of a whole data set, and the ids of the images that could not be read.

    category_ids: what each label is written as; None leaves its objects out.

    An unreadable image raises its DataError, or is left out with one warning when the data set was opened
    with `on_error="skip"`. The model comes back in the modes (training or not, module by module) that it was
    given in, and the global random state is not touched, so that a training run evaluates without changing
    its course.
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
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with closing(batches_of(loader)) as batches:
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
                results += _predict(model, images, ids, category_ids)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if unread:
        warnings.warn(f"{len(unread)} images cannot be read and do not count; first: {unread[0]}", stacklevel=3)
    return results, skipped


def _predict(
    model: InstanceModel, images: list[Tensor], ids: list[int], category_ids: Sequence[int | None]
) -> list[dict[str, Any]]:
    if not images:
        return []
    # not inference_mode: a tensor that the model caches here would later refuse to take part in training
    with torch.no_grad():
        found = model.predict_batch(images)
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
        from instseg.infer.writers import write_results
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
