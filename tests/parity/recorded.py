"""Reading the recorded arrays of a reference implementation."""

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True, map_location="cpu")


def unpack_masks(packed: dict) -> Tensor:
    """A stack (N, H, W) of boolean masks stored as zlib of packed bits."""
    count = int(np.prod(packed["shape"]))
    if count == 0:
        return torch.zeros(packed["shape"], dtype=torch.bool)
    bits = np.frombuffer(zlib.decompress(bytes(packed["zlib_packbits"].numpy())), np.uint8)
    return torch.from_numpy(np.unpackbits(bits)[:count].reshape(packed["shape"]).astype(bool))


def rename_solov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmdetection's names of a SOLOv2 head to ours."""
    renamed = {}
    for key, value in state.items():
        new = key
        for old, ours in (
            ("mask_feature_head.conv_pred.", "mask_feature.output."),
            ("mask_feature_head.convs_all_levels.", "mask_feature.levels."),
            ("kernel_convs.", "head.kernel_tower."),
            ("cls_convs.", "head.category_tower."),
            ("conv_kernel.", "head.kernel."),
            ("conv_cls.", "head.category."),
        ):
            if new.startswith(old):
                new = ours + new.removeprefix(old)
                break
        if new.startswith("mask_feature.levels."):
            _, _, level, name, *rest = new.split(".")
            position = 2 * int(name.removeprefix("conv"))  # every block is followed by a doubling
            new = ".".join(["mask_feature.levels", level, str(position), *rest])
        renamed[new] = value.float()
    return renamed
