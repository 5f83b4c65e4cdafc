"""`instseg explain`: how the masks of a model that aggregates come about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from instseg.core.errors import ConfigError, DataError
from instseg.core.geometry import InputGeometry
from instseg.model.tiles.tiles import tile_views

if TYPE_CHECKING:
    from instseg.core.instances import Instances
    from instseg.model.instance_model import InstanceModel
    from instseg.models.sodar.grid_aggregation import Trace


@dataclass(frozen=True)
class Explanation:
    """One object and how its mask comes about.

    Attributes:
        number: of the object, best first, from 1.
        label, score: as predicted.
        trace: the aggregation of its cell.
        shown: (3, H, W) uint8, what the network was shown, with its padding.
        content: (h, w) of it without padding.
        mask: (H/4, W/4), the soft mask of its cell (what the object keeps, but for mask voting).
    """

    number: int
    label: int
    score: float
    trace: Trace
    shown: Tensor
    content: tuple[int, int]
    mask: Tensor


@torch.inference_mode()
def explain_image(
    model: InstanceModel, source: Any, numbers: Sequence[int] | None = None, *, best: int = 3, score: float = 0.25
) -> list[Explanation]:
    """Explains objects of one image.

    Args:
        model: one of the SODAR family, with weights.
        source: what holds an image, as for ``predict``.
        numbers: the objects, counted from 1, best first; None takes the ``best`` first.
        score: objects below it are not counted.

    A model that predicts in tiles is explained tile by tile; objects that two tiles see are counted twice.

    Raises:
        ConfigError: a model that aggregates nothing.
        DataError: an image without such objects, or with fewer; a model in training mode.
    """
    from instseg.model.ready import require_weights
    from instseg.sources.sources import as_tensor

    if not hasattr(model.net, "trace"):
        raise ConfigError(
            f"{model.name} aggregates nothing that could be explained: give a model of the SODAR family "
            '(`instseg models "sodar*"`), trained with `instseg train DATA --model sodar_r50`.'
        )
    require_weights(model)
    if model.training:
        raise DataError("the model is in training mode: call model.eval() before explaining.")
    image = as_tensor(source, model.image_rule)
    views = _views(model, image)
    found: list[tuple[float, int, int]] = []  # score, view, object in it
    for i, view in enumerate(views):
        instances, _ = model.net.decode_cells(_outputs(model, image, view)[0], [view])[0]
        found += [(s, i, k) for k, s in enumerate(instances.scores.tolist()) if s >= score]
    found.sort(key=lambda item: -item[0])
    wanted = list(range(1, min(best, len(found)) + 1)) if numbers is None else list(numbers)
    if not found:
        raise DataError(f"no object with a score of {score} or more was found: lower --score, or give another image.")
    beyond = [n for n in wanted if not 1 <= n <= len(found)]
    if beyond:
        raise DataError(f"there is no object {beyond[0]}: {len(found)} were found with a score of {score} or more.")
    explained: dict[int, Explanation] = {}
    for i in sorted({found[n - 1][1] for n in wanted}):  # view by view: the outputs of one at a time
        outputs, shown = _outputs(model, image, views[i])
        decoded = model.net.decode_cells(outputs, [views[i]])[0]
        for n in wanted:
            if found[n - 1][1] == i:
                explained[n] = _explain(model, outputs, decoded, found[n - 1][2], n, shown, views[i].content)
    return [explained[n] for n in wanted]


def _views(model: InstanceModel, image: Tensor) -> list[InputGeometry]:
    tile = model.config.tile
    if tile is None:
        return [model.preprocess.view(image)]
    size = (int(image.shape[-2]), int(image.shape[-1]))
    return tile_views(size, model.preprocess.scale(*size), tile, model.config.tile_overlap)


def _outputs(model: InstanceModel, image: Tensor, view: InputGeometry) -> tuple[Any, Tensor]:
    """Raw outputs for a view, and what the network was shown, (3, H, W) uint8."""
    (top, left), (height, width), tile = view.offset, view.size, model.config.tile
    part = image[:, top : top + height, left : left + width].to(model.device)
    pixels = model.preprocess.resize_image(part, view.content)
    batch = model.preprocess.batch([pixels], None if tile is None else (tile, tile))
    shown = torch.zeros(3, *batch.shape[-2:], dtype=torch.uint8)
    shown[:, : pixels.shape[1], : pixels.shape[2]] = pixels.round().clamp(0, 255).to(torch.uint8).cpu()
    return model.net(batch), shown


def _explain(
    model: InstanceModel,
    outputs: Any,
    decoded: tuple[Instances, Tensor],
    position: int,
    number: int,
    shown: Tensor,
    content: tuple[int, int],
) -> Explanation:
    instances, cells = decoded
    cell = cells[position]
    return Explanation(
        number,
        int(instances.labels[position]),
        float(instances.scores[position]),
        model.net.trace(outputs, 0, int(cell)),
        shown,
        content,
        model.net.soft_masks(outputs, 0, cell[None])[0].cpu(),
    )


def write_explanations(model: InstanceModel, source: Any, found: Sequence[Explanation], out: Path | str) -> list[Path]:
    """A picture of each explanation in the folder ``out``: ``<image>-<number>.png``."""
    from instseg.vis.explain import draw_aggregation

    stem = Path(source).stem if isinstance(source, str | Path) else "image"
    stem = "stdin" if str(source) == "-" else stem
    written = []
    for item in found:
        t = item.trace
        title = (
            f"{model.categories[item.label]} {item.score:.2f}, {model.name}: row {t.cell[0] + 1}, column "
            f"{t.cell[1] + 1} of the {t.grid} x {t.grid} grid"
            + (f", {t.map_grid} x {t.map_grid} representations" if t.map_grid != t.grid else "")
        )
        path = Path(out) / f"{stem}-{item.number}.png"
        figure = draw_aggregation(
            title,
            item.shown.permute(1, 2, 0).numpy(),
            item.content,
            item.mask.numpy(),
            t.maps.numpy(),
            t.names,
            t.positions.numpy(),
            t.map_grid,
            None if t.context is None else t.context.numpy(),
            t.effects.numpy(),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        written.append(path)
    return written
