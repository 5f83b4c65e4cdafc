"""Overlap of binary masks."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BLOCK_VALUES = 64_000_000  # pixels that lie in memory as float32 at a time, on a GPU


def mask_iou(masks: Tensor, labels: Tensor | None = None) -> Tensor:
    """Pairwise IoU (N, N) float32 of binary masks (N, h, w), bool or 0/1 of any type.

    Args:
        masks: all of one size.
        labels: (N,); with them pairs of different labels are left at zero and cost nothing.

    On a CPU only pairs whose boxes meet are counted, on packed bits inside the smaller box; elsewhere
    matrix products count all. Both are exact: float32 counts pixels up to 2^24, half precision would overflow.
    """
    if not masks.numel():
        return torch.zeros(len(masks), len(masks), device=masks.device)
    if masks.device.type == "cpu":
        intersection, areas = _packed_intersection(masks, labels)
    else:
        intersection = _dense_intersection(masks)
        areas = intersection.diagonal().clone()
        if labels is not None:
            intersection = intersection * (labels[:, None] == labels[None, :])
    union = areas[:, None] + areas[None, :] - intersection
    return intersection / union.clamp(min=1.0)


def _dense_intersection(masks: Tensor, values: int = BLOCK_VALUES) -> Tensor:
    """(N, N) shared pixels of masks (N, h, w); of ``values`` of them at a time float copies are made."""
    flat = masks.flatten(1)
    shared = torch.zeros(len(masks), len(masks), device=masks.device)
    with torch.autocast(masks.device.type, enabled=False):
        for part in torch.split(flat, max(1, values // max(len(flat), 1)), dim=1):
            pixels = (part != 0).float()
            shared += pixels @ pixels.T
    return shared


def _packed_intersection(masks: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    words, boxes = _packed(masks)
    n = len(words)
    counts = np.zeros((n, n), dtype=np.float32)
    kind = np.zeros(n, dtype=np.int64) if labels is None else labels.cpu().numpy()
    top, bottom, left, right = boxes
    for i in range(n):
        meets = (kind[i:] == kind[i]) & (top[i:] < bottom[i]) & (bottom[i:] > top[i])
        meets &= (left[i:] < right[i]) & (right[i:] > left[i])
        others = meets.nonzero()[0] + i
        if not len(others):
            continue
        window = np.s_[top[i] : bottom[i], left[i] : right[i]]
        mine = words[i][window]
        # Fancy indexing copies: from the window's view only what is counted is copied.
        shared = words[:, window[0], window[1]][others]
        shared &= mine
        counts[i, others] = np.bitwise_count(shared).reshape(len(others), -1).sum(axis=1, dtype=np.int32)
    counts = np.maximum(counts, counts.T)
    return torch.from_numpy(counts), torch.from_numpy(counts.diagonal().copy())


def _packed(masks: Tensor) -> tuple[npt.NDArray[np.uint64], tuple[npt.NDArray[np.int64], ...]]:
    """Rows as words (N, h, W) of 64 pixels, and each mask's box in rows and words: top, bottom, left, right."""
    bits = np.packbits((masks.numpy() if masks.dtype == torch.bool else (masks != 0).numpy()), axis=2)
    n, h, w = bits.shape
    padded = np.zeros((n, h, -(-w // 8) * 8), dtype=np.uint8)
    padded[:, :, :w] = bits
    words = padded.view(np.uint64)
    filled = words != 0
    return words, (*_extent(filled.any(axis=2)), *_extent(filled.any(axis=1)))


def _extent(hit: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and one past the last true of each row of (N, k); an empty row gives 0, 0."""
    any_hit = hit.any(axis=1)
    return hit.argmax(axis=1) * any_hit, (hit.shape[1] - hit[:, ::-1].argmax(axis=1)) * any_hit
