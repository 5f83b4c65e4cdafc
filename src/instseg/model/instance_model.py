"""The model as users meet it: images in, objects out; saved to one file and loaded from it."""

import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from instseg.core.categories import Categories
from instseg.core.errors import CheckpointError, ConfigError, DataError, did_you_mean
from instseg.core.geometry import InputGeometry
from instseg.core.instances import Instances
from instseg.core.shapes import Shapes
from instseg.data.images.read import ImageRule
from instseg.model.preprocess import Preprocess
from instseg.model.start import check_fit, fill
from instseg.model.tiles.tiles import merge_tiles, tile_views
from instseg.models.base import Found, LossTerms, Step, Target
from instseg.models.config import ModelConfig
from instseg.models.zoo import MODELS, build_config, build_net, fields_from
from instseg.nn.backbone import Backbone, imagenet_reachable, load_backbone_weights
from instseg.weights.catalogue import CATALOGUE, published_for
from instseg.weights.checkpoint import Checkpoint, write_checkpoint
from instseg.weights.source import BUNDLED, is_run_folder, read_weights

if TYPE_CHECKING:
    from instseg.model.predicting import ImageError
    from instseg.results.prediction import Prediction

# Tiles of one image that pass the network together.
TILE_BATCH = 4


class InstanceModel(nn.Module):
    """A network with its preprocessing, categories and configuration.

    In training mode ``model(images, targets)`` gives a dictionary of losses; in evaluation mode ``model(images)``
    gives what torchvision's detection models give. ``predict`` takes whatever holds an image.

    Args:
        name: in the zoo.
        config: its configuration.
        categories: what its labels mean.
    """

    def __init__(self, name: str, config: ModelConfig, categories: Categories | None = None) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.net: Any = build_net(name, config)  # a module with `loss` and `decode`, as every method's
        self.preprocess = Preprocess(config)
        self.has_weights = False
        self.multi_scale = False  # predict at several scales: see model/scales.py
        self.extra: dict[str, Any] = {}
        self._warned = False
        self.set_categories(categories or Categories.from_names([f"class {i}" for i in range(config.num_classes)]))

    def set_categories(self, categories: Categories) -> None:
        """Names the labels. Raises ConfigError when there are not ``num_classes`` of them."""
        if len(categories) != self.config.num_classes:
            raise ConfigError(f"{len(categories)} categories for a model of {self.config.num_classes} classes.")
        self.meta = categories

    @property
    def categories(self) -> tuple[str, ...]:
        """The name of each label."""
        return self.meta.names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The id that the training data's own file gives each label."""
        return self.meta.ids

    @property
    def image_rule(self) -> ImageRule:
        """How files became pixels in training; prediction reads them the same way."""
        return ImageRule.from_json(self.extra.get("image_rule"))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None, *, resize: bool = True
    ) -> Any:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: (3, H, W) each, RGB, float in [0, 1] or uint8; sizes may differ.
            targets: for training, one dictionary an image: ``boxes`` (N, 4) float xyxy (by default the tight boxes
                of the masks), ``labels`` (N,) int64, ``masks`` (N, H, W) uint8 or bool. N may be 0.
            resize: False where the images are already at network scale, as the training loop's are.

        Returns:
            a dictionary of scalar losses to be summed, or for each image ``boxes`` (M, 4), ``labels`` (M,),
            ``scores`` (M,) descending, ``masks`` (M, 1, H, W) float in [0, 1].

        Raises:
            DataError: a target does not fit its image or the model.
        """
        if self.training:
            if targets is None:
                raise DataError("targets are needed in training mode: give them, or call model.eval() first.")
            return self.losses(images, targets, resize=resize)
        results = []
        for found in self.predict_batch(images):
            result = {"boxes": found.boxes.to(self.device), "labels": found.labels, "scores": found.scores}
            if found.masks is not None:
                result["masks"] = found.masks.soft()[:, None]
            results.append(result)
        return results

    def losses(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]], *, resize: bool = True
    ) -> dict[str, Tensor]:
        """The losses of a batch; arguments as in :meth:`forward`."""
        if len(images) != len(targets):
            raise DataError(f"{len(images)} images but {len(targets)} targets: give one target an image.")
        inputs, scaled = [], []
        for i, (image, target) in enumerate(zip(images, targets, strict=True)):
            image = image.to(self.device)
            target = self._checked(i, image, {k: v.to(self.device) for k, v in target.items() if isinstance(v, Tensor)})
            size = (int(image.shape[-2]), int(image.shape[-1]))
            if resize:
                size = self.preprocess.target_size(*size)
            inputs.append(self.preprocess.resize_image(image, size))
            scaled.append(self.preprocess.resize_target(target, size))
        self.has_weights = True  # being trained, in whatever loop
        made = [
            Target(
                (int(t["masks"].shape[-2]), int(t["masks"].shape[-1])),
                t["labels"],
                t["boxes"],
                Shapes.from_masks(t["masks"]),
            )
            for t in scaled
        ]
        terms: LossTerms = self.net.loss(self.net(self.preprocess.batch(inputs)), made, Step())
        return terms.losses

    def _checked(self, i: int, image: Tensor, target: dict[str, Tensor]) -> dict[str, Tensor]:
        labels, masks = target["labels"], target["masks"]
        if masks.shape != (len(labels), *image.shape[-2:]):
            raise DataError(
                f"target {i}: masks of shape {tuple(masks.shape)} for {len(labels)} labels and an image of "
                f"{tuple(image.shape[-2:])}: give (N, H, W)."
            )
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < self.config.num_classes):
            raise DataError(
                f"target {i}: labels from {int(labels.min())} to {int(labels.max())}, but this model has "
                f"{self.config.num_classes} classes: labels run from 0 to {self.config.num_classes - 1}."
            )
        if "boxes" not in target:
            from instseg.core.geometry import mask_extents

            target["boxes"] = mask_extents(masks.bool()).float()
        return target

    @torch.inference_mode()
    def predict_batch(self, images: Sequence[Tensor]) -> list[Instances]:
        """The objects of each image (3, H, W), uint8 or float in [0, 1], on any device; in evaluation mode.

        With ``config.tile`` larger images are cut into tiles.
        """
        if self.training:
            raise DataError("the model is in training mode: call model.eval() before predicting.")
        if self.multi_scale:
            from instseg.model.scales import predict_scales

            found = [predict_scales(self, image) for image in images]
        elif self.config.tile is None:
            found = self.predict_views(images, [self.preprocess.view(image) for image in images])
        else:
            found = [self._predict_tiled(image, self.config.tile) for image in images]
        if any(f.truncated for f in found) and not self._warned:
            self._warned = True
            warnings.warn(
                f"an image holds more than max_instances={self.config.max_instances} objects; only the best are kept. "
                "Raise max_instances (and nms_pre with it) to see the rest.",
                stacklevel=2,
            )
        return found

    def _predict_tiled(self, image: Tensor, tile: int) -> Instances:
        height, width = int(image.shape[-2]), int(image.shape[-1])
        views = tile_views((height, width), self.preprocess.scale(height, width), tile, self.config.tile_overlap)
        cut = [image[:, v.offset[0] : v.offset[0] + v.size[0], v.offset[1] : v.offset[1] + v.size[1]] for v in views]
        parts: list[Instances] = []
        for i in range(0, len(views), TILE_BATCH):
            parts += self.predict_views(cut[i : i + TILE_BATCH], views[i : i + TILE_BATCH], (tile, tile))
        return merge_tiles(parts, views, self.config.max_instances)

    def predict_views(
        self, images: Sequence[Tensor], views: Sequence[InputGeometry], padded: tuple[int, int] | None = None
    ) -> list[Instances]:
        """The objects of images, or parts of images, that are shown to the network as ``views`` say; ``padded`` is
        the (H, W) of the batch where it must not follow from them."""
        inputs = [
            self.preprocess.resize_image(image.to(self.device), view.content)
            for image, view in zip(images, views, strict=True)
        ]
        outputs = self.net(self.preprocess.batch(inputs, padded))
        found: list[Found] = self.net.decode(outputs)
        return [f.instances.to_image(view) for f, view in zip(found, views, strict=True)]

    def predict(self, source: Any, *, batch: int = 1) -> "Prediction | list[Prediction | ImageError]":
        """The objects of one image, or of each of a list, folder or glob.

        Args:
            source: a path, URL, PIL image, NumPy array (H, W, 3) RGB uint8, tensor (3, H, W), or a list of them. In a
                list each image keeps its place; one that cannot be read is an ``ImageError`` there, with a warning. A
                folder or glob returns the images that can be read, and warns of the others.
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
        write_checkpoint(path, Checkpoint(self.name, config, self.meta, self.net.state_dict(), self.extra), half=half)


