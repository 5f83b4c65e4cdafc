"""The zoo in figures."""

import pytest

from instseg.core.errors import ConfigError
from instseg.infer.zoo import find_models, summarise


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("solov2_r50", 46_592_912),
        ("solov2_r101", 65_585_040),
        ("solov2_light_448_r18", 18_271_760),
        ("solov2_light_448_r34", 28_379_920),
        ("solov2_light_448_r50", 31_340_560),
    ],
)
def test_parameters_are_those_of_the_published_models(name: str, parameters: int) -> None:
    assert summarise(name).parameters == parameters


def test_flops_are_two_a_multiply_add_at_the_papers_input_size() -> None:
    small, large = summarise("solov2_r50"), summarise("solov2_r101")
    assert small.input_size == (800, 1333)
    # ResNet-101 has 17 more blocks than ResNet-50, all in the third stage: 1024 -> 256 -> 256 -> 1024 channels at
    # stride 16 of the padded 800 x 1344 input.
    block = 1024 * 256 + 9 * 256 * 256 + 256 * 1024
    assert large.flops - small.flops == 2 * 17 * block * (800 // 16) * (1344 // 16)


def test_a_pattern_finds_its_models_and_a_wrong_name_the_nearest() -> None:
    assert find_models("solov2_light*") == [f"solov2_light_448_r{d}" for d in (18, 34, 50)]
    with pytest.raises(ConfigError, match='Did you mean "solov2_r101"'):
        find_models("solov2_r102")
