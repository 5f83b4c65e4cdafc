"""The networks' inputs and outputs as torch.export takes them."""

from functools import cache

import torch

from instseg.models.base import ImageBatch
from instseg.models.sodar.aggregation import AggregationInputs
from instseg.models.sodar.sodar import SODAROutputs, SODARSOLOv2Outputs
from instseg.models.solo.decoupled_solo import DecoupledSOLOOutputs
from instseg.models.solo.solo import SOLOOutputs
from instseg.models.solo.solov2 import SOLOv2Outputs
from instseg.ops.neighbors import Locations

OUTPUTS = (SOLOOutputs, DecoupledSOLOOutputs, SOLOv2Outputs, SODAROutputs, SODARSOLOv2Outputs)


@cache
def register_outputs() -> None:
    """Makes the outputs of every network, and its input, known to ``torch.export`` as trees of tensors; once a
    process, before exporting."""
    for tree in (ImageBatch, Locations, AggregationInputs, *OUTPUTS):
        torch.export.register_dataclass(tree, serialized_type_name=f"{tree.__module__}.{tree.__qualname__}")
