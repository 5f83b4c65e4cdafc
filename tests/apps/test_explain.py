"""How a mask comes about, for a person to see."""

from pathlib import Path

import numpy as np
import pytest
import torch

import instseg
from instseg.apps.explain import explain_image, write_explanations
from instseg.core.errors import CheckpointError, ConfigError, DataError
from instseg.core.trace import Trace
from instseg.model.instance_model import InstanceModel
from instseg.vis.explain import draw_aggregation

NARROW = {
    "backbone": "resnet10t",
    "fpn_channels": 16,
    "tower_convs": 1,
    "tower_channels": 16,
    "grids": (8, 4),
    "scale_ranges": ((1, 64), (32, 999)),
    "input_short": 64,
    "input_long": 128,
    "candidate_threshold": 0.005,
    "mask_threshold": 0.3,
    "min_score": 0.001,
    "max_instances": 40,
}
DYNAMIC = {"mask_hidden": 16, "mask_channels": 8}
MODELS = {
    "fixed neighbors": ("sodar_r50", {}),
    "deformable neighbors": ("sodar_r101_cls_deform", {"mask_grids": (6, 3)}),
    "corners": ("sodar_solov2_r101_mask", {**DYNAMIC, "mask_grids": (4, 2)}),
    "context only": ("sodar_r50", {"context": "only"}),
    "tiles": ("sodar_r50", {"input_scale": 1.0, "tile": 64, "tile_overlap": 16}),
}
IMAGE = torch.randint(0, 256, (3, 50, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def build(kind: str) -> InstanceModel:
    torch.manual_seed(0)
    name, fields = MODELS[kind]
    model = instseg.create_model(name, 2, **{**NARROW, **fields}).eval()
    model.has_weights = True
    return model


@pytest.mark.parametrize("kind", MODELS)
def test_every_way_of_aggregating_is_explained_in_a_picture(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    found = explain_image(model, IMAGE, best=2, score=0.0)
    assert [item.number for item in found] == [1, 2] and found[0].score >= found[1].score
    written = write_explanations(model, "street.jpg", found, tmp_path / "why")
    assert [path.name for path in written] == ["street-1.png", "street-2.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in written)


@pytest.mark.parametrize("kind", ["fixed neighbors", "deformable neighbors", "corners"])
def test_a_trace_is_what_the_model_computes(kind: str) -> None:
    model = build(kind)
    item = explain_image(model, IMAGE, [1], score=0.0)[0]
    t, n = item.trace, {"corners": 4}.get(kind, 5)
    assert t.maps.shape == (n, *t.logits.shape) and len(t.names) == n
    assert t.effects.shape == (n + 1, *t.logits.shape)
    assert t.positions.shape == (n, 2) and t.positions.min() >= 0 and t.positions.max() <= max(t.grid) - 1
    small = torch.nn.functional.interpolate(t.logits.sigmoid()[None, None], size=t.mask.shape, mode="bilinear")
    torch.testing.assert_close(small[0, 0], t.mask)


def test_an_input_that_is_zero_already_has_no_effect() -> None:
    model = build("fixed neighbors")
    torch.nn.init.zeros_(model.net.aggregation.context.tail[2].weight)
    torch.nn.init.zeros_(model.net.aggregation.context.tail[2].bias)
    item = explain_image(model, IMAGE, [1], score=0.0)[0]
    assert item.trace.effects[-1].abs().max() == 0
    assert item.trace.effects[:-1].abs().max() > 0


def test_neighbors_are_named_by_where_they_lie() -> None:
    names = explain_image(build("fixed neighbors"), IMAGE, [1], score=0.0)[0].trace.names
    assert names == ("above", "left", "own cell", "right", "below")
    names = explain_image(build("corners"), IMAGE, [1], score=0.0)[0].trace.names
    assert names == ("above right", "below right", "below left", "above left")


@pytest.mark.parametrize("maps", [0, 1, 9])
def test_all_text_is_inside_the_picture(maps: int) -> None:
    figure = draw_aggregation(
        "a category of $ome length 0.93, sodar_solov2_r101_cls_deform: row 50, column 50 of the 50 x 50 grid",
        np.zeros((32, 48, 3), dtype=np.uint8),
        (32, 48),
        Trace(
            title="",
            grid=(4, 4),
            names=("above left",) * maps,
            positions=torch.zeros(maps, 2),
            maps=torch.zeros(maps, 8, 12),
            context=torch.zeros(16, 8, 12),
            logits=torch.zeros(8, 12),
            effects=torch.zeros(maps + 1, 8, 12),
            mask=torch.zeros(8, 12),
        ),
    )
    figure.canvas.draw()
    width, height = figure.get_size_inches() * figure.dpi
    for text in [*figure.texts, *(axes.title for axes in figure.axes)]:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text


def test_what_cannot_be_explained_is_said() -> None:
    with pytest.raises(ConfigError, match="solov2_r18 aggregates nothing"):
        explain_image(instseg.create_model("solov2_r18", 2).eval(), IMAGE)
    model = build("fixed neighbors")
    with pytest.raises(DataError, match=r"no object with a score of 1\.0 or more"):
        explain_image(model, IMAGE, score=1.0)
    with pytest.raises(DataError, match="object 999 does not exist: "):
        explain_image(model, IMAGE, [999], score=0.0)
    model.has_weights = False
    with pytest.raises(CheckpointError, match="no weights"):
        explain_image(model, IMAGE)
    model.has_weights = True
    with pytest.raises(DataError, match="training mode"):
        explain_image(model.train(), IMAGE)
