"""Large images in overlapping squares, so that every part is seen at the size the model was trained at."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from instseg.core import rle as rle_codes
from instseg.core.geometry import InputGeometry, scaled
from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.model.tiles.joining import candidate, distinct, group, join, of_parts
from instseg.model.tiles.seams import Parts, compare_all

# What is no wider than this at the border of a tile, and not seen by the next tile, is nothing; pixels.
SLIVER = 4
# Boxes of one class from a detector without masks are the same object from this IoU on.
SAME_BOX = 0.5


def tile_starts(extent: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles along one side begin; they cover it, share at least ``overlap``, and stay inside."""
    if extent <= tile:
        return [0]
    count = -(-(extent - overlap) // (tile - overlap))
    return [round(i * (extent - tile) / (count - 1)) for i in range(count)]


def tile_views(image_size: tuple[int, int], scale: float, tile: int, overlap: int) -> list[InputGeometry]:
    """Views of ``tile`` x ``tile`` network pixels over an image that is resized by ``scale``."""
    side = max(1, round(tile / scale))
    # Enlarged images have tiles of few pixels, where rounding could leave no step from one to the next.
    shared = min(round(overlap / scale), side * 3 // 4)
    height, width = image_size
    views = []
    for top in tile_starts(height, side, shared):
        for left in tile_starts(width, side, shared):
            size = (min(side, height), min(side, width))
            content = (min(tile, scaled(size[0], scale)), min(tile, scaled(size[1], scale)))
            views.append(InputGeometry(content, size, image_size, (top, left)))
    return views


def merge_tiles(parts: Sequence[Instances], views: Sequence[InputGeometry], max_instances: int) -> Instances:
    """One result for the image from those of its tiles.

    An object in the overlap is found in several tiles, and one that is larger than the overlap is found in parts.
    Masks of one class that are cut by their tiles are parts of one object when they agree where both of their tiles
    look, or, where tiles only meet, when they continue each other across the seam. An object that a tile shows whole
    keeps that mask, the best of them if several do, with its score. The parts of all others are joined into one mask,
    whose score is the mean of the parts' scores, weighted with their areas; parts whose scores differ by more than 0.5
    are not joined. Boxes without masks are not joined: of those of one class that overlap, the best stays. See
    ``docs/decisions/tiles.md``.

    Args:
        parts: what was found in each tile, best first.
        views: where each tile lies in the image.
        max_instances: cap on the objects of the image, counted after joining.

    Returns:
        The objects, best first; ``truncated`` where the cap cut some off, here or in a tile.
    """
    if len(parts) == 1:
        return parts[0] if len(parts[0]) <= max_instances else parts[0].best(max_instances)
    every = Instances.cat(parts)
    if every.masks is None:
        return _best_boxes(every).best(max_instances)
    masks, scores, labels, truncated = every.masks, every.scores, every.labels, every.truncated
    device = masks.device
    masks = masks.cpu()
    table = _table(masks, scores, labels, parts, views)
    evidence, sharing = [], []
    cut, sliver = _cut_by_tile(table)
    for i, j, found, share in compare_all(table, cut):
        if found is not None:
            evidence.append(found)
        if share:
            sharing.append((i, j))
    groups = [
        ids for ids in group(table, of_parts(table, evidence, sharing, cut)) if len(ids) > 1 or not sliver[ids[0]]
    ]
    objects = distinct(table, [candidate(table, ids, cut) for ids in groups], sharing)
    truncated |= len(objects) > max_instances
    objects = objects[:max_instances]
    first = torch.tensor([o.members[0] if o.kept is None else o.kept for o in objects], dtype=torch.int64)
    together = [o.members for o in objects if o.kept is None]
    if together:
        order = torch.tensor([o.kept is None for o in objects]).int().argsort(stable=True)
        chosen = Masks.cat([masks[first[order[: len(objects) - len(together)]]], join(masks, table, together)])
        chosen = chosen[order.argsort()]
    else:
        chosen = masks[first]
    joined = torch.tensor([o.score for o in objects], dtype=scores.dtype, device=scores.device)
    return Instances(joined, labels[first.to(labels.device)], chosen.to(device), truncated)


def _best_boxes(every: Instances) -> Instances:
    """Best first, without boxes that a better one of their class overlaps."""
    from torchvision.ops import batched_nms  # takes seconds to import

    return every[batched_nms(every.boxes.float(), every.scores.float(), every.labels, SAME_BOX)]


def _table(
    masks: Masks, scores: Tensor, labels: Tensor, parts: Sequence[Instances], views: Sequence[InputGeometry]
) -> Parts:
    codes = masks.rle()
    tiles = [np.full(len(p), i, dtype=np.int64) for i, p in enumerate(parts)]
    regions = [(v.offset[1], v.offset[0], v.offset[1] + v.size[1], v.offset[0] + v.size[0]) for v in views]
    return Parts(
        codes,
        rle_codes.boxes(codes).astype(np.int64),
        rle_codes.area(codes),
        labels.cpu().numpy(),
        scores.cpu().double().numpy(),
        np.concatenate(tiles),
        np.array(regions, dtype=np.int64),
        masks.image_size,
    )


def _cut_by_tile(parts: Parts) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Whether each mask touches a border of its tile that is not a border of the image, to within a pixel; and
    whether, besides, it is a sliver along that border that lies in plain view of another tile."""
    regions, boxes = parts.regions[parts.tiles], parts.boxes
    low = (regions[:, :2] > 0) & (boxes[:, :2] <= regions[:, :2] + 1)
    high = (regions[:, 2:] < np.array(parts.image_size[::-1])) & (boxes[:, 2:] >= regions[:, 2:] - 1)
    cut: npt.NDArray[np.bool_] = np.any(low | high, axis=1)
    sliver: npt.NDArray[np.bool_] = np.any((low | high) & (boxes[:, 2:] - boxes[:, :2] <= SLIVER), axis=1)
    for i in sliver.nonzero()[0]:
        seen = (parts.regions[:, :2] <= boxes[i, :2]) & (parts.regions[:, 2:] >= boxes[i, 2:])
        sliver[i] = np.count_nonzero(seen.all(axis=1)) > 1
    return cut, sliver
