"""The training loop: updates, epochs, evaluation, checkpoints.

Every random number is drawn from its place in the run: the order of the images from (seed, epoch), a sample's
augmentation from (seed, epoch, index), what the network draws from (seed, epoch, update, process). A run that
resumes from a checkpoint therefore repeats the run that was never interrupted.
"""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from instseg.core.errors import InstsegError
from instseg.core.stopping import Stop
from instseg.data.batch import Batch
from instseg.data.dataset import InstanceDataset
from instseg.evaluation.best import Measured, better
from instseg.model.ready import same_modes
from instseg.models.base import Step, Target
from instseg.training.checkpoint import replace_with, save_state
from instseg.training.ema import averaged_model
from instseg.training.guards import StuckWatch, TrainingError, TrainingInterrupted, check_finite, explain_crash
from instseg.training.loggers import RunLog, write_metrics
from instseg.training.optim import build_optimizer, freeze, frozen_norms, set_rate
from instseg.training.processes import mean_over, same_buffers
from instseg.training.recipe import Recipe
from instseg.training.sampler import EpochLoader, epoch_batches, seed_of
from instseg.training.schedule import rate_factor, total_rate, warmup_updates

if TYPE_CHECKING:
    from accelerate import Accelerator

    from instseg.model.instance_model import InstanceModel

Evaluate = Callable[["InstanceModel"], Measured | None]
"""Takes a model in eval mode and is called in every process; what it returns counts in the main one alone."""


@dataclass
class Progress:
    """How far a run is. Together with weights, optimizer and averages this is all that a checkpoint holds."""

    epoch: int = 0  # finished epochs
    update: int = 0  # finished updates of the epoch under way
    sums: dict[str, float] = field(default_factory=dict)  # of losses and gradient norms over those updates
    seconds: float = 0.0  # spent on those updates
    history: list[dict[str, float | int | None]] = field(default_factory=list)  # a row per finished epoch
    best: float | None = None  # the figure of best.safetensors, which the evaluation names
    best_name: str | None = None
    best_epoch: int = 0
    stale: int = 0  # evaluations since it last got better
    failed: bool = False  # the evaluation after the last finished epoch

    @classmethod
    def from_state(cls, saved: Mapping[str, Any]) -> "Progress":
        """As :func:`dataclasses.asdict` saved it, in whatever version."""
        return cls(**{f.name: saved[f.name] for f in fields(cls) if f.name in saved})


