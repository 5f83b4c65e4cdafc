"""The loop, each switch by its effect on weights, gradients or files."""

import csv
import errno
import io
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from instseg.core.errors import ConfigError, DataError
from instseg.evaluation.best import Best, Measured
from instseg.training.checkpoint import load_state
from instseg.training.guards import TrainingError, TrainingInterrupted
from instseg.training.loggers import RunLog
from instseg.training.loop import Trainer
from instseg.training.recipe import Recipe
from instseg.training.run import make_accelerator

Make = Callable[..., Trainer]


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def _rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def _measured(ap: float) -> Measured:
    return Measured({"ap": ap, "ap50": 0.5, "ap75": 0.25, "box_ap": 0.1}, Best("ap", ap), {"AP50": "ap50"})


def _scores(*values: float) -> Callable[[Any], Measured]:
    """An evaluation that returns the next AP at each call."""
    left = list(values)
    return lambda model: _measured(left.pop(0))


def test_training_lowers_the_loss_and_keeps_a_whole_run_folder(trainer: Make, tmp_path: Path) -> None:
    progress = trainer(tmp_path, epochs=6).fit()
    losses = [float(row["loss"]) for row in _rows(tmp_path)]
    assert len(losses) == 6 and losses[-1] < 0.9 * losses[0]
    assert progress.epoch == 6 and progress.best is None
    assert {p.name for p in tmp_path.iterdir()} == {
        "best.safetensors", "last.ckpt", "last.ckpt.prev", "last.safetensors", "log.txt", "metrics.csv",
    }  # fmt: skip
    assert (tmp_path / "best.safetensors").read_bytes() == (tmp_path / "last.safetensors").read_bytes()


def test_metrics_have_losses_rate_gradient_norm_and_speed(trainer: Make, tmp_path: Path) -> None:
    trainer(tmp_path, epochs=2, batch=4, evaluate_every=2).fit()
    rows = _rows(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["updates"] for row in rows] == ["2", "4"]
    for row in rows:
        assert float(row["loss"]) == pytest.approx(float(row["loss_category"]) + float(row["loss_mask"]), rel=1e-4)
        assert float(row["lr"]) == 0.1 and float(row["grad_norm"]) > 0 and float(row["images_per_second"]) > 0


def test_accumulated_batches_equal_one_large_batch(trainer: Make, tiny_model: Any, tmp_path: Path) -> None:
    results = []
    for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
        torch.manual_seed(0)
        run = trainer(tmp_path / str(batch), model=tiny_model(norm=False), batch=batch, accumulate=accumulate)
        run.fit()
        assert run.per_epoch == 2
        results.append((_weights(run), float(_rows(tmp_path / str(batch))[-1]["loss"])))
    for weights, loss in results[1:]:
        torch.testing.assert_close(weights, results[0][0])
        assert loss == pytest.approx(results[0][1], rel=1e-4)


def test_clipping_shortens_the_step_to_the_norm(trainer: Make, tmp_path: Path) -> None:
    steps = []
    for clip in (None, 1e-3):
        run = trainer(tmp_path / str(clip), epochs=1, batch=8, clip=clip)
        before = _weights(run)
        run.fit()
        moved = [(_weights(run)[n] - before[n]).flatten() for n, _ in run.model.named_parameters()]
        steps.append(float(torch.cat(moved).norm()))
        assert float(_rows(tmp_path / str(clip))[0]["grad_norm"]) > 0.01  # as it was before clipping
    assert steps[1] == pytest.approx(0.1 * 1e-3, rel=1e-3)
    assert steps[0] > 10 * steps[1]


def test_rate_scales_with_the_images_of_an_update(trainer: Make, tmp_path: Path) -> None:
    run = trainer(tmp_path, epochs=1, batch=2, accumulate=2, lr=0.01, base_batch=16)
    run.fit()
    assert float(_rows(tmp_path)[0]["lr"]) == 0.01 * 4 / 16


