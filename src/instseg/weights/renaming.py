"""What the modules of the code bases share: renaming by rules, and what a file says of its network.

A code base is a module with a ``NAME``, ``recognizes`` (are these its names of tensors?) and ``convert``. Every rule is
a regular expression with what it becomes; a conversion is renaming alone, no tensor is permuted.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

Rules = tuple[tuple[str, str], ...]
NORMALIZATION = ("pixel_mean", "pixel_std")  # tensors beside the network's own

# Backbone and pyramid as mmdetection names them, and all that is built on it.
MMDET_BODY: Rules = (
    (r"backbone\.(.+)\.conv2_offset\.(.+)", r"backbone.body.\1.conv2.conv_offset.\2"),  # mmdetection before 2
    (r"backbone\.(.+)", r"backbone.body.\1"),
    (r"neck\.lateral_convs\.(\d)\.conv\.(.+)", r"fpn.lateral.\1.\2"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(.+)", r"fpn.output.\1.\2"),
)


@dataclass(frozen=True)
class Converted:
    """A foreign checkpoint under our names.

    Attributes:
        state: tensors by our names.
        unknown: names for which there is no rule.
        fields: configuration fields that are the code base's own: how it shows images to its networks, and what it
            keeps as it is in training.
    """

    state: dict[str, Tensor]
    unknown: tuple[str, ...]
    fields: dict[str, Any] = field(default_factory=dict)


class CodeBase(Protocol):
    """A module of this room that converts the checkpoints of one code base."""

    NAME: str

    def recognizes(self, names: Iterable[str]) -> bool:
        """Whether these are the names of tensors in a checkpoint of this code base."""
        ...

    def convert(self, state: Mapping[str, Tensor]) -> Converted:
        """The tensors of a checkpoint that is recognized, under our names."""
        ...


def rename(state: Mapping[str, Tensor], rules: Rules) -> Converted:
    """Every tensor under the name that the first rule for it makes."""
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in state.items():
        ours = _ours(name, rules)
        if ours is not None:
            renamed[ours] = tensor
        elif name not in NORMALIZATION:
            unknown.append(name)
    return Converted(renamed, tuple(unknown))


def _ours(name: str, rules: Rules) -> str | None:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            # Every block of the mask feature is followed by a doubling without tensors.
            doubled = re.sub(
                r"(mask_feature\.levels\.\d)\.(\d)\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", match.expand(replacement)
            )
            return re.sub(r"\{(\d)-(\d)\}", lambda m: str(int(m[1]) - int(m[2])), doubled)
    return None
