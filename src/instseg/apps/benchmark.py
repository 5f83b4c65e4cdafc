"""How long each step from an image file to mask files takes, and what exactly was timed."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instseg.core import rle
from instseg.core.environment import cores
from instseg.core.geometry import InputGeometry
from instseg.core.instances import Instances
from instseg.data.dataset import open_dataset
from instseg.model.instance_model import InstanceModel
from instseg.sources.sources import Source, expand

# What each step holds, in the order in which an image passes them.
STEPS = {
    "read": "open and decode the file (from the system's cache after the first pass)",
    "preprocess": "copy to the device, resize, normalize, pad, form the batch",
    "network": "the forward pass, waited for",
    "decode": "scores, mask assembly at model resolution, Matrix NMS, waited for",
    "join": "objects of overlapping tiles made one (only with tile=); renders the masks to compare them",
    "render": "binary masks at the image's size, each in its own box, on the CPU",
    "encode": "COCO run-length codes of those masks",
}


@dataclass(frozen=True)
class Benchmark:
    """Times in milliseconds an image.

    Attributes:
        steps: step -> median over the passes of the mean over the images.
        total: (median, least, most) of the sum of all steps, over the passes.
        objects: mean number of objects an image that were decoded, rendered and encoded.
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
        lines += [
            f"  {'total':<10} {median:9.2f} ms an image ({least:.2f} to {most:.2f}), {1000 / median:.2f} images/s",
            "",
            f"objects an image: {self.objects:.1f}   peak memory: {self.memory / 2**20:.0f} MiB"
            + (" on the device" if self.device.startswith("cuda") else " of the process")
            + f"   network: {self.flops / 1e9:.1f} GFLOPs an image",
            "Not timed: loading the model, drawing overlays, writing files.",
        ]
        if not self.has_weights:
            lines.append(
                "Random weights find hardly an object: decode, render and encode are cheaper here than in use."
            )
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """The same figures as JSON. Raises OSError when the file cannot be written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


class _Stopwatch:
    """Adds up seconds per step; waits for the device at every mark."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(STEPS, 0.0)
        self.start()

    def start(self) -> None:
        self._wait()
        self.at = time.perf_counter()

    def mark(self, step: str) -> None:
        """Everything since the last mark was `step`."""
        self._wait()
        now = time.perf_counter()
        self.seconds[step] += now - self.at
        self.at = now

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


class _TimedNet(nn.Module):
    """Stands where the network stood and tells the stopwatch when it is entered and left: what is timed is the code
    that predicts, not a copy of it."""

    def __init__(self, net: nn.Module, watch: _Stopwatch) -> None:
        super().__init__()
        self.net: Any = net
        self.watch = watch
        self.inputs: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> object:
        self.inputs.append((x.shape[-2], x.shape[-1]))
        self.watch.mark("preprocess")
        outputs: object = self.net(x)
        self.watch.mark("network")
        return outputs

    def decode(self, outputs: object, views: Sequence[InputGeometry]) -> list[Instances]:
        found: list[Instances] = self.net.decode(outputs, views)
        self.watch.mark("decode")
        return found


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
        model: any, with or without weights, on the device to be measured.
        source: an image, folder or glob; the bundled images when None.
        batch: images given to the network at once (with tiles: one batch a tile).
        repeat: timed passes over the images, after one that is not counted.
        say: is told the beginning of each pass; no progress bar, whose drawing would be timed too.

    Raises:
        DataError: no image there, or one that cannot be read.
    """
    tell = say or (lambda _: None)
    target = model.device
    model.eval()
    sources = expand(source, model.image_rule) if source is not None else _bundled()
    watch = _Stopwatch(target)
    net, timed = model.net, _TimedNet(model.net, watch)
    model.net = timed
    try:
        tell("a pass that is not counted ...")
        with FlopCounterMode(display=False) as counter:
            sizes, _ = _one_pass(model, sources, batch, watch)
        flops = counter.get_total_flops() / len(sources)
        if target.type == "cuda":
            torch.cuda.reset_peak_memory_stats(target)
        passes = []
        for number in range(repeat):
            tell(f"pass {number + 1} of {repeat} ...")
            watch.seconds = dict.fromkeys(STEPS, 0.0)
            _, objects = _one_pass(model, sources, batch, watch)
            passes.append({name: 1000 * s / len(sources) for name, s in watch.seconds.items()})
    finally:
        model.net = net
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
        input_sizes=_extremes(timed.inputs),
        objects=objects / len(sources),
        steps={name: statistics.median(times[name] for times in passes) for name in passes[0]},
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
        watch.mark("read")
        found = model.predict_batch(images)
        watch.mark("join")
        for instances in found:
            windows = list(instances.masks.windows())
            watch.mark("render")
            for _, top, left, window in windows:
                rle.encode_window(window, top, left, instances.image_size)
            watch.mark("encode")
            objects += len(instances)
        sizes += [(image.shape[-2], image.shape[-1]) for image in images]
    return sizes, objects


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
