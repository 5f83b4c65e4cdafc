"""The model as users meet it: images in, objects out; saved to one file."""

import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from instseg.core.categories import Categories
from instseg.core.errors import ConfigError, DataError
from instseg.core.instances import Instances
from instseg.data.images.read import ImageRule
from instseg.model.pipeline import Observer, Pipeline
from instseg.model.preprocess import Preprocess
from instseg.model.ready import Learned
from instseg.model.targets import sizes_of, targets_of
from instseg.models.base import LossTerms, Net, Step, Target
from instseg.models.config import ModelConfig
from instseg.models.zoo import build_net
from instseg.weights.checkpoint import Checkpoint, write_checkpoint

if TYPE_CHECKING:
    from instseg.model.predicting import ImageError
    from instseg.results.prediction import Prediction


class InstanceModel(nn.Module):
    """A network with its preprocessing, categories and configuration.

    In training mode ``model(images, targets)`` returns a dictionary of losses; in evaluation mode ``model(images)``
    returns what torchvision's detection models return. ``predict`` takes whatever holds an image.

    Attributes:
        name: in the zoo.
        config: its configuration.
        categories: the name of each label.
        net: the network.
        extra: what else a checkpoint remembers.
    """

    def __init__(
        self, name: str, config: ModelConfig, categories: Categories | None = None, net: Net[Any] | None = None
    ) -> None:
        """Around ``net``, or a new network. Raises ConfigError when there are not ``num_classes`` categories; by
        default they are numbered."""
        super().__init__()
        self.name = name
        self.config = config
        self.net: Net[Any] = build_net(name, config) if net is None else net
        self._learned = Learned()
        self.net.register_load_state_dict_post_hook(self._learned.loaded)  # type: ignore[no-untyped-call]
        self.extra: dict[str, Any] = {}
        self._warned = False
        self.categories = Categories.from_names([f"class {i}" for i in range(config.num_classes)])
        if categories is not None:
            self.set_categories(categories)

    def set_categories(self, categories: Categories) -> None:
        """Names the labels. Raises ConfigError when there are not ``num_classes`` of them."""
        if len(categories) != self.config.num_classes:
            raise ConfigError(f"{len(categories)} categories for a model of {self.config.num_classes} classes.")
        self.categories = categories

    @property
    def has_weights(self) -> bool:
        """Whether its weights are more than random numbers: loaded, or changed by training in whatever loop."""
        return self._learned.holds(self.net)

    @has_weights.setter
    def has_weights(self, known: bool) -> None:
        self._learned.say(known)

    def __getstate__(self) -> dict[str, Any]:
        self._learned.watch(self.net)  # a copy may be trained by other means than its own losses, as averages are
        return self.__dict__

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As :meth:`torch.nn.Module.load_state_dict`."""
        with self._learned.loading():
            return super().load_state_dict(state_dict, strict, assign)

    def _apply(self, fn: Any, recurse: bool = True) -> "InstanceModel":
        with self._learned.converted(self.net):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The id that the training data's own file gives each label."""
        return self.categories.ids

    @property
    def preprocess(self) -> Preprocess:
        """How images become inputs of the network."""
        return Preprocess(self.config, self.net.stride)

    @property
    def image_rule(self) -> ImageRule:
        """How files became pixels in training; prediction reads them the same way."""
        return ImageRule.from_json(self.extra.get("image_rule"))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None, *, resize: bool = True
    ) -> Any:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: (3, H, W) each, RGB, float in [0, 1] or uint8; sizes may differ.
            targets: for training, one dictionary an image: ``boxes`` (N, 4) float xyxy (by default the tight boxes
                of the masks), ``labels`` (N,) int64, ``masks`` (N, H, W) uint8, bool, or float mattes in [0, 1] (may
                be absent where the method uses none), ``semantic`` (H, W) int64 for methods that use it, 255 ignored.
                N may be 0.
            resize: False where the images are already at network scale.

        Returns:
            a dictionary of scalar losses to be summed, or for each image ``boxes`` (M, 4), ``labels`` (M,),
            ``scores`` (M,) descending, ``masks`` (M, 1, H, W) float in [0, 1]; a detector of boxes has no ``masks``.

        Raises:
            DataError: a target does not fit its image or the model, or an image is none.
        """
        if not self.training:
            sizes_of(images)
            return [self._as_dict(found) for found in self.predict_batch(images)]
        if targets is None:
            raise DataError("targets are needed in training mode: give them, or call model.eval() first.")
        net, classes = self.net, self.config.num_classes
        made = targets_of(targets, sizes_of(images), classes, net.needs, net.needs | net.optional, self.device)
        return self.loss_terms(images, made, resize=resize).losses

    def _as_dict(self, found: Instances) -> dict[str, Tensor]:
        result = {"boxes": found.boxes.to(self.device), "labels": found.labels, "scores": found.scores}
        return result if found.masks is None else {**result, "masks": found.masks.soft()[:, None]}

    def loss_terms(
        self, images: Sequence[Tensor], targets: Sequence[Target], step: Step | None = None, *, resize: bool = False
    ) -> LossTerms:
        """The losses of a batch, and what is only shown and written.

        Args:
            images: as in :meth:`forward`.
            targets: of each image, in its pixels, on the model's device.
            step: where the training run is.
            resize: True where the images are not at network scale yet.
        """
        inputs = []
        scaled = list(targets)
        for i, image in enumerate(images):
            size = (int(image.shape[-2]), int(image.shape[-1]))
            if resize:
                size = self.preprocess.target_size(*size)
                scaled[i] = self.preprocess.resize_target(scaled[i], size)
            inputs.append(self.preprocess.resize_image(image.to(self.device), size))
        if torch.is_grad_enabled():
            self._learned.watch(self.net)
        return self.net.loss(self.net(self.preprocess.batch(inputs)), scaled, step or Step())

    def predict_batch(
        self, images: Sequence[Tensor], *, scales: tuple[float, ...] = (1.0,), observer: Observer | None = None
    ) -> list[Instances]:
        """The objects of each image, in evaluation mode; those of an image do not depend on what others are with it.

        With ``config.tile`` larger images are cut into tiles.

        Args:
            images: (3, H, W), uint8 or float in [0, 1], on any device.
            scales: sizes of the input at which each image is looked at, relative to the model's own.
            observer: sees the steps in between.

        Raises:
            DataError: the model is in training mode.
            ConfigError: several scales, and a model that cannot join what it finds at them.
        """
        if self.training:
            raise DataError("the model is in training mode: call model.eval() before predicting.")
        found = Pipeline(self.net, self.preprocess, scales).run(images, self.device, observer)
        if any(f.truncated for f in found) and not self._warned:
            self._warned = True
            warnings.warn(
                f"an image holds more than max_instances={self.config.max_instances} objects; only the best are kept. "
                "Raise max_instances (and nms_pre with it) to see the rest.",
                stacklevel=2,
            )
        return found

    def predict(self, source: Any, *, batch: int = 1) -> "Prediction | list[Prediction | ImageError]":
        """The objects of one image, or of each of a list, folder or glob.

        Args:
            source: a path, URL, PIL image, NumPy array (H, W, 3) RGB uint8, tensor (3, H, W), or a list of them. In a
                list, or anything else that is iterated over, each image keeps its place; one that cannot be read is
                an ``ImageError`` there, with a warning. A folder or glob returns the images that can be read, and
                warns of the others.
            batch: images given to the network at once.

        Raises:
            DataError: the image, or every one of several, is missing or cannot be read.
            CheckpointError: the model has no weights.
        """
        from instseg.model.predicting import predict

        return predict(self, source, batch=batch)

    def stream(
        self, source: Any, *, batch: int = 1, workers: int | None = None
    ) -> "Generator[Prediction | ImageError]":
        """The predictions of any number of images, in order, in bounded memory, while others are read ahead.

        Args:
            source: as in :meth:`predict`, also an iterator without end.
            batch: images given to the network at once.
            workers: threads that read images; chosen from the cores when None, 0 reads between the batches.

        Returns:
            an iterator of predictions; an image that cannot be read is an ``ImageError`` in its place and stops
            nothing. Leaving it early stops the threads.
        """
        from instseg.model.predicting import stream

        return stream(self, source, batch=batch, workers=workers)

    def save(self, path: str | os.PathLike[str], *, half: bool = False) -> None:
        """Writes weights, configuration and categories to one safetensors file that :func:`load` reads.

        Raises CheckpointError when the file cannot be written.
        """
        config = self.config.model_dump(mode="json")
        write_checkpoint(
            path, Checkpoint(self.name, config, self.categories, self.net.state_dict(), self.extra), half=half
        )
