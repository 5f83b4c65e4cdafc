"""How far an image, a training sample and a published checkpoint travel through the package; how long loading takes.

A *call* enters a function of the package, or resumes a generator of it. A *move* is a call from a function in one file
of the package to a function in another; what lies between them (torch, pydantic, typer) is passed over, returns do not
count, and each thread is followed by itself. *Files* are those with a function that was called. Everything is run once
before it is followed, so that imports do not count.

A *network* is built when a module of the package that has a `loss` is constructed, on the meta device without memory;
a *configuration* when a model's configuration is made, checked or copied with other fields.

    python benchmarks/journey.py [--rounds 5]

prints Markdown tables, in about a minute, on the CPU and without network. No name of a module matters.
"""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import instseg as package
from instseg.cli import main as instseg_main

instseg: Any = package  # its names come as they are asked for, so that nobody knows their types
ROOT = Path(instseg.__file__).parent
Call = tuple[str | None, str]  # file of the calling function, None outside of the package; file of the called one
Hook = Callable[[FrameType, str, Any], None]

MAKERS = ("__init__", "model_validate", "model_construct", "__copy__")  # of an object of pydantic's, or of any
READERS = ("__getitem__", "__getitems__")  # of a data set of torch's
QUICK: dict[str, Any] = {"device": "cpu", "workers": 0, "batch": 1, "progress": False}
PUBLISHED = "sodar_r50"
# Patterns of our names of its tensors, and AggMask's names; <6> is a number to be halved.
NAMES = (
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"fpn\.lateral\.(\d)\.(.+)", r"neck.lateral_convs.\1.conv.\2"),
    (r"fpn\.output\.(\d)\.(.+)", r"neck.fpn_convs.\1.conv.\2"),
    (r"aggregation\.aggregate\.weights\.(.+)", r"bbox_head.learned_weights.\1"),
    (r"aggregation\.context\.fuse\.(.+)", r"bbox_head.context_fusion_convs.0.\1"),
    (r"aggregation\.context\.tail\.0\.(.+)", r"bbox_head.context_fusion_convs.1.\1"),
    (r"aggregation\.context\.tail\.2\.(.+)", r"bbox_head.context_fusion_convs.3.\1"),
    (r"aggregation\.tower\.(.+)", r"bbox_head.kernel_convs_convcomb.\1"),
    (r"mask_feature\.levels\.(.)\.(.)\.(.+)", r"bbox_head.feature_convs.\1.conv<\2>.\3"),
    (r"mask_feature\.output\.(.+)", r"bbox_head.solo_mask.\1"),
    (r"(?:head\.category_tower|category\.tower)\.(.+)", r"bbox_head.cate_convs.\1"),
    (r"(?:head\.category|category\.output)\.(.+)", r"bbox_head.solo_cate.\1"),
    (r"mask_tower\.(.+)", r"bbox_head.ins_convs.\1"),
    (r"mask_output\.(.+)", r"bbox_head.solo_ins_list.\1"),
)


class Enough(BaseException):
    """Ends a run that has been followed far enough."""


@contextlib.contextmanager
def hooked(hook: Hook) -> Iterator[None]:
    """Quiet, and with a profile hook in this and in new threads, until the end or :class:`Enough`."""
    quiet = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        warnings.simplefilter("ignore")
        threading.setprofile(hook)
        sys.setprofile(hook)
        try:
            yield
        except Enough:
            pass
        finally:
            sys.setprofile(None)
            threading.setprofile(None)


class Walk:
    """The calls of the package's functions, in each thread; ``loading``: those of the main one that brought a model."""

    def __init__(self) -> None:
        self.calls: dict[int, list[Call]] = defaultdict(list)
        self.main = self.calls[threading.get_ident()]
        self.loading: set[int] = set()
        self._files: dict[CodeType, str | None] = {}
        self._began: dict[FrameType, int] = {}

    def file(self, code: CodeType) -> str | None:
        """The file of a function of the package; None for other functions, and for the body of a module."""
        if code not in self._files:
            inside = code.co_filename.startswith(f"{ROOT}{os.sep}") and code.co_name != "<module>"
            self._files[code] = Path(code.co_filename).relative_to(ROOT).as_posix() if inside else None
        return self._files[code]

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        if event not in ("call", "return") or (file := self.file(frame.f_code)) is None:
            return
        calls = self.calls[threading.get_ident()]
        if event == "call":
            self._began[frame] = len(calls)
            caller, before = None, frame.f_back
            while caller is None and before is not None:
                caller, before = self.file(before.f_code), before.f_back
            calls.append((caller, file))
            return
        start = self._began.pop(frame, None)
        if start is not None and calls is self.main and isinstance(value, nn.Module) and hasattr(value, "predict"):
            self.loading.update(range(start, len(calls)))

    def all(self, loading: bool) -> list[Call]:
        """The calls of all threads, with or without those inside of a function that returned a model."""
        assert self.loading, "no function of the package returned a model: teach this script what does"
        kept = [call for i, call in enumerate(self.main) if loading or i not in self.loading]
        return kept + [call for calls in self.calls.values() if calls is not self.main for call in calls]


