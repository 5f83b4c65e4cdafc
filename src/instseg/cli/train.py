"""`instseg train`"""

from pathlib import Path
from typing import Annotated

import typer

from instseg.cli.options import MACHINE, Data, Debug, Device, Workers, parse_overrides

Fields = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Fields of the recipe or of the model's configuration; they win over --config.",
        show_default=False,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="A zoo name, see `instseg models`; the recipe's, or with --weights the checkpoint's, when left out.",
        show_default=False,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split", metavar="NAME", help="The part of DATA to train on; train when left out.", show_default=False
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="The run folder itself; runs/train, runs/train2, ... when left out.",
        show_default=False,
    ),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="A recipe: a YAML file or the name of one that comes with instseg; fine-tuning when left out.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Start from a checkpoint: .safetensors or a published .pth, a run folder, a published name, or `nuclei`.",
        show_default=False,
    ),
]
StepBatch = Annotated[
    int | None,
    typer.Option(
        "--batch",
        min=1,
        metavar="N",
        help="Images a process and forward pass; the recipe's when left out.",
        show_default=False,
        rich_help_panel=MACHINE,
    ),
]


def train(
    data: Data,
    fields: Fields = None,
    model: Name = None,
    out: RunFolder = None,
    config: Config = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in --out where it stopped, as if it had not.")
    ] = False,
    weights: Weights = None,
    split: Split = None,
    device: Device = None,
    batch: StepBatch = None,
    workers: Workers = None,
    debug: Debug = False,
) -> None:
    """Train a model on a data set, or resume a run that was stopped.

    The run folder holds best.safetensors, last.safetensors, last.ckpt (for --resume), config.yaml,
    metrics.csv, plots/ and log.txt. On several GPUs: `accelerate launch -m instseg train ...`

    Data without a validation split has a tenth of its images held out to evaluate on (val_split=0.1; the run's
    split.json names them). Ctrl-C, SIGTERM and SIGHUP save and stop, with exit status 130.

    **Examples**

    ```
    instseg train path/to/folder --model solov2_tiny_r18
    instseg train shapes --model solov2_tiny_r18 epochs=3 seed=7 --out runs/a
    instseg train shapes --model solov2_tiny_r18 epochs=3 seed=7 --out runs/a --resume
    instseg train coco/ --model solov2_r50 --config solov2_3x --batch 16
    instseg train shapes --out runs/a epochs=5 --resume
    instseg train cells.json --weights nuclei lr=1e-4 on_error=skip
    instseg train street.json val_split=0.2 classes=[car,person] crowd=ignore
    ```
    """
    overrides = parse_overrides(fields or ())

    from instseg.training.guards import TrainingInterrupted
    from instseg.training.run import train as run

    try:
        run(
            data,
            model,
            out=out,
            config=config,
            resume=resume,
            weights=weights,
            device=device,
            workers=workers,
            batch=batch,
            overrides=overrides,
            split=split,
        )
    except TrainingInterrupted as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