def create_model(
    name: str,
    num_classes: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    backbone_weights: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    categories: Categories | None = None,
) -> InstanceModel:
    """A model of the zoo. See :func:`instseg.create_model`."""
    checkpoint = read_weights(weights, name) if weights is not None else None
    known = fields_from(name, checkpoint.model, checkpoint.config) if checkpoint is not None else {}
    fields = {**known, **(overrides or {})}
    count = num_classes if num_classes is not None else (len(categories) if categories else None)
    if count is not None:
        fields["num_classes"] = count
    source = None if backbone_weights in (None, "none") else str(backbone_weights)
    if source is not None:
        # As published: with ImageNet weights the stem and the first stage stay, and batch norms do not train.
        fields = {"frozen_stages": 1, "norm_eval": True, **fields}
    config = build_config(name, fields)
    if source == "auto":
        source, config = _resolve_auto(name, config, fields)
    model = InstanceModel(name, config, categories)
    if source is not None:
        model.extra["backbone_weights"] = load_backbone_weights(_backbone(model), source)
    else:
        model.extra["backbone_weights"] = "none"
    if checkpoint is not None:
        own = categories.names if categories is not None else None
        fill(model.net, name, config, own, checkpoint, os.fspath(str(weights)))
        model.has_weights = True
        if categories is None and len(checkpoint.categories) == config.num_classes:
            model.set_categories(checkpoint.categories)
    return model


