"""What opening a data set of COCO's size costs: seconds and memory, the first time and from the index that it leaves.

    python benchmarks/opening.py [FOLDER]

Draws a copy of COCO's layout into FOLDER (a temporary one when left out): 120,000 image files, empty, and 860,000
annotations with polygons, one of them of no height. Then it opens the set in fresh processes: without an index, with
it, and two at once without it. Memory is the peak above that of the imports.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

IMAGES, ANNOTATIONS, CLASSES = 120_000, 860_000, 80
FILE = "annotations/instances_train2017.json"


def draw(root: Path) -> None:
    """COCO's layout, its numbers, and about its size of file."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    ids = [5 * i + 9 for i in range(IMAGES)]
    with (root / FILE).open("w") as file:
        file.write('{"info": {}, "licenses": [], "images": [')
        for n, i in enumerate(ids):
            name = f"{i:012d}.jpg"
            (root / "train2017" / name).touch()
            url = f"http://images.cocodataset.org/train2017/{name}"
            image = {"license": 3, "file_name": name, "coco_url": url, "height": 480, "width": 640, "id": i}
            file.write((", " if n else "") + json.dumps(image))
        file.write('], "annotations": [')
        for n in range(ANNOTATIONS):
            file.write((", " if n else "") + json.dumps(annotation(n, ids[int(rng.integers(IMAGES))], rng)))
        categories = [{"supercategory": "thing", "id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def annotation(n: int, image: int, rng: np.random.Generator) -> dict[str, object]:
    """A polygon around a point, one in eleven of two parts."""
    corners = int(rng.integers(6, 46))
    radius = float(rng.uniform(3, 18))
    turn = np.sort(rng.uniform(0, 2 * np.pi, corners))
    points = rng.uniform((20, 20), (620, 460)) + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    flat = points.round(2).ravel().tolist()
    parts = [flat] if n % 11 else [flat[: corners // 2 * 2], flat[corners // 2 * 2 :]]
    if n == 917:
        parts = [[10.0, 20.0, 30.0, 20.0, 25.0, 20.0]]
    (x0, y0), (x1, y1) = points.min(axis=0).round(2).tolist(), points.max(axis=0).round(2).tolist()
    return {
        "segmentation": parts,
        "area": round(radius * radius * 3, 2),
        "iscrowd": 0,
        "image_id": image,
        "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
        "category_id": int(rng.integers(1, CLASSES + 1)),
        "id": n + 1,
    }


def child(root: str) -> None:
    """In a process of its own: open the set, print seconds and peak memory above the imports, MiB."""
    import torch  # noqa: F401

    from instseg.data.open import open_dataset

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before, start = peak(), time.perf_counter()
    dataset = open_dataset(root)
    seconds = time.perf_counter() - start
    print(f"{seconds:.2f} {peak() - before:.0f} {len(dataset)} {len(dataset.objects()[0])}")


def run(root: Path, cache: Path, processes: int) -> list[list[float]]:
    command = [sys.executable, "-W", "ignore", __file__, "--child", str(root)]
    environment = {**os.environ, "INSTSEG_CACHE": str(cache)}
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(processes)]
    return [[float(word) for word in process.communicate()[0].split()] for process in started]


def main(folder: Path) -> None:
    if not (folder / FILE).exists():
        print("drawing ...", file=sys.stderr)
        draw(folder)
    cache = folder / "cache"
    size = (folder / FILE).stat().st_size / 2**20
    rows = []
    for name, processes, fresh in (("first time", 1, True), ("again", 1, False), ("two processes at once", 2, True)):
        if fresh:
            shutil.rmtree(cache, ignore_errors=True)
        found = run(folder, cache, processes)
        rows.append((name, max(f[0] for f in found), max(f[1] for f in found)))
    images, objects = int(found[0][2]), int(found[0][3])
    print(f"{images:,} images, {objects:,} objects, an annotation file of {size:.0f} MiB\n")
    print("| opening | seconds | MiB above the imports |\n|---|---|---|")
    for name, seconds, memory in rows:
        print(f"| {name} | {seconds:.1f} | {memory:.0f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    elif len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
