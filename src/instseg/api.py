"""The package's verbs, as ``instseg.create_model``, ``instseg.train`` and ``instseg.evaluate``."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from instseg.model import load as _model

if TYPE_CHECKING:
    from instseg.model.instance_model import InstanceModel


def create_model(
    name: str,
    num_classes: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    backbone_weights: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> "InstanceModel":
    """A model of the zoo, in training mode.

    Args:
        name: one of ``instseg.list_models()``.
        num_classes: number of classes; by default that of ``weights``, else 80.
        weights: a file that ``model.save`` or a training run wrote, a published ``.pth`` of another code base, or
            the name of one; its configuration is used, too, and with it what was frozen in its training. Classes that
            it does not know start new, and so does what the model adds to that of the checkpoint, as SODAR does to
            SOLO. None: random weights.
        backbone_weights: ``"imagenet"`` (through timm), a file, ``"auto"`` (ImageNet where cached or reachable
            within seconds), or None. With backbone weights the stem and the first stage are frozen and batch norms
            keep their statistics, as published; without, everything trains.
        overrides: fields of the method's configuration, such as ``grids`` or ``max_instances``.

    Raises:
        ConfigError: unknown name or field (the error names the nearest), or an impossible value.
        CheckpointError: weights that are missing, unreadable or of another model.
    """
    return _model.create_model(name, num_classes, weights, backbone_weights, overrides)


def train(
    data: str | os.PathLike[str],
    model: str | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    resume: bool = False,
    weights: str | os.PathLike[str] | None = None,
    device: str | None = None,
    workers: int | None = None,
    batch: int | None = None,
    split: str | None = None,
    progress: bool = True,
    overrides: Mapping[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """``instseg train``: trains a model on a data set and keeps everything in a run folder.

    Args:
        data: a folder in a known layout, a COCO JSON, a data YAML, ``"shapes"`` or ``"nuclei-mini"``.
        model: name of the zoo; by default the recipe's.
        out: the run folder; by default the next free one in ``runs/``.
        config: a recipe, by name or path; by default ``finetune``.
        resume: resume the run in ``out``.
        weights: a checkpoint to start from.
        device, workers, batch, split: as the recipe's fields; None takes what the recipe says.
        progress: show lines and a progress bar.
        overrides, fields: fields of the recipe or of the model's configuration, as a dictionary or by name, for example
            ``epochs=20``, ``val_split=0.2`` or ``classes=["car", "person"]``.

    Returns:
        ``folder``, ``epochs``, ``best_ap``, ``best_epoch``, and ``last``, the last row of ``metrics.csv``.

    Raises:
        InstsegError: anything a user can fix: an unknown field, unusable data, a torn checkpoint, a loss that is not a
            number; also, after saving, a stop by Ctrl-C, SIGTERM or SIGHUP.
    """
    from pathlib import Path

    from instseg.training.run import train as run

    return run(
        str(data),
        model,
        out=None if out is None else Path(out),
        config=None if config is None else Path(config),
        resume=resume,
        weights=None if weights is None else Path(weights),
        device=device,
        workers=workers,
        batch=batch,
        overrides={**(overrides or {}), **fields},
        split=split,
        progress=progress,
    )


def evaluate(
    model: "InstanceModel | str | os.PathLike[str]",
    data: Any,
    *,
    split: str = "val",
    batch: int = 1,
    workers: int = 0,
    device: str | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    tta: bool = False,
    max_dets: int | None = None,
    match: Literal["auto", "names", "ids"] = "auto",
    on_error: Literal["raise", "skip"] = "raise",
    crowd: Literal["auto", "ignore", "object"] = "auto",
) -> dict[str, Any]:
    """``instseg val``: mask and box AP of a model on a data set, as pycocotools computes them.

    Args:
        model: a model, a name of the zoo, a checkpoint, a run folder, a published name, ``"coco"`` or ``"nuclei"``.
        data: a data set, or what names one, as in :func:`train`. Of a data set from which the model's run held images
            out, those are evaluated alone.
        split: the part of the data that is read.
        batch: images a forward pass, at most; only those of one padded size share it.
        workers: processes that read images.
        device: where to compute; None leaves a given model where it is and picks the fastest for a named one.
        out: a folder for ``metrics.json``, ``results.json`` and plots.
        progress: show a progress bar.
        tta: multi-scale testing: each image at 0.75, 1 and 1.25 of the model's input size.
        max_dets: detections that count per image and class; None takes the model's own cap.
        match: how classes are paired: by name, by category id, or by id only where names say nothing (``"auto"``).
        on_error: what a defect of the data does: ``"raise"``, or ``"skip"`` it with a warning.
        crowd: what ``iscrowd`` marks; see docs/decisions/crowds.md.

    Returns:
        the content of ``metrics.json``: ``segm`` and ``bbox`` figures, ``per_class``, ``max_dets`` and more.

    Raises:
        InstsegError: no class in common between model and data, an unreadable image, missing weights.
    """
    from pathlib import Path

    from instseg.evaluation.evaluate import evaluate as run

    named = model if not isinstance(model, os.PathLike) else Path(model)
    return run(
        named,
        data,
        split=split,
        batch=batch,
        workers=workers,
        device=device,
        out=None if out is None else Path(out),
        progress=progress,
        tta=tta,
        max_dets=max_dets,
        match=match,
        on_error=on_error,
        crowd=crowd,
    )
