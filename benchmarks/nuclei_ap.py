"""AP of the bundled weights on the 2018 Data Science Bowl's validation split, by pycocotools alone.

`instseg predict` writes a plain COCO results list; pycocotools scores it with up to 500 detections an image.

    python benchmarks/nuclei_ap.py path/to/dsb2018 [--model nuclei]

prints the table of the README and of the model card.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MAX_DETS = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--split", default="val")
    args = parser.parse_args()
    annotations = args.data / "annotations" / f"{args.split}.json"
    files = [str(args.data / "images" / image["file_name"]) for image in json.loads(annotations.read_text())["images"]]
    with tempfile.TemporaryDirectory() as out:
        call = [sys.executable, "-m", "instseg", "predict", args.model, *files]
        subprocess.run([*call, "--annotations", str(annotations), "--out", out], check=True)
        results = json.loads((Path(out) / "predictions.json").read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.params.maxDets = [1, 10, MAX_DETS]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, :, -1]  # thresholds, recalls, classes, areas

    def mean(values) -> float:
        return float(values[values > -1].mean())

    print(f"{len(files)} images, {len(results)} objects, maxDets {MAX_DETS}")
    print("| AP | AP50 | AP75 | APS | APM |\n|---|---|---|---|---|")
    everything = precision[:, :, :, 0]
    figures = [everything, everything[0], everything[5], precision[:, :, :, 1], precision[:, :, :, 2]]
    print("| " + " | ".join(f"{mean(f):.3f}" for f in figures) + " |")


if __name__ == "__main__":
    main()
