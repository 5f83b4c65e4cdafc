"""Matrix NMS beside Hard, Soft and Fast NMS on 500 masks of 200 x 336 pixels (SOLO (journal), table 5e), one thread.

Every method gets the same masks of one class; its time is given without and with the IoU matrix, which all share. The
IoU matrix is counted on packed bits and, for comparison, by the product of float matrices. Matrix NMS is also compared
with the paper's pseudo-code.

    python benchmarks/nms.py [--masks 500] [--rounds 7] [--device cpu]

prints the table of docs/speed.md.
"""

import argparse
import statistics
import time

import torch

from instseg.ops.mask_iou import mask_iou
from instseg.ops.nms import NMSOptions, nms

KINDS = {
    "Hard NMS": NMSOptions("hard", class_agnostic=True),
    "Soft NMS, Gaussian": NMSOptions("soft", class_agnostic=True),
    "Fast NMS": NMSOptions("fast", class_agnostic=True),
    "Matrix NMS, Gaussian": NMSOptions("matrix", class_agnostic=True),
    "Matrix NMS, linear": NMSOptions("matrix", "linear", class_agnostic=True),
}


def make(count: int, size: tuple[int, int] = (200, 336)) -> torch.Tensor:
    """Blobs of 0.1 to 10 % of the map, several at most places."""
    g = torch.Generator().manual_seed(0)
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])[None]
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for mask in masks:
        y, x = (torch.rand(2, generator=g) * torch.tensor(size)).tolist()
        area = 0.001 * 100 ** torch.rand(1, generator=g).item() * size[0] * size[1]
        aspect = 0.5 + torch.rand(1, generator=g).item()
        ry, rx = (area / 3.14 / aspect) ** 0.5, (area / 3.14 * aspect) ** 0.5
        mask[:] = ((rows - y) / ry) ** 2 + ((columns - x) / rx) ** 2 < 1
    return masks


def product(masks: torch.Tensor) -> torch.Tensor:
    flat = masks.flatten(1).float()
    shared = flat @ flat.T
    areas = shared.diagonal()
    return shared / (areas[:, None] + areas[None, :] - shared).clamp(min=1)


def pseudo_code(scores: torch.Tensor, masks: torch.Tensor, sigma: float = 0.5) -> torch.Tensor:
    """Figure 4 of the paper, which knows no classes and divides by sigma."""
    iou = product(masks).triu(diagonal=1)
    largest = iou.max(0)[0].expand(len(iou), len(iou)).T
    decay = torch.exp(-(iou**2 - largest**2) / sigma).min(dim=0)[0]
    return scores * decay


def timed(call, device: str) -> float:
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    masks = make(args.masks).to(args.device)
    scores = torch.rand(args.masks, generator=torch.Generator().manual_seed(1)).sort(descending=True).values
    scores, labels = scores.to(args.device), torch.zeros(args.masks, dtype=torch.int64, device=args.device)
    iou = mask_iou(masks)
    calls = {
        "IoU, float product": lambda: product(masks),
        "IoU, ours": lambda: mask_iou(masks),
        **{name: lambda o=options: nms(scores, labels, iou, o) for name, options in KINDS.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(args.rounds + 1):
        for name, call in calls.items():
            taken = timed(call, args.device)
            if round_:  # the first round warms up
                times[name].append(taken)
    middle = {name: statistics.median(values) for name, values in times.items()}
    ours, float_product = middle["IoU, ours"], middle["IoU, float product"]
    print(f"{args.masks} masks, {args.device}, {args.rounds} rounds in turn, median")
    print("| method | ms without the IoU matrix | ms with it |\n|---|---|---|")
    for name in KINDS:
        print(f"| {name} | {middle[name]:.2f} | {middle[name] + ours:.1f} |")
    wrong = (nms(scores, labels, iou, KINDS["Matrix NMS, Gaussian"]) - pseudo_code(scores, masks)).abs().max()
    ratios = [a / b for a, b in zip(times["IoU, float product"], times["IoU, ours"], strict=True)]
    print(
        f"\nIoU matrix: {ours:.0f} ms on packed bits, {float_product:.0f} ms as a float product, ratio "
        f"{statistics.median(ratios):.1f}; largest difference {float((iou - product(masks)).abs().max()):.0e}. "
        f"Matrix NMS differs from the paper's pseudo-code by at most {float(wrong):.0e}."
    )


if __name__ == "__main__":
    main()
