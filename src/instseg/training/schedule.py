"""Learning rates as a pure function of the update number, so that a resumed run needs no scheduler state."""

import math

from instseg.training.recipe import Recipe


def total_rate(lr: float, total_batch: int, base_batch: int | None) -> float:
    """Linear scaling of the rate: ``lr`` belongs to ``base_batch`` images an update (None: no scaling)."""
    return lr if base_batch is None else lr * total_batch / base_batch


def warmup_updates(recipe: Recipe, total: int) -> int:
    """Length of the warm-up; a run too short for it spends a quarter of its ``total`` updates on it."""
    return min(recipe.warmup_iterations, total // 4)


def rate_factor(recipe: Recipe, update: int, updates_per_epoch: int) -> float:
    """What the learning rate is multiplied with at ``update`` (0 is the first of the run).

    Warm-up is linear from ``warmup_factor`` to 1, or constant at it. ``step`` multiplies with ``lr_drop_factor`` from
    the start of each epoch in ``lr_drops`` and from each update in ``lr_drops_updates`` on (so epochs 0..8 of the
    paper's 1x schedule run at the full rate, 9 and 10 at a tenth, 11 at a hundredth); ``cosine`` falls from 1 after
    the warm-up to ``lr_end_factor`` at the end.
    """
    total = recipe.epochs * updates_per_epoch
    warmup = warmup_updates(recipe, total)
    factor = 1.0
    if recipe.schedule == "step":
        drops = [drop * updates_per_epoch for drop in recipe.lr_drops] + recipe.lr_drops_updates
        factor = recipe.lr_drop_factor ** sum(update >= drop for drop in drops)
    elif recipe.schedule == "cosine":
        progress = min(1.0, max(0, update - warmup) / max(1, total - warmup))
        end = recipe.lr_end_factor
        factor = end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))
    if update < warmup:
        rise = update / warmup if recipe.warmup == "linear" else 0.0
        factor *= recipe.warmup_factor + (1 - recipe.warmup_factor) * rise
    return factor
