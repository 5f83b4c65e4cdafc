"""Reading the recorded arrays of a reference implementation."""

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instseg.core.shapes import Shapes
from instseg.models.base import Target
from instseg.weights import mmdet


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True, map_location="cpu")


def unpack_masks(packed: dict) -> Tensor:
    """A stack (N, H, W) of boolean masks stored as zlib of packed bits."""
    count = int(np.prod(packed["shape"]))
    if count == 0:
        return torch.zeros(packed["shape"], dtype=torch.bool)
    bits = np.frombuffer(zlib.decompress(bytes(packed["zlib_packbits"].numpy())), np.uint8)
    return torch.from_numpy(np.unpackbits(bits)[:count].reshape(packed["shape"]).astype(bool))


def target_of(recorded: dict, count: int | None = None) -> Target:
    """The recorded objects of one image, the first ``count`` of them."""
    masks = unpack_masks(recorded["masks"])
    labels, boxes = recorded["labels"][:count], recorded["bboxes"][:count]
    return Target(tuple(masks.shape[1:]), labels, boxes, Shapes.from_masks(masks[:count]))


def rename_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmdetection's names of a head of the SOLO family to ours."""
    renamed = mmdet.convert({f"mask_head.{name}": value for name, value in state.items()})
    assert not renamed.unknown
    return {name: value.float() for name, value in renamed.state.items()}