def _resolve_auto(name: str, config: ModelConfig, fields: dict[str, Any]) -> tuple[str | None, ModelConfig]:
    if imagenet_reachable(Backbone(config.backbone)):
        return "imagenet", config
    warnings.warn(
        f"no ImageNet weights for backbone {config.backbone}: neither cached nor reachable. Training starts from "
        "scratch and needs far more epochs; give backbone_weights=FILE to start from a file.",
        stacklevel=3,
    )
    return None, build_config(name, {**fields, "frozen_stages": 0, "norm_eval": False})


def _backbone(model: InstanceModel) -> Backbone:
    backbone = model.net.backbone
    assert isinstance(backbone, Backbone)
    return backbone


def load(path: str | os.PathLike[str], device: str | torch.device | None = None) -> InstanceModel:
    """A ready model in evaluation mode. Nothing but a published file that is not there yet is fetched.

    Args:
        path: a file that ``save`` or a training run wrote, a run folder, a published checkpoint of another code base
            (``.pth``, or a name of the catalogue such as ``"coco"``), or ``"nuclei"``.
        device: where to put it; None leaves it on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, not ours, or of a model or with a field that this version does
            not know.
    """
    checkpoint, where = read_weights(path), os.fspath(path)
    if checkpoint.model not in MODELS:
        raise CheckpointError(
            f'{where} holds a "{checkpoint.model[:80]}", which this version of instseg does not know: update it.'
        )
    try:
        config = build_config(checkpoint.model, checkpoint.config)
        check_fit(checkpoint, config, where)  # before memory is taken for what the configuration says
        model = InstanceModel(checkpoint.model, config, checkpoint.categories)
        ImageRule.from_json(checkpoint.extra.get("image_rule"))
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where} cannot be used: {error}") from None
    model.net.load_state_dict(checkpoint.state)
    model.has_weights = True
    model.extra = checkpoint.extra
    model.eval()
    return model.to(device) if device is not None else model


def resolve_model(text: str | os.PathLike[str] | InstanceModel, device: str | None = None) -> InstanceModel:
    """What the command line calls MODEL: ``nuclei``, ``coco`` or another published name, a file, a run folder, or a
    name of the zoo. A folder that holds no run does not stand in the way of a name.

    Raises:
        CheckpointError: its file cannot be had or read.
        ConfigError: it is none of them.
    """
    if isinstance(text, InstanceModel):
        return text.to(device) if device is not None else text
    name, path = os.fspath(text), Path(text)
    if name in MODELS and not path.is_file() and not is_run_folder(path):
        model = create_model(name).eval()
        return model.to(device) if device is not None else model
    if name in BUNDLED or name in CATALOGUE or path.exists() or path.suffix:
        return load(path, device)
    known = did_you_mean(name, [*BUNDLED, *CATALOGUE, *MODELS])
    raise ConfigError(
        f'"{name}" is neither a file, a run folder, "nuclei", "coco", a published checkpoint, nor a model of the zoo.'
        f"{known} `instseg models` lists them."
    )


def require_weights(model: InstanceModel) -> None:
    """Raises CheckpointError for a model with random weights: its predictions would be noise."""
    if not model.has_weights:
        names = [entry.name for entry in published_for(model.name)]
        published = f", a published checkpoint of it ({names[0]})" if names else ""
        raise CheckpointError(
            f"{model.name} has no weights: give coco, nuclei, a file, a run folder{published}, or train it first "
            f"(instseg train DATA --model {model.name})."
        )
