"""`instseg predict`"""

from pathlib import Path
from typing import Annotated

import typer

from instseg.cli.options import MACHINE, Batch, Debug, Device, Model, Out, Score, is_override, open_model


def predict(
    model: Model,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Images, folders, globs, URLs, or - for an image on standard input; "
            "key=value sets a field of the model's configuration.",
        ),
    ],
    out: Out = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            "--annotations",
            metavar="FILE",
            help="Write a plain COCO results list under this file's own image and category ids.",
            show_default=False,
        ),
    ] = None,
    score: Score = None,
    overlays: Annotated[bool, typer.Option(help="Draw the masks into a copy of each image.")] = True,
    labels: Annotated[bool, typer.Option(help="Write a 16-bit label image each: 0 ground, 1, 2, ... objects.")] = True,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the unfinished run in --out, or the newest one in runs/predict*."),
    ] = False,
    device: Device = None,
    batch: Batch = 1,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            metavar="N",
            help="Threads that read images ahead; chosen from the cores when left out, 0 for none.",
            show_default=False,
            rich_help_panel=MACHINE,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Segment images: overlays, COCO JSON and label images.

    predictions.json keeps every mask with a score of 0.05 or more, pictures and label images those of 0.25 or
    more; --score changes both. Everything goes into --out (runs/predict, runs/predict2, ... when left out).
    An image that cannot be read is named and left out, the others are finished, and the exit status is 1.

    predictions.json can be read at any moment of the run. When the run is stopped, whatever stops it, the images that
    were finished are kept; the same call with --resume continues. Results of a finished run in --out are replaced.
    Overlays and label images are recognized in folders and globs, and are not predicted.

    **Examples**

    ```
    instseg predict nuclei cells.png
    instseg predict runs/train photos/ 'more/*.jpg' --out results --batch 4
    instseg predict runs/train photos/ 'more/*.jpg' --out results --batch 4 --resume
    instseg predict best.safetensors val/images --annotations val.json
    instseg predict nuclei scan.tif --score 0.5 --no-overlays max_instances=1000
    ```
    """
    from instseg.predict.predict_files import predict_sources

    words = [word for word in sources if is_override(word)]
    summary = predict_sources(
        lambda: open_model(model, words, device),
        [source for source in sources if source not in words],
        out,
        annotations=annotations,
        score=score,
        batch=batch,
        overlays=overlays,
        labels=labels,
        resume=resume,
        workers=workers,
    )
    for line in [*summary.notes(), summary.line()]:
        typer.echo(line)
    summary.raise_on_failures()
