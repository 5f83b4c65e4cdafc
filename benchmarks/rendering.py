"""Masks into a 12-megapixel image as run-length codes: ours against the dense two-step rendering.

Both take the same 300 soft masks at model resolution (boxes of 0.1 to 2 % of the image), and both give COCO codes.
The dense rendering goes in chunks of 100 masks: enlarge by four, cut the padding, resize to the image, threshold,
encode. Each side runs in processes of its own, in turn; memory is what the process' peak grows by.

    python benchmarks/rendering.py [--masks 300] [--rounds 3]

prints the table of the README.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

HEIGHT, WIDTH = 3000, 4000
SHARES = (0.001, 0.02)


def make(count: int):
    """Soft elliptic masks at 1/4 of an 800-pixel input, and where that lies in the image."""
    import torch

    from instseg.core.geometry import InputGeometry

    content = (800, 1067)
    grid = (200, 272)  # padded to a multiple of 32
    g = torch.Generator().manual_seed(0)
    share = SHARES[0] + (SHARES[1] - SHARES[0]) * torch.rand(count, generator=g)
    aspect = 0.5 + 1.5 * torch.rand(count, generator=g)
    h = (share * content[0] * content[1] / aspect).sqrt() / 4
    w = h * aspect
    y = h / 2 + torch.rand(count, generator=g) * (content[0] / 4 - h)
    x = w / 2 + torch.rand(count, generator=g) * (content[1] / 4 - w)
    rows, columns = torch.arange(grid[0])[:, None], torch.arange(grid[1])[None]
    soft = torch.empty(count, *grid)
    for i in range(count):
        distance = (((rows - y[i]) / (h[i] / 2)) ** 2 + ((columns - x[i]) / (w[i] / 2)) ** 2).sqrt()
        soft[i] = torch.sigmoid(8 * (1 - distance))
    return soft, InputGeometry(content, (HEIGHT, WIDTH), (HEIGHT, WIDTH))


def ours(soft, geometry):
    from instseg.core.masks import Masks

    return Masks.from_maps(soft, geometry.content, 4).to_image(geometry).rle()


def dense(soft, geometry):
    import numpy as np
    import torch.nn.functional as F
    from pycocotools import mask as coco

    codes = []
    for i in range(0, len(soft), 100):
        up = F.interpolate(soft[None, i : i + 100], scale_factor=4, mode="bilinear")
        up = up[:, :, : geometry.content[0], : geometry.content[1]]
        pixels = F.interpolate(up, size=geometry.size, mode="bilinear")[0] > 0.5
        for mask in pixels:
            codes.append(coco.encode(np.asfortranarray(mask.numpy().view(np.uint8))))
    return codes


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB on Linux


def measure(way: str, count: int) -> None:
    soft, geometry = make(count)
    run = {"ours": ours, "dense": dense}[way]
    run(soft[:2], geometry)  # imports and first calls are not what is measured
    before = peak()
    start = time.perf_counter()
    codes = run(soft, geometry)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "mib": peak() - before, "codes": [c["counts"].decode() for c in codes]}))


def differing(a: list[str], b: list[str]) -> float:
    from instseg.core import rle

    size = [HEIGHT, WIDTH]
    pairs = [
        ({"size": size, "counts": x.encode()}, {"size": size, "counts": y.encode()}) for x, y in zip(a, b, strict=False)
    ]
    wrong = sum(int((rle.decode(x) != rle.decode(y)).sum()) for x, y in pairs if x != y)
    return wrong / (len(a) * HEIGHT * WIDTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=["ours", "dense"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        return measure(args.way, args.masks)
    results = {"ours": [], "dense": []}
    for _ in range(args.rounds):
        for way in results:
            call = [sys.executable, __file__, "--way", way, "--masks", str(args.masks)]
            results[way].append(json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout))
    ratios = [d["seconds"] / o["seconds"] for o, d in zip(results["ours"], results["dense"], strict=False)]
    wrong = differing(results["ours"][0]["codes"], results["dense"][0]["codes"])
    print(f"{args.masks} masks into {HEIGHT} x {WIDTH} pixels, {args.rounds} rounds in turn, median")
    print("| rendering | seconds | peak memory above the input, MiB |\n|---|---|---|")
    for way, runs in results.items():
        seconds, mib = (statistics.median(r[key] for r in runs) for key in ("seconds", "mib"))
        print(f"| {way} | {seconds:.2f} | {mib:.0f} |")
    print(f"\nratio {statistics.median(ratios):.1f} (from {min(ratios):.1f} to {max(ratios):.1f}); ", end="")
    print(f"share of pixels that differ {wrong:.1e}")


if __name__ == "__main__":
    main()
