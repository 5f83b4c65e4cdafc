"""What the masks of neighboring tiles say about each other where the tiles overlap, or meet."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import numpy.typing as npt

from instseg.core import rle as rle_codes
from instseg.core.rle import RLE, BoolArray

IntArray = npt.NDArray[np.int64]
Box = tuple[int, int, int, int]

# Two parts are one object when, where both tiles look, their masks have at least this IoU ...
SAME_PART = 0.5
# ... or, thin as they are there, lie within this many pixels of each other with nearly all of their pixels ...
WAVERING = 2
NEARLY_ALL = 0.8
# ... or, where the tiles only meet, more than this share of the shorter of their two contact lines.
SAME_CONTACT = 0.5
# Columns (or rows) before a seam from which the direction of an outline is read, pixels.
LOOK_BACK = 4
# Parts of one tile that are no farther apart than this, in pixels, were seen side by side and told apart.
SIDE_BY_SIDE = 1
# Pairs of masks per mask of two tiles above which they count as a heap, and partners of each that are then looked at.
CROWDED = 4
LIKELIEST = 2
# Decoded masks that are kept for the next comparison, bytes.
KEPT_WINDOWS = 1 << 26


@dataclass
class Parts:
    """The masks of all tiles of one image.

    Attributes:
        codes: their run-length codes at image size.
        boxes: (N, 4) xyxy, the tight extents, pixels.
        areas: (N,) foreground pixels.
        labels: (N,) classes.
        scores: (N,) in [0, 1].
        tiles: (N,) the tile of each.
        regions: (T, 4) xyxy, what each tile shows, pixels.
        image_size: (H, W).
    """

    codes: Sequence[RLE]
    boxes: IntArray
    areas: npt.NDArray[np.float64]
    labels: IntArray
    scores: npt.NDArray[np.float64]
    tiles: IntArray
    regions: IntArray
    image_size: tuple[int, int]
    _windows: OrderedDict[int, tuple[int, int, BoolArray]] = field(default_factory=OrderedDict)
    _kept: int = 0
    _near: dict[tuple[int, int], bool] = field(default_factory=dict)

    def window(self, i: int) -> tuple[int, int, BoolArray]:
        """``(top, left, window)`` of mask ``i``; the latest few are kept decoded."""
        found = self._windows.get(i)
        if found is None:
            found = self._windows[i] = rle_codes.decode_window(self.codes[i])
            self._kept += found[2].size
            while self._kept > KEPT_WINDOWS and len(self._windows) > 1:
                self._kept -= self._windows.popitem(last=False)[1][2].size
        else:
            self._windows.move_to_end(i)
        return found

    def crop(self, i: int, box: Box) -> BoolArray:
        """Mask ``i`` on ``box``, which may reach over the mask's extent."""
        x0, y0, x1, y1 = box
        top, left, window = self.window(i)
        bottom, right = top + window.shape[0], left + window.shape[1]
        out = np.zeros((max(y1 - y0, 0), max(x1 - x0, 0)), dtype=bool)
        a, b, c, d = max(y0, top), min(y1, bottom), max(x0, left), min(x1, right)
        if a < b and c < d:
            out[a - y0 : b - y0, c - x0 : d - x0] = window[a - top : b - top, c - left : d - left]
        return out

    def side_by_side(self, i: int, j: int) -> bool:
        """Whether two masks of one tile touch, overlap, or nearly do."""
        pair = (min(i, j), max(i, j))
        if pair not in self._near:
            self._near[pair] = self._side_by_side(i, j)
        return self._near[pair]

    def _side_by_side(self, i: int, j: int) -> bool:
        a, b = self.boxes[i], self.boxes[j]
        low, high = np.maximum(a[:2], b[:2]) - SIDE_BY_SIDE, np.minimum(a[2:], b[2:]) + SIDE_BY_SIDE
        if (low >= high).any():
            return False
        box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        return bool((_grown(self.crop(i, box), SIDE_BY_SIDE) & self.crop(j, box)).any())


@dataclass(frozen=True)
class Evidence:
    """That mask ``first`` of one tile and mask ``second`` of another are the same object, as far as the overlap says.

    Attributes:
        first, second: the masks.
        agreement: what they share there, as a fraction in [0, 1].
        amount: how many pixels they share there; along a seam, how long their common contact is.
        overlap: whether both tiles look at what was compared; if not, the tiles only meet there.
    """

    first: int
    second: int
    agreement: float
    amount: float
    overlap: bool

    @property
    def weight(self) -> tuple[bool, float]:
        """Strongest first: what two tiles have seen before what was concluded; then much before little, unless it
        agrees badly."""
        return self.overlap, self.amount * self.agreement**3


