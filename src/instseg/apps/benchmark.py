"""How long each step from an image file to mask files takes, and what exactly was timed."""

import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from instseg.core import rle
from instseg.core.environment import cores
from instseg.data.open import open_dataset
from instseg.model.instance_model import InstanceModel
from instseg.model.pipeline import Observer, Pass
from instseg.model.ready import evaluating
from instseg.models.base import Staged
from instseg.sources.sources import Source, expand

# What each step holds, in the order in which an image passes them.
STEPS = {
    "read": "open and decode the file (from the system's cache after the first pass)",
    "preprocess": "copy to the device, resize, normalize, pad, form the batch",
    "network": "the forward pass, waited for",
    "decode": "scores, mask assembly at model resolution, Matrix NMS, waited for",
    "join": "objects of overlapping tiles made one (only with tile=); renders the masks to compare them",
    "render": "masks at the image's size, each in its own box, as COCO run-length codes, on the CPU",
    "encode": "those codes as text, for JSON",
}


@dataclass(frozen=True)
class Benchmark:
    """Times in milliseconds an image.

    Attributes:
        steps: step -> median over the passes of the mean over the images.
        parts: the network's own parts, where it names them -> mean over the images, measured in a pass of its own.
        total: (median, least, most) of the sum of all steps, over the passes.
        objects: mean number of objects an image that were decoded and rendered.
        flops: of the network's forward passes for an image, 2 for a multiply-add, mean.
        memory: peak bytes: of the device's allocator on CUDA, otherwise of the whole process.
        image_sizes, input_sizes: (H, W) of the images, and of the batches given to the network, smallest and largest.
    """

    model: str
    has_weights: bool
    parameters: int
    device: str
    torch: str
    threads: int
    images: int
    passes: int
    batch: int
    image_sizes: tuple[tuple[int, int], tuple[int, int]]
    input_sizes: tuple[tuple[int, int], tuple[int, int]]
    objects: float
    steps: dict[str, float]
    parts: dict[str, float]
    total: tuple[float, float, float]
    flops: float
    memory: int

    def text(self) -> str:
        """The figures for people."""
        median, least, most = self.total
        small, large = self.image_sizes
        inputs = " to ".join(dict.fromkeys(f"{h} x {w}" for h, w in self.input_sizes))
        sizes = " to ".join(dict.fromkeys(f"{h} x {w}" for h, w in (small, large)))
        lines = [
            f"{self.model}{'' if self.has_weights else ' (random weights)'}, {self.parameters / 1e6:.1f} M parameters,"
            f" float32, on {self.device} ({self.threads} threads), torch {self.torch}",
            f"images: {self.images} of {sizes} pixels, network input {inputs}, batch {self.batch};"
            f" passes: {self.passes} (the median), after one that is not counted",
            "",
        ]
        for name, milliseconds in self.steps.items():
            share = milliseconds / median if median else 0.0
            lines.append(f"  {name:<10} {milliseconds:9.2f} ms {share:6.1%}   {STEPS[name]}")
            if name == "network":
                lines += [f"    {part:<18} {milliseconds:9.2f} ms" for part, milliseconds in self.parts.items()]
        lines += [
            f"  {'total':<10} {median:9.2f} ms an image ({least:.2f} to {most:.2f}), {1000 / median:.2f} images/s",
            "",
            f"objects an image: {self.objects:.1f}   peak memory: {self.memory / 2**20:.0f} MiB"
            + (" on the device" if self.device.startswith("cuda") else " of the process")
            + f"   network: {self.flops / 1e9:.1f} GFLOPs an image",
            "Not timed: loading the model, drawing overlays, writing files.",
        ]
        if not self.has_weights:
            lines.append("Random weights find hardly an object: decode and render are cheaper here than in use.")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """The same figures as JSON. Raises OSError when the file cannot be written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


class _Stopwatch(Observer):
    """Adds up seconds a step, as the pipeline says that each is done; waits for the device at every mark."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.inputs: list[tuple[int, int]] = []
        self.start()

    def start(self) -> None:
        self._wait()
        self.at = time.perf_counter()

    def done(self, stage: str) -> None:
        """Everything since the last mark was ``stage``."""
        self._wait()
        now = time.perf_counter()
        self.seconds[stage] += now - self.at
        self.at = now

    def passed(self, one: Pass) -> None:
        self.inputs.append(one.batch.padded)

    @contextmanager
    def on(self, parts: Mapping[str, nn.Module]) -> Iterator[None]:
        """Within this the forward passes of some modules are timed under their names instead."""
        hooks = []
        for name, module in parts.items():
            hooks.append(module.register_forward_pre_hook(lambda *_: self.done("")))
            hooks.append(module.register_forward_hook(lambda *_, name=name: self.done(name)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def benchmark(
    model: InstanceModel,
    source: str | None = None,
    *,
    batch: int = 1,
    repeat: int = 3,
    say: Callable[[str], None] | None = None,
) -> Benchmark:
    """Times the way from image files to run-length codes.

    Args:
        model: any, with or without weights, on the device to be measured; it comes back in the modes that it was in.
        source: an image, folder or glob; the bundled images when None.
        batch: images given to the network at once (with tiles: one batch a tile).
        repeat: timed passes over the images, after one that is not counted.
        say: takes a line at the beginning of each pass; no progress bar, whose drawing would be timed too.

    Raises:
        DataError: no image there, or one that cannot be read.
    """
    sources = expand(source, model.image_rule) if source is not None else _bundled()
    with evaluating(model):
        return _measured(model, sources, batch, repeat, say or (lambda _: None))


def _measured(
    model: InstanceModel, sources: Sequence[Source], batch: int, repeat: int, tell: Callable[[str], None]
) -> Benchmark:
    target = model.device
    watch = _Stopwatch(target)
    tell("a pass that is not counted ...")
    with FlopCounterMode(display=False) as counter:
        sizes, _ = _one_pass(model, sources, batch, watch)
    flops = counter.get_total_flops() / len(sources)
    if target.type == "cuda":
        torch.cuda.reset_peak_memory_stats(target)
    passes = []
    for number in range(repeat):
        tell(f"pass {number + 1} of {repeat} ...")
        watch.seconds.clear()
        _, objects = _one_pass(model, sources, batch, watch)
        passes.append({name: 1000 * watch.seconds[name] / len(sources) for name in STEPS})
    parts = _parts(model, sources, batch)
    if model.config.tile is None:
        for times in passes:
            del times["join"]
    totals = [sum(times.values()) for times in passes]
    return Benchmark(
        model=model.name,
        has_weights=model.has_weights,
        parameters=sum(p.numel() for p in model.parameters()),
        device=f"{target} ({_processor(target)})",
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        images=len(sources),
        passes=repeat,
        batch=batch,
        image_sizes=_extremes(sizes),
        input_sizes=_extremes(watch.inputs),
        objects=objects / len(sources),
        steps={name: statistics.median(times[name] for times in passes) for name in passes[0]},
        parts=parts,
        total=(statistics.median(totals), min(totals), max(totals)),
        flops=flops,
        memory=_peak_memory(target),
    )


def _one_pass(
    model: InstanceModel, sources: Sequence[Source], batch: int, watch: _Stopwatch
) -> tuple[list[tuple[int, int]], int]:
    """All images once, as `predict` sends them through; their sizes and the number of objects."""
    sizes: list[tuple[int, int]] = []
    objects = 0
    for i in range(0, len(sources), batch):
        watch.start()
        images = [source.load() for source in sources[i : i + batch]]
        watch.done("read")
        for instances in model.predict_batch(images, observer=watch):
            codes = [] if instances.masks is None else instances.masks.rle()
            watch.done("render")
            rle.to_json_all(codes)
            watch.done("encode")
            objects += len(instances)
        sizes += [(image.shape[-2], image.shape[-1]) for image in images]
    return sizes, objects


def _parts(model: InstanceModel, sources: Sequence[Source], batch: int) -> dict[str, float]:
    """Milliseconds an image in each part that the network names, in one more pass."""
    if not isinstance(model.net, Staged):
        return {}
    parts, watch = model.net.stages(), _Stopwatch(model.device)
    with watch.on(parts):
        _one_pass(model, sources, batch, watch)
    return {name: 1000 * watch.seconds[name] / len(sources) for name in parts}


def _bundled() -> list[Source]:
    """The validation images that come with the package."""
    return expand([str(record.path) for record in open_dataset("nuclei-mini", split="val").records])


def _extremes(sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The smallest and the largest by area."""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    return ordered[0], ordered[-1]


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {cores()} cores"


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
