"""Predicting a folder of photographs: images a second with and without reading ahead, and memory.

The photographs are drawn on the spot (JPEG). Both ways alternate in blocks of the same folder, so that whatever else
the machine does meets both. Memory is the process's peak while `instseg predict` runs through the whole folder.

    python benchmarks/predicting.py
    python benchmarks/predicting.py --model nuclei --images 200 --size 640
"""

import argparse
import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from instseg.core.instances import Instances
from instseg.model.instance_model import InstanceModel
from instseg.model.load import create_model, resolve_model
from instseg.predict.predict_files import predict_sources

BLOCKS = 8


def draw(folder: Path, count: int, side: int) -> list[Path]:
    """`count` JPEG files of 4:3, `side` pixels wide."""

    def one(number: int) -> Path:
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((side, side * 3 // 4), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels += random.integers(-12, 13, pixels.shape, dtype=np.int16)
        path = folder / f"{number:05d}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        return path

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, range(count)))


def small_model() -> InstanceModel:
    """An untrained SOLOv2 that looks at images of 128 pixels, so that reading them weighs as on a fast device."""
    torch.manual_seed(0)
    fields = {"input_short": 128, "input_long": 192, "tower_convs": 1, "tower_channels": 32, "fpn_channels": 32}
    model = create_model("solov2_r18", num_classes=2, overrides={**fields, "mask_channels": 16, "mask_hidden": 32})
    model.has_weights = True
    return model.eval()


def speeds(model: InstanceModel, paths: list[Path], batch: int) -> dict[str, float]:
    """Images a second, with and without reading ahead."""
    ways: dict[str, int | None] = {"reading ahead": None, "without": 0}
    seconds = dict.fromkeys(ways, 0.0)
    blocks = [paths[i::BLOCKS] for i in range(BLOCKS)]
    list(model.stream(blocks[0][:8]))
    for number, block in enumerate(blocks):
        for way in list(ways) if number % 2 else list(ways)[::-1]:
            began = time.perf_counter()
            for _ in model.stream(block, batch=batch, workers=ways[way]):
                pass
            seconds[way] += time.perf_counter() - began
    return {way: len(paths) / spent for way, spent in seconds.items()}


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(model: InstanceModel, folder: Path, out: Path, first: int) -> tuple[float, float]:
    """The peak after `first` images and at the end."""
    predict, seen, early = model.predict_batch, 0, 0.0

    def counted(images: list[Tensor]) -> list[Instances]:
        nonlocal seen, early
        seen += len(images)
        if seen <= first:
            early = peak()
        return predict(images)

    model.predict_batch = counted  # type: ignore[method-assign,assignment]
    predict_sources(model, [folder], out, progress=False)
    return early, peak()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=1280, help="width in pixels")
    parser.add_argument("--model", help="as on the command line; a small untrained one when left out")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of the network; the other cores are free to read")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = resolve_model(options.model) if options.model else small_model()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "photos"
        folder.mkdir()
        paths = draw(folder, options.images, options.size)
        early, late = memory(model, folder, Path(scratch) / "out", options.images // 10)
        found = speeds(model, paths, options.batch)
    size = f"{options.size} x {options.size * 3 // 4}"
    print(f"{options.images} photographs of {size}, batch {options.batch}, network on {options.threads} threads")
    for way, rate in found.items():
        print(f"{way:14s} {rate:6.2f} images/s")
    print(f"reading ahead is {found['reading ahead'] / found['without']:.2f} times as fast")
    print(f"peak memory: {early:.0f} MiB after {options.images // 10} images, {late:.0f} MiB at the end")


if __name__ == "__main__":
    main()
