"""Optimizers and their parameter groups."""

from typing import Any

import torch
from torch import nn

from instseg.core.errors import ConfigError
from instseg.training.recipe import Recipe

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(model: nn.Module, recipe: Recipe, lr: float) -> list[dict[str, Any]]:
    """The trainable parameters in groups that differ in weight decay and learning rate.

    Norm weights and all biases go without decay unless ``decay_norms_and_biases``; parameters under a module
    called ``backbone`` learn at ``lr * backbone_lr_factor``. Frozen parameters are in no group. Each group
    carries ``base_lr``, which the schedule multiplies.
    """
    norm_weights = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = id(parameter) in norm_weights or name.endswith("bias")
        decays = recipe.decay_norms_and_biases or not plain
        groups.setdefault(("backbone" in name.split("."), decays), []).append(parameter)
    if not groups:
        raise ConfigError("the model has no trainable parameters; free some of its layers")
    return [
        {
            "params": parameters,
            "lr": lr * (recipe.backbone_lr_factor if in_backbone else 1.0),
            "base_lr": lr * (recipe.backbone_lr_factor if in_backbone else 1.0),
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (in_backbone, decays), parameters in groups.items()
    ]


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
