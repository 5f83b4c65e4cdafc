"""Overlap of binary masks."""

import warnings

import torch
from torch import Tensor

# The sparse product does work for each pair of masks that share a pixel, about a thousand times the work of one
# multiply-add of the dense product (measured on CPUs); below this share of all pairs and pixels it is the faster.
SPARSE_BELOW = 1e-3


def mask_iou(masks: Tensor) -> Tensor:
    """Pairwise IoU (N, N) float32 of binary masks (N, h, w), bool or 0/1 of any type.

    Counts in float32: an area overflows half precision, and float32 counts pixels exactly up to 2^24. On a CPU
    masks that hardly meet (many small objects) are counted by a sparse product, with the same result.
    """
    flat = masks.flatten(1) != 0
    if flat.device.type == "cpu" and _pairs(flat) < SPARSE_BELOW * len(flat) ** 2 * flat.shape[1]:
        intersection = _sparse_intersection(flat)
    else:
        dense = flat.float()
        with torch.autocast(flat.device.type, enabled=False):
            intersection = dense @ dense.T
    areas = intersection.diagonal()
    union = areas[:, None] + areas[None, :] - intersection
    return intersection / union.clamp(min=1.0)


def _pairs(flat: Tensor) -> int:
    """How many pairs of masks meet, summed over pixels: the multiply-adds of the sparse product."""
    return int(flat.sum(dim=0).square().sum())


def _sparse_intersection(flat: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support is in beta|invariant checks)")
        sparse = flat.float().to_sparse()
        product: Tensor = torch.sparse.mm(sparse, sparse.t()).to_dense()
    return product