def neighboring_tiles(regions: IntArray, used: IntArray) -> Iterator[tuple[int, int]]:
    """Pairs of the ``used`` tiles whose regions overlap or meet."""
    order = used[np.argsort(regions[used, 1], kind="stable")]
    ordered = regions[order]
    ends = np.searchsorted(ordered[:, 1], ordered[:, 3], side="right")  # the tops that begin before this bottom
    for k in range(len(order)):
        later = ordered[k + 1 : ends[k]]
        near = (later[:, 0] <= ordered[k, 2]) & (later[:, 2] >= ordered[k, 0])
        for n in near.nonzero()[0].tolist():
            yield int(order[k]), int(order[k + 1 + n])


def compare_all(parts: Parts, cut: BoolArray) -> Iterator[tuple[int, int, Evidence | None, bool]]:
    """Pairs of masks of one class from two tiles whose boxes meet where the tiles do: the masks, evidence that they are
    one object, if there is any, and whether they share pixels.

    Args:
        cut: (N,) which masks their tiles cut; only between those evidence is looked for.
    """
    order = np.argsort(parts.tiles, kind="stable")
    order = order[parts.areas[order] > 0]
    used, first = np.unique(parts.tiles[order], return_index=True)
    members = dict(zip(used.tolist(), np.split(order, first[1:]), strict=True)) if len(used) else {}
    for s, t in neighboring_tiles(parts.regions, used):
        low = np.maximum(parts.regions[s, :2], parts.regions[t, :2])
        high = np.minimum(parts.regions[s, 2:], parts.regions[t, 2:])
        if (low == high).all():
            continue  # they meet in one point
        place = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        slack = int((low == high).any())
        one, two = (_reaching(parts, members[tile], low, high, slack) for tile in (s, t))
        if not len(one) or not len(two):
            continue
        a, b = parts.boxes[one][:, None], parts.boxes[two][None]
        meet = (np.maximum(a, b)[..., :2] < np.minimum(a, b)[..., 2:] + slack).all(axis=-1)
        meet &= parts.labels[one][:, None] == parts.labels[two][None]
        if not slack and np.count_nonzero(meet) > CROWDED * (len(one) + len(two)):
            yield from _compare_crowd(parts, one, two, meet, place, cut[one][:, None] & cut[two][None])
            continue
        for i, j in zip(*meet.nonzero(), strict=True):
            m, n = int(one[i]), int(two[j])
            if cut[m] and cut[n]:
                yield m, n, *compare(parts, m, n, place)
            elif not slack:
                yield m, n, None, _share(parts, m, n, place)


def _compare_crowd(
    parts: Parts, one: IntArray, two: IntArray, meet: BoolArray, place: Box, both_cut: BoolArray
) -> Iterator[tuple[int, int, Evidence | None, bool]]:
    """As :func:`compare`, where most masks of two tiles lie on top of each other, as an untrained model finds them: all
    pairs are counted at once, and of each mask only the likeliest partners are looked at more closely."""
    a, b = (np.stack([parts.crop(int(i), place).ravel() for i in ids]).astype(np.float32) for ids in (one, two))
    shared = np.where(meet, a @ b.T, 0)
    of_a, of_b = a.sum(axis=1)[:, None], b.sum(axis=1)[None]
    agreement = shared / np.maximum(of_a + of_b - shared, 1)
    agrees = (agreement >= SAME_PART) & _likeliest(shared * agreement**3 * both_cut, LIKELIEST)
    contained = shared / np.maximum(np.minimum(of_a, of_b), 1)
    unclear = (
        (agreement < SAME_PART)
        & (contained > 1 / 8)
        & _likeliest(np.where((agreement < SAME_PART) & both_cut, contained, 0), 1)
    )
    known: dict[int, IntArray] = {}

    def numbered(i: int) -> IntArray:
        if i not in known:
            known[i] = pieces(parts.crop(i, place))
        return known[i]

    for i, j in zip(*(shared > 0).nonzero(), strict=True):
        first, second = int(one[i]), int(two[j])
        if unclear[i, j]:
            yield first, second, *compare(parts, first, second, place, numbered)
        elif agrees[i, j]:
            found = Evidence(first, second, float(agreement[i, j]), float(shared[i, j]), True)
            yield first, second, found, True
        else:
            yield first, second, None, True


