"""What the tensors of a network of the SOLO family say of its configuration: no network is built for it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from instseg.models.sodar.config import AggregationConfig
from instseg.models.sodar.sodar import SODAR, SODARSOLOv2
from instseg.models.solo.decoupled_solo import DecoupledSOLO
from instseg.models.solo.solo import SOLO
from instseg.models.solo.solov2 import SOLOv2
from instseg.models.zoo import MODELS, build_config
from instseg.ops.aggregate import layer_shapes, parameter_count
from instseg.ops.neighbors import Pattern, gathered

_SPOKEN: dict[type[nn.Module], str] = {
    SOLO: "SOLO",
    DecoupledSOLO: "Decoupled SOLO",
    SOLOv2: "SOLOv2",
    SODAR: "SODAR",
    SODARSOLOv2: "SODAR* (on SOLOv2)",
}
_BASIC: dict[tuple[int, ...], str] = {(2, 2, 2, 2): "r18", (3, 4, 6, 3): "r34"}  # blocks of each stage
_BOTTLENECK: dict[tuple[int, ...], str] = {(3, 4, 6, 3): "r50", (3, 4, 23, 3): "r101"}
_PATTERNS: tuple[Pattern, ...] = ("4", "corners")  # those that are published
_VERSIONS = {18: 1, 27: 2}  # channels of an offset convolution: x and y of nine taps, with a factor in version 2


@dataclass(frozen=True)
class Facts:
    """What a network is, as far as its tensors tell.

    Attributes:
        net: its class.
        num_classes: 0 where no tensor tells.
        fields: other configuration fields; ``backbone`` is None where it is not one of the papers'.
    """

    net: type[nn.Module]
    num_classes: int
    fields: dict[str, Any]

    def __str__(self) -> str:
        backbone = self.fields["backbone"] or "an unknown backbone"
        return f"{_SPOKEN[self.net]} on {backbone}, {self.num_classes} classes"

    def models(self) -> list[str]:
        """The names of the zoo with such a network, several where they differ in what no tensor tells."""
        if not self.num_classes:
            return []
        same = {n: e for n, e in MODELS.items() if e.net is self.net and not e.ours}
        on = [name for name, entry in same.items() if entry.fields.get("backbone") == self.fields["backbone"]]
        return [name for name in on if not self.unlike(name)]

    def unlike(self, name: str) -> dict[str, tuple[Any, Any]]:
        """The fields in which a model of the zoo differs: (the file's, the model's)."""
        config = build_config(name, {})
        pairs = {key: (value, getattr(config, key, None)) for key, value in self.fields.items()}
        return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def read_facts(state: Mapping[str, Tensor]) -> Facts:
    """Raises IndexError, TypeError or ValueError where a tensor has fewer dimensions than it has in any network."""
    dynamic = "head.kernel.weight" in state
    output = state.get("head.category.weight" if dynamic else "category.output.weight")
    tower = "head.category_tower" if dynamic else "category.tower"
    fields: dict[str, Any] = {
        "backbone": _backbone(state),
        "fpn_channels": _rows(state, "fpn.output.0.weight"),
        **_tower(state, tower),
        "dcn": _deformable(state, "backbone.body."),
    }
    if dynamic:
        mask_channels = _rows(state, "mask_feature.output.conv.weight")
        fields |= {
            "mask_channels": mask_channels,
            "mask_hidden": _rows(state, "mask_feature.levels.0.0.conv.weight"),
            "mask_groups": _rows(state, "head.kernel.weight") // max(1, mask_channels),
            "mask_feature_norm": "mask_feature.levels.0.0.gn.weight" in state,
            "mask_feature_dcn": bool(_deformable(state, "mask_feature.")),
            "kernel_conv": state["head.kernel.weight"].shape[-1],
            "semantic_weight": 0.0,  # no code base publishes the branch
        }
        net: type[nn.Module] = SOLOv2
    elif "mask_output_x.0.weight" in state:
        fields |= {"grids": _outputs(state, "mask_output_x"), "shared_tower": "mask_tower.0.conv.weight" in state}
        net = DecoupledSOLO
    else:
        squares = tuple(round(rows**0.5) for rows in _outputs(state, "mask_output"))
        fields |= {"map_grids" if _aggregates(state) else "grids": squares}
        net = SOLO
    if _aggregates(state):
        rows = len(state["aggregation.aggregate.weights.weight"])
        fields |= {
            "deformable": any(key.startswith("aggregation.aggregate.offsets.") for key in state),
            "pattern": next((pattern for pattern in _PATTERNS if _weights(pattern) == rows), None),
        }
        net = SODARSOLOv2 if dynamic else SODAR
    return Facts(net, 0 if output is None else len(output), fields)


def _aggregates(state: Mapping[str, Tensor]) -> bool:
    return "aggregation.aggregate.weights.weight" in state


def _weights(pattern: Pattern) -> int:
    """How many weights the published aggregation predicts for each cell."""
    c = AggregationConfig()
    shapes = layer_shapes(gathered(pattern) + c.context_channels, c.aggregation_layers, c.aggregation_width)
    return parameter_count(shapes, c.aggregation_kernel)


def _rows(state: Mapping[str, Tensor], key: str) -> int:
    return len(state[key]) if key in state else 0


def _outputs(state: Mapping[str, Tensor], part: str) -> tuple[int, ...]:
    """The channels of a branch's last convolution at each level."""
    return tuple(
        _rows(state, f"{part}.{i}.weight") for i in range(sum(f"{part}.{i}.weight" in state for i in range(9)))
    )


def _tower(state: Mapping[str, Tensor], part: str) -> dict[str, Any]:
    blocks = {int(match[1]) for key in state if (match := re.match(rf"{re.escape(part)}\.(\d+)\.", key))}
    deformable = [i for i in sorted(blocks) if f"{part}.{i}.conv.conv_offset.weight" in state]
    kinds = {0: "none", len(blocks): "all"}
    return {
        "tower_convs": len(blocks),
        "tower_channels": _rows(state, f"{part}.0.gn.weight"),
        "dcn_towers": kinds.get(len(deformable), "last"),
    }


def _deformable(state: Mapping[str, Tensor], part: str) -> int:
    """The version of the deformable convolutions in a part, 0 for none."""
    offsets = (len(v) for k, v in state.items() if k.startswith(part) and k.endswith("conv_offset.weight"))
    return _VERSIONS.get(max(offsets, default=0), 0)


def _backbone(state: Mapping[str, Tensor]) -> str | None:
    stages = [{k.split(".")[3] for k in state if k.startswith(f"backbone.body.layer{i}.")} for i in (1, 2, 3, 4)]
    blocks = tuple(len(stage) for stage in stages)
    if "backbone.body.layer1.0.conv3.weight" not in state:
        return _BASIC.get(blocks)
    width, inputs = state["backbone.body.layer1.0.conv2.weight"].shape[:2]
    if inputs < width:  # a ResNeXt: as many groups as the inputs of one are contained in all
        return f"x101_{width // inputs}x{inputs}d"
    return _BOTTLENECK.get(blocks)
