"""What the zoo says about its networks, and what they offer besides."""

import inspect

import pytest
import torch

from instseg.models import zoo
from instseg.models.base import Counted, Explains, Extends, Fuses, ImageBatch, Net, Staged
from instseg.models.config import setting_names
from instseg.models.zoo import MODELS, build_config, build_net, extends, fields_from

SMALL = {
    "num_classes": 2,
    "backbone": "resnet10t",
    "fpn_channels": 16,
    "tower_channels": 16,
    "tower_convs": 1,
    "grids": (6, 4),
    "scale_ranges": ((1, 60), (40, 999)),
    "candidate_threshold": 0.0,
    "mask_threshold": 1e-6,
    "min_score": 0.0,
    "max_instances": 6,
}
IMAGE = ImageBatch.of(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)))


def build(name, **fields):
    torch.manual_seed(0)
    return build_net(name, build_config(name, {**SMALL, **fields})).eval()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_name_can_be_found_in_the_source(name):
    assert f'"{name}": ' in inspect.getsource(zoo)


@pytest.mark.parametrize("net", {entry.net for entry in MODELS.values()}, ids=lambda net: net.__name__)
def test_every_network_is_one_of_the_contract(net):
    assert issubclass(net, Net)
    assert all(hasattr(net, member) for protocol in (Counted, Fuses, Staged) for member in _members(protocol))


def _members(protocol):
    return [name for name in vars(protocol) if not name.startswith("_")]


def test_sodar_extends_its_host_and_nothing_else():
    assert extends("sodar_r50", "solo_r101") and extends("sodar_solov2_r50", "solov2_r18")
    assert not extends("sodar_r50", "solov2_r18") and not extends("solo_r50", "sodar_r50")
    assert not extends("sodar_r50", "sodar_r101") and not extends("sodar_r50", "of another version")
    assert not isinstance(build("solo_r50"), Extends | Explains)


def test_a_host_of_few_stated_fields_is_completed_before_sodar_takes_them_over():
    """SODAR*'s own defaults are those of the released code, which are not SOLOv2's."""
    taken = fields_from("sodar_solov2_r50", "solov2_r50", {"num_classes": 3})
    config = build_config("sodar_solov2_r50", taken)
    assert (config.num_classes, config.tower_channels, config.mask_hidden, config.kernel_conv) == (3, 512, 128, 3)
    assert config.mask_feature_norm and config.weight_kernel == 1  # the host's; its own
    assert fields_from("sodar_r50", "sodar_r50", {"num_classes": 3}) == {"num_classes": 3}
    assert fields_from("solo_r50", "solov2_r50", {"num_classes": 3}) == {}


def test_the_tensors_of_the_host_have_the_names_they_have_there():
    for ours, theirs in (
        (build("sodar_r50"), build("solo_r50")),
        (build("sodar_solov2_r50", base="solov2"), build("solov2_r50")),
    ):
        same_names(ours.state_dict(), theirs.state_dict())


def same_names(ours, theirs):
    assert {k for k in ours if not k.startswith("aggregation.")} == set(theirs)


def test_what_is_found_at_several_scales_is_one_result():
    net = build("solov2_r18", mask_hidden=16, mask_channels=8)
    with torch.no_grad():
        (found,) = net.decode(net(IMAGE))
        once = net.fuse([found.instances], (16, 24))
        twice = net.fuse([found.instances, found.instances], (16, 24))
    assert len(once) == 6 and len(twice) == 6 and (twice.scores.diff() <= 0).all()
    assert float(twice.scores[0]) == float(once.scores[0])


@pytest.mark.parametrize("name", ["sodar_r50", "sodar_r101_mask_deform", "sodar_solov2_r50"])
def test_an_objects_source_can_be_explained(name):
    net = build(name, **({"mask_grids": (3, 2)} if "mask" in name else {}))
    with torch.no_grad():
        outputs = net(IMAGE)
        (found,) = net.decode(outputs)
        trace = net.explain(outputs, 0, int(found.source[0]))
    soft = found.instances.masks[:1].soft()[0]
    assert trace.mask.shape == (16, 24) and trace.title.startswith("row ")
    assert soft.shape == (64, 96)
    small = torch.nn.functional.interpolate(trace.logits.sigmoid()[None, None], size=(16, 24), mode="bilinear")
    torch.testing.assert_close(small[0, 0], trace.mask, atol=1e-5, rtol=1e-4)


def test_thresholds_nms_and_voting_are_settings_and_the_network_is_not():
    settings = setting_names(type(build_config("sodar_r50", {})))
    assert {"candidate_threshold", "mask_threshold", "min_score", "nms", "nms_pre", "voting", "tile"} <= settings
    assert not {"grids", "tower_convs", "backbone", "mask_loss", "center_region", "mask_grids", "dcn"} & settings


def test_a_replaced_setting_changes_what_is_found():
    net = build("solo_r50", nms_pre=50)
    with torch.no_grad():
        outputs = net(IMAGE)
        (plain,) = net.decode(outputs)
        net.config = net.config.model_copy(update={"nms": "hard", "class_agnostic": True, "nms_threshold": 0.0})
        (hard,) = net.decode(outputs)
    assert len(hard.instances) < len(plain.instances)
