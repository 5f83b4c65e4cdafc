"""`instseg predict`: whatever the user names as images, through the model, into files."""

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from instseg.core.errors import DataError
from instseg.core.instances import Instances
from instseg.core.progress import progress_bar
from instseg.core.stopping import Stop
from instseg.data.images.read import ImageRule
from instseg.model.instance_model import InstanceModel
from instseg.model.predicting import check_counts, predict_images
from instseg.model.ready import require_weights
from instseg.predict.journal import JOURNAL, PREDICTIONS, Journal, Signature, check_free, check_new, unfinished
from instseg.predict.output import check_no_source, claimed, clear_pictures, picture_paths
from instseg.results.prediction import label_image
from instseg.results.rows import CocoRows, ResultRows
from instseg.results.writers import (
    JSON_SCORE,
    LABELS_README,
    PICTURE_SCORE,
    WriteError,
    atomic,
    category_rows,
    write_label_image,
    write_picture,
)
from instseg.sources.names import clear_of
from instseg.sources.sources import Source, find
from instseg.vis.draw import draw_instances


@dataclass
class PredictSummary:
    """What a run of :func:`predict_sources` did.

    Attributes:
        folder: where the files are.
        sources: number of images asked for.
        images: those whose results are in the folder, of this run and of the one that it resumed.
        objects: masks in the JSON.
        failed: one line for each image that was left out.
        written: pictures that were not predicted because instseg wrote them.
        resumed: images that an earlier run had finished.
        seconds: the whole run, without loading the model.
    """

    folder: Path
    sources: int
    images: int = 0
    objects: int = 0
    failed: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)
    resumed: int = 0
    seconds: float = 0.0

    def line(self) -> str:
        """The run in one line."""
        new = self.images - self.resumed
        rate = f", {new / self.seconds:.1f} images a second" if self.seconds > 0 and new else ""
        return f"{self.objects} objects in {self.images} images{rate}: {self.folder / PREDICTIONS}"

    def notes(self) -> list[str]:
        """What else is worth saying, a line each."""
        lines = []
        if self.written:
            count, first = len(self.written), self.written[0]
            lines.append(f"left out, because instseg wrote them: {count} pictures, the first is {first}")
        if self.resumed:
            lines.append(f"resumed: {self.resumed} images were finished before")
            if self.resumed == self.images and not self.failed:
                lines.append(f"all {self.images} images are done")
        return lines

    def raise_on_failures(self) -> None:
        """Raises DataError, one line, when an image was left out."""
        if not self.failed:
            return
        if self.sources == 1:
            raise DataError(self.failed[0])
        raise DataError(f"images left out: {len(self.failed)} of {self.sources}, each named in a warning above")


@dataclass(frozen=True)
class _Options:
    annotations: Path | None
    score: float | None
    batch: int
    overlays: bool
    labels: bool
    workers: int | None
    progress: bool

    @property
    def drawn(self) -> float:
        """Least score of a mask in pictures."""
        return PICTURE_SCORE if self.score is None else self.score

    @property
    def kept(self) -> float:
        """Least score of a mask in the JSON."""
        return JSON_SCORE if self.score is None else self.score


