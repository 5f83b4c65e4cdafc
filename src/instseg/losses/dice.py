"""Dice loss: SOLO (journal, https://arxiv.org/abs/2106.15947) equations (6) and (7)."""

import torch
from torch import Tensor


def dice_loss(probabilities: Tensor, targets: Tensor, eps: float = 1e-3) -> Tensor:
    """``1 - 2 sum(pq) / (sum(p^2) + eps + sum(q^2) + eps)`` of each mask.

    Args:
        probabilities: (P, h, w) in [0, 1].
        targets: (P, h, w) in [0, 1], any type: masks or mattes. A mask or matte against itself costs 0 but for eps.
        eps: added to each of the two sums of squares, nothing to the numerator: a target without pixels costs 1.

    Returns:
        (P,) float32 in [0, 1]. Computed in float32 also under autocast: a sum over a 200 x 336 map overflows fp16.
    """
    p = probabilities.flatten(1).float()
    q = targets.flatten(1).to(torch.float32)
    with torch.autocast(p.device.type, enabled=False):
        overlap = (p * q).sum(dim=1)
        loss: Tensor = 1 - 2 * overlap / ((p * p).sum(dim=1) + (q * q).sum(dim=1) + 2 * eps)
    return loss
