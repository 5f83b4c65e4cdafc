"""Checkpoints of the SOLO repository, by its authors."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from instseg.weights.renaming import MMDET_BODY, Converted, Rules, rename

NAME = "SOLO"

_DYNAMIC: Rules = (
    (r"mask_feat_head\.conv_pred\.0\.(.+)", r"mask_feature.output.\1"),
    (r"mask_feat_head\.convs_all_levels\.(\d)\.conv(\d)\.(.+)", r"mask_feature.levels.\1.\2.\3"),
    (r"bbox_head\.kernel_convs\.(.+)", r"head.kernel_tower.\1"),
    (r"bbox_head\.cate_convs\.(.+)", r"head.category_tower.\1"),
    (r"bbox_head\.solo_kernel\.(.+)", r"head.kernel.\1"),
    (r"bbox_head\.solo_cate\.(.+)", r"head.category.\1"),
)
_STATIC: Rules = (
    (r"bbox_head\.cate_convs\.(.+)", r"category.tower.\1"),
    (r"bbox_head\.d?solo_cate\.(.+)", r"category.output.\1"),
    (r"bbox_head\.ins_convs((?:_[xy])?)\.(.+)", r"mask_tower\1.\2"),
    (r"bbox_head\.d?solo_ins_list((?:_[xy])?)\.(.+)", r"mask_output\1.\2"),
)


def recognizes(names: Iterable[str]) -> bool:
    """As :class:`~instseg.weights.renaming.CodeBase`."""
    return any(re.match(r"bbox_head\.(cate_convs|solo_cate|dsolo_cate)", name) for name in names)


def convert(state: Mapping[str, Tensor]) -> Converted:
    """As :class:`~instseg.weights.renaming.CodeBase`."""
    return rename(state, MMDET_BODY + head_rules(state))


def head_rules(names: Iterable[str]) -> Rules:
    """The rules of the head: SOLOv2's, or those of SOLO and Decoupled SOLO."""
    return _DYNAMIC if any("solo_kernel" in name for name in names) else _STATIC
