"""Non-maximum suppression on a grid of scores."""

import torch.nn.functional as F
from torch import Tensor


def point_nms(scores: Tensor) -> Tensor:
    """Keeps a score (B, C, S, S) where none of its upper, left and upper-left neighbors is larger; zero elsewhere.

    The window is 2 x 2 and one-sided, as in all published code of SOLO; the papers do not mention the step. Equal
    neighbors both survive.
    """
    best = F.max_pool2d(scores, kernel_size=2, stride=1, padding=1)[:, :, :-1, :-1]
    return scores * (best == scores)
