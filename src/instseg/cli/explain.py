"""`instseg explain`"""

from typing import Annotated

import typer

from instseg.cli.options import Debug, Device, Model, Out, Overrides, open_model


def explain(
    model: Model,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image, a URL, or - for standard input.")],
    overrides: Overrides = None,
    objects: Annotated[
        list[int] | None,
        typer.Option(
            "--object",
            min=1,
            metavar="N",
            help="An object by its number, best first; may be repeated. The three best when left out.",
            show_default=False,
        ),
    ] = None,
    score: Annotated[
        float, typer.Option("--score", min=0.0, max=1.0, metavar="S", help="Objects below it are not counted.")
    ] = 0.25,
    out: Out = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Show how a SODAR model makes a mask from neighboring representations.

    One picture an object. Upper row: the image with the gathered cells, which are squares between the grid's cells
    where neighbors are deformable; their raw representations; the context. Lower row: the mask, and what each of
    these inputs adds to it (red) or takes from it (blue).

    **Examples**

    ```
    instseg explain runs/train street.jpg
    instseg explain best.safetensors cells.png --object 1 --object 7 --out why
    ```
    """
    from instseg.apps.explain import explain_image, write_explanations
    from instseg.core.folders import results_folder

    with results_folder(out, "explain") as folder:
        net = open_model(model, overrides or [], device)
        found = explain_image(net, image, objects, score=score)
        paths = write_explanations(net, image, found, folder)
    for item, path in zip(found, paths, strict=True):
        typer.echo(f"object {item.number}: {net.categories[item.label]} {item.score:.2f} -> {path}")
