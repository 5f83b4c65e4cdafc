"""Whether a checkpoint holds the tensors of a network, and a network that takes them as they are."""

from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from instseg.core.errors import CheckpointError
from instseg.models.base import Net
from instseg.models.config import ModelConfig
from instseg.models.zoo import build_net
from instseg.weights.checkpoint import Checkpoint


def outline(checkpoint: Checkpoint, config: ModelConfig) -> Net[Any]:
    """The network that a checkpoint describes, with shapes and without memory for its tensors.

    Raises:
        CheckpointError: it cannot be built, or the checkpoint does not hold its tensors.
    """
    try:
        with torch.device("meta"):
            net = build_net(checkpoint.model, config)
    except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{checkpoint.where} describes a network that cannot be built ({reason}): it is damaged."
        ) from None
    check_fit(checkpoint, net.state_dict(), checkpoint.state, checkpoint.model, config)
    return net


def filled(checkpoint: Checkpoint, config: ModelConfig) -> Net[Any]:
    """The network of a checkpoint with its tensors, built once. Raises as :func:`outline`."""
    net = outline(checkpoint, config)  # before memory is taken for what the configuration says
    wanted = net.state_dict()
    state = {
        key: value.to(wanted[key].dtype, copy=True, memory_format=torch.contiguous_format)  # of a file that may change
        for key, value in checkpoint.state.items()
    }
    net.load_state_dict(state, assign=True)
    if any(tensor.is_meta for tensor in chain(net.parameters(), net.buffers())):  # those that no checkpoint holds
        net = build_net(checkpoint.model, config)
        net.load_state_dict(state)
    return net


def check_fit(
    checkpoint: Checkpoint, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str, config: ModelConfig
) -> None:
    """Raises CheckpointError where ``state``, from a checkpoint, does not hold what a network has.

    Args:
        checkpoint: which the error names.
        wanted: the tensors of the network.
        state: those for it.
        name: of the network in the zoo.
        config: of the network.
    """
    wrong = [k for k, value in wanted.items() if k in state and state[k].shape != value.shape]
    missing, unknown = [k for k in wanted if k not in state], [k for k in state if k not in wanted]
    if not (missing or unknown or wrong):
        return
    first = (wrong + missing + unknown)[0]
    advice = "it is damaged" if name == checkpoint.model else f"use instseg.load, or --model {checkpoint.model}"
    raise CheckpointError(
        f"{checkpoint.where} is a checkpoint of {checkpoint.model} (backbone {checkpoint.config.get('backbone')}) and "
        f"does not fit {name} (backbone {config.backbone}): {len(missing)} tensors missing, {len(unknown)} unknown, "
        f"{len(wrong)} of another shape, first {first[:100]}: {advice}."
    )


def parts_of(net: nn.Module, keys: Collection[str]) -> list[str]:
    """The names of the largest modules of a network all of whose tensors are among ``keys``, and of single tensors."""

    def within(prefix: str, module: nn.Module) -> list[str]:
        names = [prefix + key for key in module.state_dict()]
        if prefix and names and all(name in keys for name in names):
            return [prefix[:-1]]
        children = dict(module.named_children())
        inner = [part for name, child in children.items() for part in within(f"{prefix}{name}.", child)]
        own = (name for name in names if name[len(prefix) :].split(".")[0] not in children)
        return inner + [name for name in own if name in keys]

    return within("", net)
