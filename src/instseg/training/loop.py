"""The training loop: updates, epochs, evaluation, checkpoints.

Every random number is drawn from its place in the run: the order of the images from (seed, epoch), a sample's
augmentation from (seed, epoch, index), what the network draws from (seed, epoch, update, process). A run that
goes on from a checkpoint therefore repeats the run that was never interrupted.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from instseg.data.batch import Batch
from instseg.data.dataset import InstanceDataset
from instseg.training.checkpoint import replace_with, save_state
from instseg.training.ema import averaged_model
from instseg.training.interrupt import Interrupt
from instseg.training.loggers import RunLog, write_metrics
from instseg.training.optim import build_optimizer, set_rate
from instseg.training.order import epoch_batches, epoch_loader, seed_of
from instseg.training.recipe import Recipe
from instseg.training.schedule import rate_factor, total_rate, warmup_updates
from instseg.training.watch import StuckWatch, TrainingError, TrainingInterrupted, check_finite, explain_crash

if TYPE_CHECKING:
    from accelerate import Accelerator

    from instseg.infer.model import InstanceModel

Evaluate = Callable[["InstanceModel"], Mapping[str, float]]
"""Takes a model in eval mode; gives the columns of metrics.csv, ``ap`` (mask AP) among them."""


@dataclass
class Progress:
    """How far a run is. Together with weights, optimiser and averages this is all that a checkpoint holds."""

    epoch: int = 0  # finished epochs
    update: int = 0  # finished updates of the epoch under way
    sums: dict[str, float] = field(default_factory=dict)  # of losses and gradient norms over those updates
    seconds: float = 0.0  # spent on those updates
    history: list[dict[str, float | int]] = field(default_factory=list)  # a row per finished epoch
    best: float | None = None  # mask AP of best.safetensors
    best_epoch: int = 0
    stale: int = 0  # evaluations since then


class Losses(nn.Module):
    """The model's training call as a forward of its own: what accelerate wraps for autocast and processes."""

    def __init__(self, model: "InstanceModel") -> None:
        super().__init__()
        self.model = model

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.model(images, targets, resize=False)
        return losses


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
    ) -> None:
        self.model, self.data, self.recipe, self.folder = model, data, recipe, folder
        self.accelerator, self.log, self.evaluate = accelerator, log, evaluate
        self.extra_state = dict(extra_state or {})
        self.progress = Progress()
        group: int = accelerator.num_processes * recipe.accumulate
        self.group, self.total_batch = group, group * recipe.batch
        # Records may be made on demand: their sizes are asked for only where they matter.
        self.wide = [r.width >= r.height for r in data.records] if recipe.aspect_groups else [True] * len(data)
        self.per_epoch: int = len(self._batches(0)) // group
        self.lr = total_rate(recipe.lr, self.total_batch, recipe.base_batch)
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        model.to(accelerator.device)
        self.average = averaged_model(model, recipe.ema_decay) if recipe.ema_decay else None
        optimizer = build_optimizer(model, recipe, self.lr)
        self.network, self.optimizer = accelerator.prepare(Losses(model), optimizer)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        warmup = warmup_updates(recipe, recipe.epochs * self.per_epoch)
        self.stuck = StuckWatch(recipe.stuck_updates, warmup)
        self.interrupt = Interrupt()
        self.saved_at = time.monotonic()

    # -- the run -------------------------------------------------------------------------------------------

    def fit(self) -> Progress:
        """Train to the end, or until patience runs out.

        Raises :class:`TrainingError` when a loss is no number, :class:`TrainingInterrupted` (after saving) on
        Ctrl-C or SIGTERM, and :class:`CheckpointError` when the disk is full.
        """
        p = self.progress
        self._write(self._save_state)
        with self.interrupt.held():
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
        batches = self._load(p.epoch, skip=p.update * self.recipe.accumulate)
        title = f"epoch {p.epoch + 1}/{self.recipe.epochs}"
        with self.log.bar(self.per_epoch, p.update, title) as advance:
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
                    self._write(self._save_state)
                start = time.perf_counter()

    def _finish_epoch(self) -> None:
        p = self.progress
        every = self.recipe.evaluate_every
        last = p.epoch + 1 == self.recipe.epochs
        row: dict[str, float | int] = {"epoch": p.epoch + 1, "updates": self._updates_done(), "lr": self._rate()}
        row |= {name: total / self.per_epoch for name, total in p.sums.items()}
        row["images_per_second"] = self.per_epoch * self.total_batch / max(p.seconds, 1e-9)
        row["seconds"] = p.seconds
        metrics: dict[str, float] = {}
        if self.evaluate is not None and every and (last or (p.epoch + 1) % every == 0):
            metrics = self._evaluate()
        p.history.append(row | metrics)
        better = bool(metrics) and (p.best is None or metrics["ap"] > p.best)
        if better:
            p.best, p.best_epoch = metrics["ap"], p.epoch + 1
        p.stale = 0 if better else p.stale + bool(metrics)
        p.epoch, p.update, p.sums, p.seconds = p.epoch + 1, 0, {}, 0.0
        if better:
            self._write(lambda: self._save_weights("best.safetensors"))
        if metrics or every == 0:
            self._write(self._save_weights)
        self._write(self._save_state)
        self._write(lambda: write_metrics(self.folder / "metrics.csv", p.history))
        self._tell(p.history[-1], better)

    # -- one update ----------------------------------------------------------------------------------------

    def _update(self, micro: list[Batch]) -> tuple[dict[str, float], bool, bool]:
        """One step of the optimiser over ``micro`` batches: their mean losses, and whether to stop, to save."""
        from accelerate.utils import set_seed

        p, recipe, accelerator = self.progress, self.recipe, self.accelerator
        set_seed(seed_of(recipe.seed, p.epoch, p.update, accelerator.process_index))
        set_rate(self.optimizer, rate_factor(recipe, self._updates_done(), self.per_epoch))
        self.optimizer.zero_grad()
        values: dict[str, float] = {}
        for i, batch in enumerate(micro):
            last = i + 1 == len(micro)
            with nullcontext() if last else accelerator.no_sync(self.network):
                there = batch.to(accelerator.device)
                losses = self.network(there.images, there.targets)
                shares, stop, save = self._agree(losses, batch)
                accelerator.backward(torch.stack(list(losses.values())).sum() / len(micro))
            for name, value in shares.items():
                values[name] = values.get(name, 0.0) + value / len(micro)
        norm = float(accelerator.clip_grad_norm_(self.parameters, recipe.clip or math.inf))
        if recipe.precision != "fp16":  # there the scaler looks for overflow and leaves the update out
            self._check({"the gradient norm": norm}, micro)
        self.optimizer.step()
        if accelerator.optimizer_step_was_skipped:
            norm = 0.0  # the scaler found an overflow: nothing moved
        elif self.average is not None:
            self.average.update_parameters(self.model)
        return {"loss": sum(values.values()), **values, "grad_norm": norm}, stop, save

    def _agree(self, losses: dict[str, Tensor], batch: Batch) -> tuple[dict[str, float], bool, bool]:
        """The losses' means over the processes, and what any process wants: to stop, to save."""
        due = time.monotonic() - self.saved_at > 60 * self.recipe.checkpoint_minutes
        wishes = torch.tensor([self.interrupt.asked, due and self.accelerator.is_main_process])
        told = torch.stack([loss.detach().float() for loss in losses.values()])
        told = torch.cat([told, wishes.to(told)])
        numbers = self.accelerator.reduce(told, "mean").tolist()
        values = dict(zip(losses, numbers, strict=False))
        self._check(values, [batch])
        return values, numbers[-2] > 0, numbers[-1] > 0

    def _check(self, values: Mapping[str, float], batches: list[Batch]) -> None:
        """Refuse what is no number, naming the images of all processes."""
        if all(math.isfinite(value) for value in values.values()):
            return
        from accelerate.utils import gather_object

        records = {record.image_id: record.file_name for record in self.data.records}
        ids = gather_object([int(i) for batch in batches for i in batch.image_ids])
        images = [f"{i} ({records.get(i, '?')})" for i in ids]
        place = f"epoch {self.progress.epoch + 1}, update {self.progress.update + 1} of {self.per_epoch}"
        check_finite(values, images, place, str(self.folder / "last.ckpt"))

    # -- order, rates --------------------------------------------------------------------------------------

    def _batches(self, epoch: int) -> list[list[int]]:
        r = self.recipe
        return epoch_batches(self.wide, r.batch, self.group, r.seed, epoch, r.aspect_groups)

    def _load(self, epoch: int, skip: int) -> Iterator[Batch]:
        """This process' batches of an epoch from the ``skip``-th on, without loading the ones before."""
        a = self.accelerator
        mine = self._batches(epoch)[a.process_index :: a.num_processes][skip:]
        return epoch_loader(self.data, mine, self.recipe, a.num_processes, pin=a.device.type == "cuda")

    def _updates_done(self) -> int:
        return self.progress.epoch * self.per_epoch + self.progress.update

    def _rate(self) -> float:
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def _patience_is_out(self) -> bool:
        out = 0 < self.recipe.patience <= self.progress.stale
        if out:
            self.log.line(f"no better AP in {self.progress.stale} evaluations: stopping early")
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

    def _evaluate(self) -> dict[str, float]:
        """Evaluate the averaged weights where there are any, on the main process; the others wait."""
        if time.monotonic() - self.saved_at > 60 * self.recipe.checkpoint_minutes:
            self._write(self._save_state)
        from accelerate.utils import broadcast_object_list

        metrics: dict[str, float] | None = {}
        if self.accelerator.is_main_process and self.evaluate is not None:
            try:
                with self.interrupt.at_once():
                    metrics = dict(self.evaluate(self._weights().eval()))
            except KeyboardInterrupt:
                metrics = None
        metrics = broadcast_object_list([metrics])[0]
        if metrics is None:  # the epoch's updates are all done and counted, so this is a state to go on from
            self._stop()
        return metrics

    def _tell(self, row: Mapping[str, float | int], better: bool) -> None:
        parts = [f"epoch {row['epoch']}/{self.recipe.epochs}: loss {row['loss']:.4f}"]
        if "ap" in row:
            parts.append(f"mask AP {row['ap']:.4f} AP50 {row['ap50']:.4f}{' (best so far)' if better else ''}")
        parts.append(f"{row['images_per_second']:.1f} images/s")
        self.log.line(", ".join(parts))
        self.log.scalars({k: float(v) for k, v in row.items() if "ap" in k}, int(row["updates"]))

    # -- keeping -------------------------------------------------------------------------------------------

    def _weights(self) -> "InstanceModel":
        """The model whose weights are evaluated and released: the averaged one where there is one."""
        model: InstanceModel = self.model if self.average is None else self.average.module  # type: ignore[assignment]
        return model

    def _write(self, write: Callable[[], None]) -> None:
        if self.accelerator.is_main_process:
            write()

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
        """Go on from a state that :meth:`fit` wrote, on the same data, recipe and number of images an update."""
        self.progress = Progress(**state["progress"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self._write(lambda: write_metrics(self.folder / "metrics.csv", self.progress.history))

    def _stop(self) -> NoReturn:
        self._write(self._save_state)
        p = self.progress
        raise TrainingInterrupted(
            f"stopped in epoch {p.epoch + 1} after update {p.update} of {self.per_epoch}; everything is in "
            f"{self.folder / 'last.ckpt'}: the same call with --resume (resume=True) goes on"
        )
