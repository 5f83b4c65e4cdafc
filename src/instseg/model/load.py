"""Making a model: of the zoo with random weights, or from a checkpoint that a MODEL text names."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from instseg.core.categories import Categories
from instseg.core.errors import CheckpointError, ConfigError
from instseg.data.images.read import ImageRule
from instseg.model.instance_model import InstanceModel
from instseg.model.start import fill
from instseg.model.with_config import reconfigure, unfit, with_fields
from instseg.models.base import HasBackbone
from instseg.models.config import ModelConfig
from instseg.models.zoo import MODELS, build_config, build_net, fields_from
from instseg.nn.backbone import Backbone, imagenet_reachable, load_backbone_weights
from instseg.weights.checkpoint import Checkpoint
from instseg.weights.fit import filled
from instseg.weights.resolve import read_weights, resolve


def create_model(
    name: str,
    num_classes: int | None = None,
    weights: str | os.PathLike[str] | Checkpoint | None = None,
    backbone_weights: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    categories: Categories | None = None,
) -> InstanceModel:
    """A model of the zoo. See :func:`instseg.create_model`."""
    checkpoint = weights if isinstance(weights, Checkpoint) else None
    if weights is not None and not isinstance(weights, Checkpoint):
        checkpoint = read_weights(weights, name)
    known = fields_from(name, checkpoint.model, checkpoint.config) if checkpoint is not None else {}
    fields = {**known, **(overrides or {})}
    count = num_classes if num_classes is not None else (len(categories) if categories else None)
    if count is not None:
        fields["num_classes"] = count
    source = None if backbone_weights in (None, "none") else str(backbone_weights)
    if source == "auto":
        source = "imagenet" if checkpoint is None and _has_imagenet(name, build_config(name, fields)) else None
    if source is not None:
        # As published: with ImageNet weights the stem and the first stage stay, and batch norms keep their statistics.
        fields = {"frozen_stages": 1, "norm_eval": True, **fields}
    config = build_config(name, fields)
    model = InstanceModel(name, config, categories)
    model.extra["backbone_weights"] = "none"
    if source is not None:
        backbone = _backbone(model.net)
        if backbone is None:
            raise ConfigError(f"{name} has no backbone that backbone_weights={source} could fill: leave it out.")
        model.extra["backbone_weights"] = load_backbone_weights(backbone, source)
    if checkpoint is not None:
        own = categories.names if categories is not None else None
        fill(model.net, name, config, own, checkpoint)
        model.has_weights = True
        if categories is None and len(checkpoint.categories) == config.num_classes:
            model.set_categories(checkpoint.categories)
    return model


def _has_imagenet(name: str, config: ModelConfig) -> bool:
    with torch.device("meta"):  # which backbone a network has, and whether it has one, is its own to say
        backbone = _backbone(build_net(name, config))
    if backbone is None:
        return False
    found = imagenet_reachable(backbone)
    if not found:
        warnings.warn(
            f"no ImageNet weights for backbone {config.backbone}: neither cached nor reachable. Training starts from "
            "scratch and needs far more epochs; give backbone_weights=FILE to start from a file.",
            stacklevel=3,
        )
    return found


def _backbone(net: nn.Module) -> Backbone | None:
    """What pretrained weights fill; None for a network without a backbone of ours."""
    found = net.backbone if isinstance(net, HasBackbone) else None
    return found if isinstance(found, Backbone) else None


def load(text: str | os.PathLike[str], device: str | torch.device | None = None) -> InstanceModel:
    """A model in evaluation mode. Nothing but a published file that is not there yet is fetched.

    Args:
        text: what the command line calls MODEL: a file that ``save`` or a training run wrote, a run folder, a published
            checkpoint of another code base (``.pth``, or a name of the catalogue such as ``"coco"``), ``"nuclei"``, or
            a name of the zoo, whose model has random weights and says so in ``has_weights``.
        device: where to put it; None leaves it on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, not ours, or of a model or with a field that this version does
            not know.
        ConfigError: it is neither a file nor a name.
    """
    return _opened(text, device, {})


def _opened(
    text: str | os.PathLike[str], device: str | torch.device | None, fields: Mapping[str, Any]
) -> InstanceModel:
    checkpoint = resolve(text)
    model = create_model(os.fspath(text), overrides=fields) if checkpoint is None else _restored(checkpoint, fields)
    model.eval()
    return model.to(device) if device is not None else model


def _restored(checkpoint: Checkpoint, fields: Mapping[str, Any]) -> InstanceModel:
    where = checkpoint.where
    if checkpoint.model not in MODELS:
        raise CheckpointError(
            f'{where} holds a "{checkpoint.model[:80]}", which this version of instseg does not know: update it.'
        )
    try:
        own = build_config(checkpoint.model, checkpoint.config)
        ImageRule.from_json(checkpoint.extra.get("image_rule"))
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where} cannot be used: {error}") from None
    config = with_fields(checkpoint.model, own, fields)
    try:
        model = _built(checkpoint, config)
    except CheckpointError:
        _built(checkpoint, own)  # raises where the checkpoint itself is at fault
        raise unfit(checkpoint.model, fields) from None
    model.has_weights = True
    model.extra = checkpoint.extra
    return model


def _built(checkpoint: Checkpoint, config: ModelConfig) -> InstanceModel:
    try:
        return InstanceModel(checkpoint.model, config, checkpoint.categories, filled(checkpoint, config))
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint.where} cannot be used: {error}") from None


def resolve_model(
    model: str | os.PathLike[str] | InstanceModel, device: str | None = None, fields: Mapping[str, Any] | None = None
) -> InstanceModel:
    """As :func:`load`, also of a model that is there already.

    Args:
        model: it, or what names it.
        device: where to put it; None leaves it where it is.
        fields: of its configuration that are to be others than its own; whichever they are, a network that is loaded
            is built once.
    """
    if not isinstance(model, InstanceModel):
        return _opened(model, device, fields or {})
    model = reconfigure(model, fields or {})
    return model.to(device) if device is not None else model