def test_the_schedule_reaches_the_optimizer(trainer: Make, tmp_path: Path) -> None:
    trainer(tmp_path, epochs=3, schedule="step", lr_drops=[1, 2], lr=0.1).fit()
    assert [float(row["lr"]) for row in _rows(tmp_path)] == pytest.approx([0.1, 0.01, 0.001])


def test_bf16_computes_in_half_precision_and_keeps_weights_and_losses_whole(
    trainer: Make, tiny_model: Any, tmp_path: Path
) -> None:
    ends = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        torch.manual_seed(0)
        model = tiny_model()
        run = trainer(tmp_path / precision, model=model, precision=precision)
        run.fit()
        assert set(model.dtypes) == {dtype}
        assert all(p.dtype == torch.float32 for p in model.parameters())
        ends[precision] = _weights(run)["backbone.weight"]
    assert not torch.equal(ends["fp32"], ends["bf16"])
    torch.testing.assert_close(ends["fp32"], ends["bf16"], atol=0.02, rtol=0.02)


def test_fp16_on_a_cpu_is_refused(trainer: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        trainer(tmp_path, precision="fp16")


@pytest.fixture
def fp16_plain(trainer: Make, tmp_path: Path) -> Trainer:
    """The same training in fp32, finished before accelerate's global state is turned to fp16."""
    torch.manual_seed(0)
    plain = trainer(tmp_path / "fp32", epochs=1)
    plain.fit()
    return plain


@pytest.fixture
def fp16_accelerator(fp16_plain: Trainer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """accelerate's fp16 with its gradient scaler, on the CPU, where accelerate itself does not offer it."""
    accelerator = make_accelerator(Recipe(precision="bf16", device="cpu"))
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
    monkeypatch.setattr(accelerator, "scaler", torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3))
    return accelerator


def test_fp16_scales_the_loss_and_leaves_out_an_update_that_overflows(
    trainer: Make, tiny_model: Any, tmp_path: Path, fp16_plain: Trainer, fp16_accelerator: Any
) -> None:
    torch.manual_seed(0)
    model = tiny_model()
    half = trainer(
        tmp_path / "fp16", model=model, accelerator=fp16_accelerator, precision="fp16", epochs=1, ema_decay=0.9
    )
    half.fit()
    assert set(model.dtypes) == {torch.float16}
    assert fp16_accelerator.scaler.get_scale() == 2048.0  # grew after three good updates
    torch.testing.assert_close(_weights(half), _weights(fp16_plain), atol=0.02, rtol=0.02)

    weights, averaged = _weights(half), int(half.average.n_averaged)  # type: ignore[union-attr]
    hook = model.head.weight.register_hook(lambda gradient: gradient * math.inf)
    values, *_ = half._update([next(half._load(0, skip=0))])
    hook.remove()
    assert all(torch.equal(v, weights[k]) for k, v in _weights(half).items() if "running" not in k and "num" not in k)
    assert int(half.average.n_averaged) == averaged and values["grad_norm"] == 0.0  # type: ignore[union-attr]
    assert fp16_accelerator.scaler.get_scale() == 1024.0
    assert load_state(tmp_path / "fp16" / "last.ckpt")[0]["scaler"]["scale"] == 2048.0


def test_channels_last_changes_the_layout_and_not_the_result(trainer: Make, tmp_path: Path) -> None:
    plain, last = trainer(tmp_path / "a"), trainer(tmp_path / "b", channels_last=True)
    assert last.model.backbone.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
    plain.fit()
    last.fit()
    torch.testing.assert_close(_weights(plain), _weights(last), atol=1e-5, rtol=1e-4)


def test_averaged_weights_are_those_evaluated_and_saved(trainer: Make, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    seen: list[dict[str, Tensor]] = []

    def evaluate(model: Any) -> Measured:
        assert not model.training
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return _measured(0.1)

    run = trainer(tmp_path, evaluate=evaluate, epochs=1, ema_decay=0.9)
    run.fit()
    assert run.average is not None and int(run.average.n_averaged) == 4
    average = run.average.module.state_dict()
    saved = load_file(tmp_path / "last.safetensors")
    for name, value in saved.items():
        assert torch.equal(value, average[name]) and torch.equal(value, seen[0][name])
    assert not torch.equal(saved["backbone.weight"], _weights(run)["backbone.weight"])


def test_evaluation_every_k_epochs_and_at_the_end(trainer: Make, tmp_path: Path) -> None:
    trainer(tmp_path, evaluate=_scores(0.1, 0.2, 0.3), epochs=5, evaluate_every=2).fit()
    assert [row["ap"] for row in _rows(tmp_path)] == ["", "0.1", "", "0.2", "0.3"]


def test_best_weights_are_those_of_the_best_epoch(trainer: Make, tmp_path: Path) -> None:
    kept: dict[int, bytes] = {}
    scores = _scores(0.1, 0.3, 0.2)

    def evaluate(model: Any) -> Measured:
        model.save(tmp_path / "now.safetensors")
        kept[len(kept) + 1] = (tmp_path / "now.safetensors").read_bytes()
        return scores(model)

    progress = trainer(tmp_path, evaluate=evaluate, epochs=3).fit()
    assert (progress.best, progress.best_epoch) == (0.3, 2)
    assert (tmp_path / "best.safetensors").read_bytes() == kept[2]
    assert (tmp_path / "last.safetensors").read_bytes() == kept[3]


def test_patience_ends_a_run_that_gets_no_better(trainer: Make, tmp_path: Path) -> None:
    progress = trainer(tmp_path, evaluate=_scores(0.1, 0.3, 0.2, 0.3, 0.9), epochs=5, patience=2).fit()
    assert progress.epoch == 4 and progress.best_epoch == 4  # of equal APs the latest
    assert "stopping early" in (tmp_path / "log.txt").read_text()


def test_of_equal_aps_the_latest_weights_are_the_best(trainer: Make, tmp_path: Path) -> None:
    progress = trainer(tmp_path, evaluate=_scores(0.0, 0.0, 0.0), epochs=3).fit()
    assert (progress.best, progress.best_epoch) == (0.0, 3)
    assert (tmp_path / "best.safetensors").read_bytes() == (tmp_path / "last.safetensors").read_bytes()


def test_equal_aps_do_not_feed_the_patience(trainer: Make, tmp_path: Path) -> None:
    assert trainer(tmp_path, evaluate=_scores(*[0.0] * 9), epochs=9, patience=2).fit().epoch == 3


def test_what_is_best_may_be_an_error_that_falls(trainer: Make, tmp_path: Path) -> None:
    left = [3.0, 1.0, 2.0]

    def evaluate(model: Any) -> Measured:
        value = left.pop(0)
        return Measured({"mse": value}, Best("mse", value, "min"), {})

    progress = trainer(tmp_path, evaluate=evaluate, epochs=3).fit()
    assert (progress.best, progress.best_name, progress.best_epoch, progress.stale) == (1.0, "mse", 2, 1)
    rows = _rows(tmp_path)
    assert [row["mse"] for row in rows] == ["3", "1", "2"] and "ap" not in rows[0]
    log = (tmp_path / "log.txt").read_text()
    assert "mse 1.0000 (best so far)" in log and "mse 2.0000, " in log and "AP" not in log


def test_logs_are_written_and_not_summed(trainer: Make, tmp_path: Path) -> None:
    trainer(tmp_path, epochs=1).fit()
    (row,) = _rows(tmp_path)
    assert 0 < float(row["brightness"]) < 1
    assert float(row["loss"]) == pytest.approx(float(row["loss_category"]) + float(row["loss_mask"]), rel=1e-4)
    assert " brightness 0." in (tmp_path / "log.txt").read_text()


def test_losses_know_where_the_run_is_and_draw_from_it(trainer: Make, tiny_model: Any, tmp_path: Path) -> None:
    calls = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        model = tiny_model()
        trainer(tmp_path / name, model=model, epochs=2, batch=4, seed=seed).fit()
        calls.append(model.steps)
    assert calls[0] == calls[1] and [call[:2] for call in calls[0]] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    drawn = {call[2] for steps in (calls[0], calls[2]) for call in steps}
    assert len(drawn) == 8


def test_frozen_parameters_and_the_statistics_of_frozen_norms_stay(trainer: Make, tmp_path: Path) -> None:
    run = trainer(tmp_path, freeze=["backbone", "norm"])
    before = _weights(run)
    run.fit()
    after = _weights(run)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head"}


@pytest.mark.parametrize("ap", [-1.0, math.nan])
def test_an_ap_that_cannot_be_computed_is_no_ap(trainer: Make, tmp_path: Path, ap: float) -> None:
    progress = trainer(tmp_path, evaluate=_scores(ap, ap), epochs=2, patience=1).fit()
    assert progress.epoch == 2 and progress.best is None
    assert [row["ap"] for row in _rows(tmp_path)] == ["", ""] and _rows(tmp_path)[0]["ap50"] == "0.5"
    assert (tmp_path / "best.safetensors").read_bytes() == (tmp_path / "last.safetensors").read_bytes()
    assert (tmp_path / "log.txt").read_text().count("nothing to find") == 1


@pytest.mark.parametrize("fault", [DataError("9.png: cut short; replace it."), TypeError("a fault\nof ours")])
def test_an_evaluation_that_fails_costs_nothing_and_is_tried_again(
    trainer: Make, tmp_path: Path, fault: Exception
) -> None:
    calls: list[int] = []

    def evaluate(model: Any) -> Measured:
        calls.append(load_state(tmp_path / "last.ckpt")[0]["progress"]["update"])
        if len(calls) == 2:
            raise fault
        return _scores(0.1 * len(calls))(model)

    progress = trainer(tmp_path, evaluate=evaluate, epochs=3).fit()
    assert calls == [4, 4, 4]  # each epoch was saved before it was evaluated
    assert [row["ap"] for row in _rows(tmp_path)] == ["0.1", "", "0.3"]
    assert progress.best_epoch == 3
    (line,) = [line for line in (tmp_path / "log.txt").read_text().splitlines() if "evaluation failed" in line]
    assert "warning" in line and ("9.png: cut short" in line or "unexpected TypeError: a fault of ours" in line)


def test_an_evaluation_that_failed_at_the_end_is_made_by_resuming(trainer: Make, tmp_path: Path) -> None:
    def fails(model: Any) -> Measured:
        raise DataError("9.png: cut short; replace it.")

    trainer(tmp_path, evaluate=fails, epochs=1).fit()
    assert not any(row.get("ap") for row in _rows(tmp_path))
    again = trainer(tmp_path, evaluate=_scores(0.4), epochs=1)
    again.restore(load_state(tmp_path / "last.ckpt")[0])
    progress = again.fit()
    assert (progress.best, progress.best_epoch, progress.failed) == (0.4, 1, False)
    assert [row["ap"] for row in _rows(tmp_path)] == ["0.4"]


def test_weights_are_written_with_every_checkpoint_but_not_before_the_first_update(
    trainer: Make, tiny_model: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    seen: list[bool] = []

    def look(call: int) -> float:
        path = tmp_path / "last.safetensors"
        seen.append(path.exists())
        if path.exists():
            saved, state = load_file(path), load_state(tmp_path / "last.ckpt")[0]
            assert all(torch.equal(saved[name], state["model"][name]) for name in saved)
        return 1.0

    model = tiny_model()
    model.spoil = look
    trainer(tmp_path, model=model, epochs=2, checkpoint_minutes=0).fit()
    assert seen == [False] + [True] * 7


def test_what_the_data_leaves_out_is_said_when_it_changes(trainer: Make, squares: Any, tmp_path: Path) -> None:
    data = squares()
    lines = iter(["squares: left out 1", "squares: left out 1", "squares: left out 2", "squares: left out 2"])
    run = trainer(tmp_path, data=data, epochs=3)
    run.data.left_out_line = lambda: next(lines)
    run.left_out = next(lines)  # as opening the data has said
    run.fit()
    text = (tmp_path / "log.txt").read_text()
    assert "left out 1" not in text
    assert text.count("warning: squares: left out 2") == 1


def test_a_loss_that_turns_nan_stops_and_keeps_the_last_good_state(
    trainer: Make, tiny_model: Any, tmp_path: Path
) -> None:
    model = tiny_model()
    model.spoil = lambda call: math.nan if call == 6 else 1.0
    run = trainer(tmp_path, model=model)
    with pytest.raises(TrainingError) as error:
        run.fit()
    batch = run._batches(1)[1]
    text = str(error.value)
    assert "loss_mask is nan" in text and "epoch 2, update 2 of 4" in text and "\n" not in text
    assert all(f"{i} ({i}.png)" in text for i in batch)
    state, _ = load_state(tmp_path / "last.ckpt")
    assert state["progress"]["epoch"] == 1
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_gradient_that_is_no_number_stops_before_the_step(trainer: Make, tiny_model: Any, tmp_path: Path) -> None:
    model = tiny_model()
    run = trainer(tmp_path, model=model)
    model.head.weight.register_hook(lambda gradient: gradient * math.inf)
    before = _weights(run)["head.weight"]
    with pytest.raises(TrainingError, match="gradient norm is"):
        run.fit()
    assert torch.equal(before, _weights(run)["head.weight"])


def test_a_stuck_mask_loss_is_explained_in_the_log(trainer: Make, tiny_model: Any, tmp_path: Path) -> None:
    trainer(tmp_path, model=tiny_model(), lr=1e-12, epochs=3, stuck_updates=4, batch=8).fit()
    assert "loss_mask has stood" not in (tmp_path / "log.txt").read_text()  # three updates only
    trainer(tmp_path / "b", model=tiny_model(), lr=1e-12, epochs=8, stuck_updates=4, batch=8).fit()
    assert (tmp_path / "b" / "log.txt").read_text().count("warning: loss_mask has stood") == 1


def test_an_unreadable_image_stops_the_run_in_one_line(trainer: Make, squares: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"5\.png: cut short"):
        trainer(tmp_path, data=squares(8, broken=5)).fit()


def test_a_loader_process_that_dies_is_one_line(trainer: Make, squares: Any, tmp_path: Path) -> None:
    data = squares()
    read = data._read

    def die(record: Any) -> Tensor:
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        image: Tensor = read(record)
        return image

    data._read = die
    with pytest.raises(TrainingError, match=r"a loader process died.*fewer workers.*--resume") as error:
        trainer(tmp_path, data=data, workers=1).fit()
    assert "\n" not in str(error.value)


def test_a_gpu_that_is_full_is_one_line(trainer: Make, tiny_model: Any, tmp_path: Path) -> None:
    def full(call: int) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    model = tiny_model()
    model.spoil = full
    with pytest.raises(TrainingError, match="out of GPU memory with batch=2: lower batch"):
        trainer(tmp_path, model=model).fit()


def test_ctrl_c_in_a_terminal_leaves_the_loader_processes_alive(trainer: Make, tiny_model: Any, tmp_path: Path) -> None:
    def strike(call: int) -> float:
        if call == 2:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGINT)
            time.sleep(0.2)
        return 1.0

    model = tiny_model()
    model.spoil = strike
    assert trainer(tmp_path, model=model, workers=1, epochs=1).fit().epoch == 1


def test_ctrl_c_finishes_the_update_saves_and_says_how_to_go_on(trainer: Make, tiny_model: Any, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    model = tiny_model()
    model.spoil = lambda call: os.kill(os.getpid(), signal.SIGINT) or 1.0 if call == 6 else 1.0  # type: ignore[func-returns-value]
    with pytest.raises(TrainingInterrupted, match=r"epoch 2 after update 2 of 4.*--resume"):
        trainer(tmp_path, model=model).fit()
    state, _ = load_state(tmp_path / "last.ckpt")
    assert (state["progress"]["epoch"], state["progress"]["update"]) == (1, 2)
    assert signal.getsignal(signal.SIGINT) is before


def test_every_stop_signal_saves_and_says_that_it_interrupted(trainer: Make, tiny_model: Any, tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        model = tiny_model()
        model.spoil = lambda call, n=number: os.kill(os.getpid(), n) or 1.0 if call == 2 else 1.0
        with pytest.raises(TrainingInterrupted, match="interrupted in epoch 1 after update 2 of 4"):
            trainer(tmp_path / number.name, model=model).fit()
        assert (tmp_path / number.name / "last.safetensors").exists()


def test_ctrl_c_during_an_evaluation_keeps_the_epoch(trainer: Make, tmp_path: Path) -> None:
    def evaluate(model: Any) -> Measured:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(TrainingInterrupted):
        trainer(tmp_path, evaluate=evaluate).fit()
    state, _ = load_state(tmp_path / "last.ckpt")
    assert (state["progress"]["epoch"], state["progress"]["update"]) == (0, 4)


def test_a_checkpoint_is_written_within_an_epoch_when_it_is_time(
    trainer: Make, tiny_model: Any, tmp_path: Path
) -> None:
    places = []

    def look(call: int) -> float:
        places.append(load_state(tmp_path / "last.ckpt")[0]["progress"]["update"])
        return 1.0

    model = tiny_model()
    model.spoil = look
    trainer(tmp_path, model=model, epochs=1, checkpoint_minutes=0).fit()
    assert places == [0, 1, 2, 3]


def test_tensorboard_gets_losses_and_rate(trainer: Make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trainer(tmp_path, evaluate=_scores(0.1, 0.2), tensorboard=True, log_every=2)
    run.fit()
    run.log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8]
    assert [event.value for event in events.Scalars("ap")] == pytest.approx([0.1, 0.2])


def test_tensorboard_that_is_not_installed_is_named(
    trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'instseg\[tensorboard\]'"):
        trainer(tmp_path, tensorboard=True)


def test_a_terminal_that_is_gone_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setenv("TERM", "xterm")
    log = RunLog(tmp_path, progress=True, tensorboard=False)
    log.line("still there")
    with log.bar(3, 0, "epoch 1/1") as advance:
        advance("loss 1")
    log.close()
    assert "still there" in (tmp_path / "log.txt").read_text()


def test_augmentation_differs_between_epochs_and_repeats_between_runs(
    trainer: Make, tiny_model: Any, tmp_path: Path
) -> None:
    seen = []
    for name in ("a", "b"):
        model = tiny_model()
        trainer(tmp_path / name, model=model, brightness=0.5, seed=3).fit()
        seen.append(torch.stack(model.images))
    assert torch.equal(seen[0], seen[1])
    first, second = seen[0].flatten(1)[:8].float().mean(1), seen[0].flatten(1)[8:].float().mean(1)
    assert not torch.equal(first.sort().values, second.sort().values)


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from conftest import TinyModel, make_trainer
from instseg.evaluation.best import Best, Measured
torch.set_num_threads(1)
torch.manual_seed(0)
ap = [0.1, 0.2]
run = make_trainer(Path(sys.argv[2]), model=TinyModel(norm=False), batch=int(sys.argv[3]), base_batch=4, lr=0.1,
                   evaluate=lambda model: Measured({}, Best("ap", ap.pop(0)), {}))
run.fit()
rank = run.accelerator.process_index
weights = {name: value.flatten().tolist() for name, value in run.model.state_dict().items()}
Path(sys.argv[2], f"end{rank}.json").write_text(json.dumps([weights, run.lr, run.progress.best]))
run.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    (tmp_path / "go.py").write_text(SCRIPT)
    here, go = str(Path(__file__).parent), str(tmp_path / "go.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command, folder, batch in (([sys.executable], "one", "4"), (launch, "two", "2")):
        (tmp_path / folder).mkdir()
        call = [*command, go, here, str(tmp_path / folder), batch]
        done = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    one = json.loads((tmp_path / "one" / "end0.json").read_text())
    ends = [json.loads((tmp_path / "two" / f"end{rank}.json").read_text()) for rank in range(2)]
    assert ends[0] == ends[1]
    assert ends[0][1:] == one[1:] == [0.1, 0.2]
    for name, values in one[0].items():
        assert ends[0][0][name] == pytest.approx(values, rel=1e-4, abs=1e-6)
    losses = [[float(row["loss"]) for row in _rows(tmp_path / folder)] for folder in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
