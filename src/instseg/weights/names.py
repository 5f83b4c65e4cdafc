"""The names that other code bases give the tensors of the SOLO family, and ours.

Every rule is a regular expression with what it becomes; a conversion is renaming alone, no tensor is permuted.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

Rules = tuple[tuple[str, str], ...]

_MMDET_BODY: Rules = (
    (r"backbone\.(.+)\.conv2_offset\.(.+)", r"backbone.body.\1.conv2.conv_offset.\2"),  # mmdetection before 2
    (r"backbone\.(.+)", r"backbone.body.\1"),
    (r"neck\.lateral_convs\.(\d)\.conv\.(.+)", r"fpn.lateral.\1.\2"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(.+)", r"fpn.output.\1.\2"),
)

# Inside the head of mmdetection 2 and 3, after `mask_head.`; SOLOv2 calls its category branch as ours does, within
# `head`, and the others have a branch of their own for it.
_MMDET3_DYNAMIC: Rules = (
    (r"mask_feature_head\.conv_pred\.(.+)", r"mask_feature.output.\1"),
    (r"mask_feature_head\.convs_all_levels\.(\d)\.conv(\d)\.(.+)", r"mask_feature.levels.\1.\2.\3"),
    (r"kernel_convs\.(.+)", r"head.kernel_tower.\1"),
    (r"cls_convs\.(.+)", r"head.category_tower.\1"),
    (r"conv_kernel\.(.+)", r"head.kernel.\1"),
    (r"conv_cls\.(.+)", r"head.category.\1"),
)
_MMDET3_STATIC: Rules = (
    (r"cls_convs\.(.+)", r"category.tower.\1"),
    (r"conv_cls\.(.+)", r"category.output.\1"),
    (r"mask_convs((?:_[xy])?)\.(.+)", r"mask_tower\1.\2"),
    (r"conv_mask_list((?:_[xy])?)\.(.+)", r"mask_output\1.\2"),
)
_ORIGINAL_DYNAMIC: Rules = (
    (r"mask_feat_head\.conv_pred\.0\.(.+)", r"mask_feature.output.\1"),
    (r"mask_feat_head\.convs_all_levels\.(\d)\.conv(\d)\.(.+)", r"mask_feature.levels.\1.\2.\3"),
    (r"bbox_head\.kernel_convs\.(.+)", r"head.kernel_tower.\1"),
    (r"bbox_head\.cate_convs\.(.+)", r"head.category_tower.\1"),
    (r"bbox_head\.solo_kernel\.(.+)", r"head.kernel.\1"),
    (r"bbox_head\.solo_cate\.(.+)", r"head.category.\1"),
)
_ORIGINAL_STATIC: Rules = (
    (r"bbox_head\.cate_convs\.(.+)", r"category.tower.\1"),
    (r"bbox_head\.d?solo_cate\.(.+)", r"category.output.\1"),
    (r"bbox_head\.ins_convs((?:_[xy])?)\.(.+)", r"mask_tower\1.\2"),
    (r"bbox_head\.d?solo_ins_list((?:_[xy])?)\.(.+)", r"mask_output\1.\2"),
)
_AGGMASK: Rules = (
    (r"bbox_head\.learned_weights\.(.+)", r"aggregation.aggregate.weights.\1"),
    (r"bbox_head\.context_fusion_convs\.0\.(.+)", r"aggregation.context.fuse.\1"),
    (r"bbox_head\.context_fusion_convs\.1\.(.+)", r"aggregation.context.tail.0.\1"),
    (r"bbox_head\.context_fusion_convs\.3\.(.+)", r"aggregation.context.tail.2.\1"),
    (r"bbox_head\.kernel_convs_convcomb\.(.+)", r"aggregation.tower.\1"),
    (r"bbox_head\.feature_convs\.(\d)\.conv(\d)\.(.+)", r"mask_feature.levels.\1.\2.\3"),
    (r"bbox_head\.solo_mask\.(.+)", r"mask_feature.output.\1"),
)
_ADELAIDET: Rules = (
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.(.+)", r"backbone.body.bn1.\1"),
    (r"backbone\.bottom_up\.stem\.conv1\.weight", r"backbone.body.conv1.weight"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.norm\.(.+)", r"backbone.body.layer{\1-1}.\2.downsample.1.\3"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.weight", r"backbone.body.layer{\1-1}.\2.downsample.0.weight"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.norm\.(.+)", r"backbone.body.layer{\1-1}.\2.bn\3.\4"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.weight", r"backbone.body.layer{\1-1}.\2.conv\3.weight"),
    (r"backbone\.fpn_lateral(\d)\.(.+)", r"fpn.lateral.{\1-2}.\2"),
    (r"backbone\.fpn_output(\d)\.(.+)", r"fpn.output.{\1-2}.\2"),
    (r"ins_head\.cate_tower\.(\d+)\.(.+)", r"head.category_tower.{\1}.\2"),
    (r"ins_head\.kernel_tower\.(\d+)\.(.+)", r"head.kernel_tower.{\1}.\2"),
    (r"ins_head\.cate_pred\.(.+)", r"head.category.\1"),
    (r"ins_head\.kernel_pred\.(.+)", r"head.kernel.\1"),
    (r"mask_head\.convs_all_levels\.(\d)\.conv(\d)\.0\.(.+)", r"mask_feature.levels.\1.\2.conv.\3"),
    (r"mask_head\.convs_all_levels\.(\d)\.conv(\d)\.1\.(.+)", r"mask_feature.levels.\1.\2.gn.\3"),
    (r"mask_head\.conv_pred\.0\.(.+)", r"mask_feature.output.conv.\1"),
    (r"mask_head\.conv_pred\.1\.(.+)", r"mask_feature.output.gn.\1"),
)


@dataclass(frozen=True)
class Renamed:
    """A state under our names.

    Attributes:
        code: the code base it came from, as :func:`code_base` names it.
        state: tensors by our names.
        unknown: names for which there is no rule.
    """

    code: str
    state: dict[str, Tensor]
    unknown: tuple[str, ...]


def code_base(names: Mapping[str, Tensor]) -> str | None:
    """Whose names these are: ``mmdetection``, ``SOLO`` (the authors' repository), ``AggMask`` (SODAR's authors),
    ``AdelaiDet``, or None."""
    if any(name.startswith("backbone.bottom_up.") for name in names):
        return "AdelaiDet"
    if any(name.startswith("mask_head.") for name in names):
        return "mmdetection"
    if any(name.startswith("bbox_head.learned_weights.") for name in names):
        return "AggMask"
    if any(re.match(r"bbox_head\.(cate_convs|solo_cate|dsolo_cate)", name) for name in names):
        return "SOLO"
    return None


def rename(state: Mapping[str, Tensor]) -> Renamed | None:
    """A checkpoint's tensors under our names; None when they are of no code base that is known."""
    code = code_base(state)
    if code is None:
        return None
    if code == "AdelaiDet":
        rules = _ADELAIDET
    elif code == "mmdetection":
        state = {name.removeprefix("mask_head."): tensor for name, tensor in state.items()}
        rules = _MMDET_BODY + (_MMDET3_DYNAMIC if any("conv_kernel" in name for name in state) else _MMDET3_STATIC)
    else:
        dynamic = any("solo_kernel" in name for name in state)
        rules = _MMDET_BODY + _AGGMASK + (_ORIGINAL_DYNAMIC if dynamic else _ORIGINAL_STATIC)
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in state.items():
        ours = _ours(name, rules)
        if ours is None:
            unknown.append(name)
        else:
            renamed[ours] = tensor
    return Renamed(code, renamed, tuple(unknown))


def _ours(name: str, rules: Rules) -> str | None:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return _places(match.expand(replacement))
    return None


def _places(name: str) -> str:
    """Settles numbers that are counted differently."""
    # Every block of the mask feature is followed by a doubling without tensors.
    name = re.sub(r"(mask_feature\.levels\.\d)\.(\d)\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", name)
    # AdelaiDet's towers count convolution, norm and ReLU one by one: {position}.weight
    tower = re.fullmatch(r"(.*_tower)\.\{(\d+)\}\.(.+)", name)
    if tower:
        block, part = divmod(int(tower[2]), 3)
        return f"{tower[1]}.{block}.{('conv', 'gn')[part]}.{tower[3]}"
    return re.sub(r"\{(\d)-(\d)\}", lambda m: str(int(m[1]) - int(m[2])), name)