class Lesson(Walk):
    """A walk from the reading of a sample to the loss and on to the reading of the next sample, where it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.read = self.loss = -1
        self.objects = 0

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        if event == "call" and frame.f_code is torch.Tensor.backward.__code__:
            self.loss = len(self.main)
        elif event in ("call", "return") and reads_sample(frame):
            if self.loss >= 0:
                raise Enough
            self.read = len(self.main) if self.read < 0 else self.read
            self.objects = len(value.labels) if hasattr(value, "labels") else self.objects
        super().__call__(frame, event, value)


class Built:
    """Counts networks and configurations, where ``until_sample`` up to the first sample of a training."""

    def __init__(self, config: type, until_sample: bool) -> None:
        self.config = [c for c in config.__mro__ if c.__module__.startswith("instseg")][-1]  # which all models' extend
        self.until_sample = until_sample
        self.counts: Counter[str] = Counter()

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        name = frame.f_code.co_name
        if event != "call" or name not in (*MAKERS, *READERS):
            return
        if self.until_sample and reads_sample(frame):
            raise Enough
        of = first(frame)
        made = of if isinstance(of, type) else type(of)
        if frame.f_code is nn.Module.__init__.__code__:
            if hasattr(made, "loss") and made.__module__.startswith("instseg"):
                self.counts["network"] += 1
                self.counts["meta"] += torch.get_default_device().type == "meta"
        elif name in MAKERS and issubclass(made, self.config):
            within = frame.f_back is not None and frame.f_back.f_code.co_name == name and first(frame.f_back) is of
            self.counts["config"] += not within  # the `__init__` of a base class makes nothing of its own


def first(frame: FrameType) -> Any:
    """The first argument of a function: a method's object or class."""
    names = frame.f_code.co_varnames
    return frame.f_locals.get(names[0]) if names else None


def reads_sample(frame: FrameType) -> bool:
    """Whether it is a data set of the package that gives out a sample."""
    if frame.f_code.co_name not in READERS or not isinstance(data := first(frame), torch.utils.data.Dataset):
        return False
    return type(data).__module__.startswith("instseg")


def moves(calls: list[Call]) -> Counter[Call]:
    return Counter(call for call in calls if call[0] not in (None, call[1]))


def counts(calls: list[Call]) -> str:
    """Files, calls and moves, as cells of a table."""
    return f"{len({file for _, file in calls})} | {len(calls)} | {moves(calls).total()}"


def cli(*arguments: str) -> None:
    status = instseg_main(arguments)
    assert status == 0, f"instseg {' '.join(arguments)} ended with {status}"


def one_nucleus(path: Path) -> Path:
    """One nucleus of a bundled image on even ground, in which the bundled model finds one object."""
    pixels = np.asarray(Image.open(next(ROOT.rglob("0acd2c223d30.png"))).convert("RGB"))
    ground = np.median(pixels.reshape(-1, 3), axis=0).astype(np.uint8)
    image = np.broadcast_to(ground, (256, 256, 3)).copy()
    image[100:121, 100:121] = pixels[3:24, 218:239]
    Image.fromarray(image).save(path)
    return path


def predicting(folder: Path) -> None:
    """Two images of 256 x 256, so one tile each; with --score every object goes into JSON, overlay and label image."""
    walks, found = [], []
    for image in (one_nucleus(folder / "one.png"), next(ROOT.rglob("00071198d059.png"))):
        for turn in ("first", "second"):
            out, walk = folder / image.stem / turn, Walk()
            with hooked(walk):
                cli("predict", "nuclei", str(image), "--out", str(out), "--score", "0.05", "--device", "cpu")
        walks.append(walk)
        found.append(len(json.loads((out / "predictions.json").read_bytes())["annotations"]))
    print("| `instseg predict nuclei IMAGE` | objects | files | calls | moves | threads |\n|---|---|---|---|---|---|")
    for walk, objects in zip(walks, found, strict=True):
        print(f"| the whole command | {objects} | {counts(walk.all(loading=True))} | {len(walk.calls)} |")
        print(f"| without loading the model | {objects} | {counts(walk.all(loading=False))} | {len(walk.calls)} |")
    few, many = (moves(walk.all(loading=False)) for walk in walks)
    print(f"\n| moves, without loading | {found[0]} object | {found[1]} objects | more for each object |")
    print("|---|---|---|---|")
    grown = [pair for pair in few | many if many[pair] != few[pair]]
    grown.sort(key=lambda pair: (few[pair] - many[pair], pair))
    rows = [("all", few.total(), many.total())]
    rows += [(f"{caller} → {called}", few[caller, called], many[caller, called]) for caller, called in grown[:10]]
    for name, before, after in rows:
        print(f"| {name} | {before} | {after} | {(after - before) / (found[1] - found[0]):.2f} |")


