"""`instseg explain`: what the masks of a model that can explain them are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from instseg.core.errors import ConfigError, DataError
from instseg.core.trace import Trace
from instseg.model.pipeline import Observer, Pass
from instseg.model.ready import require_weights
from instseg.models.base import Explains

if TYPE_CHECKING:
    from instseg.model.instance_model import InstanceModel


@dataclass(frozen=True)
class Explanation:
    """One object and how its mask comes about.

    Attributes:
        number: of the object, best first, from 1.
        label, score: as predicted.
        trace: what its mask is made of.
        shown: (3, H, W) uint8, what the network was shown, with its padding.
        content: (h, w) of it without padding.
    """

    number: int
    label: int
    score: float
    trace: Trace
    shown: Tensor
    content: tuple[int, int]


class _Objects(Observer):
    """Every object that is found, in whatever view: its score, pass, input of the pass, and position there."""

    def __init__(self, least: float) -> None:
        self.found: list[tuple[float, int, int, int]] = []
        self.least = least
        self.passes = 0

    def passed(self, one: Pass) -> None:
        for i, seen in enumerate(one.found):
            scores = seen.instances.scores.tolist()
            self.found += [(score, self.passes, i, k) for k, score in enumerate(scores) if score >= self.least]
        self.passes += 1


class _Explained(Observer):
    """Explains chosen objects, as :class:`_Objects` has them, of the passes that go by."""

    def __init__(self, model: InstanceModel, net: Explains, wanted: dict[int, tuple[float, int, int, int]]) -> None:
        self.model, self.net, self.wanted = model, net, wanted
        self.explained: dict[int, Explanation] = {}
        self.passes = 0

    def passed(self, one: Pass) -> None:
        for number, (score, number_of_pass, i, k) in self.wanted.items():
            if number_of_pass == self.passes:
                seen = one.found[i]
                self.explained[number] = Explanation(
                    number,
                    int(seen.instances.labels[k]),
                    score,
                    self.net.explain(one.outputs, i, int(seen.source[k])),
                    self.model.preprocess.shown(one.batch, i),
                    one.views[i].geometry.content,
                )
        self.passes += 1


def explain_image(
    model: InstanceModel, source: Any, numbers: Sequence[int] | None = None, *, best: int = 3, score: float = 0.25
) -> list[Explanation]:
    """Explains objects of one image, by looking at it twice: for what there is, then for what it is made of.

    Args:
        model: with weights, of a method that can explain its masks.
        source: what holds an image, as for ``predict``.
        numbers: the objects, counted from 1, best first; None takes the ``best`` first.
        score: objects below it are not counted.

    A model that predicts in tiles is explained tile by tile; objects that two tiles see are counted twice.

    Raises:
        ConfigError: the method explains nothing.
        DataError: an image without such objects, or with fewer; a model in training mode.
    """
    from instseg.sources.sources import as_tensor

    net = model.net
    if not isinstance(net, Explains):
        raise ConfigError(
            f"{model.name} aggregates nothing that could be explained: give a model of the SODAR family "
            '(`instseg models "sodar*"`), trained with `instseg train DATA --model sodar_r50`.'
        )
    require_weights(model)
    if model.training:
        raise DataError("the model is in training mode: call model.eval() before explaining.")
    image = as_tensor(source, model.image_rule)
    objects = _Objects(score)
    model.predict_batch([image], observer=objects)
    found = sorted(objects.found, key=lambda item: -item[0])
    wanted = list(range(1, min(best, len(found)) + 1)) if numbers is None else list(numbers)
    if not found:
        raise DataError(f"no object with a score of {score} or more was found: lower --score, or give another image.")
    beyond = [n for n in wanted if not 1 <= n <= len(found)]
    if beyond:
        raise DataError(f"object {beyond[0]} does not exist: {len(found)} were found with a score of {score} or more.")
    again = _Explained(model, net, {n: found[n - 1] for n in wanted})
    model.predict_batch([image], observer=again)
    return [again.explained[n] for n in wanted]


def write_explanations(model: InstanceModel, source: Any, found: Sequence[Explanation], out: Path | str) -> list[Path]:
    """A picture of each explanation in the folder ``out``: ``<image>-<number>.png``."""
    from instseg.vis.explain import draw_aggregation

    stem = Path(source).stem if isinstance(source, str | Path) else "image"
    stem = "stdin" if str(source) == "-" else stem
    written = []
    for item in found:
        title = f"{model.categories[item.label]} {item.score:.2f}, {model.name}: {item.trace.title}"
        path = Path(out) / f"{stem}-{item.number}.png"
        figure = draw_aggregation(title, item.shown.permute(1, 2, 0).numpy(), item.content, item.trace)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        written.append(path)
    return written
