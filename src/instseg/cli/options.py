"""Options that several verbs share, and the reading of `key=value`."""

import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from instseg.model.instance_model import InstanceModel

MACHINE = "Machine"

Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback when something goes wrong.")]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda, cuda:1 or mps; the fastest one present when left out.",
        show_default=False,
        rich_help_panel=MACHINE,
    ),
]
Batch = Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Images in one pass.", rich_help_panel=MACHINE)]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        metavar="N",
        help="Processes that load images; chosen from the cores when left out, 0 loads in the main process.",
        show_default=False,
        rich_help_panel=MACHINE,
    ),
]
Score = Annotated[
    float | None,
    typer.Option("--score", min=0.0, max=1.0, metavar="S", help="Least score.", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder for the results.", show_default=False),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="`coco` (photographs, downloaded once), `nuclei` (microscopy, bundled), a run folder, a checkpoint "
        "(.safetensors or published .pth), a published name, or a zoo name.",
    ),
]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder in a known layout, a COCO JSON, a data YAML, or built in: `shapes`, `nuclei-mini`.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Fields of the model's configuration.", show_default=False),
]


class CrowdChoice(StrEnum):
    """What ``iscrowd`` in an annotation file means."""

    auto = "auto"
    ignore = "ignore"
    object = "object"


Crowd = Annotated[
    CrowdChoice,
    typer.Option("--crowd", help="What iscrowd marks: crowds to ignore, objects, or whichever the file shows (auto)."),
]

_FIELD = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*=")


def is_override(word: str) -> bool:
    """True for a word of the form `key=value` that is not the name of a file."""
    return _FIELD.match(word) is not None and not Path(word).exists()


def parse_overrides(words: Iterable[str]) -> dict[str, str]:
    """`["epochs=3", "betas=[0.9, 0.99]"]` -> `{"epochs": "3", "betas": "[0.9, 0.99]"}`.

    Raises typer.BadParameter (exit status 2) for a word that is not `key=value`.
    """
    fields = {}
    for word in words:
        if _FIELD.match(word) is None:
            raise typer.BadParameter(f'"{word}" is not of the form key=value, as in epochs=3')
        key, _, text = word.partition("=")
        fields[key] = text
    return fields


def open_model(name: str, words: Iterable[str], device: str | None) -> "InstanceModel":
    """The model that the user named, with `key=value` laid over its configuration, on the device asked for."""
    fields = parse_overrides(words)

    from instseg.core.environment import pick_device
    from instseg.core.values import parsed
    from instseg.model.load import resolve_model

    return resolve_model(name, str(pick_device(device)), parsed(fields))
