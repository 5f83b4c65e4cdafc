"""Checkpoints of AggMask, by SODAR's authors: their aggregation on the heads of the SOLO repository."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from instseg.weights.renaming import MMDET_BODY, Converted, Rules, rename
from instseg.weights.solo import head_rules

NAME = "AggMask"

_AGGREGATION: Rules = (
    (r"bbox_head\.learned_weights\.(.+)", r"aggregation.aggregate.weights.\1"),
    (r"bbox_head\.context_fusion_convs\.0\.(.+)", r"aggregation.context.fuse.\1"),
    (r"bbox_head\.context_fusion_convs\.1\.(.+)", r"aggregation.context.tail.0.\1"),
    (r"bbox_head\.context_fusion_convs\.3\.(.+)", r"aggregation.context.tail.2.\1"),
    (r"bbox_head\.kernel_convs_convcomb\.(.+)", r"aggregation.tower.\1"),
    (r"bbox_head\.feature_convs\.(\d)\.conv(\d)\.(.+)", r"mask_feature.levels.\1.\2.\3"),
    (r"bbox_head\.solo_mask\.(.+)", r"mask_feature.output.\1"),
)


def recognizes(names: Iterable[str]) -> bool:
    """As :class:`~instseg.weights.renaming.CodeBase`."""
    return any(name.startswith("bbox_head.learned_weights.") for name in names)


def convert(state: Mapping[str, Tensor]) -> Converted:
    """As :class:`~instseg.weights.renaming.CodeBase`."""
    return rename(state, MMDET_BODY + _AGGREGATION + head_rules(state))
