"""What goes wrong in a training: a loss that is not a number, a loss that never leaves its start."""

import math
from collections import deque
from collections.abc import Mapping, Sequence

import torch

from instseg.core.errors import InstsegError


class TrainingError(InstsegError):
    """The training cannot continue as it is; the last good checkpoint is on the disk."""


class TrainingInterrupted(InstsegError):
    """The user stopped the training; everything needed to resume is on the disk."""


def check_finite(values: Mapping[str, float], images: Sequence[str], place: str, kept: str) -> None:
    """Raise :class:`TrainingError` when a loss or the gradient is not a number.

    ``images`` are those of the batch, ``place`` says where the run is, ``kept`` where its last checkpoint lies.
    """
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        shown = ", ".join(images[:16]) + (f" and {len(images) - 16} more" if len(images) > 16 else "")
        raise TrainingError(
            f"{' and '.join(bad)} at {place}, images {shown}: look at their annotations (instseg data check), or "
            f"start again with a lower lr, a longer warm-up or a smaller clip; last good checkpoint: {kept}"
        )


def explain_crash(error: RuntimeError, batch: int, kept: str) -> str | None:
    """A line for the user about the crashes of torch that they can fix, None for all others."""
    first = str(error).strip().split("\n")[0].rstrip(". ")
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory with batch={batch}: lower batch and raise accumulate, or train on smaller images."
    if "DataLoader worker" in first:
        starved = any(word in first for word in ("Killed", "Bus error", "exited unexpectedly"))
        cause = ": mostly for want of memory, so use fewer workers; the" if starved else ". The"
        return f"a loader process died ({first}){cause} same call with --resume continues from {kept}."
    return None


class StuckWatch:
    """Notices a loss that stays at its start value: the one that the network names (``Net.watched_loss``), if any.

    A dice loss of weight 3 whose masks all vanish sits at 3.000 with hardly any gradient. A loss counts as stuck when
    the last ``patience`` values after the warm-up lie within one percent of each other and have not fallen by two
    percent below the first value of the run.
    """

    def __init__(self, patience: int, warmup: int, name: str | None) -> None:
        self.patience, self.warmup, self.name = patience, warmup, name
        self.recent: deque[float] = deque(maxlen=max(1, patience))
        self.start: float | None = None
        self.warned = False

    def add(self, update: int, losses: Mapping[str, float]) -> str | None:
        """Take in the losses of ``update``; a line for the user the first time the loss is found stuck."""
        value = None if self.name is None else losses.get(self.name)
        if value is None or self.patience == 0 or self.warned:
            return None
        if self.start is None:
            self.start = value
        if update < self.warmup:
            return None
        self.recent.append(value)
        low, high = min(self.recent), max(self.recent)
        if len(self.recent) < self.patience or high - low > 0.01 * high or low < 0.98 * self.start:
            return None
        self.warned = True
        return (
            f"{self.name} has stood at {value:.3f} for {self.patience} updates and started at {self.start:.3f}: "
            "hardly any gradient is left, as where masks vanish everywhere, which is not normal and rarely passes "
            "by itself. Start again with a longer warm-up (warmup_iterations), a lower lr, or a smaller clip."
        )