def predict_sources(
    model: InstanceModel | Callable[[], InstanceModel],
    sources: Sequence[str | Path],
    out: Path | str | None = None,
    *,
    annotations: Path | str | None = None,
    score: float | None = None,
    batch: int = 1,
    overlays: bool = True,
    labels: bool = True,
    resume: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> PredictSummary:
    """Predicts every image that ``sources`` name and writes the results into the folder ``out``.

    ``predictions.json`` is a COCO data set, or with ``annotations`` (a COCO JSON) a plain results list under that
    file's own image and category ids; ``overlays/NAME.jpg`` and ``labels/NAME.png`` (16 bit) are pictures. An image
    that cannot be read or is not in ``annotations`` is left out with a warning; the summary counts it.

    ``predictions.json`` is whole at every moment of the run. What an interrupted run has finished stays, and ``resume``
    continues it; the result is that of a run which was not interrupted.

    Args:
        model: with weights, on the device to use; or a function that returns it, called when sources and folder have
            been checked.
        sources: as :func:`instseg.sources.sources.expand` takes them.
        out: made when it is not there; results of an earlier, finished run are replaced, its pictures removed. None
            takes the next free one of ``runs/predict``, ``runs/predict2``, ...
        score: least score of a mask; by default 0.05 in the JSON and 0.25 in pictures.
        batch: images given to the network at once.
        overlays: draw the masks into a copy of each image.
        labels: write label images.
        resume: continue the unfinished run in ``out`` (None: the newest of ``runs/predict*``); start where there is
            none.
        workers: threads that read images; chosen from the cores when None, 0 reads between the batches.
        progress: draw a bar on a terminal.

    Raises:
        CheckpointError: the model has no weights.
        DataError: no source is named, or one does not exist; ``annotations`` is not COCO or shares no class with the
            model; a file cannot be written, or would replace an image; the folder holds an unfinished run and
            ``resume`` is not set, or one with another model or other options and it is.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; its text says how far the run came.
    """
    check_counts(batch, workers)
    if annotations is not None and not Path(annotations).is_file():
        raise DataError(f"{annotations}: annotation file cannot be read (no such file); check the path.")
    found = find(list(sources))
    if not found.sources:
        raise DataError("no image is named: give files, folders, globs or addresses.")
    options = _Options(
        None if annotations is None else Path(annotations), score, batch, overlays, labels, workers, progress
    )
    subfolders = [name for name, wanted in (("overlays", overlays), ("labels", labels)) if wanted]
    asked, stop = (_unfinished_folder() if resume and out is None else out), Stop()
    with stop.handled(), claimed(asked, "predict", subfolders) as folder:
        check_no_source(found.sources, folder, overlays, labels)
        (check_free if resume else check_new)(folder)
        ready = cast(InstanceModel, model) if isinstance(model, torch.nn.Module) else model()
        require_weights(ready)
        summary = PredictSummary(folder, len(found.sources), written=found.written)
        _run(ready, found.sources, options, summary, stop, resume)
    return summary


def _run(
    model: InstanceModel,
    sources: list[Source],
    options: _Options,
    summary: PredictSummary,
    stop: Stop,
    resume: bool,
) -> None:
    rows: CocoRows | ResultRows
    if options.annotations is None:
        rows, categories = CocoRows(model.categories, options.kept), category_rows(model.categories)
    else:
        rows, categories = ResultRows(model.categories, options.annotations, options.kept), None
    began = time.perf_counter()
    with Journal(summary.folder, _header(model, options), categories) as journal:
        with stop.held_back():
            if resume:
                journal.resume()
            else:
                journal.begin()
        try:
            rest = _not_done(sources, journal)
        except DataError:
            journal.refuse()
            raise
        summary.resumed = journal.images
        try:
            _Run(model, rows, options, summary, journal, stop).predict(rest, len(sources))
            with stop.held_back():
                journal.finish()
        except BaseException as error:
            _keep(journal, error, len(sources))
            raise
    summary.images, summary.objects = journal.images, journal.annotations
    summary.seconds = time.perf_counter() - began


def _keep(journal: Journal, error: BaseException, asked: int) -> None:
    """Makes the results of an unfinished run whole, and says how far it came."""
    if not journal.images:
        journal.discard()
    with suppress(WriteError, DataError, KeyboardInterrupt):
        if journal.images:
            journal.make()
    done = f"{journal.images} of {asked} images in {journal.path.parent}"
    if isinstance(error, KeyboardInterrupt):
        more = "; continue with --resume" if journal.images else ""
        raise KeyboardInterrupt(f"interrupted, {done}{more}") from None
    if journal.images and isinstance(error, WriteError):
        raise WriteError(f"{error} So far {done}; continue with --resume.") from None
    if journal.images:
        warnings.warn(f"stopped by an error, {done}; continue with --resume", stacklevel=2)


class _Run:
    """The images of a run, one after the other into files and then into the journal."""

    def __init__(
        self,
        model: InstanceModel,
        rows: CocoRows | ResultRows,
        options: _Options,
        summary: PredictSummary,
        journal: Journal,
        stop: Stop,
    ) -> None:
        self.model = model
        self.rows = rows
        self.options = options
        self.summary = summary
        self.journal = journal
        self.stop = stop

    def predict(self, sources: list[Source], asked: int) -> None:
        load = partial(_load, rule=_rule(self.model, self.rows, sources), rows=self.rows)
        options = self.options
        found = predict_images(self.model, sources, batch=options.batch, workers=options.workers, load=load)
        steps = progress_bar(found, "predicting", asked, enabled=options.progress, done=asked - len(sources))
        with closing(found), closing(steps):
            for source, image, result in steps:
                fault = result if isinstance(result, DataError) else self._write(source, image, result, sources)
                if fault is not None:
                    self.summary.failed.append(str(fault))
                    if asked > 1:
                        warnings.warn(str(fault), stacklevel=2)
                del image, result
        if options.labels and self.journal.images:
            with atomic(self.summary.folder / "labels" / "README.txt", "w") as file:
                file.write(LABELS_README.format(score=options.drawn))

    def _write(self, source: Source, image: Tensor, found: Instances, sources: list[Source]) -> DataError | None:
        """The files of one image; returns why its results cannot be taken, if so."""
        journal, options, found = self.journal, self.options, found.to("cpu")
        try:
            record, rows = self.rows.rows(found, source.name, source.path, journal.images, journal.annotations)
            labels = label_image(found, options.drawn) if options.labels and found.masks is not None else None
        except DataError as error:
            return error
        if not journal.images:
            clear_pictures(self.summary.folder, keep=sources)
        overlay_path, label_path = picture_paths(self.summary.folder, source, found.image_size)
        if options.overlays:
            pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
            write_picture(overlay_path, draw_instances(pixels, found, self.model.categories, options.drawn))
        if labels is not None:
            write_label_image(label_path, labels)
        with self.stop.held_back():
            journal.add(record, rows, _signature(source))
            journal.refresh()
        return None


def _load(source: Source, rule: ImageRule, rows: CocoRows | ResultRows) -> Tensor:
    """The image; where annotations state a size, turned by its EXIF orientation, or not, as that size has it."""
    image = source.load(rule)
    size = rows.size(source.path) if isinstance(rows, ResultRows) and source.path is not None else None
    if size is not None and size != tuple(image.shape[-2:]) and size == (image.shape[-1], image.shape[-2]):
        other = source.load(ImageRule(not rule.exif, rule.full_scale))
        if size == tuple(other.shape[-2:]):
            return other
    return image


def _rule(model: InstanceModel, rows: CocoRows | ResultRows, sources: Sequence[Source]) -> ImageRule:
    """How this run reads files: as the model was trained, turned by EXIF as the annotation file's sizes have it."""
    rule = model.image_rule
    shown = rows.fit_shown(s.path for s in sources if s.path is not None) if isinstance(rows, ResultRows) else None
    return rule if shown is None else ImageRule(shown, rule.full_scale)


def _not_done(sources: list[Source], journal: Journal) -> list[Source]:
    """The images that are still to be predicted, called so that their results replace no others. Raises DataError when
    the journal is of other images."""
    if not journal.done:
        return sources
    signatures = [_signature(source) for source in sources]
    unknown = {source.name for source, signature in zip(sources, signatures, strict=True) if signature is None}
    before = {name: _place(signature) for name, signature in journal.done.items()}
    now = {_place(signature): signature for signature in signatures if signature is not None}
    gone = [name for name, place in before.items() if (name not in unknown if place is None else place not in now)]
    if len(gone) == len(before):
        raise DataError(
            f"{journal.path.parent}: the run to resume was of other images (the first is {gone[0]}); name the same "
            "sources, or choose another --out."
        )
    if gone:
        text = f"results of images that are no longer there are kept: {len(gone)}, the first is {gone[0]}"
        warnings.warn(text, stacklevel=3)
    changed = [name for name, place in before.items() if place in now and _differs(journal.done[name], now[place])]
    if changed:
        text = "finished images are predicted again because their files have changed"
        warnings.warn(f"{text}: {len(changed)}, the first is {changed[0]}", stacklevel=3)
    journal.forget([*changed, *(name for name, place in before.items() if place is None and name in unknown)])
    done = {place for name in journal.done if (place := before[name]) is not None}
    called = {_place(signature): source.name for source, signature in zip(sources, signatures, strict=True)}
    rest = [source for source, signature in zip(sources, signatures, strict=True) if _place(signature) not in done]
    others = [name for name in journal.done if called.get(before[name]) != name]
    names, stems = clear_of([source.name for source in rest], [source.stem for source in rest], others)
    return [replace(s, name=name, stem=stem) for s, name, stem in zip(rest, names, stems, strict=True)]


def _signature(source: Source) -> Signature:
    """Where an image is, as a digest that tells nobody else, and size and time of its file; None for standard input,
    which holds another image each time."""
    if source.path is not None:
        where = os.fsencode(source.path.resolve())
    elif source.address is not None:
        where = source.address.encode("utf-8", "surrogateescape")
    else:
        return None
    place = hashlib.blake2b(where, digest_size=8).hexdigest()
    with suppress(OSError):
        if source.path is not None:
            stat = os.stat(source.path)
            return [place, stat.st_size, stat.st_mtime_ns]
    return [place, None, None]


def _place(signature: Signature) -> str | None:
    known = isinstance(signature, list) and len(signature) == 3 and isinstance(signature[0], str)
    return signature[0] if signature is not None and known else None


def _differs(before: Signature, now: list[Any]) -> bool:
    return now[1] is not None and before != now


def _header(model: InstanceModel, options: _Options) -> dict[str, Any]:
    """What a run must share with one that resumes it."""
    known = options.annotations
    content = None if known is None else hashlib.blake2b(known.read_bytes(), digest_size=8).hexdigest()
    return {
        "model": model.name,
        "weights": _digest(model),
        "score": options.score,
        "annotations": content,
        "overlays": options.overlays,
        "labels": options.labels,
    }


def _digest(model: InstanceModel) -> str:
    """Of weights, configuration, categories, and how images are read."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (repr(model.config), repr(model.categories), repr(model.image_rule)):
        digest.update(str(part).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _unfinished_folder(parent: str = "runs") -> Path | None:
    """The newest unfinished run among ``runs/predict*``."""
    found = [path for path in Path(parent).glob(f"predict*/{JOURNAL}") if unfinished(path.parent)]
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None
