"""Matrix NMS for the masks of any detector: SOLO (journal) section 3.3.4, equations (8) and (9),
https://arxiv.org/abs/2106.15947."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from instseg.core import rle as rle_codes
from instseg.core.errors import DataError
from instseg.core.masks import Masks
from instseg.ops.mask_iou import mask_iou
from instseg.ops.matrix_nms import matrix_nms as decayed


@torch.no_grad()
def matrix_nms(
    scores: Any,
    masks: Any,
    labels: Any = None,
    *,
    kernel: Literal["gaussian", "linear"] = "gaussian",
    sigma: float = 2.0,
    threshold: float = 0.5,
) -> Tensor:
    """Scores lowered by the overlap with better masks: Matrix NMS, all pairs at once, for any detector's results.

    Nothing is dropped or moved. Keep what still scores enough: ``kept = matrix_nms(scores, masks) >= 0.05``.

    Args:
        scores: (N,) finite and not negative, in any order; of equal ones the first counts as the better.
        masks: one of: (N, H, W) or (N, 1, H, W), bool, integers where not 0 is foreground, or floats in [0, 1], also as
            a list of (H, W); a :class:`~instseg.core.masks.Masks`; (N, N) floats, the IoU of every pair, which may be
            that of boxes.
        labels: (N,) integers: only masks of one class lower each other. None: all do, as in the paper's pseudo-code.
        kernel: how a score falls with the overlap: ``exp(-sigma iou^2)`` or ``1 - iou``.
        sigma: multiplier of the Gaussian. The paper divides: its sigma of 0.5 is 2.0 here.
        threshold: a pixel of float masks is foreground above it; a ``Masks`` has its own.

    Returns:
        (N,) new scores in the order given, on the device and of the type of ``scores``; float32 for integers.

    Besides N x N floats, memory grows with the bits of the masks, on a GPU with a block of pixels.

    Raises:
        DataError: the arguments do not fit together or hold impossible values.

    Example:
        Two masks are the same and one lies elsewhere:

        >>> import torch
        >>> masks = torch.zeros(3, 8, 8, dtype=torch.bool)
        >>> masks[0, :4] = masks[1, :4] = masks[2, 4:] = True
        >>> matrix_nms(torch.tensor([0.6, 0.9, 0.5]), masks)
        tensor([0.0812, 0.9000, 0.5000])
        >>> matrix_nms(torch.tensor([0.6, 0.9, 0.5]), masks, labels=torch.tensor([0, 1, 1]))
        tensor([0.6000, 0.9000, 0.5000])
    """
    given = _scores(scores)
    if kernel not in ("gaussian", "linear"):
        raise DataError(f'matrix_nms: the kernel {kernel!r} does not exist; pass "gaussian" or "linear".')
    if not (isinstance(sigma, int | float) and 0 < sigma <= 1e9):
        raise DataError(f"matrix_nms: sigma is {sigma!r}; pass a number above 0, such as 2.0.")
    if not (isinstance(threshold, int | float) and 0 <= threshold <= 1):
        raise DataError(f"matrix_nms: threshold is {threshold!r}; pass a number in [0, 1].")
    found = masks if isinstance(masks, Masks) else _tensor(masks, "masks")
    if len(found) != len(given):
        raise DataError(f"matrix_nms: {len(found)} masks for {len(given)} scores; pass one score for each mask.")
    kinds = _labels(labels, len(given))
    if not len(given):
        return given
    iou = _iou(found, kinds, threshold).to(given.device)
    order = given.argsort(descending=True, stable=True)
    kinds = kinds.to(given.device)[order]
    precise = given[order].to(torch.promote_types(given.dtype, torch.float32))
    lowered = decayed(precise, kinds, iou[order][:, order], kernel, sigma)
    return torch.empty_like(given).index_copy_(0, order, lowered.to(given.dtype))


def _scores(scores: Any) -> Tensor:
    given = _tensor(scores, "scores")
    if given.dim() != 1:
        raise DataError(f"matrix_nms: scores have the shape {tuple(given.shape)}; pass one for each mask, (N,).")
    given = given if given.is_floating_point() else given.float()
    if not bool((given.isfinite() & (given >= 0)).all()):
        raise DataError("matrix_nms: scores hold negative values, infinity or NaN; pass probabilities, not logits.")
    return given


def _labels(labels: Any, count: int) -> Tensor:
    kinds = torch.zeros(count, dtype=torch.int64) if labels is None else _tensor(labels, "labels")
    if kinds.shape != (count,):
        raise DataError(f"matrix_nms: labels of shape {tuple(kinds.shape)} for {count} scores; pass one for each.")
    if count and (kinds.is_floating_point() or kinds.is_complex()):
        raise DataError(f"matrix_nms: labels are {str(kinds.dtype).removeprefix('torch.')}; pass integers.")
    return kinds


def _tensor(values: Any, name: str) -> Tensor:
    try:
        if isinstance(values, np.ndarray):
            values = np.ascontiguousarray(values)  # torch takes no negative strides
        elif isinstance(values, list | tuple) and values and isinstance(values[0], Tensor | np.ndarray):
            values = torch.stack(
                [_tensor(value, name) if np.ndim(value) else torch.as_tensor(value) for value in values]
            )
        found = torch.as_tensor(values)
        found = found if found.layout == torch.strided else found.to_dense()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"matrix_nms: {name} cannot be read as an array ({type(values).__name__}); pass a tensor."
        ) from error
    if found.dim() == 0:
        raise DataError(f"matrix_nms: {name} are a single number; pass one for each mask.")
    return found


def _iou(masks: Masks | Tensor, labels: Tensor, threshold: float) -> Tensor:
    """(N, N) float32 from any of the forms."""
    if isinstance(masks, Masks):
        codes = masks.rle()
        return torch.from_numpy(rle_codes.iou(codes, codes, [False] * len(codes))).float()
    shape = tuple(masks.shape)
    if masks.dim() == 2:
        if shape[0] != shape[1] or not masks.is_floating_point():
            raise DataError(f"matrix_nms: masks of shape {shape}; pass (N, H, W), or the IoU of all pairs as floats.")
        if not bool(((masks >= 0) & (masks <= 1.001)).all()):
            raise DataError("matrix_nms: the IoU of some pair lies outside [0, 1]; pass IoU, not areas or logits.")
        return torch.maximum(masks, masks.T).float().clamp(max=1)
    if masks.dim() == 4 and shape[1] == 1:
        masks = masks[:, 0]
    if masks.dim() != 3:
        raise DataError(f"matrix_nms: masks of shape {shape}; pass (N, H, W), or the IoU of all pairs as floats.")
    if masks.is_floating_point():
        masks = masks.float() if masks.element_size() == 1 else masks  # few operators know 8 bits
        if masks.numel() and not bool(((masks >= 0) & (masks <= 1)).all()):
            raise DataError("matrix_nms: float masks hold values outside [0, 1]; pass probabilities, not logits.")
        masks = masks > threshold
    return mask_iou(masks, labels.to(masks.device))
