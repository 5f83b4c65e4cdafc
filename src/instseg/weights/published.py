"""Checkpoints of other code bases: whose a file is, of which model of the zoo, and its tensors under our names."""

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instseg.core.categories import Categories
from instseg.core.errors import CheckpointError
from instseg.models.zoo import MODELS, build_config, extends, get_entry
from instseg.weights import adelaidet, aggmask, mmdet, solo
from instseg.weights.checkpoint import Checkpoint
from instseg.weights.coco_names import coco_categories
from instseg.weights.facts import Facts, read_facts
from instseg.weights.fit import outline
from instseg.weights.renaming import CodeBase, Converted

CODE_BASES: tuple[CodeBase, ...] = (adelaidet, mmdet, aggmask, solo)  # the first that recognizes a file has it
# Every code base trains with the stem and the first stage as they are, and with batch norms that keep their statistics.
_FROZEN: dict[str, Any] = {"frozen_stages": 1, "norm_eval": True}
# Methods that are not in the zoo yet, by the first part of a tensor's name; the first that fits has the file.
_OTHERS = (
    (r"proposal_generator\.MEInst_head\.", "MEInst"),
    (r"(bbox_head\.)?controller\.", "CondInst"),
    (r"proposal_generator\.fcos_head\.|bbox_head\.conv_centerness\.", "FCOS"),
    (r"head\.mask_pred_\d+\.", "TensorMask"),
    (r"roi_heads?\.(mask_head|mask_predictor)\.", "Mask R-CNN"),
)
_WRAPPERS = ("state_dict", "model")
_AROUND = ("module.", "model.", "_orig_mod.")
# Averages of the weights and counts that hooks of training write beside the network, and the normalization of images.
_BESIDE = r"ema_|(steps?|iter|epoch|num_updates)$|data_preprocessor\."
MOST_NUMBERS = 1 << 32  # in all tensors of a file; a tensor can declare far more than the file holds


def open_published(path: str | os.PathLike[str], model: str | None = None) -> Checkpoint:
    """A published checkpoint under our names, of the model that its tensors tell; no network is built.

    The tensors are as in the file. That they are all of the network's is for :func:`~instseg.weights.fit.outline` to
    say, or for who builds the network.

    Args:
        path: ``.pth`` of mmdetection 2 or 3, the authors' SOLO repository, AggMask (SODAR), or AdelaiDet.
        model: the zoo's name for it, or of a model that extends it, as SODAR does SOLO; None finds the one it fits, and
            warns where there are several.

    Raises:
        CheckpointError: the file cannot be read, is of no known code base, has tensors that have no place, or is of
            another model; the line says what it seems to be and which model fits.
        ConfigError: the zoo has no ``model``.
    """
    file = Path(path)
    state = _tensors(file)
    other = next((method for start, method in _OTHERS if any(re.match(start, name) for name in state)), None)
    if other is not None:
        raise CheckpointError(
            f"{file} is a checkpoint of {other}, which this version of instseg does not have: give one of SOLO, "
            "Decoupled SOLO, SOLOv2 or SODAR."
        )
    code = code_base(state)
    if code is None:
        first = ", ".join(list(state)[:3]) or "no tensors"
        raise CheckpointError(
            f"{file} is no checkpoint of the SOLO family that instseg knows (it holds {first}, ...): give one of "
            "mmdetection, the authors' SOLO repository, AggMask or AdelaiDet."
        )
    converted = code.convert(state)
    facts = _facts(converted, code.NAME, file)
    name = _model_of(facts, model, f"{file} seems to be {facts}, from {code.NAME}", file)
    classes = facts.num_classes
    categories = coco_categories() if classes == 80 else Categories.from_names([f"class {i}" for i in range(classes)])
    config = build_config(name, {"num_classes": classes, **_FROZEN, **converted.fields}).model_dump(mode="json")
    extra = {"source": code.NAME, "file": file.name}
    return Checkpoint(name, config, categories, _counted(converted.state), extra, str(file))


def read_published(path: str | os.PathLike[str], model: str | None = None) -> Checkpoint:
    """As :func:`open_published`, compared with the network tensor by tensor, and in single precision.

    Raises CheckpointError also when tensors are missing or of another shape.
    """
    return as_ours(open_published(path, model))


