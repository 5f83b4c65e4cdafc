"""Losses that are no number, and a mask loss that never moves."""

import math
import random

import pytest

from instseg.training.guards import StuckWatch, TrainingError, check_finite, explain_crash


def _told(losses: list[float], patience: int = 100, warmup: int = 50) -> list[int]:
    watch = StuckWatch(patience, warmup, "loss_mask")
    return [i for i, loss in enumerate(losses) if watch.add(i, {"loss_mask": loss, "loss_category": 1.0})]


def test_a_dice_loss_at_three_is_told_once_after_the_patience() -> None:
    assert _told([2.95] + [3.0] * 1000) == [149]
    assert _told([2.6] * 10 + [2.9999] * 1000) == [149]


def test_the_warning_says_what_it_means_and_what_to_change() -> None:
    watch = StuckWatch(2, 0, "loss_mask")
    watch.add(0, {"loss_mask": 3.0})
    text = watch.add(1, {"loss_mask": 3.0})
    assert text is not None and "\n" not in text
    assert all(word in text for word in ("3.000", "masks vanish", "warmup_iterations", "lr", "clip"))


def test_a_flat_loss_during_warm_up_is_normal() -> None:
    assert not _told([2.99] * 40, patience=10, warmup=50)


def test_a_loss_that_falls_is_left_alone() -> None:
    rng = random.Random(0)
    falling = [2.9 * math.exp(-i / 500) * rng.uniform(0.97, 1.03) for i in range(1000)]
    assert not _told(falling)


def test_a_loss_that_has_converged_is_left_alone() -> None:
    assert not _told([2.9, 1.0] + [0.3] * 1000)


def test_a_noisy_loss_near_its_start_is_left_alone() -> None:
    rng = random.Random(0)
    assert not _told([2.8 * rng.uniform(0.97, 1.03) for _ in range(1000)])


def test_no_watch_with_patience_zero_or_without_a_mask_loss() -> None:
    assert not _told([3.0] * 1000, patience=0)
    assert StuckWatch(1, 0, "loss_mask").add(0, {"loss": 3.0}) is None
    assert StuckWatch(1, 0, None).add(0, {"loss_mask": 3.0}) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_number_names_loss_place_images_and_checkpoint(bad: float) -> None:
    with pytest.raises(TrainingError) as error:
        check_finite({"loss_a": 1.0, "loss_b": bad}, ["7 (a.png)"], "epoch 2, update 3 of 9", "runs/a/last.ckpt")
    text = str(error.value)
    assert "\n" not in text and "loss_a" not in text
    assert all(w in text for w in (f"loss_b is {bad}", "7 (a.png)", "epoch 2, update 3", "runs/a/last.ckpt"))


def test_memory_is_blamed_only_for_deaths_that_want_of_memory_causes() -> None:
    lines = {}
    for name in ("Killed", "Terminated"):
        error = RuntimeError(f"DataLoader worker (pid 7) is killed by signal: {name}. ")
        lines[name] = explain_crash(error, 2, "a/last.ckpt") or ""
    killed, stopped = lines["Killed"], lines["Terminated"]
    assert "memory" in killed and "--resume" in killed
    assert "memory" not in stopped and "Terminated" in stopped and "--resume" in stopped
