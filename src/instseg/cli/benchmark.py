"""`instseg benchmark`"""

from pathlib import Path
from typing import Annotated

import typer

from instseg.cli.options import Batch, Debug, Device, Model, Overrides, open_model


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def benchmark(
    model: Model,
    fields: Overrides = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="FILE",
            help="Image or folder to run on; the bundled images when left out.",
            show_default=False,
        ),
    ] = None,
    repeat: Annotated[int, typer.Option("--repeat", min=1, metavar="N", help="Timed passes over the images.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Also write the figures to this JSON file.", show_default=False),
    ] = None,
    device: Device = None,
    batch: Batch = 1,
    debug: Debug = False,
) -> None:
    """Time a model step by step: read, preprocess, network, decode, render, encode.

    Says what exactly was timed, on which machine, on which images, with how many objects; the first pass over
    the images is not timed. A zoo name has random weights: its network takes as long as a trained one, but it
    finds hardly an object, so decoding and rendering look cheaper than they are.

    **Examples**

    ```
    instseg benchmark nuclei
    instseg benchmark best.safetensors --source photos/ --batch 4 --device cuda
    instseg benchmark solov2_r50 --out r50.json
    ```
    """
    from instseg.apps.benchmark import benchmark as run
    from instseg.core.errors import ConfigError
    from instseg.core.files import make_writable

    if out is not None:
        make_writable(out.parent, ConfigError)  # now rather than after the work
    report = run(open_model(model, fields or (), device), source, batch=batch, repeat=repeat, say=_tell)
    typer.echo(report.text())
    if out is not None:
        report.save(out)
        typer.echo(f"figures written to {out}")
