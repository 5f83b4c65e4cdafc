"""`instseg convert`"""

from pathlib import Path
from typing import Annotated

import typer

from instseg.cli.options import Debug


def convert(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A downloaded .pth, or a published name; see instseg models.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .safetensors file to write.")],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="The zoo's name it must fit; found when left out."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Half precision: half the size.")] = False,
    debug: Debug = False,
) -> None:
    """Turn a published checkpoint of the SOLO family into one of ours.

    Reads mmdetection 2 and 3, the authors' repositories of SOLO and SODAR (AggMask), and AdelaiDet. Tensors that have
    no place, or are missing, are listed and refused. Files are read as tensors only: no code in them is run.

    **Examples**

    ```
    instseg convert SOLOv2_R50_3x.pth --out solov2_r50.safetensors
    instseg convert solov2_r50_fpn_3x_coco.pth --model solov2_r50 --out solov2_r50.safetensors
    instseg val solov2_r50.safetensors path/to/coco
    ```
    """
    from instseg.weights.resolve import convert as write

    checkpoint = write(file, out, model, half)
    typer.echo(
        f"{checkpoint.model}, {len(checkpoint.categories)} classes, {len(checkpoint.state)} tensors "
        f"from {checkpoint.extra.get('source', 'instseg')}: {out}"
    )
