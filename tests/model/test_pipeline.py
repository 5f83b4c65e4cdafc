"""What is found in an image does not depend on the images beside it, and an observer sees every stage."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import instseg
from instseg.model.instance_model import InstanceModel
from instseg.model.pipeline import TILE_BATCH, Observer, Pass, passes
from instseg.models.zoo import MODELS

pytestmark = pytest.mark.filterwarnings("ignore:an image holds more")

NARROW = {
    "backbone": "resnet10t",
    "fpn_channels": 16,
    "tower_convs": 1,
    "tower_channels": 16,
    "mask_hidden": 16,
    "mask_channels": 8,
    "grids": (8, 6, 4, 3, 2),
    "input_short": 64,
    "input_long": 96,
    "candidate_threshold": 0.005,
    "mask_threshold": 0.3,
    "min_score": 0.0,
    "max_instances": 20,
}
VARIANTS = {
    "solo_r50": {},
    "decoupled_solo_r50": {},
    "solov2_r18": {},
    "solov2_light_512_r50_dcn": {"backbone": "resnet14t"},
    "sodar_r50": {},
    "sodar_solov2_r50": {},
}


def build(name: str, **changes: object) -> InstanceModel:
    torch.manual_seed(0)
    narrow = {field: value for field, value in NARROW.items() if field in MODELS[name].config.model_fields}
    return instseg.create_model(name, 2, **{**narrow, **VARIANTS[name], **changes}).eval()


def pictures(sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> InstanceModel:
    return build(request.param)


sides = st.integers(20, 130)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.tuples(sides, sides), min_size=2, max_size=5))
def test_an_image_holds_the_same_objects_whatever_other_images_are_given_with_it(
    model: InstanceModel, sizes: list[tuple[int, int]]
) -> None:
    images = pictures([*sizes, sizes[0]])
    for image, beside in zip(images, model.predict_batch(images), strict=True):
        alone = model.predict_batch([image])[0]
        torch.testing.assert_close(beside.scores, alone.scores, atol=1e-5, rtol=1e-5)
        assert torch.equal(beside.labels, alone.labels)
        assert alone.masks is not None and beside.masks is not None
        differing = (alone.masks.bool() ^ beside.masks.bool()).flatten(1).sum(dim=1)
        assert (differing <= 1).all()  # a value that is the threshold but for the last bit


class Log(Observer):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.passes: list[Pass] = []

    def done(self, stage: str) -> None:
        self.stages.append(stage)

    def passed(self, one: Pass) -> None:
        self.passes.append(one)


def test_only_images_of_one_padded_size_share_a_pass_and_an_observer_sees_it() -> None:
    model, log = build("solov2_r18"), Log()
    images = pictures([(60, 80), (80, 60), (59, 80), (61, 80)])
    found = model.predict_batch(images, observer=log)
    assert [[v.image for v in one.views] for one in log.passes] == [[0, 2, 3], [1]]
    assert log.stages == 2 * ["preprocess", "network", "decode"] + ["join"]
    for one in log.passes:
        assert all(v.padded == one.batch.padded for v in one.views)
        for view, seen in zip(one.views, one.found, strict=True):
            assert torch.equal(seen.instances.scores, found[view.image].scores)
            assert len(seen.source) == len(seen.instances)


def test_tiles_of_one_image_pass_a_few_at_a_time() -> None:
    model, log = build("solov2_r18", tile=32, tile_overlap=0, input_scale=1.0), Log()
    model.predict_batch(pictures([(64, 96), (30, 30), (32, 20)]), observer=log)
    assert [[v.image for v in one.views] for one in log.passes] == [TILE_BATCH * [0], 2 * [0], [1, 2]]
    assert list(passes([])) == []


def test_what_a_network_caches_while_predicting_can_be_trained_with_afterwards() -> None:
    model, log = build("solov2_r18"), Log()
    model.predict_batch(pictures([(40, 60)]), observer=log)
    assert not log.passes[0].batch.pixels.is_inference()
