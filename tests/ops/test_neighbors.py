import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.ops.neighbors import Locations, bilinear_cells, gathered, mapped_axis, neighbor_cells, offsets_of


def near(cell, grid, target, pattern, mapping="released"):
    cells = torch.tensor([cell[0] * grid + cell[1]])
    return neighbor_cells(cells, (grid, grid), (target, target), pattern, mapping)[0].tolist()


def test_the_order_is_up_left_here_right_down():
    assert near((5, 7), 40, 40, "4") == [[4, 7], [5, 6], [5, 7], [5, 8], [6, 7]]
    assert near((5, 7), 40, 40, "2col") == [[4, 7], [5, 7], [6, 7]]
    assert near((5, 7), 40, 40, "2row") == [[5, 6], [5, 7], [5, 8]]
    assert near((5, 7), 40, 40, "self") == [[5, 7]]
    assert near((1, 1), 3, 3, "8") == [[row, column] for row in range(3) for column in range(3)]


def test_the_papers_equations_name_the_lower_neighbor_before_the_right_one():
    assert near((5, 7), 40, 40, "4", "paper") == [[4, 7], [5, 6], [5, 7], [6, 7], [5, 8]]


def test_neighbors_beyond_the_border_are_the_cells_on_it():
    assert near((0, 0), 4, 4, "4") == [[0, 0], [0, 0], [0, 0], [0, 1], [1, 0]]
    assert near((3, 3), 4, 4, "4") == [[2, 3], [3, 2], [3, 3], [3, 3], [3, 3]]


def test_corners_are_the_four_cells_around_the_mapped_position():
    position = 7 * 19 / 39  # 3.41
    assert near((7, 0), 40, 20, "corners") == [[3, 0], [4, 0], [4, 0], [3, 0]]
    assert int(position) == 3
    assert near((7, 7), 40, 20, "corners") == [[3, 4], [4, 4], [4, 3], [3, 3]]


@pytest.mark.parametrize(("grid", "target", "differ"), [(40, 20, 0), (36, 18, 0), (50, 40, 15), (40, 36, 16)])
def test_the_released_mapping_is_the_papers_where_grids_are_halved(grid, target, differ):
    """Rows of published grids whose nearest cell is another than the paper's formula says."""
    rounded = mapped_axis(grid, target).round()
    assert int((rounded != mapped_axis(grid, target, "paper")).sum()) == differ


GRIDS = st.tuples(st.integers(1, 60), st.integers(1, 60))


@given(GRIDS, GRIDS, st.sampled_from(["self", "2col", "2row", "4", "8", "corners"]))
@settings(max_examples=100, deadline=None)
def test_every_neighbor_is_a_cell_of_the_grid(grid, target, pattern):
    count = grid[0] * grid[1]
    found = neighbor_cells(torch.arange(count), grid, target, pattern)
    assert found.shape == (count, gathered(pattern), 2)
    assert found.min() >= 0 and (found.amax(dim=(0, 1)) < torch.tensor(target)).all()


def test_rows_and_columns_of_a_rectangular_grid_are_mapped_apart():
    cells = torch.tensor([2 * 7 + 5])  # row 2, column 5 of five rows and seven columns
    assert neighbor_cells(cells, (5, 7), (5, 7), "4")[0].tolist() == [[1, 5], [2, 4], [2, 5], [2, 6], [3, 5]]
    # figure 4 of the paper: 5 x 7 to 3 x 3, row floor(2 * 3 / 5), column floor(5 * 3 / 7)
    assert neighbor_cells(cells, (5, 7), (3, 3), "self", "paper")[0].tolist() == [[1, 2]]


def test_locations_are_numbered_level_by_level_row_by_row_anchor_by_anchor():
    places = Locations(((2, 3), (1, 2)), anchors=2)
    assert places.first == [0, 12, 16]
    assert [places.level_of(i) for i in (0, 11, 12, 15)] == [0, 0, 1, 1]
    found = {level: (at.tolist(), inside.tolist()) for level, at, inside in places.by_level(torch.tensor([13, 4, 15]))}
    assert found == {0: ([1], [4]), 1: ([0, 2], [1, 3])}
    assert Locations.square((3, 2)).grids == ((3, 3), (2, 2))


def test_whole_positions_are_themselves():
    cells, shares = bilinear_cells(torch.tensor([[2.0, 3.0], [4.0, 4.0], [0.0, 0.0]]), (5, 5))
    weighted = [
        {c: s for c, s in zip(*pair, strict=True) if s} for pair in zip(cells.tolist(), shares.tolist(), strict=True)
    ]
    assert weighted == [{13: 1.0}, {24: 1.0}, {0: 1.0}]


def test_fractional_positions_are_shares_of_four_cells_as_grid_sample_has_them():
    values = torch.rand(7, 7)
    positions = torch.rand(50, 2) * 6
    cells, shares = bilinear_cells(positions, (7, 7))
    grid = positions.flip(1) / 3 - 1  # x before y, -1 to 1
    expected = torch.nn.functional.grid_sample(values[None, None], grid[None, None], align_corners=True)[0, 0, 0]
    torch.testing.assert_close((values.flatten()[cells] * shares).sum(dim=1), expected)


def test_positions_outside_are_brought_to_the_border():
    cells, shares = bilinear_cells(torch.tensor([[-3.0, 9.0]]), (4, 4))
    assert cells[0, shares[0] > 0].tolist() == [3]
    assert bilinear_cells(torch.tensor([[0.4, -0.2]]), (1, 1))[0].tolist() == [[0, 0, 0, 0]]


def test_shares_have_gradients_at_whole_positions():
    positions = torch.tensor([[2.0, 3.0], [4.0, 4.0]], requires_grad=True)
    cells, shares = bilinear_cells(positions, (5, 5))
    (torch.arange(25.0)[cells] * shares).sum().backward()
    torch.testing.assert_close(positions.grad, torch.tensor([[5.0, 1.0], [5.0, 1.0]]))


def test_a_pattern_of_corners_has_no_offsets():
    with pytest.raises(KeyError):
        offsets_of("corners")
