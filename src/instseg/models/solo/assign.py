"""Objects to grid cells: the assignment that all methods of the SOLO family share, Wang et al., "SOLO: A Simple
Framework for Instance Segmentation", TPAMI 2021, https://arxiv.org/abs/2106.15947, section 3.3.1."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Assignment:
    """The positive cells of one image. Cells are numbered over all levels, fine to coarse, rows first.

    Attributes:
        cells: (P,) int64, one entry for each pair of object and cell; a shared cell occurs once for each object.
        objects: (P,) int64, the object of each pair.
        matched_gt: (K,) int64, the object whose class each of the K cells is trained to predict, -1 for background.
            Of objects that share a cell the later one owns it.
    """

    cells: Tensor
    objects: Tensor
    matched_gt: Tensor

    def owned(self) -> "Assignment":
        """Only the pairs in which the object owns the cell: one mask a cell."""
        keep = self.matched_gt[self.cells] == self.objects
        return Assignment(self.cells[keep], self.objects[keep], self.matched_gt)


def mass_centers(masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centers of mass (x, y) in pixel indices and areas, each (N,) float32, of masks (N, h, w) uint8 or bool, or
    mattes, float."""
    h, w = masks.shape[-2:]
    kind = torch.float32 if masks.is_floating_point() else torch.int32
    rows = masks.sum(dim=2, dtype=kind).float()
    columns = masks.sum(dim=1, dtype=kind).float()
    areas = rows.sum(dim=1)
    safe = areas.clamp(min=1)
    x = (columns * torch.arange(w, device=masks.device)).sum(dim=1) / safe
    y = (rows * torch.arange(h, device=masks.device)).sum(dim=1) / safe
    return x, y, areas


def assign_cells(
    boxes: Tensor,
    masks: Tensor,
    padded: tuple[int, int],
    grids: Sequence[int],
    scale_ranges: Sequence[tuple[float, float]],
    center_region: float = 0.2,
    min_pixels: int = 1,
) -> Assignment:
    """Which cells learn which object.

    An object belongs to every level whose range holds the square root of its box area (both ends included, ranges
    overlap). On such a level its positive cells are those of the region around its center of mass that measures
    ``center_region`` of the box, at most 3 x 3. Objects of fewer than ``min_pixels`` pixels are skipped.

    Args:
        boxes: (N, 4) float xyxy in pixels of the network input.
        masks: (N, h, w) uint8 or bool, or mattes, at the size of the network input without padding.
        padded: (H, W) of the padded batch; the grid is laid over it.
        grids: S of each level.
        scale_ranges: (low, high) of each level, pixels.
        center_region: side of the center region as a share of the box.
        min_pixels: at least 1.
    """
    device = boxes.device
    total = sum(s * s for s in grids)
    height, width = padded
    x, y, areas = mass_centers(masks)
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    scale = size.prod(dim=1).sqrt()
    half_w, half_h = (0.5 * center_region * size).unbind(dim=1)
    step = torch.arange(-1, 2, device=device)

    cells, objects, first = [], [], 0
    for s, (low, high) in zip(grids, scale_ranges, strict=True):
        chosen = ((scale >= low) & (scale <= high) & (areas >= min_pixels)).nonzero()[:, 0]

        def cell(v: Tensor, extent: int, s: int = s, chosen: Tensor = chosen) -> Tensor:
            return (v[chosen] * s / extent).floor().long().clamp(0, s - 1)

        rows = cell(y, height)[:, None] + step  # n, 3: the center cell and its two neighbors
        columns = cell(x, width)[:, None] + step
        in_rows = (rows >= cell(y - half_h, height)[:, None]) & (rows <= cell(y + half_h, height)[:, None])
        in_columns = (columns >= cell(x - half_w, width)[:, None]) & (columns <= cell(x + half_w, width)[:, None])
        n, r, c = (in_rows[:, :, None] & in_columns[:, None, :]).nonzero(as_tuple=True)
        cells.append(first + rows[n, r] * s + columns[n, c])
        objects.append(chosen[n])
        first += s * s

    pairs, of = torch.cat(cells), torch.cat(objects)
    matched_gt = torch.full((total,), -1, dtype=torch.int64, device=device).scatter_reduce_(0, pairs, of, "amax")
    return Assignment(pairs, of, matched_gt)
