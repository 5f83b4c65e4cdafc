"""Every way of building a network trains in two processes as in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from test_models import VARIANTS, build, scene, total

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
# What each process sees, step by step; in the second step the second process has no object at all.
boxes = [[[(10, 10, 50, 60), (60, 20, 110, 70)], [(5, 30, 40, 70)]], [[(20, 20, 70, 60)], []], [[(5, 5, 90, 70)]] * 2]
halves = [[scene(80, 120 - 8 * r, b) for r, b in enumerate(step)] for step in boxes]
worst = {}
for name in VARIANTS:
    fields = {"norm_eval": True}
    alone, shared = build(name, **fields).train(), build(name, **fields).train()
    # Where it is not asked to look for them an unused parameter is an error in the step after.
    parallel = DistributedDataParallel(shared, find_unused_parameters=shared.net.may_leave_unused)
    pairs = [(alone, torch.optim.SGD(alone.parameters(), 0.05)), (parallel, torch.optim.SGD(shared.parameters(), 0.05))]
    for step in halves:
        for model, optimizer in pairs:
            optimizer.zero_grad()
            # Losses are normalized by the objects of a process, so the joint loss is the mean over the halves.
            mine = [step[rank]] if model is parallel else step
            for image, target in mine:
                (total(model([image], [target])) / len(mine)).backward()
            optimizer.step()
    differ = [(a - b).abs().max() for a, b in zip(alone.parameters(), shared.parameters(), strict=True)]
    worst[name] = float(torch.stack(differ).max())
if rank == 0:
    with open(sys.argv[2], "w") as file:
        json.dump(worst, file)
dist.destroy_process_group()
"""


# With losses that are normalized over all processes, each process' batch is a part of a joint one.
JOINT = """
import json, sys
from contextlib import nullcontext
sys.path.insert(0, sys.argv[1])
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from test_models import VARIANTS, build, scene, total
from instseg.model.targets import sizes_of, targets_of
from instseg.models.base import LossTerms, Step
from instseg.training.loop import Losses

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()

def mean(value):
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / 2

many, one, none = [(10, 10, 50, 60), (60, 20, 110, 70), (5, 5, 30, 40)], [(20, 20, 70, 60)], []
# Updates, their passes, and what each process sees in them: one without an object, both without, many beside one.
updates = [[(many, one)], [(one, none)], [(none, none)], [(none, many), (one, none)], [(one, many), (none, none)]]
updates = [[[scene(80, 120 - 8 * r, b) for r, b in enumerate(shares)] for shares in passes] for passes in updates]
worst = {}
for name, fields in [(name, {}) for name in VARIANTS] + [("solov2_r18", {"semantic_weight": 0.1}),
                                                        ("solov2_r18", {"shared_cells": "mmdet"})]:
    alone, shared = (build(name, norm_eval=True, **fields).train() for _ in range(2))
    parallel = DistributedDataParallel(Losses(shared), find_unused_parameters=shared.net.may_leave_unused)
    runs = [(Losses(alone), Step(), False), (parallel, Step(mean=mean, processes=2), True)]
    seen = []
    for run, step, split in runs:
        optimizer = torch.optim.SGD(run.parameters(), 0.002)
        for passes in updates:
            optimizer.zero_grad()
            for i, samples in enumerate(passes):
                mine = [samples[rank]] if split else samples
                images = [image for image, _ in mine]
                targets = targets_of([t for _, t in mine], sizes_of(images), 3, shared.net.needs, shared.net.needs)
                images = [shared.preprocess.resize_image(image, image.shape[-2:]) / 255 for image in images]
                with run.no_sync() if split and i + 1 < len(passes) else nullcontext():
                    losses, _ = run(images, targets, step)
                    (total(losses) / len(passes)).backward()
                seen.append(float(mean(total(losses))))
            optimizer.step()
    differ = [(a - b).abs().max() for a, b in zip(alone.parameters(), shared.parameters(), strict=True)]
    told = [abs(a - b) / max(1, a) for a, b in zip(seen[: len(seen) // 2], seen[len(seen) // 2 :])]
    worst[name + str(fields)] = max(float(torch.stack(differ).max()), max(told))
if rank == 0:
    with open(sys.argv[2], "w") as file:
        json.dump(worst, file)
dist.destroy_process_group()
"""


def _worst(script: str, folder: Path) -> dict[str, float]:
    """What a script that runs in two processes writes: the largest difference by the name of a network."""
    path, out = folder / "go.py", folder / "worst.json"
    path.write_text(script)
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(path)]
    call += [str(Path(__file__).parent), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    worst: dict[str, float] = json.loads(out.read_text())
    return worst


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one_on_both_halves(tmp_path: Path) -> None:
    worst = _worst(SCRIPT, tmp_path)
    assert len(worst) > 5 and max(worst.values()) < 1e-5, worst


@pytest.mark.slow
def test_two_processes_that_normalize_together_are_one_with_a_joint_batch(tmp_path: Path) -> None:
    worst = _worst(JOINT, tmp_path)
    assert len(worst) > 7 and max(worst.values()) < 1e-5, worst
