"""What a network takes over from a checkpoint: all of it, or what the classes and the method have in common."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from instseg.core.category_matching import pair_names, say_nothing
from instseg.models.base import HasBackbone, Net
from instseg.models.config import ModelConfig
from instseg.models.zoo import extends, get_entry
from instseg.weights.checkpoint import Checkpoint
from instseg.weights.fit import check_fit, parts_of


def fill(net: Net[Any], name: str, config: ModelConfig, classes: Sequence[str] | None, checkpoint: Checkpoint) -> None:
    """Fills a new network from a checkpoint; a warning says which parts keep their initial values.

    The weights of a class are taken over where both sides have a class of that name. Where one side's names say nothing
    they are all taken over if there are as many, and none otherwise. What a method adds to the checkpoint's starts new,
    and so does what has another shape there, such as the maps of other grids; the backbone has to fit.

    Args:
        net: with its initial values.
        name: in the zoo.
        config: of ``net``.
        classes: the names of its labels; None where nobody has named them.
        checkpoint: what to fill it from.

    Raises:
        CheckpointError: it is of another model.
    """
    wanted = net.state_dict()
    state = dict(checkpoint.state)
    old, new, where = checkpoint.categories.names, classes, checkpoint.where
    kept = _kept_rows(old, new, config.num_classes)
    if kept is not None:
        layers = net.class_layers()
        chosen = [kept.get(i) for i in range(config.num_classes)]
        for key, layout in layers.items():
            if key in state and state[key].shape[1:] == wanted[key].shape[1:]:
                taken = layout.classes(len(state[key])) == len(old)
                state[key] = layout.take(state[key], chosen, wanted[key]) if taken else wanted[key]
        _say_classes(old, new, config.num_classes, kept, list(layers), where)
    if extends(name, checkpoint.model):
        state = _host_state(net, name, state, checkpoint)
    check_fit(checkpoint, wanted, state, name, config)
    net.load_state_dict(state)


def _host_state(net: Net[Any], name: str, state: Mapping[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The host's tensors that fit, and the network's own for the rest, which a warning names.

    A part in which the host has tensors that the network lacks is another one there, whatever else fits: the pyramid of
    a host with one level, say.
    """
    wanted = net.state_dict()
    backbone = net.backbone if isinstance(net, HasBackbone) else None
    strict = tuple(f"{part}." for part, module in net.named_children() if module is backbone)
    other = {k.split(".")[0] for k in state if k not in wanted}
    fits = (k for k, v in wanted.items() if k in state and state[k].shape == v.shape)
    taken = {k: state[k] for k in fits if k.startswith(strict) or k.split(".")[0] not in other}
    new = [k for k in wanted if k not in taken and not k.startswith(strict)]
    parts = parts_of(net, set(new))
    named, there = get_entry(name).fields.get("backbone"), checkpoint.config.get("backbone")
    if there is not None and there != named:
        warnings.warn(
            f"the backbone of {checkpoint.where}, and so of this {name}, is {there}, not {named}.", stacklevel=4
        )
    said = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    warnings.warn(
        f"{checkpoint.where} is a checkpoint of {checkpoint.model}: the {said} of {name} ({len(new)} tensors) "
        f"{'starts' if len(parts) == 1 else 'start'} new.",
        stacklevel=4,
    )
    return {**{k: v for k, v in state.items() if k.startswith(strict)}, **taken, **{k: wanted[k] for k in new}}


def _kept_rows(old: Sequence[str], new: Sequence[str] | None, number: int) -> dict[int, int] | None:
    """New label -> old label of the classes whose weights are taken over; None where all stay as they are."""
    if new is None or say_nothing(new) or say_nothing(old):
        return None if len(old) == number else {}
    pairs = pair_names(new, old)
    kept = {i: j for i, j in enumerate(pairs) if j is not None}
    return None if len(old) == number and all(i == j for i, j in kept.items()) and len(kept) == number else kept


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
