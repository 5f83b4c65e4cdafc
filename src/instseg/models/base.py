"""The contract of a network: what goes in, what comes out, and what it may offer besides.

Everything outside ``models/`` knows a network by this file alone: no other room asks which method runs. A method is
three pure steps, :meth:`Net.forward`, :meth:`Net.loss` and :meth:`Net.decode`, all in pixels of the network input.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.core.target import Need as Need
from instseg.core.target import Target as Target
from instseg.core.trace import Trace as Trace


@dataclass(frozen=True)
class ImageBatch:
    """Images side by side.

    Attributes:
        pixels: (B, 3, H, W) float, normalized, zero in the padding (right and below); sides are multiples of
            ``Net.stride``.
        sizes: (B, 2) int64 on the CPU, (h, w) of each image without padding. Proposals and boxes are clipped to it.
    """

    pixels: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def padded(self) -> tuple[int, int]:
        """(H, W) of the batch."""
        return int(self.pixels.shape[-2]), int(self.pixels.shape[-1])

    @classmethod
    def of(cls, pixels: Tensor) -> "ImageBatch":
        """A batch (B, 3, H, W) without padding."""
        return cls(pixels, torch.tensor([pixels.shape[-2:]] * len(pixels), dtype=torch.int64).view(-1, 2))


def _alone(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Step:
    """Where a training run is, for losses that sample, draw noise, have phases or normalize over all processes.

    Attributes:
        update: finished updates of the run.
        epoch: finished epochs of the run.
        generator: on the CPU, seeded for this update and process, so that a resumed run draws the same; None outside
            a training run, where torch's own is used.
        mean: the mean of a tensor over all processes, without gradient.
        processes: the number of them; 1 where each normalizes for itself.
    """

    update: int = 0
    epoch: int = 0
    generator: torch.Generator | None = None
    mean: Callable[[Tensor], Tensor] = _alone
    processes: int = 1

    def shared(self, count: Tensor, least: float = 1.0) -> Tensor:
        """What a process divides its sum by, so that the mean over the processes is what one process with all images
        would find: their joint ``count``, at least ``least``, over the number of processes. All of them have to ask.
        """
        return self.mean(count.float()).clamp(min=least / self.processes)


@dataclass(frozen=True)
class LossTerms:
    """What a network returns in training.

    Attributes:
        losses: scalars by name, weighted; their sum is what the backward pass starts from.
        logs: scalars by name that are only shown and written, such as the number of positives.
    """

    losses: dict[str, Tensor]
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a network finds in one image.

    Attributes:
        instances: the objects, best first, in pixels of the network input; ``instances.image_size`` is its content
            without padding.
        source: (M,) int64, the cell, location or proposal that each object comes from, as the network numbers them.
        semantic: (C', h, w) scores of a semantic branch, or None.
    """

    instances: Instances
    source: Tensor
    semantic: Tensor | None = None


@dataclass(frozen=True)
class ClassLayout:
    """How the rows (dimension 0) of a tensor belong to classes: ``anchors`` groups, in each the classes one after the
    other, for each class ``repeat`` rows.

    Attributes:
        repeat: rows of each class: 4 for the boxes of each class.
        anchors: groups of rows.
        background: whether a class more stands first or last.
    """

    repeat: int = 1
    anchors: int = 1
    background: Literal["first", "last"] | None = None

    def rows(self, num_classes: int) -> int:
        """The number of rows for ``num_classes`` classes."""
        return self.anchors * self.repeat * (num_classes + (self.background is not None))

    def classes(self, rows: int) -> int | None:
        """The number of classes of a tensor of ``rows`` rows; None where no number fits."""
        count, rest = divmod(rows, self.anchors * self.repeat)
        count -= self.background is not None
        return None if rest or count < 1 else count

    def take(self, tensor: Tensor, chosen: Sequence[int | None], fallback: Tensor) -> Tensor:
        """A tensor for other classes: the rows of class ``chosen[k]`` for class ``k``, of ``fallback`` where None.

        Args:
            tensor: (rows for its own classes, ...).
            chosen: for each new class the class of ``tensor``.
            fallback: (rows for ``len(chosen)`` classes, ...), as the new network begins.
        """
        shape = tensor.shape[1:]
        old = tensor.reshape(self.anchors, -1, self.repeat, *shape)
        new = fallback.clone().reshape(self.anchors, -1, self.repeat, *shape)
        shift = 1 if self.background == "first" else 0
        for k, c in enumerate(chosen):
            if c is not None:
                new[:, k + shift] = old[:, c + shift]
        if self.background is not None:
            place = 0 if self.background == "first" else -1
            new[:, place] = old[:, place]
        return new.reshape(-1, *shape)


