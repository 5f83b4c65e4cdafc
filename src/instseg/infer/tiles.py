"""Large images in overlapping squares, so that every part is seen at the size the model was trained at."""

from collections.abc import Sequence

import torch
from torch import Tensor

from instseg.core import rle as rle_codes
from instseg.core.geometry import View
from instseg.core.instances import Instances
from instseg.core.masks import Masks

# Two masks of one class from different tiles are the same object when they share this much of the smaller one.
SAME_OBJECT = 0.5


def tile_starts(extent: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles along one side begin; they cover it, share at least ``overlap``, and stay inside."""
    if extent <= tile:
        return [0]
    count = -(-(extent - overlap) // (tile - overlap))
    return [round(i * (extent - tile) / (count - 1)) for i in range(count)]


def tile_views(image_size: tuple[int, int], scale: float, tile: int, overlap: int) -> list[View]:
    """Views of ``tile`` x ``tile`` network pixels over an image that is resized by ``scale``."""
    side, shared = max(1, round(tile / scale)), round(overlap / scale)
    height, width = image_size
    views = []
    for top in tile_starts(height, side, shared):
        for left in tile_starts(width, side, shared):
            size = (min(side, height), min(side, width))
            content = (min(tile, int(size[0] * scale + 0.5)), min(tile, int(size[1] * scale + 0.5)))
            views.append(View(content, size, image_size, (top, left)))
    return views


def merge_tiles(parts: Sequence[Instances], views: Sequence[View], max_instances: int) -> Instances:
    """One result for the image from those of its tiles.

    An object in the overlap is found in several tiles. Of masks of one class that share half of the smaller one,
    the best is kept, and a mask that ends at the border of its tile (and may be cut there) gives way to one that
    does not.
    """
    if len(parts) == 1:
        return parts[0]
    scores = torch.cat([p.scores for p in parts])
    labels = torch.cat([p.labels for p in parts])
    masks = Masks.cat([p.masks for p in parts])
    tile = torch.cat([torch.full((len(p),), i) for i, p in enumerate(parts)])
    cut = torch.cat([_cut_by_tile(p, v) for p, v in zip(parts, views, strict=True)])
    order = torch.argsort(scores.cpu() - cut.float() * 2, descending=True, stable=True)  # whole masks first
    kept = _unique(order.tolist(), masks.rle(), labels.cpu(), tile)
    chosen = torch.tensor(kept, dtype=torch.int64)
    chosen = chosen[scores.cpu()[chosen].argsort(descending=True, stable=True)]
    on_device = chosen[:max_instances].to(scores.device)
    capped = len(chosen) > max_instances or any(p.capped for p in parts)
    return Instances(scores[on_device], labels[on_device], masks[chosen[:max_instances]], capped)


def _cut_by_tile(part: Instances, view: View) -> Tensor:
    """Whether each mask touches a border of its tile that is not a border of the image."""
    boxes = part.masks.boxes()
    (top, left), (height, width) = view.offset, view.size
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    inner_left, inner_top = left > 0, top > 0
    inner_right, inner_bottom = left + width < view.image_size[1], top + height < view.image_size[0]
    cut = torch.zeros(len(boxes), dtype=torch.bool)
    for inner, touching in (
        (inner_left, x0 <= left + 1),
        (inner_top, y0 <= top + 1),
        (inner_right, x1 >= left + width - 1),
        (inner_bottom, y1 >= top + height - 1),
    ):
        if inner:
            cut |= touching
    return cut


def _unique(order: list[int], codes: list[rle_codes.RLE], labels: Tensor, tiles: Tensor) -> list[int]:
    areas = rle_codes.area(codes)
    # Against a "crowd" the measure is the share of the first mask that the second covers.
    share = torch.from_numpy(rle_codes.iou(codes, codes, [True] * len(codes)))
    same = torch.maximum(share, share.T) > SAME_OBJECT
    same &= (labels[:, None] == labels[None, :]) & (tiles[:, None] != tiles[None, :])
    rivals = [row.nonzero()[:, 0].tolist() for row in same]
    gone = areas == 0
    kept: list[int] = []
    for i in order:
        if not gone[i]:
            kept.append(i)
            gone[rivals[i]] = True
    return kept
