"""What the zoo holds, in figures."""

from dataclasses import dataclass
from typing import Any

from instseg.core.errors import ConfigError, did_you_mean
from instseg.models import build_config, build_net, get_entry, list_models
from instseg.weights.catalogue import PublishedFile, published_for


@dataclass(frozen=True)
class ModelSummary:
    """One model of the zoo.

    Attributes:
        name: in the zoo.
        method: the method's own name.
        backbone: timm's name of the backbone.
        parameters: number of parameters, frozen ones included.
        trained: those that train with the stem and the first stage frozen, as published.
        macs: multiply-adds of the network for one image of ``input_size``, in convolutions and matrix products,
            without decoding, whose cost depends on what is found.
        dense_macs: the same with the masks of all cells, as the published code makes them; SOLO alone saves them.
        input_size: (height, width) the paper's figures are for, pixels.
        paper_ap: COCO val2017 mask AP that the authors state for it, None where they state none.
        config: its configuration fields.
        files: published checkpoints of it.
    """

    name: str
    method: str
    backbone: str
    parameters: int
    trained: int
    macs: int
    dense_macs: int
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


def summarise(name: str) -> ModelSummary:
    """Builds the network without memory for its weights and counts; takes a fraction of a second."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    entry = get_entry(name)
    config = build_config(name, {"frozen_stages": 1})
    height, width = entry.paper_input
    with torch.device("meta"):
        net: Any = build_net(name, config).eval()
        image = torch.empty(1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        outputs = net(image)
    with FlopCounterMode(display=False) as masks, torch.no_grad():
        if hasattr(net, "all_masks"):
            net.all_masks(outputs)
    macs = counter.get_total_flops() // 2
    return ModelSummary(
        name=name,
        method=entry.method,
        backbone=str(getattr(net.backbone, "timm_name", config.backbone)),
        parameters=sum(p.numel() for p in net.parameters()),
        trained=sum(p.numel() for p in net.parameters() if p.requires_grad),
        macs=macs,
        dense_macs=macs + masks.get_total_flops() // 2,
        input_size=entry.paper_input,
        paper_ap=entry.paper_ap,
        config=build_config(name, {}).model_dump(),
        files=published_for(name),
    )
