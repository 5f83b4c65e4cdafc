"""Mask voting: a found mask as the mean of the candidates for the same object (SODAR, section III and table II)."""

from typing import Literal

import torch
from torch import Tensor

Voting = Literal["none", "average", "score", "iou"]


def vote_weights(
    scheme: Voting, threshold: float, iou: Tensor, labels: Tensor, scores: Tensor, chosen: Tensor
) -> Tensor:
    """What each candidate counts for in each found mask.

    Those of its class whose IoU with it is at least ``threshold`` vote, itself among them.

    Args:
        scheme: ``average``, all alike; ``score``, by class score; ``iou``, by IoU with the found mask.
        threshold: IoU.
        iou: (n, n) of the candidates before NMS.
        labels, scores: (n,) of the candidates; scores of the class, without maskness.
        chosen: (M,) the candidates that NMS left.

    Returns:
        (M, n) float32, rows that sum to one.
    """
    overlap = iou[chosen]
    voters = (overlap >= threshold) & (labels[chosen][:, None] == labels)
    voters[torch.arange(len(chosen), device=chosen.device), chosen] = True
    weights = {"average": torch.ones_like(overlap), "score": scores.expand_as(overlap), "iou": overlap}[scheme]
    weights = torch.where(voters, weights, 0.0).float()
    own = weights.gather(1, chosen[:, None]).clamp(min=torch.finfo(torch.float32).tiny)  # where no vote counts anything
    weights = weights.scatter(1, chosen[:, None], own)
    return weights / weights.sum(dim=1, keepdim=True)
