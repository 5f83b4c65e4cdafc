"""How the verbs print what the library returns."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instseg.apps.zoo import ModelSummary
    from instseg.weights.catalogue import PublishedFile

LONGEST_CLASS_LIST = 20


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns, the first `left` of them flush left, the others right; never cut, however narrow the screen."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, ["-" * w for w in widths], *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _figure(value: float | None) -> str:
    """An AP as text: -1 and None mean that there was nothing to measure."""
    return "-" if value is None or value < 0 else f"{value:.3f}"


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """What `evaluate` returns: mask and box AP (box AP alone for a detector of boxes), then the classes, worst first
    when there are many."""
    columns = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large"}
    columns |= {"AR": "ar"}
    kinds = {name: found for name, key in (("masks", "segm"), ("boxes", "bbox")) if (found := metrics.get(key))}
    rows = [[name, *(_figure(kind.get(key)) for key in columns.values())] for name, kind in kinds.items()]
    counted = (
        f"{metrics['images']} images, {metrics['instances']} objects, at most {metrics['max_dets']} found an image"
    )
    parts = [table(["", *columns], rows), counted]
    classes = metrics["per_class"]
    if len(classes) > 1:
        figures = {"mask AP": "ap", "AP50": "ap50", "box AP": "box_ap"}
        if "masks" not in kinds:
            figures = {"box AP": "box_ap", "AP50": "box_ap50"}
        first = next(iter(figures.values()))
        shown = sorted(classes, key=lambda c: c[first] or 0.0) if len(classes) > LONGEST_CLASS_LIST else classes
        cells = [
            [row["name"], str(row["instances"]), *(_figure(row[key]) for key in figures.values())]
            for row in shown[:LONGEST_CLASS_LIST]
        ]
        parts.append("\n" + table(["class", "objects", *figures], cells))
        if len(classes) > LONGEST_CLASS_LIST:
            parts.append(f"the {LONGEST_CLASS_LIST} worst of {len(classes)} classes; metrics.json has all")
    return "\n".join(parts)


def models_table(models: Sequence["ModelSummary"]) -> str:
    """One line a model."""
    rows = [
        [
            m.name,
            m.method,
            m.backbone,
            f"{m.counts.parameters / 1e6:.1f} M",
            f"{m.counts.macs / 1e9:.0f} G",
            f"{m.input_size[0]} x {m.input_size[1]}",
            str(len(m.files) or "-"),
            "-" if m.paper_ap is None else f"{m.paper_ap:.1f}",
        ]
        for m in models
    ]
    head = ["name", "method", "backbone", "parameters", "multiply-adds", "input", "weights", "AP"]
    return (
        table(head, rows, left=3)
        + "\n\nmultiply-adds (FLOPs of most papers): the network for one image of that size."
        + "\nweights: checkpoints others published, which `instseg models NAME` lists."
        + "\nAP: of masks on COCO val2017, as the authors state it."
        + "\n\nready for use: `coco` (SOLOv2-R50 of mmdetection, 80 everyday classes, Apache-2.0, downloaded once) and"
        + "\n`nuclei` (microscopy, bundled), as in `instseg predict coco photo.jpg`."
    )


def file_page(name: str, file: "PublishedFile") -> str:
    """What a published checkpoint is, where it comes from, and where it lies."""
    from instseg.weights.catalogue import place_of

    place = place_of(file)
    facts = {
        "model": file.model,
        "code base": file.code,
        "license": file.license,
        "AP": f"{file.ap:.1f} (masks, COCO val2017, as its publishers state it)",
        "address": f"{file.url}{_digest(file)}",
        "file": f"{place}{'' if place.is_file() else ' (not there yet: downloaded at first use)'}",
    }
    width = max(len(key) for key in facts)
    return "\n".join([name, *(f"  {key:<{width}}  {value}" for key, value in facts.items())])


def model_page(model: "ModelSummary") -> str:
    """Everything about one model."""
    counts = model.counts
    facts = {
        "method": model.method,
        "backbone": model.backbone,
        "parameters": f"{counts.parameters:,}, {counts.trained:,} of them trained as published",
        "multiply-adds": f"{counts.macs / 1e9:.1f} G for {model.input_size[0]} x {model.input_size[1]}"
        + (f"; {counts.dense_macs / 1e9:.1f} G as published" if counts.dense_macs > counts.macs else ""),
        "authors' AP": "not stated" if model.paper_ap is None else f"{model.paper_ap:.1f} (masks, COCO val2017)",
    }
    width = max(len(field) for field in (*facts, *model.config))
    lines = [model.name, *(f"  {name:<{width}}  {value}" for name, value in facts.items())]
    if model.files:
        rows = [[f.name, f.code, f"{f.ap:.1f}", f.recipe, f.license] for f in model.files]
        lines += ["", "published checkpoints, each a name for --weights, convert, val and predict"]
        lines += ["  " + line for line in table(["name", "code base", "AP", "recipe", "license"], rows, 5).split("\n")]
        lines += [f"  {f.name}: {f.url}{_digest(f)}" for f in model.files]
    lines += ["", "configuration, each a key=value of train, val and predict"]
    lines += [f"  {name:<{width}}  {_value(value)}" for name, value in model.config.items()]
    return "\n".join(lines)


def _digest(file: "PublishedFile") -> str:
    return f" (sha256 {file.sha256}...)" if file.sha256 else " (no digest published)"


def _value(value: object) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
