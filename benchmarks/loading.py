"""Does the data loader keep up? Images a second of the loader alone beside those of a training step.

Both sides use the default recipe's augmentation, `solov2_tiny_r18` and the same number of processor cores: the loader
its two worker processes, the step all threads of torch. Rounds alternate, so a noisy machine is noisy for both.

    python benchmarks/loading.py shapes path/to/dsb2018 [--images 64] [--rounds 3]

prints the table of the README.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from instseg.data.dataset import collate
from instseg.data.open import open_dataset
from instseg.data.transforms.augment import build_transform
from instseg.model.load import create_model
from instseg.models.zoo import config_fields
from instseg.training.recipe import load_recipe
from instseg.training.run import at_model_scale

MODEL = "solov2_tiny_r18"


def setting(data: str):
    """The data set, its loader, and the model with its optimizer, as `instseg train DATA --model solov2_tiny_r18`."""
    recipe, fields = load_recipe(None, {"model": MODEL}, config_fields)
    torch.manual_seed(0)
    dataset = open_dataset(data, "train")
    model = create_model(MODEL, len(dataset.categories), overrides=fields).train()
    model.to(memory_format=torch.channels_last)
    recipe = recipe.model_copy(update={"data": data})
    transform = build_transform(at_model_scale(recipe, model.config), True, model.config.antialias)
    dataset = dataset.with_transform(transform)
    loader = DataLoader(dataset, recipe.batch, shuffle=True, num_workers=2, collate_fn=collate, persistent_workers=True)
    return loader, model, torch.optim.AdamW(model.parameters(), lr=1e-4)


def loader_speed(loader: DataLoader, images: int) -> float:
    batches = iter(loader)
    next(batches)  # the workers have started
    start, seen = time.perf_counter(), 0
    while seen < images:
        try:
            seen += len(next(batches).images)
        except StopIteration:
            batches = iter(loader)
    return seen / (time.perf_counter() - start)


def step_speed(model, optimizer, batch) -> float:
    start = time.perf_counter()
    losses = model.loss_terms(batch.images, batch.targets).losses
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    return len(batch.images) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print("| data | loader alone, images/s | training step, images/s | ratio |\n|---|---|---|---|")
    for data in args.data:
        loader, model, optimizer = setting(data)
        batch = next(iter(loader))
        step_speed(model, optimizer, batch)
        loads, steps = [], []
        for _ in range(args.rounds):
            loads.append(loader_speed(loader, args.images))
            steps.append(step_speed(model, optimizer, batch))
        ratio = statistics.median(a / b for a, b in zip(loads, steps, strict=False))
        print(
            f"| `{Path(data).name}` | {statistics.median(loads):.1f} | {statistics.median(steps):.2f} | {ratio:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
