"""Checkpoints of mmdetection 2 and 3."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from instseg.weights.renaming import MMDET_BODY, Converted, Rules, rename

NAME = "mmdetection"

# Inside the head, after `mask_head.`; SOLOv2 calls its category branch as ours does, within `head`, and the others
# have a branch of their own for it.
_DYNAMIC: Rules = (
    (r"mask_feature_head\.conv_pred\.(.+)", r"mask_feature.output.\1"),
    (r"mask_feature_head\.convs_all_levels\.(\d)\.conv(\d)\.(.+)", r"mask_feature.levels.\1.\2.\3"),
    (r"kernel_convs\.(.+)", r"head.kernel_tower.\1"),
    (r"cls_convs\.(.+)", r"head.category_tower.\1"),
    (r"conv_kernel\.(.+)", r"head.kernel.\1"),
    (r"conv_cls\.(.+)", r"head.category.\1"),
)
_STATIC: Rules = (
    (r"cls_convs\.(.+)", r"category.tower.\1"),
    (r"conv_cls\.(.+)", r"category.output.\1"),
    (r"mask_convs((?:_[xy])?)\.(.+)", r"mask_tower\1.\2"),
    (r"conv_mask_list((?:_[xy])?)\.(.+)", r"mask_output\1.\2"),
)


def recognizes(names: Iterable[str]) -> bool:
    """As :class:`~instseg.weights.renaming.CodeBase`."""
    return any(name.startswith("mask_head.") for name in names)


def convert(state: Mapping[str, Tensor]) -> Converted:
    """As :class:`~instseg.weights.renaming.CodeBase`."""
    inside = {name.removeprefix("mask_head."): tensor for name, tensor in state.items()}
    return rename(inside, MMDET_BODY + (_DYNAMIC if any("conv_kernel" in name for name in inside) else _STATIC))