def training(folder: Path) -> None:
    """The first sample of `shapes`, alone in its batch."""
    fields = {"epochs": 1, "evaluate_every": 0, "backbone_weights": "none", "seed": 0}
    for turn in ("first", "second"):
        walk = Lesson()
        with hooked(walk):
            instseg.train("shapes", "solov2_light_448_r18", out=folder / "lesson" / turn, overrides=fields, **QUICK)
    there, back = walk.main[walk.read : walk.loss], walk.main[walk.loss :]
    print(f"\n| a training sample of `shapes`, {walk.objects} objects | files | calls | moves |\n|---|---|---|---|")
    print(f"| from reading to the loss | {counts(there)} |")
    print(f"| backward, update, and on to the next sample | {counts(back)} |")
    print("\n| most moves from reading to the loss | |\n|---|---|")
    for (caller, called), count in moves(there).most_common(8):
        print(f"| {caller} → {called} | {count} |")


def publish(path: Path) -> Path:
    """A `.pth` as AggMask publishes `sodar_r50`: its names and shapes, one random value in each tensor."""
    with torch.device("meta"):
        shapes = instseg.create_model(PUBLISHED).net.state_dict()
    state = {}
    for ours, tensor in shapes.items():
        pattern, theirs = next(rule for rule in NAMES if re.fullmatch(rule[0], ours))
        name = re.sub(r"<(\d)>", lambda digit: str(int(digit[1]) // 2), re.sub(pattern, theirs, ours))
        state[name] = torch.rand(()).to(tensor.dtype).expand(tensor.shape)
    torch.save({"meta": {"epoch": 36}, "state_dict": state}, path)
    return path


def published(folder: Path) -> None:
    """What is built on the way from a published file to a model, or to the first sample of a training from it."""
    file, ours = publish(folder / "published.pth"), folder / "ours.safetensors"
    train = partial(instseg.train, "shapes", weights=file, **QUICK)
    ways: dict[str, Callable[[], object]] = {
        "`load(FILE)`": lambda: instseg.load(file),
        "`instseg convert FILE`": lambda: cli("convert", str(file), "--out", str(ours)),
        "`instseg convert FILE --model NAME`": lambda: cli(
            "convert", str(file), "--out", str(ours), "--model", PUBLISHED
        ),
        "`load` of the converted file": lambda: instseg.load(ours),
        "`create_model(NAME, weights=FILE)`": lambda: instseg.create_model(PUBLISHED, weights=file),
        "`train(DATA, weights=FILE)`": lambda: train(out=folder / "a"),
        "`train(DATA, NAME, weights=FILE)`": lambda: train(model=PUBLISHED, out=folder / "b"),
    }
    with torch.device("meta"):
        config = type(instseg.create_model(PUBLISHED).config)
    print(f"\n| a published `.pth` of `{PUBLISHED}` | networks | of them without memory | configurations |")
    print("|---|---|---|---|")
    for way, go in ways.items():
        built = Built(config, until_sample="train" in way)
        with hooked(built):
            go()
        print(f"| {way} | {built.counts['network']} | {built.counts['meta']} | {built.counts['config']} |", flush=True)


def times(rounds: int) -> None:
    """Each in processes of its own, in turn, without the start of Python."""
    calls = ["import instseg", "import torch", "import torchvision", "import instseg; instseg.load('nuclei')"]
    best: dict[str, float] = {}
    modules: dict[str, str] = {}
    for _ in range(rounds):
        for call in calls:
            code = f"import time; t = time.perf_counter(); {call}; t = time.perf_counter() - t; import sys"
            code += "; print(t, len(sys.modules), 'torchvision' in sys.modules)"
            seconds, number, vision = subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True
            ).stdout.split()
            best[call] = min(best.get(call, float("inf")), float(seconds))
            modules[call] = f"{number} | {'yes' if vision == 'True' else 'no'}"
    print(
        f"\n| fresh process | best of {rounds}, s | modules then loaded | torchvision among them |\n|---|---|---|---|"
    )
    for call in calls:
        print(f"| `{call}` | {best[call]:.3f} | {modules[call]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="processes that each import is timed in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["INSTSEG_CACHE"] = f"{folder}/cache"
        for part in (predicting, training, published):
            part(Path(folder))
    times(args.rounds)


if __name__ == "__main__":
    main()
