"""What the zoo holds, in figures."""

import json
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from instseg.core.errors import ConfigError, did_you_mean
from instseg.models.base import Counted, ImageBatch
from instseg.models.zoo import build_config, build_net, get_entry, list_models
from instseg.nn.backbone import SHORT_NAMES
from instseg.weights.catalogue import PublishedFile, published_for


@dataclass(frozen=True)
class Counts:
    """Size and cost of a network at the input size of its zoo entry.

    Attributes:
        parameters: all of them.
        trained: those that train with the stem and the first stage frozen, as published.
        macs: multiply-adds for one image, in convolutions and matrix products, without decoding, whose cost depends
            on what is found.
        dense_macs: the same as the published code computes it, with the maps of all cells; SOLO and SODAR save some.
    """

    parameters: int
    trained: int
    macs: int
    dense_macs: int


@dataclass(frozen=True)
class ModelSummary:
    """One model of the zoo.

    Attributes:
        name: in the zoo.
        method: the method's own name.
        backbone: timm's name of the backbone.
        counts: its size and cost.
        input_size: (height, width) that operations are counted for, pixels.
        paper_ap: COCO val2017 mask AP that the authors state for it, None where they state none.
        config: its configuration fields.
        files: published checkpoints of it.
    """

    name: str
    method: str
    backbone: str
    counts: Counts
    input_size: tuple[int, int]
    paper_ap: float | None
    config: dict[str, Any]
    files: list[PublishedFile]


def find_models(pattern: str) -> list[str]:
    """Names that equal or match ``pattern``. Raises ConfigError, with the nearest name, when there is none."""
    found = list_models(pattern)
    if not found:
        known = list_models()
        raise ConfigError(f'the zoo has no model "{pattern}".{did_you_mean(pattern, known)} It has {", ".join(known)}.')
    return found


def count(name: str) -> Counts:
    """Builds the network without memory for its weights and counts with ``torch.utils.flop_counter``; takes about
    half a second."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    height, width = get_entry(name).paper_input
    with torch.device("meta"):
        net = build_net(name, build_config(name, {"frozen_stages": 1})).eval()
        batch = ImageBatch.of(torch.empty(1, 3, height + -height % net.stride, width + -width % net.stride))
    macs = []  # ours, and as published where that differs
    for forward in (net, net.as_published) if isinstance(net, Counted) else (net,):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward(batch)
        macs.append(counter.get_total_flops() // 2)  # it counts two operations a multiply-add
    return Counts(
        parameters=sum(p.numel() for p in net.parameters()),
        trained=sum(p.numel() for p in net.parameters() if p.requires_grad),
        macs=macs[0],
        dense_macs=macs[-1],
    )


def recorded_counts() -> dict[str, Counts]:
    """What :func:`count` returned for every name when the package was made: a list of them all takes no time."""
    text = resources.files("instseg").joinpath("assets", "zoo.json").read_text(encoding="utf-8")
    return {name: Counts(**counts) for name, counts in json.loads(text).items()}


def record_counts() -> str:
    """The content of the file that :func:`recorded_counts` reads, counted again."""
    lines = [f"{json.dumps(name)}: {json.dumps(asdict(count(name)))}" for name in list_models()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def summarize(name: str, counts: Counts | None = None) -> ModelSummary:
    """Everything about a model; counted again where ``counts`` are not given."""
    entry, config = get_entry(name), build_config(name, {})
    return ModelSummary(
        name=name,
        method=entry.method,
        backbone=SHORT_NAMES.get(config.backbone, config.backbone),
        counts=counts or count(name),
        input_size=entry.paper_input,
        paper_ap=entry.paper_ap,
        config=config.model_dump(),
        files=published_for(name),
    )
