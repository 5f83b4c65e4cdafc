"""`instseg demo`: the bundled model on bundled images, through the code of `predict` and `val`."""

from __future__ import annotations

import json
import shlex
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instseg.core import rle
from instseg.core.environment import environment, pick_device
from instseg.evaluation.evaluate import score_results
from instseg.model.load import resolve_model
from instseg.predict.journal import JOURNAL, PREDICTIONS
from instseg.predict.predict_files import PredictSummary, predict_sources
from instseg.results.writers import PICTURE_SCORE, atomic, write_json
from instseg.vis.draw import draw_codes
from instseg.vis.report import Picture, Report

if TYPE_CHECKING:
    import numpy.typing as npt

    from instseg.data.dataset import InstanceDataset
    from instseg.data.records import Record
    from instseg.model.instance_model import InstanceModel

DATA, SPLIT = "nuclei-mini", "val"
SHOWN_SIDE = 512  # pixels, the least long side of a picture in the report; smaller ones are enlarged
FIGURES = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "AP small": "ap_small",
    "AP medium": "ap_medium",
    "AP large": "ap_large",
    "AR": "ar",
}


def run_demo(
    out: Path | str = "instseg-demo",
    *,
    model: InstanceModel | str = "nuclei",
    device: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Segments the validation images of the bundled data `nuclei-mini` and measures the result. Needs no network.

    Writes into `out`: what `instseg predict` writes (`predictions.json`, `overlays/`, `labels/`), what `instseg val`
    writes (`metrics.json`, `results.json`, `plots/`), and `report.html`, which shows every image with prediction
    and ground truth side by side.

    model: any model with the category ids of `nuclei-mini`. device: None for the fastest one. say: takes the lines
    to print.

    Returns the metrics, as :func:`instseg.evaluation.evaluate.evaluate`.

    Raises CheckpointError when the bundled weights are missing, DataError when `out` cannot be written.
    """
    from instseg.data.dataset import ground_truth
    from instseg.data.open import open_dataset

    folder = Path(out)
    dataset = open_dataset(DATA, SPLIT)
    ready = resolve_model(model, str(pick_device(device)))
    paths = [record.path for record in dataset.records if record.path is not None]
    say(f"segmenting {len(paths)} microscopy images on {next(ready.parameters()).device} ...")
    with warnings.catch_warnings():  # at a score of 0.05 the most crowded image fills the cap; pictures start at 0.25
        warnings.filterwarnings("ignore", ".*max_instances")
        (folder / JOURNAL).unlink(missing_ok=True)  # a demo that was interrupted begins again
        summary = predict_sources(ready, paths, folder, progress=progress)
    content = json.loads((folder / PREDICTIONS).read_text(encoding="utf-8"))
    metrics = score_results(ground_truth(dataset), _results(content, dataset), ready.config.max_instances, folder)
    write_json(folder / "metrics.json", {"model": ready.name, "data": DATA, "split": SPLIT, **metrics}, indent=2)
    shown = _shown(content)
    write_report(folder, dataset, metrics, summary, shown)
    masks, boxes = metrics["segm"], metrics["bbox"]
    say(f"{_count(shown)} nuclei found in {summary.images} images, {metrics['instances']} are annotated")
    say(f"mask AP {masks['ap']:.3f}  AP50 {masks['ap50']:.3f}  AP75 {masks['ap75']:.3f}  box AP {boxes['ap']:.3f}")
    say(f"look at {folder / 'report.html'}")
    return metrics


def write_report(
    folder: Path,
    dataset: InstanceDataset,
    metrics: Mapping[str, Any],
    summary: PredictSummary,
    shown: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Path:
    """`report.html`: pictures beside ground truth, figures, what was run, licenses.

    shown: the predictions in the pictures, by file name.
    """
    masks = metrics["segm"]
    report = Report(
        "instseg demo: nuclei in microscopy images",
        "The bundled model on images that it was not trained on, made on this machine by the code behind "
        "instseg predict and instseg val.",
    )
    report.numbers(
        {
            "mask AP": _figure(masks["ap"]),
            "mask AP at IoU 0.5": _figure(masks["ap50"]),
            "nuclei found": str(_count(shown)),
            "nuclei annotated": str(metrics["instances"]),
            "seconds an image, files included": f"{summary.seconds / max(summary.images, 1):.2f}",
        }
    )
    report.heading("Prediction beside ground truth")
    report.paragraph(
        f"Shown and counted are predictions with a score of at least {PICTURE_SCORE:g}. Colors only tell "
        "neighbors apart."
    )
    for index, record in enumerate(dataset.records):
        image = dataset.image(index).permute(1, 2, 0).numpy()
        report.pictures(
            _row(np.ascontiguousarray(image), record, shown.get(Path(record.file_name).name, ())), record.file_name
        )
    _write_figures(report, metrics, folder / "plots")
    report.heading("What was run")
    first = shlex.quote(str(dataset.records[0].path))
    report.code(f"instseg predict nuclei {first} ...\ninstseg val nuclei {DATA} --split {SPLIT}")
    report.facts(_machine())
    report.heading("Your own images")
    report.code(
        "instseg predict nuclei path/to/images --out results\n"
        "instseg data check path/to/dataset\n"
        "instseg train path/to/dataset --weights nuclei --out runs/mine\n"
        "instseg val runs/mine path/to/dataset"
    )
    report.heading("Licenses")
    report.facts(
        {
            "images": "BBBC038v1, 2018 Data Science Bowl stage 1, corrected by the community; CC0 1.0",
            "weights": "trained by this project on the training part of the same data; CC0 1.0",
            "program": "instseg, Apache-2.0",
        }
    )
    path = folder / "report.html"
    with atomic(path, "w") as file:
        file.write(report.html())
    return path


def _write_figures(report: Report, metrics: Mapping[str, Any], folder: Path) -> None:
    report.heading("Figures")
    report.paragraph(
        f"COCO protocol, at most {metrics['max_dets']} detections an image. AP is the mean over IoU thresholds from "
        "0.50 to 0.95; small is under 32² pixels, large from 96² on. A dash: no object of that size."
    )
    kinds = (("masks", metrics["segm"]), ("boxes of the masks", metrics["bbox"]))
    report.table(["", *FIGURES], [[name, *(_figure(kind[key]) for key in FIGURES.values())] for name, kind in kinds])
    plots = [folder / name for name in ("precision_recall.png", "confusion.png")]
    captions = ("Precision over recall", "Objects found, missed and invented")
    report.pictures([Picture(p, c) for p, c in zip(plots, captions, strict=True)], plot=True)


def _results(content: Mapping[str, Any], dataset: InstanceDataset) -> list[dict[str, Any]]:
    """What was written for people as COCO results under the ids of the data: the images are predicted only once."""
    ours = {Path(record.file_name).name: record.image_id for record in dataset.records}
    ids = {image["id"]: ours[Path(image["file_name"]).name] for image in content["images"]}
    return [
        {"image_id": ids[a["image_id"]], "segmentation": rle.from_json(a["segmentation"])}
        | {key: a[key] for key in ("category_id", "score")}
        for a in content["annotations"]
    ]


def _shown(content: Mapping[str, Any]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The annotations that pictures show, by file name."""
    names = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        if annotation["score"] >= PICTURE_SCORE:
            rows[names[annotation["image_id"]]].append(annotation)
    return rows


def _count(shown: Mapping[str, Sequence[Mapping[str, Any]]]) -> int:
    return sum(len(rows) for rows in shown.values())


def _row(image: npt.NDArray[np.uint8], record: Record, rows: Sequence[Mapping[str, Any]]) -> list[Picture]:
    zoom = max(1, -(-SHOWN_SIDE // max(image.shape[:2])))
    found = [rle.from_json(row["segmentation"]) for row in rows]
    truth = [annotation.rle for annotation in record.annotations if not annotation.crowd]

    def drawn(codes: list[rle.RLE]) -> npt.NDArray[np.uint8]:
        return draw_codes(image, codes, [0] * len(codes), [""], zoom=zoom)

    return [
        Picture(drawn([]), f"image, {image.shape[1]} × {image.shape[0]} pixels"),
        Picture(drawn(found), f"prediction, {len(found)} nuclei"),
        Picture(drawn(truth), f"ground truth, {len(truth)} nuclei"),
    ]


def _machine() -> dict[str, str]:
    known = environment()
    machine = {key: known.pop(key) for key in ("device", "cores", "os", "cuda", "mps")}
    packages = ", ".join(f"{name} {version}" for name, version in known.items())
    return {"packages": packages, "device": machine["device"], "machine": f"{machine['os']}, {machine['cores']} cores"}


def _figure(value: float) -> str:
    return "–" if value < 0 else f"{value:.3f}"
