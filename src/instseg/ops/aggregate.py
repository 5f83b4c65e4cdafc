"""Several maps to one by a small convolution network of each instance: SODAR section IV and figure 7."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Values of the gathered maps of the instances that pass together. On a CPU what stays in its cache is twice as fast
# as one large convolution; elsewhere only memory bounds it.
CPU_VALUES = 1_400_000
VALUES = 64_000_000

Layer = tuple[Tensor, Tensor]


def layer_shapes(inputs: int, layers: int = 3, width: int = 4) -> list[tuple[int, int]]:
    """(in, out) channels of each layer: ``inputs`` to ``width``, ..., to one."""
    return [(inputs if i == 0 else width, 1 if i == layers - 1 else width) for i in range(layers)]


def parameter_count(shapes: Sequence[tuple[int, int]], kernel_size: int) -> int:
    """D: the weights and biases of one instance's network."""
    return sum(i * o * kernel_size**2 + o for i, o in shapes)


def split_parameters(flat: Tensor, shapes: Sequence[tuple[int, int]], kernel_size: int) -> list[Layer]:
    """Vectors (N, D) as layers: weights (N, out, in, k, k) and biases (N, out).

    A vector holds layer after layer, of each first the weights, (out, in, k, k) row by row, then the biases.
    """
    layers: list[Layer] = []
    at = 0
    for i, o in shapes:
        weights = i * o * kernel_size**2
        w = flat[:, at : at + weights].reshape(-1, o, i, kernel_size, kernel_size)
        layers.append((w, flat[:, at + weights : at + weights + o]))
        at += weights + o
    return layers


def aggregate(
    maps: Tensor | None,
    index: Tensor | None,
    layers: Sequence[Layer],
    context: Tensor | None = None,
    shares: Tensor | None = None,
) -> Tensor:
    """One map for each instance from maps that instances share and a context that all share.

    Convolutions at stride 1 and unchanged size with a ReLU between them, none after the last. The instances are the
    groups of one convolution a layer. The context is not repeated for them: its part of the first layer is an
    ordinary convolution.

    Args:
        maps: (U, h, w), or None where only the context is aggregated.
        index: (N, n) int64, the maps of each instance in the order of the first layer's inputs; (N, n, 4) with
            ``shares``.
        layers: weights (N, out, in, k, k) and biases (N, out); or, the same for all instances, weights
            (out, in, k, k) and biases (out,). The first takes the n maps, then the context's channels.
        context: (K, h, w), or each instance's own, (N, K, h, w).
        shares: (N, n, 4), what each of the four maps counts for: bilinear sampling between maps.

    Returns:
        (N, h, w) logits.
    """
    count, values = _extent(maps, index, layers, context)
    device = layers[0][0].device
    step = max(1, (CPU_VALUES if device.type == "cpu" else VALUES) // max(values, 1))
    # What a backward pass would keep of many instances is computed again instead; mixtures keep what they are of.
    kept = values if shares is None else 4 * values
    again = torch.is_grad_enabled() and count * kept > VALUES
    parts = []
    for i in range(0, count, step):
        part = slice(i, min(i + step, count))
        arguments = (
            maps,
            None if index is None else index[part],
            [(w[part], b[part]) if w.dim() == 5 else (w, b) for w, b in layers],
            context if context is None or context.dim() == 3 else context[part],
            None if shares is None else shares[part],
            part.stop - part.start,
        )
        parts.append(checkpoint(_aggregate, *arguments, use_reentrant=False) if again else _aggregate(*arguments))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _extent(
    maps: Tensor | None, index: Tensor | None, layers: Sequence[Layer], context: Tensor | None
) -> tuple[int, int]:
    """Number of instances, and of values that one instance's gathered maps have."""
    if maps is not None and index is not None:
        return len(index), index.shape[1] * maps.shape[1] * maps.shape[2]
    assert context is not None and layers[0][0].dim() == 5  # shared weights without maps: one mask for all
    return len(layers[0][0]), layers[0][0].shape[-4] * context.shape[-2] * context.shape[-1]


def _aggregate(
    maps: Tensor | None, index: Any, layers: Sequence[Layer], context: Tensor | None, shares: Tensor | None, count: int
) -> Tensor:
    x = None if maps is None else gather_maps(maps, index, shares)  # P, n, h, w
    n = 0 if x is None else x.shape[1]
    if context is not None and context.dim() == 4:  # each instance its own
        x = context if x is None else torch.cat([x, context], dim=1)
        context, n = None, x.shape[1]
    weight, bias = layers[0]
    y = None
    if context is not None:
        y = _conv(context[None], weight[..., n:, :, :], bias, 1)
    if x is not None:
        ours = _conv(x, weight[..., :n, :, :], bias if y is None else None, count)
        y = ours if y is None else y + ours
    assert y is not None
    for weight, bias in layers[1:]:
        y = _conv(y.relu(), weight, bias, count)
    return y.expand(count, -1, -1, -1)[:, 0] if weight.dim() == 4 else y[0]


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """(P, in, h, w) or (1, P in, h, w) to (1, P out, h, w) with weights of each instance, or (P, out, h, w) with
    shared ones."""
    pad = weight.shape[-1] // 2
    if weight.dim() == 4:
        return F.conv2d(x, weight, bias, padding=pad)
    flat = x.reshape(1, -1, *x.shape[-2:])
    return F.conv2d(flat, weight.flatten(0, 1), None if bias is None else bias.flatten(), padding=pad, groups=groups)


def gather_maps(maps: Tensor, index: Tensor, shares: Tensor | None = None) -> Tensor:
    """(U, h, w) maps at ``index`` (N, n), or their mixtures at (N, n, 4): (N, n, h, w)."""
    if shares is None:
        return maps[index]
    found = maps.new_zeros(*index.shape[:2], *maps.shape[1:])
    for corner in range(4):
        found = found + shares[..., corner, None, None].to(maps.dtype) * maps[index[..., corner]]
    return found