O = TypeVar("O")  # noqa: E741  the plan's own letter: a frozen dataclass of raw outputs


class Net(nn.Module, ABC, Generic[O]):
    """A network, its loss and its decoding.

    An entry of the zoo names a subclass, which is built from its configuration: ``entry.net(config)``. The
    configuration's inference settings (:func:`instseg.models.config.setting_names`) may be replaced at any time by
    assigning ``net.config``; no parameter may depend on them.
    """

    stride: ClassVar[int] = 32  # sides of the padded batch are multiples of it
    needs: ClassVar[frozenset[Need]] = frozenset({"masks"})
    optional: ClassVar[frozenset[Need]] = frozenset()  # used where the data has it
    # Some parameters may get no gradient in an update (a level without an object): processes have to look for them.
    may_leave_unused: ClassVar[bool] = False
    watched_loss: ClassVar[str | None] = None  # one that stands still at its start when training has failed

    @abstractmethod
    def forward(self, batch: ImageBatch) -> O:
        """Raw outputs, a frozen dataclass of tensors that keeps the batch's ``sizes`` where decoding needs them."""

    @abstractmethod
    def loss(self, outputs: O, targets: Sequence[Target], step: Step) -> LossTerms:
        """The losses of a batch; ``targets`` are in the order of its images, and may be empty of objects."""

    @abstractmethod
    def decode(self, outputs: O) -> list[Found]:
        """What is found in each image, in pixels of the network input."""

    @abstractmethod
    def class_layers(self) -> Mapping[str, ClassLayout]:
        """The tensors of the state with rows for each class, by name, and how those rows lie."""


# --- what a network may offer besides: asked for by isinstance of the protocol ------------------------------------


@runtime_checkable
class Fuses(Protocol):
    """Can make one result of several for the same image, as seen at several scales."""

    def fuse(self, parts: Sequence[Instances], size: tuple[int, int]) -> Instances:
        """One result, best first.

        Args:
            parts: the objects found at each scale, all in pixels of one image.
            size: (h, w) of a map on which their masks are compared.
        """
        ...


@runtime_checkable
class MasksOfBoxes(Protocol):
    """Can segment what lies in given boxes (`val --boxes-from`)."""

    def masks_of_boxes(self, outputs: Any, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Masks]:
        """The masks of each image; ``boxes`` (M, 4) xyxy in pixels of the network input and ``labels`` (M,) of each."""
        ...


@runtime_checkable
class Explains(Protocol):
    """Can say what a mask is made of."""

    def explain(self, outputs: Any, image: int, source: int) -> Trace:
        """How the mask of the object from ``source`` (as in :class:`Found`) in one image of the batch comes about."""
        ...


@runtime_checkable
class Staged(Protocol):
    """Names its parts in the order in which a batch passes them, for timing and for counting."""

    def stages(self) -> Mapping[str, nn.Module]:
        """Modules by name; their times are those of their ``forward``."""
        ...


@runtime_checkable
class Counted(Protocol):
    """Knows what its published code computes, where ours computes less."""

    def as_published(self, batch: ImageBatch) -> None:
        """Computes everything that the published code does, for counting multiply-adds."""
        ...


@runtime_checkable
class HasBackbone(Protocol):
    """Has a pretrained feature extractor: what ``backbone_weights`` fills."""

    backbone: Any


@runtime_checkable
class Extends(Protocol):
    """Is another network with something on top, and can start from that network's checkpoint."""

    @classmethod
    def host(cls) -> type[nn.Module]:
        """The class of the network below."""
        ...

    @classmethod
    def host_fields(cls, config: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that this network takes over of the host's complete configuration.

        Args:
            config: of the host.
            named: what the name of this network in the zoo changes of its defaults.
        """
        ...


@runtime_checkable
class Graphs(Protocol):
    """Can be exported as one graph."""

    def graph(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """From a normalized batch and its sizes to tensors of fixed rank; see the exporters."""
        ...