class Losses(nn.Module):
    """The model's training call as a forward of its own: what accelerate wraps for autocast and processes."""

    def __init__(self, model: "InstanceModel") -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: list[Tensor], targets: Sequence[Target], step: Step
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and logs by name, as plain dictionaries, which the wrappers look into."""
        terms = self.model.loss_terms(images, targets, step, resize=False)
        return terms.losses, {name: value.detach() for name, value in terms.logs.items()}


class Trainer:
    """Trains ``model`` on ``data`` as ``recipe`` says and keeps the run folder. See :meth:`fit`."""

    def __init__(
        self,
        model: "InstanceModel",
        data: InstanceDataset,
        recipe: Recipe,
        folder: Path,
        accelerator: "Accelerator",
        log: RunLog,
        evaluate: Evaluate | None = None,
        extra_state: Mapping[str, Any] | None = None,
        interrupt: Stop | None = None,
    ) -> None:
        from accelerate import DistributedDataParallelKwargs

        self.model, self.data, self.recipe, self.folder = model, data, recipe, folder
        self.accelerator, self.log, self.evaluate = accelerator, log, evaluate
        self.extra_state = dict(extra_state or {})
        self.progress = Progress()
        group: int = accelerator.num_processes * recipe.accumulate
        self.group, self.total_batch = group, group * recipe.batch
        sizes = data.sizes
        self.wide = sizes[:, 1] >= sizes[:, 0] if recipe.aspect_groups else np.ones(len(data), dtype=bool)
        self.per_epoch: int = len(self._batches(0)) // group
        self.lr = total_rate(recipe.lr, self.total_batch, recipe.base_batch)
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        model.to(accelerator.device)
        freeze(model.net, recipe.freeze)
        self.frozen_norms = frozen_norms(model.net) if recipe.freeze else []
        self.average = averaged_model(model, recipe.ema_decay) if recipe.ema_decay else None
        optimizer = build_optimizer(model, recipe, self.lr)
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=model.net.may_leave_unused)
        self.network, self.optimizer = accelerator.prepare(Losses(model), optimizer)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        warmup = warmup_updates(recipe, recipe.epochs * self.per_epoch)
        self.stuck = StuckWatch(recipe.stuck_updates, warmup, model.net.watched_loss)
        self.interrupt = interrupt or Stop(at_once=False)
        together = Step(mean=mean_over(accelerator), processes=accelerator.num_processes)
        self.step = together if recipe.average_normalizers else Step()
        self.loader = EpochLoader(data, recipe, accelerator.num_processes, pin=accelerator.device.type == "cuda")
        self.saved_at = time.monotonic()
        self.left_out = data.left_out_line()  # the last line about it; opening the data has said this one
        self.unmeasured = False  # that nothing can be measured has been said

    # -- the run -------------------------------------------------------------------------------------------

    def fit(self) -> Progress:
        """Train to the end, or until patience runs out. The model comes back in the modes that it was in.

        Raises :class:`TrainingError` when a loss is not a number, :class:`TrainingInterrupted` (after saving) on
        Ctrl-C, SIGTERM or SIGHUP, and :class:`CheckpointError` when the disk is full.
        """
        p = self.progress
        self._write(self._save)
        with closing(self.loader), self.interrupt.handled(), same_modes(self.model):
            if p.failed and p.update == 0 and self.evaluate is not None:
                self._evaluate_again()
            while p.epoch < self.recipe.epochs and not self._patience_is_out():
                try:
                    self._train_epoch()
                    self._finish_epoch()
                except RuntimeError as error:
                    line = explain_crash(error, self.recipe.batch, str(self.folder / "last.ckpt"))
                    if line is None:
                        raise
                    raise TrainingError(line) from error
        self._write(self._save_weights)
        if p.best is None:
            self._write(lambda: self._save_weights("best.safetensors"))
        return p

    def _train_epoch(self) -> None:
        p = self.progress
        self.data.set_epoch(p.epoch)
        self.network.train()
        for norm in self.frozen_norms:
            norm.eval()
        title = f"epoch {p.epoch + 1}/{self.recipe.epochs}"
        loaded = closing(self._load(p.epoch, skip=p.update * self.recipe.accumulate))
        with loaded as batches, self.log.bar(self.per_epoch, p.update, title) as advance:
            start = time.perf_counter()
            while micro := list(islice(batches, self.recipe.accumulate)):
                values, stop, save = self._update(micro)
                p.update += 1
                p.seconds += time.perf_counter() - start
                for name, value in values.items():
                    p.sums[name] = p.sums.get(name, 0.0) + value
                advance(f"loss {values['loss']:.3f}")
                self._report(values)
                if stop:
                    self._stop()
                if save:
                    self._write(self._save)
                start = time.perf_counter()

    def _finish_epoch(self) -> None:
        p = self.progress
        every = self.recipe.evaluate_every
        last = p.epoch + 1 >= self.recipe.epochs
        due = self.evaluate is not None and every > 0 and (last or (p.epoch + 1) % every == 0)
        self._say_left_out()
        if due:  # nothing that happens in an evaluation costs the epoch
            self._write(self._save)
        columns, measured = self._evaluate() if due else ({}, None)
        row: dict[str, float | int | None] = {"epoch": p.epoch + 1, "updates": self._updates_done(), "lr": self._rate()}
        row |= {name: total / self.per_epoch for name, total in p.sums.items()}
        row["images_per_second"] = self.per_epoch * self.total_batch / max(p.seconds, 1e-9)
        row["seconds"] = p.seconds
        p.history.append(row | columns)
        p.epoch, p.update, p.sums, p.seconds = p.epoch + 1, 0, {}, 0.0
        chosen = self._choose(measured)
        self._write(self._save_state if due else self._save)
        self._write(lambda: write_metrics(self.folder / "metrics.csv", p.history))
        self._tell(p.history[-1], measured, chosen)

    def _choose(self, measured: Measured | None) -> bool:
        """Keep the weights of the epoch just finished where none were better: of equal ones the latest are the best."""
        p = self.progress
        if measured is None:
            return False
        best = measured.best
        first = p.best is None or p.best_name not in (None, best.name)  # another figure cannot be compared
        chosen = first or not better(p.best or 0.0, best.value, best.direction)
        p.stale = 0 if first or better(best.value, p.best or 0.0, best.direction) else p.stale + 1
        if chosen:
            p.best, p.best_name, p.best_epoch = best.value, best.name, p.epoch
            self._write(lambda: self._save_weights("best.safetensors"))
        return chosen

    def _evaluate_again(self) -> None:
        """The evaluation that failed after the last finished epoch."""
        p = self.progress
        columns, measured = self._evaluate()
        p.history[-1] |= columns
        chosen = self._choose(measured)
        self._write(self._save_state)
        self._write(lambda: write_metrics(self.folder / "metrics.csv", p.history))
        self._tell(p.history[-1], measured, chosen)

    # -- one update ----------------------------------------------------------------------------------------

    def _update(self, micro: list[Batch]) -> tuple[dict[str, float], bool, bool]:
        """One step of the optimizer over ``micro`` batches: their mean losses, and whether to stop, to save."""
        from accelerate.utils import set_seed

        p, recipe, accelerator = self.progress, self.recipe, self.accelerator
        set_seed(seed_of(recipe.seed, p.epoch, p.update, accelerator.process_index))
        set_rate(self.optimizer, rate_factor(recipe, self._updates_done(), self.per_epoch))
        self.optimizer.zero_grad()
        values: dict[str, float] = {}
        logged: dict[str, float] = {}
        step = self._step()
        for i, batch in enumerate(micro):
            last = i + 1 == len(micro)
            with nullcontext() if last else accelerator.no_sync(self.network):
                there = batch.to(accelerator.device)
                losses, logs = self.network(there.images, there.targets, step)
                shares, seen, stop, save = self._agree(losses, logs, batch)
                accelerator.backward(torch.stack(list(losses.values())).sum() / len(micro))
            for sums, found in ((values, shares), (logged, seen)):
                for name, value in found.items():
                    sums[name] = sums.get(name, 0.0) + value / len(micro)
        norm = float(accelerator.clip_grad_norm_(self.parameters, recipe.clip or math.inf))
        if recipe.precision != "fp16":  # there the scaler looks for overflow and leaves the update out
            self._check({"the gradient norm": norm}, micro)
        self.optimizer.step()
        if accelerator.optimizer_step_was_skipped:
            norm = 0.0  # the scaler found an overflow: nothing moved
        elif self.average is not None:
            self.average.update_parameters(self.model)
        return {"loss": sum(values.values()), **values, **logged, "grad_norm": norm}, stop, save

    def _step(self) -> Step:
        """Where the run is; the generator is drawn from its own place, apart from that of torch's own."""
        p, seed = self.progress, self.recipe.seed
        draw = torch.Generator().manual_seed(seed_of(seed, p.epoch, p.update, self.accelerator.process_index, 1))
        return replace(self.step, update=self._updates_done(), epoch=p.epoch, generator=draw)

    def _agree(
        self, losses: dict[str, Tensor], logs: dict[str, Tensor], batch: Batch
    ) -> tuple[dict[str, float], dict[str, float], bool, bool]:
        """The means of losses and logs over the processes, and what any process wants: to stop, to save."""
        due = time.monotonic() - self.saved_at > 60 * self.recipe.checkpoint_minutes
        wishes = torch.tensor([self.interrupt.asked, due and self.accelerator.is_main_process])
        shared = torch.stack([value.detach().float() for value in (*losses.values(), *logs.values())])
        shared = torch.cat([shared, wishes.to(shared)])
        numbers = self.accelerator.reduce(shared, "mean").tolist()
        values = dict(zip(losses, numbers, strict=False))
        seen = dict(zip(logs, numbers[len(losses) :], strict=False))
        self._check(values, [batch])
        return values, seen, numbers[-2] > 0, numbers[-1] > 0

    def _check(self, values: Mapping[str, float], batches: list[Batch]) -> None:
        """Refuse what is not a number, naming the images of all processes."""
        if all(math.isfinite(value) for value in values.values()):
            return
        from accelerate.utils import gather_object

        known = self.data.image_ids.tolist()
        names = {i: self.data.file_name(known.index(i)) for batch in batches for i in batch.image_ids if i in known}
        mine = [f"{i} ({names.get(i, '?')})" for batch in batches for i in batch.image_ids]
        images = gather_object(mine)
        place = f"epoch {self.progress.epoch + 1}, update {self.progress.update + 1} of {self.per_epoch}"
        check_finite(values, images, place, str(self.folder / "last.ckpt"))

    # -- order, rates --------------------------------------------------------------------------------------

    def _batches(self, epoch: int) -> list[list[int]]:
        r = self.recipe
        return epoch_batches(self.wide, r.batch, self.group, r.seed, epoch, r.aspect_groups)

    def _load(self, epoch: int, skip: int) -> Generator[Batch]:
        """This process' batches of an epoch from the ``skip``-th on, without loading the ones before."""
        a = self.accelerator
        mine = self._batches(epoch)[a.process_index :: a.num_processes][skip:]
        return self.loader.batches(mine)

    def _updates_done(self) -> int:
        return self.progress.epoch * self.per_epoch + self.progress.update

    def _rate(self) -> float:
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def _patience_is_out(self) -> bool:
        out = 0 < self.recipe.patience <= self.progress.stale
        if out:
            self.log.line(f"no better {self.progress.best_name} in {self.progress.stale} evaluations: stopping early")
        return out

    # -- telling, evaluating -------------------------------------------------------------------------------

    def _report(self, values: dict[str, float]) -> None:
        p, done = self.progress, self._updates_done()
        warning = self.stuck.add(done, values)
        if warning:
            self.log.line(f"warning: {warning}")
        if done % self.recipe.log_every and p.update < self.per_epoch:
            return
        speed = p.update * self.total_batch / max(p.seconds, 1e-9)
        parts = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.log.line(
            f"epoch {p.epoch + 1} update {p.update}/{self.per_epoch} {parts} lr {self._rate():.3g} {speed:.1f} images/s"
        )
        self.log.scalars({**values, "lr": self._rate(), "images_per_second": speed}, done)

    def _evaluate(self) -> tuple[dict[str, float | None], Measured | None]:
        """Evaluate the averaged weights where there are any, with all processes.

        Returns a row's columns, with None for what could not be measured, and what chooses the weights, if it could be.
        """
        from accelerate.utils import broadcast_object_list

        measured: Measured | None = None
        fault: str | None = None
        stopped = False
        weights = self._weights()
        same_buffers(weights, self.accelerator)
        alone = self.accelerator.num_processes == 1  # several agree about a stop where they exchange what they found
        try:
            with self.interrupt.at_once() if alone else nullcontext():
                measured = self.evaluate(weights.eval()) if self.evaluate is not None else None
        except KeyboardInterrupt:
            stopped = True
        except Exception as error:  # whatever it is, training does not depend on it
            fault = self._why(error)
        measured, fault, stopped = broadcast_object_list([measured, fault, stopped])
        if stopped:  # the epoch's updates are all done and counted, so this is a state to resume from
            self._stop()
        self.progress.failed = fault is not None
        if fault is not None:
            self.log.line(
                f"warning: the evaluation failed ({fault}); the epoch is saved, and evaluation is tried again after "
                "the next one, or with --resume"
            )
        if measured is None:
            return {}, None
        columns = {name: v if _is_measured(v) else None for name, v in measured.columns.items()}
        if _is_measured(measured.best.value):
            return columns, measured
        if not self.unmeasured:
            self.unmeasured = True
            self.log.line(
                f"warning: the evaluation has nothing to find, so there is no {measured.best.title}: best.safetensors "
                "will be the last weights"
            )
        return columns, None

    def _why(self, error: Exception) -> str:
        """An evaluation's failure in one line."""
        text = " ".join(str(error).split())[:300]
        if isinstance(error, InstsegError):
            return text.rstrip(".")
        if isinstance(error, torch.OutOfMemoryError):
            return f"out of GPU memory with evaluate_batch={self.recipe.evaluate_batch or self.recipe.batch}: lower it"
        return f"unexpected {type(error).__name__}: {text}"

    def _say_left_out(self) -> None:
        """What the data set has left out, where that has changed."""
        line = self.data.left_out_line()
        if line is not None and line != self.left_out:
            self.left_out = line
            self.log.line(f"warning: {line}")

    def _tell(self, row: Mapping[str, float | int | None], measured: Measured | None, chosen: bool) -> None:
        parts = [f"epoch {row['epoch']}/{self.recipe.epochs}: loss {row['loss']:.4f}"]
        if measured is not None:
            more = "".join(f" {title} {measured.columns[name]:.4f}" for title, name in measured.more.items())
            best = measured.best
            parts.append(f"{best.title} {best.value:.4f}{more}{' (best so far)' if chosen else ''}")
        parts.append(f"{row['images_per_second']:.1f} images/s")
        self.log.line(", ".join(parts))
        columns = measured.columns if measured is not None else {}
        self.log.scalars({name: value for name, value in columns.items() if _is_measured(value)}, self._updates_done())

    # -- keeping -------------------------------------------------------------------------------------------

    def _weights(self) -> "InstanceModel":
        """The model whose weights are evaluated and released: the averaged one where there is one."""
        return self.model if self.average is None else self.average.module  # type: ignore[return-value]

    def _write(self, write: Callable[[], None]) -> None:
        if self.accelerator.is_main_process:
            write()

    def _save(self) -> None:
        """The state to resume from, and the weights to use meanwhile."""
        self._save_state()
        if not self._updates_done():
            return
        self._save_weights()
        if self.progress.best is None and (self.folder / "best.safetensors").exists():  # of a run that was shorter
            self._save_weights("best.safetensors")

    def _save_weights(self, name: str = "last.safetensors") -> None:
        replace_with(self.folder / name, self._weights().save)

    def _save_state(self) -> None:
        scaler = self.accelerator.scaler
        save_state(
            self.folder / "last.ckpt",
            {
                **self.extra_state,
                "updates": self._updates_done(),
                "progress": asdict(self.progress),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict() if self.average is not None else None,
                "scaler": scaler.state_dict() if scaler is not None else None,
            },
        )
        self.saved_at = time.monotonic()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from a state that :meth:`fit` wrote, on the same data, recipe and number of images an update."""
        self.progress = Progress.from_state(state["progress"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self._write(lambda: write_metrics(self.folder / "metrics.csv", self.progress.history))

    def _stop(self) -> NoReturn:
        self._write(self._save)
        p = self.progress
        raise TrainingInterrupted(
            f"interrupted in epoch {p.epoch + 1} after update {p.update} of {self.per_epoch}; everything is in "
            f"{self.folder / 'last.ckpt'}: the same call with --resume (resume=True) continues the run."
        )


def _is_measured(value: float) -> bool:
    """Evaluations write -1 or NaN where there was nothing to measure."""
    return math.isfinite(value) and value >= 0
