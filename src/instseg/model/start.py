"""What a network takes over from a checkpoint: all of it, or what the classes and the method have in common."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from instseg.core.category_matching import pair_names, say_nothing
from instseg.core.errors import CheckpointError
from instseg.models.config import ModelConfig
from instseg.models.zoo import build_net, extends
from instseg.weights.checkpoint import Checkpoint

Shapes = dict[str, torch.Size]


def check_fit(checkpoint: Checkpoint, config: ModelConfig, where: str) -> None:
    """Raises CheckpointError when the network that a checkpoint describes is not the one whose tensors it holds."""
    try:
        wanted = shapes_of(checkpoint.model, config)
    except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{where} describes a network that cannot be built ({reason}): it is damaged.") from None
    _refuse(_differences(wanted, checkpoint.state), checkpoint, checkpoint.model, config, where)


def fill(
    net: nn.Module,
    name: str,
    config: ModelConfig,
    classes: Sequence[str] | None,
    checkpoint: Checkpoint,
    where: str,
) -> None:
    """Fills a new network from a checkpoint; a warning says which parts keep their initial values.

    The weights of a class are taken over where both sides have a class of that name. Where one side's names say nothing
    they are all taken over if there are as many, and none otherwise. What a method adds to the checkpoint's starts new.

    Args:
        net: with its initial values.
        name: in the zoo.
        config: of ``net``.
        classes: the names of its labels; None where nobody has named them.
        checkpoint: what to fill it from.
        where: what the user calls the checkpoint.

    Raises:
        CheckpointError: it is of another model.
    """
    wanted = net.state_dict()
    state = dict(checkpoint.state)
    old, new = checkpoint.categories.names, classes
    kept = _kept_rows(old, new, config.num_classes)
    if kept is not None:
        parts = _class_parts(name, config)
        for key in parts:
            if key in state and state[key].shape[1:] == wanted[key].shape[1:]:
                state[key] = _with_rows(state[key], wanted[key], kept, len(old))
        _say_classes(old, new, config.num_classes, kept, parts, where)
    if extends(name, checkpoint.model):
        added = [k for k in wanted if k.startswith("aggregation.")]
        warnings.warn(
            f"{where} is a checkpoint of {checkpoint.model}: the aggregation of {name} ({len(added)} tensors) starts "
            "new.",
            stacklevel=3,
        )
        state |= {k: wanted[k] for k in added}
    _refuse(_differences({k: v.shape for k, v in wanted.items()}, state), checkpoint, name, config, where)
    net.load_state_dict(state)


def shapes_of(name: str, config: ModelConfig) -> Shapes:
    """The shape of every tensor of a network, which takes no memory."""
    with torch.device("meta"):
        return {key: value.shape for key, value in build_net(name, config).state_dict().items()}


def _kept_rows(old: Sequence[str], new: Sequence[str] | None, number: int) -> dict[int, int] | None:
    """New label -> old label of the classes whose weights are taken over; None where all stay as they are."""
    if new is None or say_nothing(new) or say_nothing(old):
        return None if len(old) == number else {}
    pairs = pair_names(new, old)
    kept = {i: j for i, j in enumerate(pairs) if j is not None}
    return None if len(old) == number and all(i == j for i, j in kept.items()) and len(kept) == number else kept


def _class_parts(name: str, config: ModelConfig) -> list[str]:
    """The tensors whose shape follows the number of classes."""
    here = shapes_of(name, config)
    more = shapes_of(name, config.model_copy(update={"num_classes": config.num_classes + 1}))
    return [key for key, shape in here.items() if more[key] != shape]


def _with_rows(old: Tensor, fresh: Tensor, kept: Mapping[int, int], classes: int) -> Tensor:
    """``fresh`` with the rows of the classes that are kept; a tensor that has not one row a class starts new."""
    rows = fresh.detach().clone()
    if kept and len(old) == classes:
        rows[list(kept)] = old[list(kept.values())].to(rows)
    return rows


def _say_classes(
    old: Sequence[str],
    new: Sequence[str] | None,
    number: int,
    kept: Mapping[int, int],
    parts: Sequence[str],
    where: str,
) -> None:
    if new is None or say_nothing(new) or say_nothing(old):
        line = f"{where} has {len(old)} classes and the model {number}: {', '.join(parts)} start new."
    else:
        known = [new[i] for i in kept]
        fresh = [name for i, name in enumerate(new) if i not in kept]
        line = f"{len(known)} of {number} classes are known to {where}"
        line += f" and keep their weights: {_some(known)}" if known else f", which has {_some(old)}"
        line += f"; the others start new: {_some(fresh)}." if fresh else "."
    warnings.warn(line, stacklevel=4)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f", ... {len(names)} in all" if len(names) > 10 else "")


def _differences(wanted: Shapes, state: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Names of the tensors that are missing, unknown, and of another shape."""
    wrong = [k for k, shape in wanted.items() if k in state and state[k].shape != shape]
    return [k for k in wanted if k not in state], [k for k in state if k not in wanted], wrong


def _refuse(
    differences: tuple[list[str], list[str], list[str]],
    checkpoint: Checkpoint,
    name: str,
    config: ModelConfig,
    where: str,
) -> None:
    missing, unknown, wrong = differences
    if not (missing or unknown or wrong):
        return
    first = (wrong + missing + unknown)[0]
    same = name == checkpoint.model
    advice = "it is damaged" if same else f"use instseg.load, or --model {checkpoint.model}"
    raise CheckpointError(
        f"{where} is a checkpoint of {checkpoint.model} (backbone {checkpoint.config.get('backbone')}) and does not "
        f"fit {name} (backbone {config.backbone}): {len(missing)} tensors missing, {len(unknown)} unknown, "
        f"{len(wrong)} of another shape, first {first[:100]}: {advice}."
    )
