"""Joining what was found in the tiles of a large image: ours against comparing all masks with all.

10,000 ellipses of 10 to 18 pixels, and 20 of another class of 200 to 360, in an image of 10 x 10 tiles that share 64
pixels, as soft masks at 1/4 of the input, each cut by the tiles that see it. The other way compares the run-length
codes of all masks at once and keeps the best of those that share half of the smaller one; it joins nothing. Each side
runs in processes of its own, in turn; memory is what the process' peak grows by.

    python benchmarks/tiles.py [--objects 10000] [--side 10] [--rounds 3]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

TILE, OVERLAP = 256, 64


def make(count: int, side: int):
    """What is found in each tile, the tiles, and the area of each large ellipse."""
    import torch

    from instseg.core.instances import Instances
    from instseg.core.masks import Masks
    from instseg.model.tiles.tiles import tile_views

    extent = TILE + (side - 1) * (TILE - OVERLAP)
    views = tile_views((extent, extent), 1.0, TILE, OVERLAP)
    g = torch.Generator().manual_seed(0)
    large, across = 20, round(count**0.5 + 0.5)
    # One to a cell of a grid, so that none covers another of its class.
    cells = torch.stack([torch.arange(count) // across, torch.arange(count) % across], dim=1)
    small = (cells + 0.5) * extent / across + torch.rand(count, 2, generator=g) - 0.5
    cells = torch.stack([torch.arange(large) // 5, torch.arange(large) % 5], dim=1)
    centers = torch.cat([small, (cells + 0.5) * torch.tensor([extent / 4, extent / 5])])
    reach = torch.cat([torch.full((count,), extent / across), torch.full((large,), extent / 5.0)]) / 2
    radii = reach[:, None] * (0.5 + 0.4 * torch.rand(count + large, 2, generator=g))
    classes = torch.cat([torch.zeros(count), torch.ones(large)]).long()
    at = torch.arange(TILE // 4) * 4 + 2.0
    parts = []
    for view in views:
        offset = torch.tensor(view.offset)
        near = ((centers + radii > offset) & (centers - radii < offset + TILE)).all(dim=1).nonzero()[:, 0]
        y, x = (((at + view.offset[k])[None] - centers[near, k, None]) / radii[near, k, None] for k in (0, 1))
        distance = (y[:, :, None] ** 2 + x[:, None] ** 2).sqrt()
        soft = torch.sigmoid(radii[near].amin(dim=1)[:, None, None] * (1 - distance))
        seen = (soft > 0.5).flatten(1).any(dim=1)
        scores = 0.6 + 0.3 * torch.rand(len(near), generator=g)
        order = scores.argsort(descending=True)
        order = order[seen[order]]
        masks = Masks.from_maps(soft[order], view.content, 4).to_image(view)
        parts.append(Instances(scores[order], classes[near[order]], masks))
    return parts, views


def ours(parts, views):
    from instseg.model.tiles.tiles import merge_tiles

    return merge_tiles(parts, views, 10**9)


def all_with_all(parts, views):
    import torch

    from instseg.core import rle
    from instseg.core.instances import Instances
    from instseg.core.masks import Masks

    masks = Masks.cat([p.masks for p in parts])
    scores, labels = torch.cat([p.scores for p in parts]), torch.cat([p.labels for p in parts])
    tile = torch.cat([torch.full((len(p),), i) for i, p in enumerate(parts)])
    codes = masks.rle()
    share = torch.from_numpy(rle.iou(codes, codes, [True] * len(codes)))
    same = torch.maximum(share, share.T) > 0.5
    same &= (labels[:, None] == labels[None]) & (tile[:, None] != tile[None])
    gone = torch.from_numpy(rle.area(codes)) == 0
    kept = []
    for i in scores.argsort(descending=True).tolist():
        if not gone[i]:
            kept.append(i)
            gone |= same[i]
    chosen = torch.tensor(kept)
    return Instances(scores[chosen], labels[chosen], masks[chosen])


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB on Linux


def measure(way: str, count: int, side: int) -> None:
    run = {"ours": ours, "all with all": all_with_all}[way]
    run(*make(20, 2))  # imports and first calls are not what is measured
    parts, views = make(count, side)
    before, start = peak(), time.perf_counter()
    found = run(parts, views)
    seconds = time.perf_counter() - start
    large = int((found.labels == 1).sum())
    masks = sum(len(p) for p in parts)
    print(json.dumps({"seconds": seconds, "mib": peak() - before, "in": masks, "out": len(found), "large": large}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=10, help="tiles along each side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=["ours", "all with all"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        return measure(args.way, args.objects, args.side)
    results = {"ours": [], "all with all": []}
    for _ in range(args.rounds):
        for way in results:
            call = [sys.executable, __file__, "--way", way, "--objects", str(args.objects), "--side", str(args.side)]
            results[way].append(json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout))
    masks = results["ours"][0]["in"]
    print(f"{args.objects} small and 20 large objects, {masks} masks in {args.side} x {args.side} tiles; ", end="")
    print(f"{args.rounds} rounds in turn, median")
    print("| joining | seconds | peak memory above the input, MiB | objects | of them large |\n|---|---|---|---|---|")
    for way, rounds in results.items():
        seconds, mib = (statistics.median(r[key] for r in rounds) for key in ("seconds", "mib"))
        print(f"| {way} | {seconds:.2f} | {mib:.0f} | {rounds[0]['out']} | {rounds[0]['large']} |")
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(*results.values(), strict=True)]
    print(f"\nratio {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