def brought_up(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint that an earlier version converted, with the fields that a conversion sets today; any other as it is.

    Such a file names the code base it comes from, and its configuration has no ``norm_fixed``. A run's own weights name
    none: what was frozen in that run is what its configuration says.
    """
    code = next((module for module in CODE_BASES if checkpoint.extra.get("source") == module.NAME), None)
    if code is None or "norm_fixed" in checkpoint.config or checkpoint.model not in MODELS:
        return checkpoint
    cap = get_entry(checkpoint.model).fields.get("max_instances")
    newer = {**_FROZEN, "norm_fixed": code is adelaidet, **({} if cap is None else {"max_instances": cap})}
    return replace(checkpoint, config={**checkpoint.config, **newer})


def as_ours(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint with the tensors of its network, in its order and in single precision.

    Raises CheckpointError when it does not hold them.
    """
    net = outline(checkpoint, build_config(checkpoint.model, checkpoint.config))
    # Only now: a tensor of few stored numbers can have any shape, and a copy in another precision has to be that large.
    ordered = {key: checkpoint.state[key] for key in net.state_dict()}
    return replace(checkpoint, state={k: v.float() if v.is_floating_point() else v for k, v in ordered.items()})


def code_base(names: Mapping[str, Tensor]) -> CodeBase | None:
    """Whose names of tensors these are; None when nobody's that is known."""
    return next((module for module in CODE_BASES if module.recognizes(names)), None)


def _facts(converted: Converted, code: str, file: Path) -> Facts:
    if converted.unknown:
        raise CheckpointError(
            f"{file} looks like {code} but {len(converted.unknown)} of its tensors have no place in a model of the "
            f"SOLO family: {', '.join(converted.unknown[:5])}{', ...' if len(converted.unknown) > 5 else ''}."
        )
    try:
        return read_facts(converted.state)
    except (ValueError, TypeError, IndexError):  # a tensor with fewer dimensions than it has in any network
        raise CheckpointError(
            f"{file} looks like {code}, but some of its tensors have other shapes than in any model of the "
            "SOLO family: it is damaged, or not a checkpoint."
        ) from None


def _model_of(facts: Facts, model: str | None, seems: str, file: Path) -> str:
    """The zoo's name for it: ``model`` where that fits, that of its host where ``model`` extends it."""
    fits = facts.models()
    if model is not None:
        entry = get_entry(model)
        host = next((name for name in fits if name == model or extends(model, name)), None)
        if host is not None:
            return model if model in fits else host
        wrong = facts.unlike(model) if entry.net is facts.net else {}
        differs = "".join(f" {key} is {theirs}, not {ours}." for key, (theirs, ours) in wrong.items())
        if fits:
            raise CheckpointError(f"{seems}, not {model}: use --model {fits[0]}.{differs}")
        raise CheckpointError(f"{seems}: it does not fit {model}.{differs}")
    if not fits:
        raise CheckpointError(f"{seems}: no model of the zoo has its tensors.")
    if len(fits) > 1:
        warnings.warn(
            f"{file} has the tensors of {' and of '.join(fits)}, which differ in what no tensor tells (grids, "
            f"max_instances): it is taken for {fits[0]}; `instseg convert FILE --model NAME` says which it is.",
            stacklevel=4,
        )
    return fits[0]


def _counted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With a count of batches for every norm: frozen ones are published without."""
    norms = (key.removesuffix("running_var") for key in state if key.endswith(".running_var"))
    return {**{f"{norm}num_batches_tracked": torch.zeros((), dtype=torch.int64) for norm in norms}, **state}


def _tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.pth``, whatever it is wrapped in. No code in the file is run."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give the path of a downloaded checkpoint.")
    try:
        with warnings.catch_warnings(), path.open("rb") as file:  # by its name torch would choose another reader
            warnings.simplefilter("ignore")  # torch's own, about how the file was written
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can make the reader stumble in any way
        if "Unsupported" in str(error) and "operand 80" not in str(error):  # 80: a "P", of a zip file that is cut off
            raise CheckpointError(
                f"{path} holds Python objects, which are never run: save its state_dict alone."
            ) from None
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is truncated or another kind of file; download it again."
        ) from None
    while isinstance(content, dict) and (inner := [v for k in _WRAPPERS if isinstance(v := content.get(k), dict)]):
        content = inner[0]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name: give a checkpoint with a state_dict.")
    if not all(isinstance(k, str) and _is_plain(v) for k, v in tensors.items()):
        raise CheckpointError(f"{path} is not a checkpoint of a network: its tensors have no names, or are not dense.")
    if sum(v.numel() for v in tensors.values()) > MOST_NUMBERS:
        raise CheckpointError(f"{path} declares tensors of impossible sizes: it is damaged, or not a checkpoint.")
    return _network_of(tensors)


def _network_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the network alone: without what hooks of training keep beside them, and without the names of the
    modules around it (parallel, compiled, or a trainer's own), which stand in front of all."""
    found = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    while True:
        found = {name: tensor for name, tensor in found.items() if not re.match(_BESIDE, name)}
        around = next((start for start in _AROUND if found and all(name.startswith(start) for name in found)), None)
        if around is None:
            return found
        found = {name.removeprefix(around): tensor for name, tensor in found.items()}


def _is_plain(tensor: Tensor) -> bool:
    stored = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    return stored and not tensor.is_complex()
