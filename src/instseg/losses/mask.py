"""Pixel-wise losses of masks, the alternatives to dice of SOLO (journal) section 4.2.1 and table 4c."""

import torch
from torch import Tensor

from instseg.losses.dice import dice_loss

EPS = 1e-6  # keeps the logarithms of float32 probabilities finite


def bce_loss(probabilities: Tensor, targets: Tensor, positive_weight: float = 2.0) -> Tensor:
    """Binary cross-entropy of each mask, the mean over its pixels; object pixels count ``positive_weight`` times.

    Args:
        probabilities: (P, h, w) in [0, 1].
        targets: (P, h, w), 0 or 1, any type. Of a matte this is a loss, too, but not least at the matte itself, as
            :func:`~instseg.losses.dice.dice_loss` is.
        positive_weight: the paper's is 2.

    Returns:
        (P,) float32.
    """
    p, q = probabilities.flatten(1).float().clamp(EPS, 1 - EPS), targets.flatten(1).float()
    return -(positive_weight * q * p.log() + (1 - q) * (1 - p).log()).mean(dim=1)


def focal_mask_loss(probabilities: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of each mask, the mean over its pixels; arguments as in :func:`bce_loss`. The paper gives neither
    ``alpha`` nor ``gamma``: those of the focal loss paper."""
    p, q = probabilities.flatten(1).float().clamp(EPS, 1 - EPS), targets.flatten(1).float()
    object_term = alpha * (1 - p) ** gamma * p.log()
    ground_term = (1 - alpha) * p**gamma * (1 - p).log()
    return -(q * object_term + (1 - q) * ground_term).mean(dim=1)


MASK_LOSSES = {"dice": (dice_loss, 3.0), "bce": (bce_loss, 10.0), "focal": (focal_mask_loss, 20.0)}
"""Each loss with the paper's weight for it."""


def mask_loss(kind: str, probabilities: Tensor, targets: Tensor) -> Tensor:
    """The losses (P,) of masks by the name of the loss; not weighted, float32 also under autocast."""
    with torch.autocast(probabilities.device.type, enabled=False):
        return MASK_LOSSES[kind][0](probabilities, targets)
