"""Optimizers and their parameter groups."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from instseg.core.errors import ConfigError, did_you_mean
from instseg.training.recipe import Recipe

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def freeze(net: nn.Module, patterns: Sequence[str]) -> None:
    """Stop training the parameters that a pattern names.

    Args:
        net: the network.
        patterns: as for file names (``backbone.*``), matched with the name of a parameter or of a module around it.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    names = [name for name, _ in net.named_parameters()]
    for pattern in patterns:
        found = {n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")}
        if not found:
            around = {name.rsplit(".", k)[0] for name in names for k in range(name.count(".") + 1)}
            raise ConfigError(
                f"freeze: no parameter is called {pattern}.{did_you_mean(pattern, sorted(around))} The network's parts "
                f"are {', '.join(name for name, _ in net.named_children())}."
            )
        for name in found:
            net.get_parameter(name).requires_grad_(False)


def frozen_norms(net: nn.Module) -> list[nn.Module]:
    """The norms none of whose parameters is trained: their statistics stay as they are, too."""
    norms = [module for module in net.modules() if isinstance(module, NORMS)]
    own = [(norm, list(norm.parameters(recurse=False))) for norm in norms]
    return [norm for norm, parameters in own if parameters and not any(p.requires_grad for p in parameters)]


def parameter_groups(model: nn.Module, recipe: Recipe, lr: float) -> list[dict[str, Any]]:
    """The trainable parameters in groups that differ in weight decay and learning rate.

    Norms and all other biases go without decay unless ``decay_norms_and_biases``, or have one of their own;
    parameters under a module called ``backbone`` learn at ``lr * backbone_lr_factor``, biases at ``bias_lr_factor``
    times their module's rate. Frozen parameters are in no group. Each group carries ``base_lr``, which the schedule
    multiplies.
    """
    of_norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    plain = None if recipe.decay_norms_and_biases else 0.0
    groups: dict[tuple[bool, float | None, float], list[nn.Parameter]] = {}  # in order of appearance: states rely on it
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay, factor = None, 1.0
        if id(parameter) in of_norms:
            decay = plain if recipe.norm_weight_decay is None else recipe.norm_weight_decay
        elif name.endswith("bias"):
            decay = plain if recipe.bias_weight_decay is None else recipe.bias_weight_decay
            factor = recipe.bias_lr_factor
        groups.setdefault(("backbone" in name.split("."), decay, factor), []).append(parameter)
    if not groups:
        raise ConfigError("the model has no trainable parameters; free some of its layers")
    made = []
    for (in_backbone, decay, factor), parameters in groups.items():
        rate = lr * (recipe.backbone_lr_factor if in_backbone else 1.0) * factor
        weight_decay = recipe.weight_decay if decay is None else decay
        made.append({"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": weight_decay})
    return made


def build_optimizer(model: nn.Module, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over :func:`parameter_groups` at the rate ``lr``."""
    groups = parameter_groups(model, recipe, lr)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    return torch.optim.AdamW(groups, lr=lr, betas=(recipe.beta1, recipe.beta2))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its ``base_lr`` times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
