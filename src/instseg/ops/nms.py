"""Suppression of masks that find the same object: Matrix NMS and those it is compared with (SOLO (journal), table 5e).

All take masks in descending order of their scores with the IoU of every pair, and return new scores: lowered, or zero
where a mask is dropped.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from instseg.ops.matrix_nms import matrix_nms

NMSKind = Literal["matrix", "hard", "soft", "fast"]


@dataclass(frozen=True)
class NMSOptions:
    """What :func:`nms` does.

    Attributes:
        kind: ``matrix``, ``hard`` (greedy), ``soft`` (sequential decay) or ``fast`` (YOLACT's).
        kernel: how Matrix and Soft NMS lower a score with the overlap.
        sigma: multiplier in ``exp(-sigma iou^2)``. The paper divides: its sigma of 0.5 is 2.0 here, as in every
            published configuration.
        threshold: IoU above which Hard and Fast NMS drop a mask, and linear Soft NMS lowers its score.
        class_agnostic: masks of all classes compete (the paper's pseudo-code); by default only those of one class
            (all published code).
    """

    kind: NMSKind = "matrix"
    kernel: Literal["gaussian", "linear"] = "gaussian"
    sigma: float = 2.0
    threshold: float = 0.5
    class_agnostic: bool = False


def nms(scores: Tensor, labels: Tensor, iou: Tensor, options: NMSOptions) -> Tensor:
    """New scores (N,) for masks with ``scores`` (N,) descending, ``labels`` (N,) and pairwise ``iou`` (N, N)."""
    if len(scores) == 0:
        return scores
    if options.kind == "matrix":
        return matrix_nms(scores, labels, iou, options.kernel, options.sigma, options.class_agnostic)
    overlap = torch.triu(iou.float(), diagonal=1)  # row i scores better than column j
    if not options.class_agnostic:
        overlap = overlap * (labels[:, None] == labels[None, :])
    if options.kind == "fast":
        return fast_nms(scores, overlap, options.threshold)
    if options.kind == "hard":
        return hard_nms(scores, overlap, options.threshold)
    return soft_nms(scores, overlap, options.kernel, options.sigma, options.threshold)


def select_top(
    scores: Tensor, labels: Tensor, iou: Tensor, options: NMSOptions, least: float, cap: int
) -> tuple[Tensor, Tensor, bool]:
    """What is left after :func:`nms`: positions (M,) and new scores (M,), best first, at least ``least`` and above
    zero, at most ``cap`` of them; and whether there were more."""
    scores = nms(scores, labels, iou, options)
    order = scores.argsort(descending=True, stable=True)
    order = order[(scores[order] >= least) & (scores[order] > 0)]  # zero: dropped
    return order[:cap], scores[order[:cap]], len(order) > cap


def fast_nms(scores: Tensor, overlap: Tensor, threshold: float = 0.5) -> Tensor:
    """Drops what overlaps any better mask, also one that is itself dropped (YOLACT's Fast NMS).

    ``overlap`` (N, N) holds the IoU with better masks above its diagonal and zeros elsewhere, here and below.
    """
    return scores * ~(overlap > threshold).any(dim=0)


def hard_nms(scores: Tensor, overlap: Tensor, threshold: float = 0.5) -> Tensor:
    """Greedy: drops what overlaps a better mask that was kept."""
    hits = (overlap > threshold).cpu().numpy()
    dropped = np.zeros(len(hits), dtype=bool)
    for i in range(len(hits)):
        if not dropped[i]:
            dropped |= hits[i]
    return scores * torch.from_numpy(~dropped).to(scores.device)


def soft_nms(
    scores: Tensor, overlap: Tensor, kernel: str = "gaussian", sigma: float = 2.0, threshold: float = 0.5
) -> Tensor:
    """Sequential decay (Bodla et al., figure 2): the best mask left lowers those it overlaps, again and again.

    ``gaussian`` multiplies by ``exp(-sigma iou^2)``, ``linear`` by ``1 - iou`` above ``threshold``.
    """
    iou = (overlap + overlap.T).cpu()
    factor = torch.exp(-sigma * iou**2) if kernel == "gaussian" else torch.where(iou > threshold, 1 - iou, 1.0)
    factors, left = factor.double().numpy(), scores.detach().cpu().double().numpy().copy()
    done, waiting = left.copy(), np.ones(len(left), dtype=bool)
    for _ in range(len(left)):
        best = int(np.where(waiting, left, -np.inf).argmax())
        done[best], waiting[best] = left[best], False
        left *= factors[best]
    return torch.from_numpy(done).to(scores)
