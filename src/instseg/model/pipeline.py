"""From images to objects, once for everything that predicts: view, batch, forward, decode, to image, merge."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from instseg.core.errors import ConfigError
from instseg.core.geometry import InputGeometry
from instseg.core.instances import Instances
from instseg.model.preprocess import Preprocess
from instseg.model.tiles.tiles import merge_tiles, tile_views
from instseg.models.base import Found, Fuses, ImageBatch, Net

# Multi-scale testing: SOLO (journal) section 4.3 and table 6d. Short sides of 600, 800 and 1000 pixels for a model
# that is tested at 800; the results of all scales pass the model's NMS once more.
SCALES = (0.75, 1.0, 1.25)
# Parts of one image that pass the network together.
TILE_BATCH = 4
# Of the map on which the masks of all scales are compared, pixels of the input at the model's own size.
MAP_STRIDE = 4

# What an observer can time: viewing and batching, the forward pass, decoding and placing in the image, making one
# result of several for one image.
Stage = Literal["preprocess", "network", "decode", "join"]


@dataclass(frozen=True)
class View:
    """What one input of the network shows.

    Attributes:
        image: the position of the image among those given.
        geometry: the part of it, and its size in the input.
        padded: (H, W) of the batch. Inputs share a pass only where it is the same: grids lie over the padding.
    """

    image: int
    geometry: InputGeometry
    padded: tuple[int, int]


@dataclass(frozen=True)
class Pass:
    """One forward pass and what came of it.

    Attributes:
        views: of each input of the batch.
        batch: the inputs.
        outputs: the network's own.
        found: in each input, in its pixels.
    """

    views: Sequence[View]
    batch: ImageBatch
    outputs: Any
    found: Sequence[Found]


class Observer:
    """Sees a pipeline at work, and changes nothing. What is not overridden does nothing."""

    def done(self, stage: Stage) -> None:
        """A stage has just ended; the next has not begun."""

    def passed(self, one: Pass) -> None:
        """A batch has been decoded."""


@dataclass(frozen=True)
class Pipeline:
    """Everything between images and the objects in them.

    Attributes:
        net: in evaluation mode.
        preprocess: how it is shown images; its configuration also says whether in tiles.
        scales: of the input, relative to the model's own size.
    """

    net: Net[Any]
    preprocess: Preprocess
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.scales == (1.0,):
            return
        if self.preprocess.config.tile is not None:
            raise ConfigError("the model predicts in tiles: multi-scale testing is for whole images, set tile=null.")
        if not isinstance(self.net, Fuses):
            raise ConfigError("this method cannot join what it finds at several scales: leave out --tta (tta=True).")

    def views(self, number: int, image: Tensor) -> list[View]:
        """How image ``number`` (3, H, W) is shown: whole, at each scale, or in tiles."""
        pre, tile = self.preprocess, self.preprocess.config.tile
        if tile is None:
            shown = [pre.at_scale(s).view(image) if s != 1 else pre.view(image) for s in self.scales]
            return [View(number, one, pre.padded(*one.content)) for one in shown]
        size = (int(image.shape[-2]), int(image.shape[-1]))
        shown = tile_views(size, pre.scale(*size), tile, pre.config.tile_overlap)
        return [View(number, one, pre.padded(tile, tile)) for one in shown]

    # Not inference mode, even where the caller is in it: what a network caches there, such as anchors, could not take
    # part in training afterwards.
    @torch.inference_mode(False)
    @torch.no_grad()
    def run(self, images: Sequence[Tensor], device: torch.device, observer: Observer | None = None) -> list[Instances]:
        """The objects of each image (3, H, W), uint8 or float in [0, 1]; they are the same whatever other images are
        given with it."""
        watch = observer or Observer()
        views = [view for number, image in enumerate(images) for view in self.views(number, image)]
        found: dict[int, Instances] = {}
        for together in passes(views):
            chosen = [views[k] for k in together]
            found |= dict(zip(together, self._pass(images, chosen, device, watch), strict=True))
        parts: list[list[tuple[InputGeometry, Instances]]] = [[] for _ in images]
        for k, view in enumerate(views):
            parts[view.image].append((view.geometry, found[k]))
        joined = [self._join([g for g, _ in of_image], [one for _, one in of_image]) for of_image in parts]
        watch.done("join")
        return joined

    def _pass(
        self, images: Sequence[Tensor], views: Sequence[View], device: torch.device, watch: Observer
    ) -> list[Instances]:
        inputs = [self._shown(images[v.image], v.geometry, device) for v in views]
        batch = self.preprocess.batch(inputs, views[0].padded)
        watch.done("preprocess")
        outputs = self.net(batch)
        watch.done("network")
        found = self.net.decode(outputs)
        placed = [f.instances.to_image(v.geometry) for f, v in zip(found, views, strict=True)]
        watch.done("decode")
        watch.passed(Pass(views, batch, outputs, found))
        return placed

    def _shown(self, image: Tensor, geometry: InputGeometry, device: torch.device) -> Tensor:
        (top, left), (height, width) = geometry.offset, geometry.size
        part = image[:, top : top + height, left : left + width]
        return self.preprocess.resize_image(part.to(device), geometry.content)

    def _join(self, shown: Sequence[InputGeometry], parts: Sequence[Instances]) -> Instances:
        if len(parts) == 1:
            return parts[0]
        if self.preprocess.config.tile is not None:
            return merge_tiles(parts, shown, self.preprocess.config.max_instances)
        assert isinstance(self.net, Fuses)  # __post_init__
        height, width = self.preprocess.target_size(*shown[0].image_size)
        return self.net.fuse(parts, (-(-height // MAP_STRIDE), -(-width // MAP_STRIDE)))


def passes(views: Sequence[View]) -> Iterator[list[int]]:
    """Which views share a forward pass: whole images of one padded size, and parts of one image a few at a time."""
    counts: dict[int, int] = {}
    for view in views:
        counts[view.image] = counts.get(view.image, 0) + 1
    groups: dict[tuple[int | None, tuple[int, int]], list[int]] = {}
    for k, view in enumerate(views):
        groups.setdefault((view.image if counts[view.image] > 1 else None, view.padded), []).append(k)
    for (part_of, _), members in groups.items():
        step = len(members) if part_of is None else TILE_BATCH
        yield from (members[i : i + step] for i in range(0, len(members), step))