def _likeliest(weights: npt.NDArray[np.floating], few: int) -> BoolArray:
    """The few largest of each row and of each column."""
    chosen = np.zeros(weights.shape, dtype=bool)
    few = min(few, *weights.shape)
    rows = np.argpartition(-weights, few - 1, axis=1)[:, :few]
    columns = np.argpartition(-weights, few - 1, axis=0)[:few]
    np.put_along_axis(chosen, rows, True, axis=1)
    np.put_along_axis(chosen, columns, True, axis=0)
    return chosen & (weights > 0)


def _reaching(parts: Parts, members: IntArray, low: IntArray, high: IntArray, slack: int) -> IntArray:
    boxes = parts.boxes[members]
    return members[((boxes[:, :2] < high + slack) & (boxes[:, 2:] > low - slack)).all(axis=1)]


def compare(
    parts: Parts, i: int, j: int, place: Box, numbered: Callable[[int], IntArray] | None = None
) -> tuple[Evidence | None, bool]:
    """Evidence that masks ``i`` and ``j`` are one object, if there is any, and whether they share pixels.

    Args:
        place: xyxy, what both tiles see; of no width or no height where they only meet.
        numbered: the pieces of a mask on ``place``, where they are known already.
    """
    x0, y0, x1, y1 = place
    if x0 == x1 or y0 == y1:
        return _contact(parts, i, j, place), False
    a, b = parts.boxes[i], parts.boxes[j]
    low, high = np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])
    box = (max(x0, int(low[0])), max(y0, int(low[1])), min(x1, int(high[0])), min(y1, int(high[1])))
    one, two = parts.crop(i, box), parts.crop(j, box)
    shared, n, m = (int(np.count_nonzero(v)) for v in (one & two, one, two))
    if not shared:
        return None, False
    agreement = shared / (n + m - shared)
    if agreement < SAME_PART <= shared / min(n, m):
        # One of them may be in several pieces here, of which the other tile took one for an object.
        a_pieces, b_pieces = (numbered(i), numbered(j)) if numbered is not None else (pieces(one), pieces(two))
        agreement, shared = _best_pieces(a_pieces, b_pieces)
    if agreement < SAME_PART and min(n, m) > max(n, m) / 4 and shared > min(n, m) / 8:
        agreement = SAME_PART * _agreement_within(one, two, WAVERING)
    return (Evidence(i, j, agreement, shared, True) if agreement >= SAME_PART else None), True


def _share(parts: Parts, i: int, j: int, place: Box) -> bool:
    """Whether two masks have pixels in common on ``place``."""
    a, b = parts.boxes[i], parts.boxes[j]
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    box = (
        max(place[0], int(low[0])),
        max(place[1], int(low[1])),
        min(place[2], int(high[0])),
        min(place[3], int(high[1])),
    )
    return bool((parts.crop(i, box) & parts.crop(j, box)).any())


def _best_pieces(a: IntArray, b: IntArray) -> tuple[float, int]:
    """The IoU of the two pieces that agree best, as :func:`pieces` numbers them, and the pixels they share."""
    n, m = int(a.max()) + 1, int(b.max()) + 1
    table = np.bincount((a * m + b).ravel(), minlength=n * m).reshape(n, m)
    shared = table[1:, 1:]
    agreement = shared / (table.sum(axis=1)[1:, None] + table.sum(axis=0)[None, 1:] - shared)
    best = np.unravel_index(int(agreement.argmax()), agreement.shape)
    return float(agreement[best]), int(shared[best])


def _agreement_within(one: BoolArray, two: BoolArray, pixels: int) -> float:
    """1 if nearly all of either mask lies within some pixels of the other, as slivers do that waver; 0 if not."""
    near = np.count_nonzero(one & _grown(two, pixels)) + np.count_nonzero(two & _grown(one, pixels))
    return float(near >= NEARLY_ALL * (np.count_nonzero(one) + np.count_nonzero(two)))


