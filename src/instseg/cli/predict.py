"""`instseg predict`"""

from pathlib import Path
from typing import Annotated

import typer

from instseg.cli.options import Batch, Debug, Device, Model, Out, Score, is_override, open_model


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
    device: Device = None,
    batch: Batch = 1,
    debug: Debug = False,
) -> None:
    """Segment images: overlays, COCO JSON and label images.

    predictions.json keeps every mask with a score of 0.05 or more, pictures and label images those of 0.25 or
    more; --score changes both. Everything goes into --out (runs/predict, runs/predict2, ... when left out).
    An image that cannot be read is named and left out, the others are finished, and the exit status is 1.

    **Examples**

    ```
    instseg predict nuclei cells.png
    instseg predict runs/train photos/ 'more/*.jpg' --out results --batch 4
    instseg predict best.safetensors val/images --annotations val.json
    instseg predict nuclei scan.tif --score 0.5 --no-overlays max_instances=1000
    ```
    """
    from instseg.infer.folders import results_folder
    from instseg.infer.run import predict_sources

    words = [word for word in sources if is_override(word)]
    with results_folder(out, "predict") as folder:
        summary = predict_sources(
            open_model(model, words, device),
            [source for source in sources if source not in words],
            folder,
            annotations=annotations,
            score=score,
            batch=batch,
            overlays=overlays,
            labels=labels,
        )
    typer.echo(summary.line())
    summary.raise_on_failures()
