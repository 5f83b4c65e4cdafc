"""Run-length codes are read as pycocotools reads them, and damaged ones are seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.core import rle
from instseg.core import rle as rle_codes
from instseg.core.rle import decode_part, read_runs


def random_mask(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((height, width)) < rng.random()).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40))
def test_runs_fill_the_mask_in_column_order(seed: int, height: int, width: int) -> None:
    mask = random_mask(seed, height, width)
    lengths = read_runs(rle_codes.encode(mask)["counts"])
    assert lengths is not None
    values = np.repeat(np.arange(len(lengths)) % 2, lengths)
    assert np.array_equal(values.reshape(width, height).T, mask)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 30), st.data())
def test_a_window_equals_the_cut_out_whole(seed: int, height: int, width: int, data: st.DataObject) -> None:
    mask = random_mask(seed, height, width)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rle, "_SMALL", 0)
        window = decode_part(rle_codes.encode(mask), top, left, bottom, right)
    assert np.array_equal(window, mask[top:bottom, left:right])


def test_long_runs_of_a_large_image_are_read() -> None:
    code = rle_codes.from_counts([3_000_000, 5, 8_999_995], 3000, 4000)
    assert read_runs(code["counts"]).tolist() == [3_000_000, 5, 8_999_995]
    window = decode_part(code, 0, 1000, 10, 1001)
    assert window[:, 0].tolist() == [1] * 5 + [0] * 5


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    lengths = read_runs(text)
    assert lengths is None or lengths.min() >= 0


@pytest.mark.parametrize("text", ["", "é", "o", "~~", "P" * 9, "!"])
def test_damaged_counts_are_refused(text: str) -> None:
    assert read_runs(text) is None
