"""Focal loss on logits."""

import torch
from torch import Tensor


def category_focal_loss(
    logits: Tensor, labels: Tensor, positives: int, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Sum of the sigmoid focal loss over all cells and classes, divided by ``positives + 1``.

    Args:
        logits: (K, C), one row a cell.
        labels: (K,) int64 in ``[0, C]``; ``C`` means background, a row of zeros.
        positives: number of cells that are not background.
        alpha, gamma: as in the focal loss paper.

    Returns:
        a float32 scalar.
    """
    from torchvision.ops import sigmoid_focal_loss  # takes seconds to import

    targets = torch.zeros(logits.shape[0], logits.shape[1] + 1, device=logits.device)
    targets.scatter_(1, labels[:, None], 1.0)
    loss: Tensor = sigmoid_focal_loss(logits.float(), targets[:, :-1], alpha=alpha, gamma=gamma, reduction="sum")
    return loss / (positives + 1)
