"""Multi-scale testing: SOLO (journal) section 4.5 and table 6d. Short sides of 600, 800 and 1000 pixels for a model
that is tested at 800; the results of all scales pass the model's NMS once more."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from instseg.core.errors import ConfigError
from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.model.preprocess import Preprocess
from instseg.models.solo.config import GridConfig
from instseg.ops.mask_iou import mask_iou
from instseg.ops.nms import select_top

if TYPE_CHECKING:
    from instseg.model.instance_model import InstanceModel

FACTORS = (0.75, 1.0, 1.25)  # of the model's own input size: 600, 800 and 1000 for 800
STRIDE = 4  # of the map on which the masks of all scales are compared, pixels of the input at the model's own size


@contextmanager
def multi_scale(model: "InstanceModel") -> Iterator[None]:
    """Inside the block every prediction of ``model`` is one at several scales."""
    before, model.multi_scale = model.multi_scale, True
    try:
        yield
    finally:
        model.multi_scale = before


@torch.inference_mode()
def predict_scales(model: "InstanceModel", image: Tensor, factors: Sequence[float] = FACTORS) -> Instances:
    """The objects of one image (3, H, W) as seen at several scales.

    Each scale is decoded as always, its own NMS and cap included. The masks keep the resolution they were found at;
    only for the second NMS are they brought to one map, a quarter of the input at the model's own size.

    Raises ConfigError for a model that predicts in tiles, whose objects have no common map.
    """
    config = model.config
    if config.tile is not None:
        raise ConfigError(f"{model.name} predicts in tiles: multi-scale testing is for whole images, set tile=null.")
    parts = []
    for factor in factors:
        scaled = config.model_copy(
            update={
                "input_short": round(config.input_short * factor),
                "input_long": round(config.input_long * factor),
                "input_scale": None if config.input_scale is None else config.input_scale * factor,
            }
        )
        parts += model.predict_views([image], [Preprocess(scaled).view(image)])
    height, width = model.preprocess.target_size(int(image.shape[-2]), int(image.shape[-1]))
    return fuse(parts, model, (-(-height // STRIDE), -(-width // STRIDE)))


def fuse(parts: Sequence[Instances], model: "InstanceModel", size: tuple[int, int]) -> Instances:
    """Several results for one image as one: NMS over all of them on maps of ``size``, threshold and cap."""
    c = model.config
    assert isinstance(c, GridConfig)
    scores, labels = torch.cat([p.scores for p in parts]), torch.cat([p.labels for p in parts])
    order = scores.argsort(descending=True, stable=True)
    scores, labels = scores[order], labels[order]
    masks = Masks.cat([p.masks for p in parts if p.masks is not None])[order]
    iou = mask_iou(masks.at_size(size).bool(), None if c.class_agnostic else labels.cpu()).to(scores.device)
    kept, scores, truncated = select_top(scores, labels, iou, c.nms_options, c.min_score, c.max_instances)
    return Instances(scores, labels[kept], masks[kept], truncated or any(p.truncated for p in parts))
