"""Checkpoints of AdelaiDet, which stands on detectron2."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from instseg.weights.renaming import NORMALIZATION, Converted, Rules, rename

NAME = "AdelaiDet"

# How detectron2 shows images to its networks, and where its ResNets halve. Its FrozenBatchNorm2d has no parameters.
_FIELDS: dict[str, Any] = {
    "stride_in_1x1": True,
    "bgr": True,
    "pixel_mean": (103.53, 116.28, 123.675),
    "pixel_std": (1.0, 1.0, 1.0),
    "norm_fixed": True,
    "antialias": True,  # Pillow's bilinear resizing; mmdetection's is OpenCV's, without
}
_RULES: Rules = (
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.(.+)", r"backbone.body.bn1.\1"),
    (r"backbone\.bottom_up\.stem\.conv1\.weight", r"backbone.body.conv1.weight"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.norm\.(.+)", r"backbone.body.layer{\1-1}.\2.downsample.1.\3"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.weight", r"backbone.body.layer{\1-1}.\2.downsample.0.weight"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.norm\.(.+)", r"backbone.body.layer{\1-1}.\2.bn\3.\4"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.weight", r"backbone.body.layer{\1-1}.\2.conv\3.weight"),
    (r"backbone\.fpn_lateral(\d)\.(.+)", r"fpn.lateral.{\1-2}.\2"),
    (r"backbone\.fpn_output(\d)\.(.+)", r"fpn.output.{\1-2}.\2"),
    (r"ins_head\.cate_tower\.(.+)", r"head.category_tower.\1"),
    (r"ins_head\.kernel_tower\.(.+)", r"head.kernel_tower.\1"),
    (r"ins_head\.cate_pred\.(.+)", r"head.category.\1"),
    (r"ins_head\.kernel_pred\.(.+)", r"head.kernel.\1"),
    (r"mask_head\.convs_all_levels\.(\d)\.conv(\d)\.0\.(.+)", r"mask_feature.levels.\1.\2.conv.\3"),
    (r"mask_head\.convs_all_levels\.(\d)\.conv(\d)\.1\.(.+)", r"mask_feature.levels.\1.\2.gn.\3"),
    (r"mask_head\.conv_pred\.0\.(.+)", r"mask_feature.output.conv.\1"),
    (r"mask_head\.conv_pred\.1\.(.+)", r"mask_feature.output.gn.\1"),
)


def recognizes(names: Iterable[str]) -> bool:
    """As :class:`~instseg.weights.renaming.CodeBase`."""
    return any(name.startswith("backbone.bottom_up.") for name in names)


def convert(state: Mapping[str, Tensor]) -> Converted:
    """As :class:`~instseg.weights.renaming.CodeBase`. Where the file says how it normalizes, it knows best."""
    renamed = rename({_block(name): tensor for name, tensor in state.items()}, _RULES)
    said = {name: tuple(round(float(v), 4) for v in state[name].flatten()) for name in NORMALIZATION if name in state}
    return replace(renamed, fields={**_FIELDS, **said})


def _block(name: str) -> str:
    """Towers count convolution, norm and ReLU one by one."""
    tower = re.fullmatch(r"(ins_head\..*_tower)\.(\d+)\.(.+)", name)
    if tower is None:
        return name
    block, part = divmod(int(tower[2]), 3)
    return f"{tower[1]}.{block}.{('conv', 'gn', 'relu')[part]}.{tower[3]}"
