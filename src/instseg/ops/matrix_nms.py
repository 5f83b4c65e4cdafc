"""Matrix NMS: SOLO (journal) section 3.3.4, equations (8) and (9), https://arxiv.org/abs/2106.15947."""

from typing import Literal

import torch
from torch import Tensor


def matrix_nms(
    scores: Tensor,
    labels: Tensor,
    iou: Tensor,
    kernel: Literal["gaussian", "linear"] = "gaussian",
    sigma: float = 2.0,
    class_agnostic: bool = False,
) -> Tensor:
    """Scores decayed by the overlap with better ones, all pairs at once.

    Args:
        scores: (N,) descending.
        labels: (N,); masks of different labels do not influence each other unless ``class_agnostic``.
        iou: (N, N) pairwise mask IoU.
        kernel: how a score falls with the overlap.
        sigma: multiplier in ``exp(-sigma iou^2)``. The paper divides: its sigma of 0.5 is 2.0 here, as in every
            published configuration.
        class_agnostic: masks of all classes compete (the paper's pseudo-code); by default only those of one class
            (all published code).

    Returns:
        (N,) decayed scores in the order given.
    """
    if len(scores) == 0:
        return scores
    overlap = torch.triu(iou.float(), diagonal=1)  # row i scores better than column j
    if not class_agnostic:
        overlap = overlap * (labels[:, None] == labels[None, :])
    # Equation (8), how likely the better mask i is itself suppressed: its largest overlap with one better still.
    compensation = overlap.max(dim=0).values[:, None]
    if kernel == "gaussian":
        decay = torch.exp(sigma * (compensation**2 - overlap**2))  # the ratio of equation (9) as one
    else:
        # Of three identical masks the second and third have a compensation of one: 0 / 0.
        decay = (1 - overlap) / (1 - compensation).clamp(min=1e-6)
    return scores * decay.min(dim=0).values  # the minimum of equation (9)
