"""The aggregation without a host: levels, rectangular grids and anchors of any number."""

import pytest
import torch
from torch import nn

from instseg.models.sodar.aggregation import NeighborAggregation
from instseg.models.sodar.config import AggregationConfig
from instseg.nn.aggregation import MultiLevelContext
from instseg.ops.neighbors import Locations

GRIDS = ((6, 8), (3, 4), (2, 2))  # locations of three levels of an image of 48 x 64, as a box detector has them
SIZE = (12, 16)


def build(anchors=1, tower=None, **fields):
    torch.manual_seed(0)
    config = AggregationConfig(**{"context_channels": 4, **fields})
    context = None if config.context == "without" else MultiLevelContext(8, 4, levels=len(GRIDS))
    return NeighborAggregation(config, 8, context, tower, anchors).eval()


def inputs_of(net, anchors=1):
    draw = torch.Generator().manual_seed(1)
    features = [torch.randn(2, 8, *grid, generator=draw) for grid in GRIDS]
    places = Locations(GRIDS, anchors)
    maps = torch.randn(places.first[-1], *SIZE, generator=draw)
    with torch.no_grad():
        return net(features, features, places, places), maps


def test_the_fields_know_no_grid():
    assert not {"grids", "mask_grids", "scale_ranges", "backbone"} & set(AggregationConfig.model_fields)


@pytest.mark.parametrize("anchors", [1, 2])
def test_the_neighbors_lie_on_the_locations_own_level_and_anchor(anchors):
    net = build(anchors)
    inputs, _ = inputs_of(net, anchors)
    first = inputs.sources.first
    for level, (rows, columns) in enumerate(GRIDS):
        for anchor in range(anchors):
            row, column = rows - 1, 1  # at the lower border: below it is itself

            def at(r, c, level=level, columns=columns, anchor=anchor):
                return first[level] + (r * columns + c) * anchors + anchor

            found = net.gather(inputs, 0, torch.tensor([at(row, column)])).cells[0].tolist()
            beside = min(column + 1, columns - 1)
            assert found == [at(row - 1, 1), at(row, 0), at(row, 1), at(row, beside), at(row, 1)]


@pytest.mark.parametrize("anchors", [1, 3])
@pytest.mark.parametrize("deformable", [False, True])
def test_every_mask_starts_as_the_locations_own_representation(anchors, deformable):
    net = build(anchors, deformable=deformable)
    nn.init.zeros_(net.aggregate.weights.weight)  # but for the small random part
    inputs, maps = inputs_of(net, anchors)
    cells = torch.randperm(inputs.sources.first[-1], generator=torch.Generator().manual_seed(2))[:30]
    with torch.no_grad():
        logits = net.mask_logits(inputs, 1, cells, SIZE, lambda used: maps[used])
    torch.testing.assert_close(logits, 0.96**3 * maps[cells], atol=1e-4, rtol=1e-4)


def test_each_anchor_has_weights_and_offsets_of_its_own():
    net = build(2, deformable=True, weight_activation="none")
    nn.init.normal_(net.aggregate.offsets.weight)
    inputs, _ = inputs_of(net, 2)
    with torch.no_grad():
        dense = net.aggregate.weights(inputs.features[1])[0].view(2, -1, 3, 4)  # anchor, D, rows, columns
        offsets = net.aggregate.offsets(inputs.features[1])[0].view(2, -1, 2, 3, 4)
        for anchor in range(2):
            cell = inputs.sources.first[1] + (2 * 4 + 3) * 2 + anchor
            torch.testing.assert_close(net.weights(inputs, 0, torch.tensor([cell]))[0], dense[anchor, :, 2, 3])
            found = net.aggregate.predict_offsets(inputs.features[1][0], torch.tensor([(2 * 4 + 3) * 2 + anchor]))
            torch.testing.assert_close(found[0], offsets[anchor, :, :, 2, 3])


def test_only_the_representations_that_are_gathered_are_made_and_each_once():
    net = build()
    inputs, maps = inputs_of(net)
    block = [row * 8 + column for row in (2, 3, 4) for column in (2, 3, 4)]  # nine positives need 21 maps, not 45
    asked = []
    with torch.no_grad():
        net.mask_logits(inputs, 0, torch.tensor(block), SIZE, lambda used: asked.append(used) or maps[used])
    assert [len(used) for used in asked] == [21] and len(asked[0].unique()) == 21


def test_grids_of_representations_may_be_coarser_and_of_another_shape():
    net = build(neighbor_cells="plus")
    features = [torch.randn(1, 8, 5, 7)]
    inputs = net([*features] * 3, features, Locations(((5, 7),)), Locations(((3, 3),)))
    found = net.gather(inputs, 0, torch.arange(35))
    assert found.cells.shape == (35, 5) and found.cells.max() == 8
    assert found.positions.amax(dim=(0, 1)).tolist() == [2, 2]


def test_the_context_takes_any_number_of_levels_and_the_size_of_the_finest():
    pyramid = [torch.randn(2, 8, 48 >> i, 64 >> i) for i in range(4)]
    context = MultiLevelContext(8, 4, levels=4)
    with torch.no_grad():
        torch.testing.assert_close(context(pyramid), context.as_published(pyramid), atol=1e-5, rtol=1e-4)
        assert context(pyramid).shape == (2, 4, 48, 64)


def test_a_trace_says_where_on_a_rectangular_grid_and_adds_up():
    net = build(2)
    inputs, maps = inputs_of(net, 2)
    cell = inputs.sources.first[1] + (1 * 4 + 2) * 2 + 1
    with torch.no_grad():
        logits = net.mask_logits(inputs, 0, torch.tensor([cell]), SIZE, lambda used: maps[used])[0]
        trace = net.trace(inputs, 0, cell, SIZE, lambda used: maps[used], logits.sigmoid())
    assert trace.title == "row 2, column 3 of the 3 x 4 grid" and trace.grid == (3, 4)
    torch.testing.assert_close(trace.logits, logits)
    assert torch.equal(trace.maps[2], maps[cell]) and trace.positions[2].tolist() == [1, 2]
    assert trace.names == ("above", "left", "own cell", "right", "below") and len(trace.effects) == 6
