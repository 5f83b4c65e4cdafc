"""Exponential moving average of the weights, through torch's own averaged model."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def decay_at(averaged: int, decay: float) -> float:
    """The decay of the ``averaged``-th averaging: ``min(decay, (1 + n) / (10 + n))``.

    So a short run averages over about the last ninth of its updates instead of carrying its first weights
    to the end.
    """
    return min(decay, (1 + averaged) / (10 + averaged))


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of ``model`` that follows it with ``update_parameters(model)``, buffers (BatchNorm) included."""
    return AveragedModel(model, multi_avg_fn=_growing_average(decay), use_buffers=True)


def _growing_average(decay: float) -> Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], Any], None]:
    def average(averages: Sequence[torch.Tensor], current: Sequence[torch.Tensor], count: Any) -> None:
        get_ema_multi_avg_fn(decay_at(int(count), decay))(averages, current, count)  # type: ignore[no-untyped-call]

    return average
