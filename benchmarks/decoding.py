"""From raw network outputs to run-length codes: ours against the published order of operations, done densely.

SOLOv2-R50's outputs for an 800 x 1344 input are made up so that a given number of candidates pass the score threshold
and 100 objects are left for a 1080 x 1920 image. The dense order makes all candidates' masks at once, multiplies
float masks for the overlaps, enlarges the 100 masks by four, cuts the padding, resizes, thresholds, encodes. Each
side runs in processes of its own, in turn; memory is what the process' peak grows by.

    python benchmarks/decoding.py [--candidates 110 500] [--rounds 5]

prints the table of docs/speed.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

INPUT, CONTENT, IMAGE = (800, 1344), (750, 1333), (1080, 1920)
CLASSES = 80


def make(count: int):
    """A network without its backbone's work, and outputs with ``count`` candidates for about 110 blobs."""
    import torch

    from instseg.models.solo.solov2 import SOLOv2Outputs
    from instseg.models.zoo import build_config, build_net

    g = torch.Generator().manual_seed(0)
    net = build_net("solov2_r50", build_config("solov2_r50", {})).eval()
    h, w = INPUT[0] // 4, INPUT[1] // 4
    blobs = 110
    rows, columns = torch.arange(h)[:, None], torch.arange(w)[None]
    feature = torch.rand(1, 256, h, w, generator=g) * 0.05
    for k in range(blobs):
        y, x = torch.rand(2, generator=g) * torch.tensor([CONTENT[0] / 4, CONTENT[1] / 4])
        ry, rx = 4 + 36 * torch.rand(2, generator=g) ** 2
        distance = ((rows - y) / ry) ** 2 + ((columns - x) / rx) ** 2
        feature[0, k] = 2 * torch.exp(-distance)
    feature[0, 255] = 1.0
    total = sum(s * s for s in net.config.grids)
    categories = torch.full((1, CLASSES, total), -9.0)
    kernels = torch.randn(1, 256, total, generator=g) * 0.02
    # Candidates sit on every second cell of every second row: none is another's upper or left neighbor.
    places, first = [], 0
    for s in net.config.grids:
        places += [first + i * s + j for i in range(0, s, 2) for j in range(0, s, 2)]
        first += s * s
    for n, cell in enumerate(torch.tensor(places)[torch.randperm(len(places), generator=g)][:count].tolist()):
        k = n % blobs
        categories[0, k % CLASSES, cell] = 0.5 + 2 * torch.rand(1, generator=g)
        kernels[0, k, cell] += 8.0
        kernels[0, 255, cell] -= 6.0 + torch.rand(1, generator=g).item()
    parts_c, parts_k, first = [], [], 0
    for s in net.config.grids:
        parts_c.append(categories[:, :, first : first + s * s].reshape(1, CLASSES, s, s).clone())
        parts_k.append(kernels[:, :, first : first + s * s].reshape(1, 256, s, s).clone())
        first += s * s
    return net, SOLOv2Outputs(parts_c, (h, w), torch.tensor([CONTENT]), parts_k, [feature])


def ours(net, outputs):
    import torch

    from instseg.core.geometry import InputGeometry

    with torch.inference_mode():
        found = net.decode(outputs)[0].instances.to_image(InputGeometry(CONTENT, IMAGE, IMAGE))
        return found.masks.rle(), found.scores.tolist()


def dense(net, outputs):
    """The specification's order, step by step, on everything at once."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from pycocotools import mask as coco

    from instseg.ops.matrix_nms import matrix_nms
    from instseg.ops.point_nms import point_nms

    c = net.config
    with torch.inference_mode():
        scores = torch.cat([point_nms(p.sigmoid()).flatten(2) for p in outputs.cls_logits], dim=2)[0].T
        kernels = torch.cat([k.flatten(2) for k in outputs.kernels], dim=2)[0].T
        strides = torch.cat([torch.full((s * s,), float(t)) for s, t in zip(c.grids, c.strides, strict=True)])
        cells, labels = (scores > c.candidate_threshold).nonzero(as_tuple=True)
        scores, kernels, strides = scores[cells, labels], kernels[cells], strides[cells]
        soft = F.conv2d(outputs.mask_features[0], kernels[:, :, None, None])[0].sigmoid()
        binary = soft > c.mask_threshold
        area = binary.sum((1, 2)).float()
        keep = area > strides
        soft, binary, area, scores, labels = soft[keep], binary[keep], area[keep], scores[keep], labels[keep]
        scores = scores * ((soft * binary.float()).sum((1, 2)) / area)
        order = scores.argsort(descending=True)[: c.nms_pre]
        soft, binary, area, scores, labels = soft[order], binary[order], area[order], scores[order], labels[order]
        flat = binary.reshape(len(binary), -1).float()
        shared = flat @ flat.T
        scores = matrix_nms(scores, labels, shared / (area[:, None] + area[None] - shared))
        keep = scores >= c.min_score
        soft, scores = soft[keep], scores[keep]
        order = scores.argsort(descending=True)[: c.max_instances]
        soft, scores = soft[order], scores[order]
        big = F.interpolate(soft[None], size=INPUT, mode="bilinear")[:, :, : CONTENT[0], : CONTENT[1]]
        pixels = F.interpolate(big, size=IMAGE, mode="bilinear")[0] > c.mask_threshold
        codes = [coco.encode(np.asfortranarray(m)) for m in pixels.numpy().view(np.uint8)]
    return codes, scores.tolist()


def memory(field: str) -> float:
    """VmRSS or VmHWM of this process, MiB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def measure(way: str, count: int) -> None:
    net, outputs = make(count)
    run = {"ours": ours, "dense": dense}[way]
    run(*make(12))  # imports and first calls are not what is measured
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = memory("VmRSS")
    codes, scores = run(net, outputs)
    mib = memory("VmHWM") - before
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run(net, outputs)
        times.append(time.perf_counter() - start)
    row = {"seconds": min(times), "mib": mib, "scores": scores, "codes": [c["counts"].decode() for c in codes]}
    print(json.dumps(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, nargs="+", default=[110, 500])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--way", choices=["ours", "dense"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        return measure(args.way, args.candidates[0])
    print(
        "| candidates | objects | dense, ms | ours, ms | ratio | dense, MiB | ours, MiB | ratio | codes that differ |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for count in args.candidates:
        runs = {"ours": [], "dense": []}
        for _ in range(args.rounds):
            for way in runs:
                call = [sys.executable, __file__, "--way", way, "--candidates", str(count)]
                runs[way].append(json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout))
        o, d = runs["ours"], runs["dense"]
        ms = {way: 1000 * statistics.median(r["seconds"] for r in rs) for way, rs in runs.items()}
        mib = {way: statistics.median(r["mib"] for r in rs) for way, rs in runs.items()}
        faster = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(o, d, strict=True))
        wrong = sum(a != b for a, b in zip(o[0]["codes"], d[0]["codes"], strict=True))
        print(
            f"| {count} | {len(o[0]['codes'])} | {ms['dense']:.0f} | {ms['ours']:.0f} | {faster:.1f} | "
            f"{mib['dense']:.0f} | {mib['ours']:.0f} | {mib['dense'] / mib['ours']:.1f} | {wrong} |"
        )


if __name__ == "__main__":
    main()
