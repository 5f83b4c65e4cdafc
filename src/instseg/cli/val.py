"""`instseg val`"""

from enum import StrEnum
from typing import Annotated

import typer

from instseg.cli.options import Batch, Data, Debug, Device, Model, Out, Overrides, Workers, open_model


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
    (runs/val, runs/val2, ... when left out).

    **Examples**

    ```
    instseg val nuclei nuclei-mini
    instseg val runs/train path/to/folder --split val
    instseg val runs/train path/to/folder --tta
    instseg val best.safetensors annotations/val.json --batch 8 score_threshold=0.05
    ```
    """
    from instseg.cli.tables import metrics_table
    from instseg.infer.environment import cores
    from instseg.infer.evaluate import evaluate
    from instseg.infer.folders import free_folder

    folder = out or free_folder("val")
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
    )
    typer.echo(metrics_table(metrics))
    typer.echo(f"details and plots are in {folder}")
