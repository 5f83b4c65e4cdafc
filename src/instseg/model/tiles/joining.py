"""Which masks of neighboring tiles are one object, and the one mask that is made of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from instseg.core import rle as rle_codes
from instseg.core.masks import Masks
from instseg.core.rle import RLE
from instseg.model.tiles.seams import Evidence, Parts

# Parts of one object have scores that differ by no more than this.
SCORE_GAP = 0.5
# Two masks of one class from different tiles are the same object when they share this much of the smaller one.
SAME_OBJECT = 0.5
# ... unless the smaller one has less than this share of the larger one's area.
COMPARABLE = 0.2
# A mask that a tile shows whole says what a cut one is, if its score is at least this part of the other's.
EXPLAINS = 0.25
# A tile's word on a pixel counts the more, the farther the pixel lies from the tile's inner borders, up to here.
RAMP = 64  # pixels
# Rows of a joined mask that are made at a time.
BAND = 512


@dataclass(frozen=True)
class Candidate:
    """One object of the image.

    Attributes:
        members: the masks that show it.
        kept: the one that stands for all, None where they have to be joined.
        score: of the object, in [0, 1].
        cut: only a part of it has been found, which ends at a border between tiles.
    """

    members: list[int]
    kept: int | None
    score: float
    cut: bool


def of_parts(
    parts: Parts, evidence: Sequence[Evidence], sharing: Iterable[tuple[int, int]], cut: npt.NDArray[np.bool_]
) -> list[Evidence]:
    """The evidence between masks that have to be joined: both are cut, and no tile shows whole what they show.

    Masks that a tile shows whole, and what others show of the same, are left to :func:`distinct`. Joined as well, weak
    masks that cover two objects would make one of them: on microscopy images that costs 0.01 to 0.03 AP.
    """
    explained: set[int] = set()
    for pair in sharing:
        for i, j in (pair, pair[::-1]):
            asked = cut[i] and not cut[j] and i not in explained and parts.scores[j] >= EXPLAINS * parts.scores[i]
            if asked and _cover(parts.codes[i], parts.codes[j]) > SAME_OBJECT:
                explained.add(i)
    kept = cut.copy()
    kept[list(explained)] = False
    return [one for one in evidence if kept[one.first] and kept[one.second]]


def group(parts: Parts, evidence: Iterable[Evidence]) -> list[list[int]]:
    """The masks of each object.

    Evidence is followed from the strongest to the weakest. It is dropped where it would make two masks of one tile
    the same object, although that tile saw them side by side and told them apart.
    """
    root = list(range(len(parts.tiles)))
    members: dict[int, dict[int, list[int]]] = {
        i: {tile: [i]} for i, tile in enumerate(parts.tiles.tolist()) if parts.areas[i] > 0
    }

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for one in sorted(evidence, key=lambda e: e.weight, reverse=True):
        if abs(parts.scores[one.first] - parts.scores[one.second]) > SCORE_GAP + 1e-6:
            continue
        a, b = find(one.first), find(one.second)
        if a == b:
            continue
        if len(members[a]) < len(members[b]):
            a, b = b, a
        if _told_apart(parts, members[a], members[b]):
            continue
        root[b] = a
        for tile, ids in members.pop(b).items():
            members[a].setdefault(tile, []).extend(ids)
    return [sorted(i for ids in tiles.values() for i in ids) for tiles in members.values()]


def _told_apart(parts: Parts, a: dict[int, list[int]], b: dict[int, list[int]]) -> bool:
    return any(parts.side_by_side(i, j) for tile in b if tile in a for i in a[tile] for j in b[tile])


def candidate(parts: Parts, members: list[int], cut: npt.NDArray[np.bool_]) -> Candidate:
    """What becomes of the masks of one object.

    A mask that its tile shows whole stands for all, if the others have nothing outside that tile; of several such
    masks the one with the best score. All others are joined, and their score is the mean, weighted with their areas.
    """
    if len(members) == 1:
        return Candidate(members, members[0], float(parts.scores[members[0]]), bool(cut[members[0]]))
    low, high = parts.boxes[members, :2].min(axis=0), parts.boxes[members, 2:].max(axis=0)
    for i in sorted(members, key=lambda i: -parts.scores[i]):
        region = parts.regions[parts.tiles[i]]
        if not cut[i] and (low >= region[:2]).all() and (high <= region[2:]).all():
            return Candidate(members, i, float(parts.scores[i]), False)
    weights = parts.areas[members]
    return Candidate(members, None, float((parts.scores[members] * weights).sum() / weights.sum()), False)


def distinct(parts: Parts, candidates: Sequence[Candidate], sharing: Iterable[tuple[int, int]]) -> list[Candidate]:
    """The candidates, best first, without those that show what better ones show.

    Whole objects come before cut ones; among them the score decides. One goes when better ones cover half of it, and
    of two that are each whole in a tile also when it covers half of the better, unless they differ much in size. Two
    that some tile saw on top of each other and kept are two objects.

    Args:
        sharing: pairs of masks of one class, of different tiles, that have pixels in common.
    """
    owner = {i: k for k, one in enumerate(candidates) for i in one.members}
    owned = [sorted((owner[i], owner[j])) for i, j in sharing if i in owner and j in owner]
    pairs = {(a, b) for a, b in owned if a != b}
    codes: dict[int, RLE] = {}
    for k in {k for pair in pairs for k in pair}:
        kept, members = candidates[k].kept, candidates[k].members
        codes[k] = parts.codes[kept] if kept is not None else rle_codes.merge([parts.codes[i] for i in members])
    areas = {k: float(rle_codes.area([code])[0]) for k, code in codes.items()}
    covered: dict[int, dict[int, float]] = {k: {} for k in codes}  # [one][other]: the share that goes if other stays
    partners: dict[int, list[int]] = {}
    for a, b in sorted(pairs):
        partners.setdefault(a, []).append(b)
    for a, others in partners.items():
        shares = rle_codes.iou([codes[a]], [codes[b] for b in others], [True] * len(others))[0].tolist()
        for b, of_a in zip(others, shares, strict=True):
            of_b = of_a * areas[a] / areas[b]
            if max(of_a, of_b) > SAME_OBJECT and _stacked(parts, candidates[a], candidates[b]):
                continue
            alike = min(areas[a], areas[b]) > COMPARABLE * max(areas[a], areas[b])
            if alike and not any(candidates[k].cut or candidates[k].kept is None for k in (a, b)):
                of_a = of_b = max(of_a, of_b)
            covered[a][b], covered[b][a] = of_a, of_b

    def rank(k: int) -> tuple[bool, float]:
        one = candidates[k]
        return one.cut, -one.score * (areas.get(k, 0.0) if one.cut else 1.0)

    stay: set[int] = set()
    for k in sorted(range(len(candidates)), key=rank):
        if sum(share for other, share in covered.get(k, {}).items() if other in stay) <= SAME_OBJECT:
            stay.add(k)
    return sorted((candidates[k] for k in sorted(stay)), key=lambda one: -one.score)


def _cover(a: RLE, b: RLE) -> float:
    """The share of ``a`` that ``b`` covers: against a "crowd" COCO's measure is that."""
    return float(rle_codes.iou([a], [b], [True])[0, 0])


