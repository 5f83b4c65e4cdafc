"""Does aggregating help? SODAR against its hosts, and the ablations of the paper's table VI, on small models.

    python benchmarks/sodar.py run path/to/dsb2018 [--only shapes/ablations] [--jobs 2]
    python benchmarks/sodar.py voting
    python benchmarks/sodar.py table

`run` trains every model that benchmarks/results/sodar.json lacks, each on one thread, and adds its figures there;
it can be stopped and called again. `voting` searches the threshold of each scheme of mask voting (table II) on the SOLO
of shapes. `table` prints the tables of docs/methods/sodar.md. The same backbone, schedule, pictures and seed for all
that is compared. The ablations start from the SOLO of shapes with the same seed and train one epoch more.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parent / "results" / "sodar.json"
WEIGHTS = Path(__file__).parent.parent / "runs" / "sodar"
SEEDS = (0, 1, 2)
EPOCHS = {"shapes": 3, "dsb2018": 6, "ablations": 1}
DATA = ("shapes", "dsb2018")
BATCH = 8
RATE = 2e-3
PICTURES = 2000  # of shapes for training; 200 for validation
LARGEST = 520  # pixels: validation images of dsb2018 with longer sides are left out, they would take most of the time

HEAD: dict[str, Any] = {
    "backbone": "resnet10t",
    "fpn_channels": 48,
    "tower_channels": 48,
    "tower_convs": 2,
    "grids": (16, 12, 8),
    "scale_ranges": ((1, 32), (24, 48), (36, 2048)),
    "max_instances": 200,
}
SOLOV2 = {"mask_hidden": 48, "mask_channels": 48}
# What is compared: the zoo's name and the fields that differ. SODAR* has SOLOv2's own branches (base=solov2).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SOLO": ("solo_r50", {"mask_prior": 0.5}),  # SODAR's own; better than the published 0.01, see the ablations
    "SODAR": ("sodar_r50", {}),
    "SOLOv2": ("solov2_r50", {**SOLOV2, "shared_cells": "last"}),  # as SODAR*: the last object has a shared cell
    "SODAR*": ("sodar_solov2_r50", {**SOLOV2, "base": "solov2"}),
}
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "SOLO, one epoch more": MODELS["SOLO"],
    "agg-D: 4 neighbors, context, 3 layers of 3x3": MODELS["SODAR"],
    "deformable": ("sodar_r50", {"deformable": True}),
    "agg-S: static weights": ("sodar_r50", {"aggregation": "static"}),
    "no neighbor": ("sodar_r50", {"neighbors": 0}),
    "2 neighbors, column": ("sodar_r50", {"neighbors": "2col"}),
    "2 neighbors, row": ("sodar_r50", {"neighbors": "2row"}),
    "8 neighbors": ("sodar_r50", {"neighbors": 8}),
    "without context": ("sodar_r50", {"context": "without"}),
    "context only": ("sodar_r50", {"context": "only"}),
    "1 layer": ("sodar_r50", {"aggregation_layers": 1}),
    "2 layers": ("sodar_r50", {"aggregation_layers": 2}),
    "4 layers": ("sodar_r50", {"aggregation_layers": 4}),
    "1x1 kernels": ("sodar_r50", {"aggregation_kernel": 1}),
    "two-stage loss": ("sodar_r50", {"two_stage_loss": True}),
    "released initialization": ("sodar_r50", {"aggregation_start": "released", "mask_prior": 0.01}),
    "finer class grids (+cls)": ("sodar_r50", {"grids": (20, 16, 8), "mask_grids": (16, 12, 8)}),
    "halved mask grids (-mask)": ("sodar_r50", {"mask_grids": (8, 6, 4)}),
    "halved mask grids, deformable": ("sodar_r50", {"mask_grids": (8, 6, 4), "deformable": True}),
}
# What such a variant leaves as it is initialized, though the trained host has it in the same shape: the layers that
# make the representations. With them its biases of -4.6 would be the host's.
OWN_START = {"released initialization": "mask_output."}


def jobs(only: str) -> list[tuple[str, str, int]]:
    """(set, label, seed) of all runs, those first that tell most."""
    compared = [(data, label, seed) for seed in SEEDS for data in DATA for label in MODELS]
    ablations = [("ablations", label, 0) for label in ABLATIONS]
    return [job for job in compared + ablations if only in ("", job[0])]


def load() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return found


def key(data: str, label: str, seed: int) -> str:
    return f"{data}: {label}: {seed}"


def run_all(args: argparse.Namespace) -> None:
    waiting = [job for job in jobs(args.only) if key(*job) not in load() and (not args.labels or job[1] in args.labels)]
    running: list[tuple[tuple[str, str, int], subprocess.Popen[str]]] = []
    while waiting or running:
        while waiting and len(running) < args.jobs:
            job = waiting.pop(0)
            call = [sys.executable, __file__, "one", str(args.data), job[0], job[1], str(job[2])]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            running.append((job, subprocess.Popen(call, stdout=subprocess.PIPE, text=True, env=environment)))
        for item in list(running):
            job, process = item
            if process.poll() is None:
                continue
            running.remove(item)
            out = process.stdout.read() if process.stdout else ""
            if process.returncode:
                print(f"{key(*job)} failed", flush=True)
                continue
            figures = json.loads(out.splitlines()[-1])
            results = load() | {key(*job): figures}
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
            print(key(*job), figures, flush=True)
        time.sleep(1)


def datasets(data: str, folder: str, seed: int) -> tuple[Any, Any]:
    from instseg.data.open import open_dataset
    from instseg.data.shapes import ShapesConfig, shapes
    from instseg.data.transforms.augment import Augment, build_transform

    if data == "dsb2018":
        train = open_dataset(folder, "train")
        held_out = open_dataset(folder, "val")
        held_out.records = [r for r in held_out.records if max(r.height, r.width) <= LARGEST]
        augment = Augment(enlarge=2.0, crop=160, flip=0.5, flip_vertical=0.5, rotate90=True)
    else:
        config = ShapesConfig(image_size=96, count=(3, 7), min_size=16, max_size=44)
        train, held_out = drawn(shapes("train", PICTURES, config)), drawn(shapes("val", 200, config))
        augment = Augment(flip=0.5)
    train.seed = seed
    return train.with_transform(build_transform(augment, train=True)), held_out


def drawn(dataset: Any) -> Any:
    """The same pictures, drawn once and kept."""
    from instseg.data.dataset import InstanceDataset

    records = list(dataset.records)
    images = {record.image_id: dataset.image(i) for i, record in enumerate(records)}
    return InstanceDataset(
        records,
        dataset.categories,
        name=dataset.name,
        split=dataset.split,
        read=lambda record: images[record.image_id],
    )


def train_one(folder: str, data: str, label: str, seed: int) -> dict[str, float]:
    """Trains one model from nothing and measures it."""
    import torch

    import instseg

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    source = "dsb2018" if data == "dsb2018" else "shapes"
    train, held_out = datasets(source, folder, seed)
    name, fields = (ABLATIONS if data == "ablations" else MODELS)[label]
    view = {"input_scale": 2.0, "tile": 160, "tile_overlap": 64} if source == "dsb2018" else {"input_scale": 1.0}
    model = instseg.create_model(name, num_classes=len(train.categories), **{**HEAD, **view, **fields})
    model.set_categories(train.categories)
    if data == "ablations":  # what the trained host has and this model has in the same shape
        trained = instseg.load(weights_file("shapes", "SOLO", seed)).net.state_dict()
        state, own = model.net.state_dict(), OWN_START.get(label)
        fits = {k: v for k, v in trained.items() if k in state and v.shape == state[k].shape}
        state |= {k: v for k, v in fits.items() if own is None or not k.startswith(own)}
        model.net.load_state_dict(state)
    model.train().to(memory_format=torch.channels_last)
    epochs, per = EPOCHS[data], len(train) // BATCH
    rate = RATE / 2 if data == "ablations" else RATE
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=epochs * per, pct_start=0.1)
    averaged = torch.optim.swa_utils.AveragedModel(
        model.net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    started = time.perf_counter()
    for epoch in range(epochs):
        train.set_epoch(epoch)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1000 * seed + epoch)).tolist()
        for i in range(per):
            samples = [train[j] for j in order[i * BATCH : (i + 1) * BATCH]]
            images = [s.image for s in samples]
            targets = [{"boxes": s.boxes, "labels": s.labels, "masks": s.masks} for s in samples]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses = model(images, targets, resize=False)
            optimizer.zero_grad()
            total = torch.stack(list(losses.values())).sum()
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(model.net)
        took = time.perf_counter() - started
        print(f"{label} {seed} epoch {epoch} loss {float(total.detach()):.3f} {took:.0f} s", file=sys.stderr)
    seconds = time.perf_counter() - started
    model.net.load_state_dict(averaged.module.state_dict())
    model.eval()
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    model.save(weights_file(data, label, seed))
    return {
        **measure(model, held_out),
        "train_seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def vote() -> None:
    """Figures of every scheme at every threshold, on the SOLO of shapes with seed 0, after training."""
    import torch

    import instseg
    from instseg.model.with_config import reconfigure

    torch.set_num_threads(1)
    _, held_out = datasets("shapes", "", 0)
    schemes: list[tuple[str, float]] = [("none", 0.5)]
    schemes += [(scheme, t / 100) for scheme in ("average", "score", "iou") for t in range(50, 100, 5)]
    for scheme, threshold in schemes:
        name = f"voting: {scheme}: {threshold:.2f}"
        if name not in load():
            model = reconfigure(
                instseg.load(weights_file("shapes", "SOLO", 0)), {"voting": scheme, "voting_threshold": threshold}
            )
            results = load() | {name: measure(model, held_out)}
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
            print(name, results[name], flush=True)


def weights_file(data: str, label: str, seed: int) -> Path:
    return WEIGHTS / f"{data}-{label.split(':')[0].replace(' ', '_').replace('*', '-star')}-{seed}.safetensors"


def measure(model: Any, held_out: Any) -> dict[str, float]:
    from instseg.core.category_matching import match_categories
    from instseg.data.dataset import ground_truth
    from instseg.evaluation.evaluate import collect_results
    from instseg.metrics.coco import evaluate_coco

    started = time.perf_counter()
    ids = match_categories(model.categories, held_out.categories, "auto").ids
    results, _ = collect_results(model, held_out, ids, progress=False)
    metrics = evaluate_coco(ground_truth(held_out), results, "segm", 200)
    by_iou = metrics.ap_by_iou
    return {
        "ap": metrics.ap,
        "ap50": metrics.ap50,
        "ap75_90": mean(by_iou[f"{t:.2f}"] for t in (0.75, 0.8, 0.85, 0.9)),
        "ap90": by_iou["0.90"],
        "predict_seconds": time.perf_counter() - started,
    }


def row(name: str, runs: list[dict[str, float]]) -> str:
    cells = []
    for figure in ("ap", "ap50", "ap75_90", "ap90"):
        values = [100 * r[figure] for r in runs]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{mean(values):.1f}{spread}")
    minutes = mean(r["train_seconds"] for r in runs) / 60
    return f"| {name} | {' | '.join(cells)} | {len(runs)} | {minutes:.1f} |"


HEADER = "| AP | AP50 | AP75..90 | AP90 | seeds | minutes of training, one thread |\n|---|---|---|---|---|---|---|"


def print_tables() -> None:
    results = load()
    for data in DATA:
        print(f"\n**{data}**\n\n| model {HEADER}")
        for label in MODELS:
            runs = [results[k] for seed in SEEDS if (k := key(data, label, seed)) in results]
            if runs:
                print(row(label, runs))
    print(f"\n**ablations, shapes, one epoch from the SOLO of seed 0**\n\n| variant {HEADER}")
    for label in ABLATIONS:
        if key("ablations", label, 0) in results:
            print(row(label, [results[key("ablations", label, 0)]]))
    print("\n**mask voting, SOLO on shapes, best of ten thresholds on these pictures**\n")
    print("| scheme | threshold | AP | AP50 | AP75..90 |")
    print("|---|---|---|---|---|")
    for scheme in ("none", "average", "score", "iou"):
        found = {k: v for k, v in results.items() if k.startswith(f"voting: {scheme}: ")}
        if found:
            best = max(found, key=lambda k: found[k]["ap"])
            figures = " | ".join(f"{100 * found[best][f]:.1f}" for f in ("ap", "ap50", "ap75_90"))
            print(f"| {scheme} | {'–' if scheme == 'none' else best.rsplit(': ', 1)[1]} | {figures} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run")
    run.add_argument("data", type=Path)
    run.add_argument("--only", default="", choices=["", *EPOCHS])
    run.add_argument("--labels", nargs="*", help="of the models; all when left out")
    run.add_argument("--jobs", type=int, default=2)
    one = verbs.add_parser("one")
    for argument in ("data", "set", "label"):
        one.add_argument(argument)
    one.add_argument("seed", type=int)
    verbs.add_parser("voting")
    verbs.add_parser("table")
    args = parser.parse_args()
    if args.verb == "run":
        run_all(args)
    elif args.verb == "one":
        print(json.dumps(train_one(args.data, args.set, args.label, args.seed)))
    elif args.verb == "voting":
        vote()
    else:
        print_tables()


if __name__ == "__main__":
    main()