def pieces(mask: BoolArray) -> IntArray:
    """The 8-connected piece of each foreground pixel, from 1; background is 0."""
    height, width = mask.shape
    change = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]
    stride = width + 2
    # The runs of the next row that reach from one column before a run to one after it lie side by side in the list.
    begin = np.searchsorted(rows * stride + ends, (rows + 1) * stride + starts, side="left")
    end = np.searchsorted(rows * stride + starts, (rows + 1) * stride + ends, side="right")
    count = np.maximum(end - begin, 0)
    upper = np.repeat(np.arange(len(rows)), count)
    lower = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(begin, count)
    root = np.arange(len(rows))
    while True:  # linked runs hook the larger of their roots to the smaller, then all paths are halved
        smaller = np.minimum(root[upper], root[lower])
        hooked = root.copy()
        np.minimum.at(hooked, root[upper], smaller)
        np.minimum.at(hooked, root[lower], smaller)
        hooked = hooked[hooked]
        if (hooked == root).all():
            break
        root = hooked
    out = np.zeros((height, width + 1), dtype=np.int64)
    numbers = np.unique(root, return_inverse=True)[1] + 1
    out[rows, starts] = numbers
    out[rows, ends] -= numbers
    return np.cumsum(out, axis=1)[:, :-1]


def _contact(parts: Parts, i: int, j: int, place: Box) -> Evidence | None:
    """Compares the last line of one mask before a seam with the first line of the other behind it.

    A run of pixels is compared with where the other side's outline is heading, so that a slanted object meets its own
    other half. The share is that of the shorter run: an object may end right behind the seam.
    """
    vertical = place[0] == place[2]
    axis = 0 if vertical else 1
    seam = place[axis]
    if parts.regions[parts.tiles[i], axis] >= seam:
        i, j = j, i  # i lies before the seam
    before = _lines(parts, i, place, vertical, [seam - 1 - k for k in range(LOOK_BACK)])
    behind = _lines(parts, j, place, vertical, [seam + k for k in range(LOOK_BACK)])
    agreement, amount = 0.0, 0.0
    for (s, e), (u, v) in product(runs(before[0]), runs(behind[0])):
        headings = [h for h in (_heading((s, e), before, 1), _heading((u, v), behind, -1)) if h is not None]
        shift = sum(headings) / len(headings) if headings else 0.0
        shorter = min(e - s, v - u)
        # One pixel more, because outlines that meet at a corner meet.
        common = min(min(e + shift, v) - max(s + shift, u) + 1, shorter)
        if common > SAME_CONTACT * shorter:
            agreement, amount = max(agreement, common / shorter), amount + common
    return Evidence(i, j, agreement, amount, False) if amount else None


def _lines(parts: Parts, i: int, place: Box, vertical: bool, positions: list[int]) -> BoolArray:
    """The mask along the lines at ``positions`` (columns at a vertical seam), in that order."""
    low, high = min(positions), max(positions) + 1
    if vertical:
        lines = parts.crop(i, (low, place[1], high, place[3])).T
    else:
        lines = parts.crop(i, (place[0], low, place[2], high))
    return lines[[p - low for p in positions]]


def runs(line: BoolArray) -> list[tuple[int, int]]:
    """Begin and end (exclusive) of each run of foreground."""
    edges = np.flatnonzero(np.diff(np.pad(line, 1).astype(np.int8))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _heading(run: tuple[int, int], lines: BoolArray, sign: int) -> float | None:
    """By how much a run moves from line to line, toward larger positions; None where one line is all.

    Only what both of its ends do counts: where one end moves alone, the object widens or narrows.
    """
    start, end = run
    steps = 0
    for line in lines[1:]:
        linked = [(min(end, e) - max(start, s), s, e) for s, e in runs(line) if s <= end and e >= start]
        if not linked:
            break
        _, s, e = max(linked)
        if not (end - start) / 2 <= e - s <= (end - start) * 2:
            break  # a branch or an end, not a slant
        start, end = s, e
        steps += 1
    if not steps:
        return None
    moves = sorted((sign * (run[0] - start) / steps, sign * (run[1] - end) / steps), key=abs)
    return moves[0] if moves[0] * moves[1] > 0 else 0.0


def _grown(mask: BoolArray, by: int) -> BoolArray:
    """With all pixels that are at most ``by`` rows and columns away."""
    tall = mask.copy()
    for step in range(1, by + 1):
        tall[step:] |= mask[:-step]
        tall[:-step] |= mask[step:]
    grown = tall.copy()
    for step in range(1, by + 1):
        grown[:, step:] |= tall[:, :-step]
        grown[:, :-step] |= tall[:, step:]
    return grown
