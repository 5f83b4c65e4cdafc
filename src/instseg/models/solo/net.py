"""What the networks of the SOLO family share: levels, assignment, losses, decoding.

A method adds its branches: ``predict_pyramid`` gives its raw outputs, ``mask_probabilities`` the soft masks of chosen
cells. Cells that neither hold an object (training) nor a candidate (prediction) are never made into masks.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.losses.focal import category_focal_loss
from instseg.losses.mask import MASK_LOSSES, mask_loss
from instseg.models.base import ClassLayout, Found, ImageBatch, LossTerms, Net, Step, Target
from instseg.models.solo.assign import Assignment, assign_cells
from instseg.models.solo.config import GridConfig
from instseg.nn.backbone import Backbone
from instseg.nn.fpn import FPN
from instseg.ops.mask_iou import mask_iou
from instseg.ops.nms import select_top
from instseg.ops.point_nms import point_nms
from instseg.ops.resize import downsample_masks, resize
from instseg.ops.voting import vote_weights

MASK_STRIDE = 4  # of the maps on which masks are compared and kept
# Soft masks of one chunk of candidates held at a time, in values: bounds memory whatever the number of candidates.
CHUNK_VALUES = 8_000_000

MaskFunction = Callable[[Any, int, int, Tensor], Tensor]


@dataclass(frozen=True)
class LevelSpec:
    """Cells whose masks are predicted on maps of one resolution: those of a level, or of all levels.

    Attributes:
        stride: of the maps, pixels of the network input.
        first, last: its cells, numbered over all levels, ``last`` excluded.
    """

    stride: int
    first: int
    last: int


@dataclass(frozen=True)
class GridOutputs:
    """Raw outputs for a batch.

    Attributes:
        cls_logits: for each level (B, C, S, S).
        size: (H/4, W/4), the maps that masks are compared on.
        sizes: (B, 2) int64, (h, w) of each image without padding.
    """

    cls_logits: list[Tensor]
    size: tuple[int, int]
    sizes: Tensor


G = TypeVar("G", bound=GridOutputs)


class GridNet(Net[G]):
    """A backbone with its pyramid; a subclass builds the branches and says what ``maps`` its masks live on."""

    shares_cells = False  # objects that share a cell are all trained on; else the last has it
    may_leave_unused = True  # a level without an object teaches its own parameters nothing
    mask_strides: ClassVar[tuple[int, ...]] = (4, 4, 8, 16, 16)  # of each level: half of what enters the head

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.backbone = Backbone(
            config.backbone, config.frozen_stages, config.norm_eval, config.dcn, config.stride_in_1x1
        )
        self.fpn: nn.Module = FPN(self.backbone.channels, config.fpn_channels)
        ends = list(accumulate((s * s for s in config.grids), initial=0))
        self.maps = [LevelSpec(t, a, b) for t, (a, b) in zip(self.mask_strides, pairwise(ends), strict=False)]

    def forward(self, batch: ImageBatch) -> G:
        return self.predict_pyramid(self.fpn(self.backbone(batch.pixels)), batch.sizes)

    @abstractmethod
    def predict_pyramid(self, pyramid: Sequence[Tensor], sizes: Tensor) -> G:
        """[P2, ..., P6] at strides 4 to 64, of images whose content is ``sizes`` (B, 2), to raw outputs."""

    def class_layers(self) -> Mapping[str, ClassLayout]:
        raise NotImplementedError

    @abstractmethod
    def mask_probabilities(
        self, outputs: Any, image: int, level: int, cells: Tensor, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Soft masks (N, h, w) float32 of cells (N,) of ``maps[level]``, numbered within it, in one image; brought
        to ``size`` where one is given."""

    @property
    def supervised_masks(self) -> dict[str, MaskFunction]:
        """What is compared with the targets: the names of the losses and, as :meth:`mask_probabilities`, what gives
        their masks."""
        return {"loss_mask": self.mask_probabilities}

    def head_levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """The re-strided levels, strides 8, 8, 16, 32, 32: P2 halved, P3 to P5, P6 enlarged."""
        p2, p3, p4, p5, p6 = pyramid
        levels = [resize(p2, (p3.shape[-2], p3.shape[-1])), p3, p4, p5, resize(p6, (p5.shape[-2], p5.shape[-1]))]
        return levels[: len(self.config.grids)]

    # --- training: section 3.3 ------------------------------------------------------------------------------------

    def assign(self, target: Target, padded: tuple[int, int]) -> Assignment:
        """The positive cells of one image; ``target`` as in :meth:`loss`, ``padded`` (H, W) of the batch."""
        c = self.config
        found = assign_cells(target.boxes, target.masks, padded, c.grids, c.scale_ranges, c.center_region, c.min_pixels)
        return found if self.shares_cells else found.owned()

    def mask_normalizer(self, losses: int, cells: int) -> int:
        """What the sum of the mask losses is divided by, given the numbers of losses and of positive cells."""
        return losses

    def loss(self, outputs: G, targets: Sequence[Target], step: Step) -> LossTerms:
        """Equation (4): the focal loss of the categories and the weighted loss of the masks.

        Args:
            outputs: of a batch of B images.
            targets: of each image, with masks.
            step: not used.

        Returns:
            ``loss_category`` and ``loss_mask``, float32 scalars, weighted.
        """
        c = self.config
        padded = (outputs.size[0] * MASK_STRIDE, outputs.size[1] * MASK_STRIDE)
        logits = torch.cat([p.flatten(2) for p in outputs.cls_logits], dim=2).transpose(1, 2)  # B, K, C
        losses: dict[str, list[Tensor]] = {name: [] for name in self.supervised_masks}
        labels: list[Tensor] = []
        for image, target in enumerate(targets):
            assignment = self.assign(target, padded)
            # Row -1 of the padded labels is background.
            padded_labels = torch.cat([target.labels, target.labels.new_tensor([c.num_classes])])
            labels.append(padded_labels[assignment.matched_gt])
            for name, found in self._mask_losses(outputs, image, assignment, target.masks):
                losses[name].append(found)
        cell_labels = torch.cat(labels)
        positives = int((cell_labels < c.num_classes).sum())
        loss_category = category_focal_loss(logits.flatten(0, 1), cell_labels, positives, c.focal_alpha, c.focal_gamma)
        named = {"loss_category": c.category_weight * loss_category}
        weight = MASK_LOSSES[c.mask_loss][1] if c.mask_weight is None else c.mask_weight
        for name, parts in losses.items():
            items = torch.cat([logits.new_zeros(0, dtype=torch.float32), *parts])
            named[name] = weight * items.sum() / max(1, self.mask_normalizer(len(items), positives))
        return LossTerms(named, {"positives": cell_labels.new_tensor(positives, dtype=torch.float32)})

    def _mask_losses(self, outputs: Any, image: int, assignment: Assignment, masks: Tensor) -> list[tuple[str, Tensor]]:
        """For each map that has positives in one image the names and values (P,) of their losses. Only positive
        cells are gathered: no target of S S x H x W exists."""
        found = []
        smaller: dict[int, Tensor] = {}
        for level, m in enumerate(self.maps):
            inside = (assignment.cells >= m.first) & (assignment.cells < m.last)
            if not bool(inside.any()):
                continue
            for name, masks_of in self.supervised_masks.items():
                p = masks_of(outputs, image, level, assignment.cells[inside] - m.first)
                if m.stride not in smaller:
                    smaller[m.stride] = _padded(downsample_masks(masks, m.stride), (p.shape[1], p.shape[2]))
                q = smaller[m.stride][assignment.objects[inside]]
                found.append((name, mask_loss(self.config.mask_loss, p, q)))
        return found

    # --- inference: section 3.3.3 and 3.3.4 -----------------------------------------------------------------------

    def decode(self, outputs: G) -> list[Found]:
        """The objects of each image, masks at a quarter of the input; their sources are cells, numbered over all
        levels."""
        sizes: list[list[int]] = outputs.sizes.tolist()
        hits: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in sizes]
        first = 0
        for logits in outputs.cls_logits:  # level by level: with many classes the scores are large, the hits are few
            scores = point_nms(logits.float().sigmoid()).flatten(2).transpose(1, 2)  # B, S S, C
            for image, found in zip(scores, hits, strict=True):
                cells, labels = (image > self.config.candidate_threshold).nonzero(as_tuple=True)
                found.append((cells + first, labels, image[cells, labels]))
            first += scores.shape[1]
        results = []
        for i, (found, (h, w)) in enumerate(zip(hits, sizes, strict=True)):
            cells, labels, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
            results.append(self._decode_image(outputs, i, (h, w), cells, labels, scores))
        return results

    def _decode_image(
        self, outputs: Any, image: int, size: tuple[int, int], cells: Tensor, labels: Tensor, scores: Tensor
    ) -> Found:
        """``cells``, ``labels`` and ``scores`` (N,) of the candidates, cell by cell."""
        c = self.config
        classified = scores
        scores, kept, binary, soft = self._candidates(outputs, image, cells, scores)
        cells, labels, classified = cells[kept], labels[kept], classified[kept]
        iou = mask_iou(binary, None if c.class_agnostic else labels)
        order, scores, truncated = select_top(scores, labels, iou, c.nms_options, c.min_score, c.max_instances)
        if c.voting != "none":
            votes = vote_weights(c.voting, c.voting_threshold, iou, labels, classified, order)
            final = self._voted(outputs, image, cells, None if soft is None else soft[kept], votes)
        else:
            final = soft[kept[order]] if soft is not None else self.soft_masks(outputs, image, cells[order])
        masks = Masks.from_maps(final, size, MASK_STRIDE, c.mask_threshold)
        return Found(Instances(scores, labels[order], masks, truncated), cells[order])

    def _voted(self, outputs: Any, image: int, cells: Tensor, soft: Tensor | None, votes: Tensor) -> Tensor:
        """Means (M, H/4, W/4) of the soft masks of candidate ``cells`` (n,), which ``soft`` are where they fit into
        one chunk, weighted by ``votes`` (M, n)."""
        h, w = outputs.size
        final = votes.new_zeros(len(votes), h * w)
        voting = votes.any(dim=0).nonzero()[:, 0]
        chunk = max(1, CHUNK_VALUES // (h * w))
        for i in range(0, len(voting), chunk):
            part = voting[i : i + chunk]
            masks = soft[part] if soft is not None else self.soft_masks(outputs, image, cells[part])
            with torch.autocast(votes.device.type, enabled=False):
                final += votes[:, part] @ masks.flatten(1)
        return final.view(-1, h, w)

    def _candidates(
        self, outputs: Any, image: int, cells: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Scores times maskness (n,), descending, of the candidates whose masks are larger than their stride, their
        positions (n,), their binary masks (n, h, w), and where all fit into one chunk the soft masks of all.

        Memory grows with ``nms_pre`` and the chunk, not with the number of candidates.
        """
        c = self.config
        h, w = outputs.size
        strides = torch.cat([torch.full((s * s,), t) for s, t in zip(c.grids, c.strides, strict=True)]).to(cells.device)
        best, where = scores.new_zeros(0), cells.new_zeros(0)
        binary = torch.zeros(0, h, w, dtype=torch.bool, device=cells.device)
        soft = None
        chunk = max(1, CHUNK_VALUES // (h * w))
        for i in range(0, len(cells), chunk):
            soft = self.soft_masks(outputs, image, cells[i : i + chunk])  # N, H/4, W/4
            inside = soft > c.mask_threshold
            area = inside.sum(dim=(1, 2))
            maskness = torch.where(inside, soft, 0.0).sum(dim=(1, 2)) / area.clamp(min=1)
            large = (area > strides[cells[i : i + chunk]]).nonzero()[:, 0]
            best = torch.cat([best, (scores[i : i + chunk] * maskness)[large]])
            where = torch.cat([where, large + i])
            order = best.argsort(descending=True, stable=True)[: c.nms_pre]
            best, where = best[order], where[order]
            binary = inside[large][order] if i == 0 else torch.cat([binary, inside[large]])[order]
        return best, where, binary, soft if len(cells) <= chunk else None

    def soft_masks(self, outputs: Any, image: int, cells: Tensor) -> Tensor:
        """Soft masks (N, H/4, W/4) float32 of cells (N,), numbered over all levels."""
        if len(self.maps) == 1 and len(cells):  # no resizing takes an empty set of maps
            return self.mask_probabilities(outputs, image, 0, cells, outputs.size)
        soft = torch.zeros(len(cells), *outputs.size, device=cells.device)
        for level, m in enumerate(self.maps):
            at = ((cells >= m.first) & (cells < m.last)).nonzero()[:, 0]
            if len(at):
                soft[at] = self.mask_probabilities(outputs, image, level, cells[at] - m.first, outputs.size)
        return soft


def _padded(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (N, h, w) in the upper left corner of maps of ``size``, cut where they are larger."""
    out = masks.new_zeros(len(masks), *size)
    part = masks[:, : size[0], : size[1]]
    out[:, : part.shape[1], : part.shape[2]] = part
    return out
