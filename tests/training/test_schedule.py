"""Learning rates against the papers' schedules."""

import math
from typing import Any

import pytest

from instseg.training.recipe import Recipe, load_recipe
from instseg.training.schedule import rate_factor, total_rate, warmup_updates


def _factors(per_epoch: int, **fields: Any) -> list[float]:
    recipe = Recipe(**fields)
    return [rate_factor(recipe, update, per_epoch) for update in range(recipe.epochs * per_epoch)]


def test_1x_runs_nine_epochs_at_the_full_rate_two_at_a_tenth_one_at_a_hundredth() -> None:
    recipe, _ = load_recipe("solov2_1x", {"warmup_iterations": 0}, ["input_short"])
    first_updates = [rate_factor(recipe, epoch * 100, 100) for epoch in range(12)]
    last_updates = [rate_factor(recipe, epoch * 100 + 99, 100) for epoch in range(12)]
    expected = [1.0] * 9 + [0.1] * 2 + [0.01]
    assert first_updates == pytest.approx(expected)
    assert last_updates == pytest.approx(expected)


@pytest.mark.parametrize(("name", "epochs", "drops"), [("solov2_3x", 36, [27, 33]), ("solov2_6x", 72, [54, 66])])
def test_longer_schedules_drop_where_the_paper_does(name: str, epochs: int, drops: list[int]) -> None:
    recipe, _ = load_recipe(name, {}, ["input_short"])
    full, tenth, hundredth = (rate_factor(recipe, e * 7330, 7330) for e in (drops[0] - 1, drops[0], drops[1]))
    assert recipe.epochs == epochs
    assert (full, tenth, hundredth) == pytest.approx((1.0, 0.1, 0.01))


def test_warm_up_is_linear_from_the_factor_to_the_full_rate() -> None:
    factors = _factors(1000, epochs=12, schedule="step", warmup_iterations=500, warmup_factor=0.01)
    assert factors[0] == pytest.approx(0.01)
    assert factors[250] == pytest.approx(0.505)
    assert factors[500] == 1.0
    assert factors[1] - factors[0] == pytest.approx(factors[400] - factors[399])


def test_warm_up_takes_at_most_a_quarter_of_a_short_run() -> None:
    recipe = Recipe(epochs=3, warmup_iterations=500)
    assert warmup_updates(recipe, 48) == 12
    assert _factors(16, epochs=3, warmup_iterations=500)[12] == 1.0


def test_cosine_falls_to_the_end_factor() -> None:
    factors = _factors(10, epochs=10, schedule="cosine", warmup_iterations=20, warmup_factor=0.0, lr_end_factor=0.1)
    assert factors[20] == 1.0
    assert factors[60] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert factors[99] == pytest.approx(0.1, abs=1e-3)
    assert factors[20:] == sorted(factors[20:], reverse=True)


def test_rate_grows_linearly_with_the_total_batch() -> None:
    assert total_rate(0.01, 16, 16) == 0.01
    assert total_rate(0.01, 4, 16) == 0.0025
    assert total_rate(0.01, 4, None) == 0.01


def test_the_rate_drops_at_updates_too() -> None:
    factors = _factors(10, epochs=4, schedule="step", warmup_iterations=0, lr_drops=[3], lr_drops_updates=[15, 20])
    assert [factors[u] for u in (14, 15, 19, 20, 29, 30)] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_warm_up_may_stay_at_its_factor_until_it_ends() -> None:
    fields = {"warmup": "constant", "warmup_factor": 0.25, "warmup_iterations": 4}
    assert _factors(10, epochs=2, schedule="constant", **fields)[:6] == [0.25] * 4 + [1.0] * 2
