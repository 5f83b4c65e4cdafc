import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.model.tiles.seams import neighboring_tiles, pieces, runs


def flooded(mask):
    """The pieces by flooding one after the other."""
    out, number = np.zeros(mask.shape, dtype=int), 0
    for seed in zip(*mask.nonzero(), strict=True):
        if out[seed]:
            continue
        number += 1
        out[seed], front = number, [seed]
        while front:
            y, x = front.pop()
            for at in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                inside = 0 <= at[0] < mask.shape[0] and 0 <= at[1] < mask.shape[1]
                if inside and mask[at] and not out[at]:
                    out[at] = number
                    front.append(at)
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 24), st.integers(1, 24), st.floats(0.1, 0.9))
def test_pieces_are_what_flooding_finds(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    found, wanted = pieces(mask), flooded(mask)
    assert ((found > 0) == mask).all()
    together = {(a, b) for a, b in zip(found[mask].tolist(), wanted[mask].tolist(), strict=True)}
    assert len(together) == len({a for a, _ in together}) == wanted.max(initial=0)


def test_a_spiral_is_one_piece():
    mask = np.ones((41, 41), dtype=bool)
    for k in range(1, 20, 2):
        mask[k, k - 1 : 40 - k] = mask[k : 41 - k, 40 - k] = mask[40 - k, k : 41 - k] = False
        mask[k + 2 : 41 - k, k] = False
    assert pieces(mask).max() == flooded(mask).max()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [([], []), ([0, 0], []), ([1, 1, 0, 1], [(0, 2), (3, 4)]), ([0, 1, 1, 1], [(1, 4)])],
)
def test_runs_of_a_line(line, wanted):
    assert runs(np.array(line, dtype=bool)) == wanted


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 5)] * 2), min_size=1, max_size=12))
def test_neighboring_tiles_are_those_whose_regions_meet(tiles):
    regions = np.array([(x, y, x + w, y + h) for x, y, w, h in tiles])
    found = {(min(pair), max(pair)) for pair in neighboring_tiles(regions, np.arange(len(regions)))}
    wanted = {
        (i, j)
        for i, a in enumerate(regions)
        for j, b in enumerate(regions[i + 1 :], i + 1)
        if (np.maximum(a[:2], b[:2]) <= np.minimum(a[2:], b[2:])).all()
    }
    assert found == wanted