def _stacked(parts: Parts, one: Candidate, other: Candidate) -> bool:
    """Whether a tile shows both, one on top of the other."""
    return any(
        parts.tiles[i] == parts.tiles[j]
        and max(_cover(parts.codes[i], parts.codes[j]), _cover(parts.codes[j], parts.codes[i])) > SAME_OBJECT
        for i in one.members
        for j in other.members
    )


def join(masks: Masks, parts: Parts, groups: Sequence[Sequence[int]]) -> Masks:
    """One mask from each group of masks, at image size; only the window it lies in is made.

    A pixel that several tiles see takes the mean of what they say, in which a tile counts the more, the farther the
    pixel lies from its borders. So holes stay, and the outline runs smoothly from one tile into the next.
    """
    pieces = [_blended(masks, parts, members) for members in groups]
    return Masks.from_pieces(pieces, parts.image_size, masks.threshold)


def _blended(masks: Masks, parts: Parts, members: Sequence[int]) -> tuple[int, int, Tensor]:
    """Top, left and soft values (h, w) of the window that the masks reach together."""
    reach = torch.tensor([masks.reach(i) for i in members])
    top, left = (int(reach[:, k].min()) for k in (0, 2))
    bottom, right = (int(reach[:, k].max()) for k in (1, 3))
    tiles: dict[int, list[int]] = {}
    for i in members:
        tiles.setdefault(int(parts.tiles[i]), []).append(i)
    soft = torch.empty(bottom - top, right - left)
    for start in range(top, bottom, BAND):
        stop = min(start + BAND, bottom)
        total = soft[start - top : stop - top].zero_()
        weight = torch.zeros_like(total)
        for tile, ids in tiles.items():
            x0, y0, x1, y1 = parts.regions[tile].tolist()
            a, b, c, d = max(y0, start), min(y1, stop), max(x0, left), min(x1, right)
            if a >= b or c >= d:
                continue
            down = _ramp(y0, y1, parts.image_size[0])[a - y0 : b - y0]
            across = _ramp(x0, x1, parts.image_size[1])[c - x0 : d - x0]
            says = reduce(torch.maximum, (masks.block(i, a, b, c, d) for i in ids))
            trust = down[:, None] * across
            total[a - start : b - start, c - left : d - left].addcmul_(trust, says)
            weight[a - start : b - start, c - left : d - left] += trust
        total /= weight.clamp_(min=1e-6)
    return top, left, soft


def _ramp(start: int, stop: int, extent: int) -> Tensor:
    """The trust in a tile from ``start`` to ``stop`` along one side of the image."""
    inside = torch.arange(stop - start) + 0.5
    trust = torch.full((stop - start,), float(RAMP))
    if start > 0:
        trust = torch.minimum(trust, inside)
    if stop < extent:
        trust = torch.minimum(trust, stop - start - inside)
    return trust
