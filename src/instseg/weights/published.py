"""Checkpoints of other code bases: what a file holds, and the same tensors under our names."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instseg.core.categories import Categories
from instseg.core.errors import CheckpointError
from instseg.models.zoo import MODELS, build_config, build_net, get_entry
from instseg.weights.checkpoint import Checkpoint
from instseg.weights.coco_names import coco_categories
from instseg.weights.names import rename

# How AdelaiDet (detectron2) shows images to its networks, and where its ResNets halve.
CAFFE = {
    "stride_in_1x1": True,
    "bgr": True,
    "pixel_mean": (103.53, 116.28, 123.675),
    "pixel_std": (1.0, 1.0, 1.0),
    "antialias": True,  # Pillow's bilinear resizing; mmdetection's is OpenCV's, without
}
MOST_NUMBERS = 1 << 32  # in all tensors of a file; a tensor can declare far more than the file holds
_SPOKEN = {"DecoupledSOLO": "Decoupled SOLO", "SODARSOLOv2": "SODAR* (on SOLOv2)"}
_BASIC: dict[tuple[int, ...], str] = {(2, 2, 2, 2): "r18", (3, 4, 6, 3): "r34"}  # blocks of each stage
_BOTTLENECK: dict[tuple[int, ...], str] = {(3, 4, 6, 3): "r50", (3, 4, 23, 3): "r101"}


@dataclass(frozen=True)
class Published:
    """What a foreign checkpoint holds.

    Attributes:
        code: the code base, as :func:`~instseg.weights.names.code_base` names it.
        fields: configuration fields that can be read off its tensors.
        state: tensors by our names.
    """

    code: str
    fields: dict[str, Any]
    state: dict[str, Tensor]

    def describe(self) -> str:
        """In words: what it seems to be."""
        f = self.fields
        net, backbone = _SPOKEN.get(f["net"], f["net"]), f["backbone"] or "an unknown backbone"
        return f"{net} on {backbone}, {f['num_classes']} classes, from {self.code}"


def read_published(path: str | os.PathLike[str], model: str | None = None) -> Checkpoint:
    """A published checkpoint of the SOLO family as one of ours.

    Args:
        path: ``.pth`` of mmdetection 2 or 3, the authors' SOLO repository, AggMask (SODAR), or AdelaiDet.
        model: the zoo's name for it; None finds the one it fits, and warns where there are several.

    Raises:
        CheckpointError: the file cannot be read, is of no known code base, has tensors that have no place or lacks
            some, or is of another model; the line says what it seems to be and which model fits.
        ConfigError: the zoo has no ``model``.
    """
    file = Path(path)
    published = identify(_tensors(file), str(file))
    if model is not None:
        get_entry(model)
    fits = [model] if model is not None and _fits(model, published) else [n for n in MODELS if _fits(n, published)]
    fitting = fits[0] if fits else None
    if fitting is None:
        told = "no model of the zoo has its tensors" if model is None else f"it does not fit {model}"
        raise CheckpointError(f"{file} seems to be {published.describe()}: {told}.{_differs(model, published)}")
    if model is not None and fitting != model:
        raise CheckpointError(
            f"{file} seems to be {published.describe()}, not {model}: use --model {fitting}."
            f"{_differs(model, published)}"
        )
    if model is None and len(fits) > 1:
        warnings.warn(
            f"{file} has the tensors of {' and of '.join(fits)}, which differ in their grids alone: it is taken for "
            f"{fitting}; `instseg convert FILE --model NAME` says which it is.",
            stacklevel=2,
        )
    fields = _fields_of(published)
    state = {name: published.state.get(name, torch.zeros((), dtype=torch.int64)) for name in _shapes(fitting, fields)}
    # Only now: a tensor of few stored numbers can have any shape, and a copy in another precision has to be that large.
    state = {name: v.float() if v.is_floating_point() else v for name, v in state.items()}
    classes = fields["num_classes"]
    categories = coco_categories() if classes == 80 else Categories.from_names([f"class {i}" for i in range(classes)])
    config = build_config(fitting, fields).model_dump(mode="json")
    return Checkpoint(fitting, config, categories, state, {"source": published.code, "file": file.name})


def identify(state: Mapping[str, Tensor], where: str) -> Published:
    """What a state dict of another code base holds. Raises CheckpointError when it is of none that is known, or has
    tensors without a place."""
    renamed = rename(state)
    if renamed is None:
        first = ", ".join(list(state)[:3]) or "no tensors"
        raise CheckpointError(
            f"{where} is no checkpoint of the SOLO family that instseg knows (it holds {first}, ...): give one of "
            "mmdetection, the authors' SOLO repository, AggMask or AdelaiDet."
        )
    normalized = {k: v for k, v in state.items() if k in ("pixel_mean", "pixel_std")}
    unknown = [name for name in renamed.unknown if name not in normalized]
    if unknown:
        raise CheckpointError(
            f"{where} looks like {renamed.code} but {len(unknown)} of its tensors have no place in a model of the "
            f"SOLO family: {', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}."
        )
    try:
        fields = _read_fields(renamed.state)
    except (ValueError, TypeError, IndexError):  # a tensor with fewer dimensions than it has in any network
        raise CheckpointError(
            f"{where} looks like {renamed.code}, but some of its tensors have other shapes than in any model of the "
            "SOLO family: it is damaged, or not a checkpoint."
        ) from None
    if renamed.code == "AdelaiDet":
        fields |= CAFFE
        for name, tensor in normalized.items():  # where the file says how it normalizes, it knows best
            fields[name] = tuple(round(float(v), 4) for v in tensor.flatten())
    return Published(renamed.code, fields, renamed.state)


def _read_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    dynamic = "head.kernel.weight" in state
    output = state.get("head.category.weight" if dynamic else "category.output.weight")
    net = "SOLOv2" if dynamic else "DecoupledSOLO" if "mask_output_x.0.weight" in state else "SOLO"
    if "aggregation.aggregate.weights.weight" in state:
        net = "SODARSOLOv2" if dynamic else "SODAR"
    return {
        "net": net,
        "backbone": _backbone(state),
        "num_classes": 0 if output is None else len(output),
    }


def _backbone(state: Mapping[str, Tensor]) -> str | None:
    stages = [{k.split(".")[3] for k in state if k.startswith(f"backbone.body.layer{i}.")} for i in (1, 2, 3, 4)]
    blocks = tuple(len(stage) for stage in stages)
    if "backbone.body.layer1.0.conv3.weight" not in state:
        return _BASIC.get(blocks)
    width, inputs = state["backbone.body.layer1.0.conv2.weight"].shape[:2]
    if inputs < width:  # a ResNeXt: as many groups as the inputs of one are contained in all
        return f"x101_{width // inputs}x{inputs}d"
    return _BOTTLENECK.get(blocks)


def _fields_of(published: Published) -> dict[str, Any]:
    """What the file itself says of the configuration: classes and how images are shown."""
    known = ("num_classes", *CAFFE)
    return {k: v for k, v in published.fields.items() if k in known}


def _shapes(name: str, fields: Mapping[str, Any]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {k: v.shape for k, v in build_net(name, build_config(name, fields)).state_dict().items()}


def _mismatches(name: str, published: Published) -> list[str]:
    """Names of tensors that the model wants and the file lacks or has in another shape, and the other way round."""
    wanted = _shapes(name, _fields_of(published))
    missing = [k for k in wanted if k not in published.state and not k.endswith("num_batches_tracked")]
    other = [k for k, v in published.state.items() if k not in wanted or v.shape != wanted[k]]
    return missing + other


def _fits(name: str, published: Published) -> bool:
    entry, f = MODELS[name], published.fields
    config = build_config(name, {})
    if config.backbone != f["backbone"] or entry.net.__name__ != f["net"]:  # the quick answer
        return False
    return bool(f["num_classes"]) and not _mismatches(name, published)


def _differs(model: str | None, published: Published) -> str:
    if model is None or not published.fields["num_classes"]:
        return ""
    wrong = _mismatches(model, published)
    return f" {len(wrong)} tensors of {model} are missing, unknown or of another shape: {', '.join(wrong[:5])}."


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
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name: give a checkpoint with a state_dict.")
    if not all(isinstance(k, str) and _is_plain(v) for k, v in tensors.items()):
        raise CheckpointError(f"{path} is not a checkpoint of a network: its tensors have no names, or are not dense.")
    if sum(v.numel() for v in tensors.values()) > MOST_NUMBERS:
        raise CheckpointError(f"{path} declares tensors of impossible sizes: it is damaged, or not a checkpoint.")
    # A network that was saved as the module of a parallel wrapper says so in every name.
    return {k.removeprefix("module."): v for k, v in tensors.items()}


def _is_plain(tensor: Tensor) -> bool:
    stored = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    return stored and not tensor.is_complex()
