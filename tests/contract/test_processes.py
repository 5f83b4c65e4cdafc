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


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one_on_both_halves(tmp_path: Path) -> None:
    script, out = tmp_path / "go.py", tmp_path / "worst.json"
    script.write_text(SCRIPT)
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    call += [str(Path(__file__).parent), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    worst = json.loads(out.read_text())
    assert len(worst) > 5 and max(worst.values()) < 1e-5, worst
