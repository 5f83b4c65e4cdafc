"""What SODAR's aggregation costs: multiply-adds and parameters beside the paper's table VII, and time.

    python benchmarks/aggregation.py [--device cuda] [--threads 1] [--rounds 3]

prints the tables of docs/methods/sodar.md. Counts need no memory for weights; times are taken in turns.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from instseg.models.base import ImageBatch
from instseg.models.solo.decode import ImageMasks
from instseg.models.zoo import build_config, build_net, config_fields
from instseg.ops.aggregate import aggregate, layer_shapes, split_parameters

CANDIDATES = 100
SIZE = (200, 336)  # H/4 x W/4 of 800 x 1344
# Table VII: name, paper's GFLOPs and parameters in millions.
ROWS = {
    "SOLO": ("solo_r101", 422.8, 55.1),
    "+ aggregation": ("sodar_r101", 428.3, 55.4),
    "+ aggregation, +cls": ("sodar_r101_cls", 433.8, 55.4),
    "+ aggregation, -mask": ("sodar_r101_mask", 390.5, 54.6),
    "+ aggregation, +cls, deformable": ("sodar_r101_cls_deform", 435.8, 55.7),
    "+ aggregation, -mask, deformable": ("sodar_r101_mask_deform", 391.1, 54.9),
}
TEXT = {"weight_kernel": 1, "context_layers": 1}  # what the paper's text says of predictor and context


def counted(name: str, fields: dict[str, Any]) -> tuple[float, float, float]:
    """Billions of multiply-adds as published and in our forward pass at 800 x 1280, and millions of parameters that
    train with the stem and the first stage frozen."""
    with torch.device("meta"):
        net: Any = build_net(name, build_config(name, {"frozen_stages": 1, **fields})).eval()
        image = ImageBatch(torch.empty(1, 3, 800, 1280), torch.tensor([[800, 1280]], device="cpu"))
    macs = []
    for forward in (net.as_published, net):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward(image)
        macs.append(counter.get_total_flops() / 2e9)
    return macs[0], macs[1], sum(p.numel() for p in net.parameters() if p.requires_grad) / 1e6


def print_counts() -> None:
    print("| R101 | paper, G / M | released configuration, as published | paper's text, as published | ours |")
    print("|---|---|---|---|---|")
    for label, (name, paper_macs, paper_parameters) in ROWS.items():
        released, ours, trained = counted(name, {})
        text, text_trained = "–", ""
        if name != "solo_r101":
            macs, _, parameters = counted(name, TEXT)
            text, text_trained = f"{macs:.1f}", f" / {parameters:.2f}"
        print(
            f"| {label} | {paper_macs} / {paper_parameters} | {released:.1f} / {trained:.2f} "
            f"| {text}{text_trained} | {ours:.1f} |"
        )
    print("\n| mask output convolutions, G | " + " | ".join(f"level {i + 1}" for i in range(5)) + " | all |")
    print("|---|" + "---|" * 6)
    for label, name in {"SOLO": "solo_r101", "-mask": "sodar_r101_mask"}.items():
        fields = config_fields(name)
        cells = [256 * s * s for s in fields.get("mask_grids") or fields["grids"]]
        areas = [800 // t * (1280 // t) for t in (4, 4, 8, 16, 16)]
        macs = [c * a / 1e9 for c, a in zip(cells, areas, strict=True)]
        print(f"| {label} | " + " | ".join(f"{m:.2f}" for m in macs) + f" | {sum(macs):.1f} |")


def plain(maps: torch.Tensor, index: torch.Tensor, layers: Any, context: torch.Tensor) -> torch.Tensor:
    """The published way: every instance its own copy of everything, one grouped convolution a layer."""
    count = len(index)
    x = torch.cat([maps[index], context.expand(count, *context.shape)], dim=1).flatten(0, 1)[None]
    for i, (weight, bias) in enumerate(layers):
        x = torch.nn.functional.conv2d(
            x.relu() if i else x, weight.flatten(0, 1), bias.flatten(), padding=1, groups=count
        )
    return x[0]


def timed(what: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.no_grad():
        what()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(sides: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    for side in sides.values():
        timed(side, device)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(timed(side, device))
    return found


def print_times(device: torch.device, rounds: int) -> None:
    torch.manual_seed(0)
    maps, context = torch.randn(3 * CANDIDATES, *SIZE, device=device), torch.rand(16, *SIZE, device=device)
    index = torch.randint(0, len(maps), (CANDIDATES, 5), device=device)
    near = torch.randint(0, len(maps), (CANDIDATES, 5, 4), device=device)
    shares = torch.rand(CANDIDATES, 5, 4, device=device)
    layers = split_parameters(0.3 * torch.randn(CANDIDATES, 945, device=device), layer_shapes(21), 3)
    sides = {
        "plain grouped convolution": lambda: plain(maps, index, layers, context),
        "ours": lambda: aggregate(maps, index, layers, context),
        "ours, deformable": lambda: aggregate(maps, near, layers, context, shares),
    }
    found = in_turn(sides, rounds, device)
    with torch.no_grad():
        difference = float((plain(maps, index, layers, context) - aggregate(maps, index, layers, context)).abs().max())
    base = statistics.median(found["plain grouped convolution"])
    print(f"\n| aggregation of {CANDIDATES} candidates at {SIZE[0]} x {SIZE[1]} | ms | against plain |\n|---|---|---|")
    for name, seconds in found.items():
        median = statistics.median(seconds)
        print(f"| {name} | {1000 * median:.0f} | {base / median:.2f} times faster |")
    print(f"\nLargest difference of a logit: {difference:.0e}.")


def print_overhead(device: torch.device, rounds: int) -> None:
    """The whole way to the soft masks of 100 candidates, twenty a level, beside the host's."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, 800, 1344, device=device)
    cells = torch.cat([first + torch.randperm(s * s)[: CANDIDATES // 5] for first, s in _levels()]).to(device)
    sides: dict[str, Callable[[], Any]] = {}
    for name in ("solo_r50", "sodar_r50", "solov2_r50", "sodar_solov2_r50"):
        net: Any = build_net(name, build_config(name, {})).eval().to(device)
        sides[name] = lambda net=net: soft_masks(net, image, cells)
    found = in_turn(sides, rounds, device)
    print(
        f"\n| network and the soft masks of {CANDIDATES} candidates, 800 x 1344 | ms | over its host |\n|---|---|---|"
    )
    for name, host in {"sodar_r50": "solo_r50", "sodar_solov2_r50": "solov2_r50"}.items():
        ratios = [a / b for a, b in zip(found[name], found[host], strict=True)]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"| `{host}` | {1000 * statistics.median(found[host]):.0f} | |")
        print(
            f"| `{name}` | {1000 * statistics.median(found[name]):.0f} "
            f"| {100 * (middle - 1):+.0f} % ({100 * (low - 1):+.0f} to {100 * (high - 1):+.0f}) |"
        )


def soft_masks(net: Any, image: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    outputs = net(ImageBatch.of(image))
    return ImageMasks(0, outputs.size, net.maps, partial(net.mask_probabilities, outputs))(cells)


def _levels() -> list[tuple[int, int]]:
    found, first = [], 0
    for s in (40, 36, 24, 16, 12):
        found.append((first, s))
        first += s * s
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    print_counts()
    print_times(device, args.rounds)
    print_overhead(device, args.rounds)
    if device.type == "cpu":
        print(f"\nPeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB.")


if __name__ == "__main__":
    main()
