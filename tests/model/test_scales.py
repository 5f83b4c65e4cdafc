"""Multi-scale testing."""

import pytest
import torch

import instseg
from instseg.core.errors import ConfigError
from instseg.core.instances import Instances
from instseg.model.instance_model import InstanceModel
from instseg.model.pipeline import SCALES

NARROW = {
    "backbone": "resnet10t",
    "fpn_channels": 16,
    "tower_convs": 1,
    "tower_channels": 16,
    "mask_hidden": 16,
    "mask_channels": 8,
    "grids": (8, 4),
    "scale_ranges": ((1, 64), (32, 999)),
    "input_short": 64,
    "input_long": 128,
    "candidate_threshold": 0.005,
    "min_score": 0.001,
    "max_instances": 20,
}


@pytest.fixture(scope="module")
def model() -> InstanceModel:
    torch.manual_seed(0)
    return instseg.create_model("solov2_r18", 2, **NARROW).eval()


def image() -> torch.Tensor:
    return torch.rand(3, 50, 90, generator=torch.Generator().manual_seed(1))


def test_one_scale_twice_is_that_scale_with_its_duplicates_lowered(model: InstanceModel) -> None:
    found = model.predict_batch([image()])[0]
    once = Instances(torch.tensor([0.8]), found.labels[:1], found.masks[0])
    fused = model.net.fuse([once, once], (13, 23))
    assert fused.image_size == (50, 90)
    # One keeps its score, its twin comes out at exp(-sigma) of it.
    torch.testing.assert_close(fused.scores, torch.tensor([0.8, 0.8 * 0.1353353]))
    assert fused.masks.rle() == 2 * once.masks.rle()


def test_every_scale_adds_what_it_finds_and_the_order_is_by_score(model: InstanceModel) -> None:
    found = model.predict_batch([image()], scales=SCALES)[0]
    assert (found.scores.diff() <= 0).all() and len(found) <= model.config.max_instances
    assert len({p.grid for p in found.masks.layouts}) > 1
    assert found.masks.bool().shape == (len(found), 50, 90)
    assert not torch.equal(model.predict_batch([image()])[0].scores, found.scores)


def test_masks_keep_their_place_at_another_size(model: InstanceModel) -> None:
    masks = model.predict_batch([image()])[0].masks
    small = masks.at_size((25, 45))
    assert small.bool().shape == (len(masks), 25, 45)
    torch.testing.assert_close(small.boxes() * 2, masks.boxes(), atol=4.0, rtol=0)


def test_a_model_that_predicts_in_tiles_is_refused() -> None:
    tiled = instseg.create_model("solov2_r18", 2, **NARROW, tile=64, tile_overlap=32).eval()
    with pytest.raises(ConfigError, match="tile=null"):
        tiled.predict_batch([image()], scales=SCALES)
