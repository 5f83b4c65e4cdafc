"""`instseg models`"""

from typing import Annotated

import typer

from instseg.cli.options import Debug


def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A model, or a pattern as in `*light*`.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """List the models: method, backbone, parameters, multiply-adds at the paper's input size, the paper's AP.

    With the name of one model: everything about it, its configuration fields included. With coco or another published
    checkpoint: what it is, where it comes from, and whether it is here already.

    **Examples**

    ```
    instseg models
    instseg models '*light*'
    instseg models solov2_r50
    instseg models coco
    ```
    """
    from instseg.apps.zoo import find_models, recorded_counts, summarize
    from instseg.cli.tables import file_page, model_page, models_table
    from instseg.weights.catalogue import CATALOGUE

    if name in CATALOGUE:
        typer.echo(file_page(name, CATALOGUE[name]))
        return
    found = find_models(name or "*")
    if name in found:
        typer.echo(model_page(summarize(name)))
    else:
        counts = recorded_counts()
        typer.echo(models_table([summarize(each, counts.get(each)) for each in found]))
