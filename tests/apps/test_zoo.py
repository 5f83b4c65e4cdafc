"""The zoo in figures."""

import pytest

from instseg.apps.zoo import count, find_models, recorded_counts
from instseg.core.errors import ConfigError
from instseg.models.zoo import list_models


@pytest.mark.parametrize(
    ("name", "total", "trained"),
    [
        ("solo_r50", 36_301_232, 36_075_888),
        ("solo_r101", 55_293_360, 55_068_016),
        ("decoupled_solo_r50", 40_028_560, 39_803_216),
        ("decoupled_solo_r101", 59_020_688, 58_795_344),
        ("decoupled_solo_light_r50", 32_354_192, 32_128_848),
        ("decoupled_solo_light_r50_dcn", 33_018_014, 32_792_670),
        ("solov2_r50", 46_592_912, 46_367_568),
        ("solov2_r101", 65_585_040, 65_359_696),
        ("solov2_r101_dcn", 68_729_118, 68_503_774),
        ("solov2_x101_dcn", 113_420_574, 113_017_822),
        ("solov2_light_448_r18", 18_271_760, 18_114_256),
        ("solov2_light_448_r34", 28_379_920, 28_148_432),
        ("solov2_light_448_r50", 31_340_560, 31_115_216),
        ("solov2_light_512_r50_dcn", 33_185_054, 32_959_710),
        ("sodar_r50", 38_812_017, 38_586_673),
        ("sodar_r101", 57_804_145, 57_578_801),
        ("sodar_r101_mask", 56_974_837, 56_749_493),
        ("sodar_solov2_r50", 38_970_705, 38_745_361),
        ("sodar_solov2_r101", 57_962_833, 57_737_489),
        ("sodar_solov2_r101_mask", 57_953_581, 57_728_237),
    ],
)
def test_parameters_are_those_of_the_published_models(name: str, total: int, trained: int) -> None:
    counts = recorded_counts()[name]
    assert (counts.parameters, counts.trained) == (total, trained)


# SODAR's many names differ in grids alone: one of each host here, the others among the slow tests.
FEW = {"sodar_r101_mask", "sodar_solov2_r50"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith("sodar") and name not in FEW else ())
        for name in list_models()
    ],
)
def test_recorded_counts_are_those_of_today(name: str) -> None:
    """After a change of a network: python benchmarks/zoo.py --write."""
    assert recorded_counts()[name] == count(name)


def test_multiply_adds_are_those_that_the_papers_and_mmdetection_count() -> None:
    counts = recorded_counts()
    assert counts["solo_r101"].dense_macs / 1e9 == pytest.approx(441.2, abs=0.05)
    assert counts["solov2_r101"].macs / 1e9 == pytest.approx(319.6, abs=0.05)
    for name, published in {"sodar_r101": 470.8, "sodar_r101_cls": 478.6, "sodar_r101_mask": 432.8}.items():
        assert counts[name].dense_macs / 1e9 == pytest.approx(published, abs=0.05)
    assert counts["sodar_r101_mask"].dense_macs < counts["solo_r101"].dense_macs < counts["sodar_r101"].dense_macs


def test_a_pattern_finds_its_models_and_a_wrong_name_the_nearest() -> None:
    assert find_models("solov2_light_448*") == [f"solov2_light_448_r{d}" for d in (18, 34, 50)]
    with pytest.raises(ConfigError, match='Did you mean "solov2_r101"'):
        find_models("solov2_r102")
