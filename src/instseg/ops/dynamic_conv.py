"""Convolution with predicted kernels."""

import torch.nn.functional as F
from torch import Tensor


def dynamic_conv(features: Tensor, kernels: Tensor, kernel_size: int = 1) -> Tensor:
    """One map for each predicted kernel, without bias, at stride 1 and unchanged size.

    Args:
        features: (E, h, w).
        kernels: (N, E k k), read as (E, k, k).
        kernel_size: k, odd.

    Returns:
        (N, h, w) logits.
    """
    e, h, w = features.shape
    if kernel_size == 1 or len(kernels) == 0:  # no convolution takes an empty set of kernels
        kernels = kernels[:, :e]
        return (kernels @ features.flatten(1)).view(-1, h, w)
    weight = kernels.view(-1, e, kernel_size, kernel_size)
    return F.conv2d(features[None], weight, padding=kernel_size // 2)[0]
