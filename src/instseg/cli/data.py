"""`instseg data check`"""

from pathlib import Path
from typing import Annotated

import typer

from instseg.cli.options import Crowd, CrowdChoice, Data, Debug

app = typer.Typer(
    help="Look at a data set before training on it.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback()
def _group() -> None:
    """Look at a data set before training on it."""


@app.command("check")
def check(
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Also write statistics, plots and pictures here.", show_default=False
        ),
    ] = None,
    crowd: Crowd = CrowdChoice.auto,
    debug: Debug = False,
) -> None:
    """Find everything in a data set that training would refuse or stumble over, and count what is in it.

    Every problem comes with its file and record. The exit status is 1 when there is one that `train` would
    refuse.

    **Examples**

    ```
    instseg data check path/to/folder
    instseg data check annotations/train.json --out runs/check
    instseg data check shapes
    ```
    """
    from instseg.core.progress import progress_bar
    from instseg.inspect.check import check_dataset

    report = check_dataset(
        data,
        out,
        track=lambda records, total: progress_bar(records, "reading images", total),
        crowd=crowd.value,
    )
    typer.echo(report.text())
    if out is not None:
        typer.echo(f"statistics, plots and pictures are in {out}")
    if not report.ok:
        raise typer.Exit(1)
