"""From scores of cells to objects: Wang et al., "SOLO: A Simple Framework for Instance Segmentation", TPAMI 2021,
https://arxiv.org/abs/2106.15947 ("SOLO (journal)"), section 3.3.3 (inference) and 3.3.4 (Matrix NMS).

Point NMS and the least area are the released code's alone; the least score after NMS and the cap have its values, the
paper states none.
Cells that hold no candidate are never made into masks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.models.base import Found
from instseg.models.solo.config import GridConfig, GridSettings
from instseg.models.solo.grids import MASK_STRIDE, CellMasks, GridOutputs, LevelSpec
from instseg.ops.mask_iou import mask_iou
from instseg.ops.nms import select_top
from instseg.ops.point_nms import point_nms
from instseg.ops.voting import vote_weights

# Soft masks of one chunk of candidates held at a time, in values: bounds memory whatever the number of candidates.
CHUNK_VALUES = 8_000_000


def decode_grid(
    config: GridConfig, outputs: GridOutputs, maps: Sequence[LevelSpec], masks_of: CellMasks
) -> list[Found]:
    """The objects of each image, masks at a quarter of the input; their sources are cells, numbered over all levels.

    Args:
        config: thresholds, NMS and voting.
        outputs: of a batch.
        maps: which cells have their masks on which maps.
        masks_of: makes the soft masks of cells.
    """
    sizes: list[list[int]] = outputs.sizes.tolist()
    hits: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in sizes]
    first = 0
    for logits in outputs.cls_logits:  # level by level: with many classes the scores are large, the hits are few
        scores = point_nms(logits.float().sigmoid()).flatten(2).transpose(1, 2)  # B, S S, C
        for image, found in zip(scores, hits, strict=True):
            cells, labels = (image > config.candidate_threshold).nonzero(as_tuple=True)
            found.append((cells + first, labels, image[cells, labels]))
        first += scores.shape[1]
    results = []
    for i, (found, (h, w)) in enumerate(zip(hits, sizes, strict=True)):
        cells, labels, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        soft = ImageMasks(i, outputs.size, maps, masks_of)
        results.append(_decode_image(config, soft, (h, w), cells, labels, scores))
    return results


class ImageMasks:
    """The soft masks of one image's cells, all brought to maps of one size."""

    def __init__(self, image: int, size: tuple[int, int], maps: Sequence[LevelSpec], masks_of: CellMasks) -> None:
        self.image, self.size, self.maps, self.masks_of = image, size, maps, masks_of

    def __call__(self, cells: Tensor) -> Tensor:
        """Soft masks (N, H/4, W/4) float32 of cells (N,), numbered over all levels."""
        if len(self.maps) == 1 and len(cells):  # no resizing takes an empty set of maps
            return self.masks_of(self.image, 0, cells, self.size)
        soft = torch.zeros(len(cells), *self.size, device=cells.device)
        for level, m in enumerate(self.maps):
            at = ((cells >= m.first) & (cells < m.last)).nonzero()[:, 0]
            if len(at):
                soft[at] = self.masks_of(self.image, level, cells[at] - m.first, self.size)
        return soft

    @property
    def chunk(self) -> int:
        """How many masks are held at a time."""
        return max(1, CHUNK_VALUES // (self.size[0] * self.size[1]))


def _decode_image(
    c: GridConfig, soft_masks: ImageMasks, size: tuple[int, int], cells: Tensor, labels: Tensor, scores: Tensor
) -> Found:
    """``cells``, ``labels`` and ``scores`` (N,) of the candidates, cell by cell."""
    classified = scores
    scores, kept, binary, soft = candidates(c, soft_masks, cells, scores)
    cells, labels, classified = cells[kept], labels[kept], classified[kept]
    iou = mask_iou(binary, None if c.class_agnostic else labels)
    order, scores, truncated = select_top(scores, labels, iou, c.nms_options, c.min_score, c.max_instances)
    if c.voting != "none":
        votes = vote_weights(c.voting, c.voting_threshold, iou, labels, classified, order)
        final = _voted(soft_masks, cells, None if soft is None else soft[kept], votes)
    else:
        final = soft[kept[order]] if soft is not None else soft_masks(cells[order])
    masks = Masks.from_maps(final, size, MASK_STRIDE, c.mask_threshold)
    return Found(Instances(scores, labels[order], masks, truncated), cells[order])


def candidates(
    c: GridConfig, soft_masks: ImageMasks, cells: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Scores times maskness (n,), descending, of the candidates whose masks are larger than their stride, their
    positions (n,), their binary masks (n, h, w), and where all fit into one chunk the soft masks of all.

    Memory grows with ``nms_pre`` and the chunk, not with the number of candidates.
    """
    h, w = soft_masks.size
    strides = torch.cat([torch.full((s * s,), t) for s, t in zip(c.grids, c.strides, strict=True)]).to(cells.device)
    best, where = scores.new_zeros(0), cells.new_zeros(0)
    binary = torch.zeros(0, h, w, dtype=torch.bool, device=cells.device)
    soft = None
    chunk = soft_masks.chunk
    for i in range(0, len(cells), chunk):
        soft = soft_masks(cells[i : i + chunk])  # N, H/4, W/4
        inside = soft > c.mask_threshold
        area = inside.sum(dim=(1, 2))
        maskness = torch.where(inside, soft, 0.0).sum(dim=(1, 2)) / area.clamp(min=1)  # section 3.3.3
        large = (area > strides[cells[i : i + chunk]]).nonzero()[:, 0]
        best = torch.cat([best, (scores[i : i + chunk] * maskness)[large]])
        where = torch.cat([where, large + i])
        order = best.argsort(descending=True, stable=True)[: c.nms_pre]
        best, where = best[order], where[order]
        binary = inside[large][order] if i == 0 else torch.cat([binary, inside[large]])[order]
    return best, where, binary, soft if len(cells) <= chunk else None


def _voted(soft_masks: ImageMasks, cells: Tensor, soft: Tensor | None, votes: Tensor) -> Tensor:
    """Means (M, H/4, W/4) of the soft masks of candidate ``cells`` (n,), which ``soft`` are where they fit into one
    chunk, weighted by ``votes`` (M, n)."""
    h, w = soft_masks.size
    final = votes.new_zeros(len(votes), h * w)
    voting = votes.any(dim=0).nonzero()[:, 0]
    for part in torch.split(voting, soft_masks.chunk):
        masks = soft[part] if soft is not None else soft_masks(cells[part])
        with torch.autocast(votes.device.type, enabled=False):
            final += votes[:, part] @ masks.flatten(1)
    return final.view(-1, h, w)


def fuse(c: GridSettings, parts: Sequence[Instances], size: tuple[int, int]) -> Instances:
    """Several results for one image as one (section 4.3, multi-scale testing): NMS over all of them on maps of
    ``size``, threshold and cap."""
    scores, labels = torch.cat([p.scores for p in parts]), torch.cat([p.labels for p in parts])
    order = scores.argsort(descending=True, stable=True)
    scores, labels = scores[order], labels[order]
    masks = Masks.cat([p.masks for p in parts if p.masks is not None])[order]
    iou = mask_iou(masks.at_size(size).bool(), None if c.class_agnostic else labels.cpu()).to(scores.device)
    kept, scores, truncated = select_top(scores, labels, iou, c.nms_options, c.min_score, c.max_instances)
    return Instances(scores, labels[kept], masks[kept], truncated or any(p.truncated for p in parts))
