"""`instseg demo`"""

from pathlib import Path
from typing import Annotated

import typer

from instseg.cli.options import Debug, Device


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for everything it writes.")] = Path(
        "instseg-demo"
    ),
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Segment bundled microscopy images with the bundled model: offline, in under a minute.

    Writes overlays, COCO results, label images and an HTML report, and prints the AP against the bundled
    ground truth.

    **Examples**

    ```
    instseg demo
    instseg demo --out nuclei
    ```
    """
    from instseg.apps.demo import run_demo

    run_demo(out=out, device=device)
