"""`instseg val`"""

from enum import StrEnum
from typing import Annotated, Any

import typer

from instseg.cli.options import (
    Batch,
    Crowd,
    CrowdChoice,
    Data,
    Debug,
    Device,
    Model,
    Out,
    Overrides,
    Workers,
    open_model,
)


class OnError(StrEnum):
    """What a defect does."""

    raise_ = "raise"
    skip = "skip"


class Match(StrEnum):
    """How classes are paired."""

    auto = "auto"
    names = "names"
    ids = "ids"


def val(
    model: Model,
    data: Data,
    fields: Overrides = None,
    split: Annotated[str, typer.Option("--split", help="The part of DATA to evaluate on.")] = "val",
    out: Out = None,
    max_dets: Annotated[
        int | None,
        typer.Option(
            "--max-dets",
            min=1,
            metavar="N",
            help="Objects that count per image; the model's own max_instances when left out.",
            show_default=False,
        ),
    ] = None,
    match: Annotated[
        Match, typer.Option("--match", help="Pair the classes of model and data by name or by category id.")
    ] = Match.auto,
    crowd: Crowd = CrowdChoice.auto,
    on_error: Annotated[
        OnError,
        typer.Option("--on-error", help="At a defect of DATA or an image that cannot be read: stop, or skip it."),
    ] = OnError.raise_,
    tta: Annotated[
        bool, typer.Option("--tta", help="Multi-scale testing: each image at 0.75, 1 and 1.25 of the input size.")
    ] = False,
    device: Device = None,
    batch: Batch = 1,
    workers: Workers = None,
    debug: Debug = False,
) -> None:
    """Measure a model: mask and box AP, per class and per size, as pycocotools computes them.

    Writes metrics.json, the results as COCO JSON, precision-recall curves and a confusion matrix into --out
    (runs/val, runs/val2, ... when left out). Of the data set from which a run held images out, because it has no
    validation split, those images are evaluated alone; --split train evaluates all.

    **Examples**

    ```
    instseg val nuclei nuclei-mini
    instseg val runs/train path/to/folder --split val
    instseg val coco path/to/coco --batch 4
    instseg val best.safetensors annotations/val.json --tta candidate_threshold=0.05
    ```
    """
    from instseg.cli.tables import metrics_table
    from instseg.core.environment import cores
    from instseg.core.folders import results_folder
    from instseg.evaluation.evaluate import evaluate

    with results_folder(out, "val") as folder:
        metrics = evaluate(
            open_model(model, fields or (), device),
            data,
            split=split,
            batch=batch,
            workers=cores() - 1 if workers is None else workers,
            out=folder,
            max_dets=max_dets,
            match=match.value,
            tta=tta,
            on_error=on_error.value,
            crowd=crowd.value,
        )
    typer.echo(metrics_table(metrics))
    for line in _notes(metrics, data):
        typer.echo(line)
    typer.echo(f"details and plots are in {folder}")


def _notes(metrics: dict[str, Any], data: str) -> list[str]:
    """What the figures do not show."""
    lines = []
    held = metrics.get("held_out")
    if held:
        lines.append(
            f"evaluated on the {held['images']} of {held['of']} images of {data} that the run held out; it was trained "
            "on the others"
        )
    classes = metrics.get("classes", {})
    if classes.get("only_in_data"):
        lines.append(f"classes that the model does not know, counted as AP 0: {_some(classes['only_in_data'])}")
    if classes.get("only_in_model"):
        lines.append(f"classes that the data does not have, left out: {_some(classes['only_in_model'])}")
    return lines


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f", ... {len(names)} in all" if len(names) > 10 else "")
