"""Self-describing checkpoints: safetensors whose metadata says which model, configuration and categories they hold."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instseg.core.categories import Categories
from instseg.core.errors import CheckpointError, ConfigError
from instseg.core.files import reason_of, whole_or_absent

FORMAT = "instseg"
FORMAT_VERSION = "1"


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to build a model again.

    Attributes:
        model: name in the zoo.
        config: all fields of its configuration.
        categories: names and source ids.
        state: the tensors, by parameter name.
        extra: facts about the training, such as the data, AP or license; JSON values.
        where: what it was read from, as errors call it; not written.
    """

    model: str
    config: dict[str, Any]
    categories: Categories
    state: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)
    where: str = "the checkpoint"


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint, half: bool = False) -> None:
    """Writes ``path`` whole or not at all.

    Args:
        path: of the new file, usually ``*.safetensors``; an older file there is replaced.
        checkpoint: what to write.
        half: floating-point tensors in half precision, for release.

    Raises:
        CheckpointError: the file cannot be written, for example because the disk is full.
    """
    from safetensors.torch import save_file

    target = Path(path)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": checkpoint.model,
        "config": json.dumps(checkpoint.config),
        "categories": json.dumps({"names": checkpoint.categories.names, "ids": checkpoint.categories.ids}),
        "extra": json.dumps(checkpoint.extra),
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.state.items()}
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    try:
        with whole_or_absent(target) as part:
            save_file(tensors, part, metadata=metadata)
    except Exception as error:  # safetensors wraps the operating system's errors in its own
        raise CheckpointError(
            f"cannot write {target}: {reason_of(error)}; free some space or choose another folder."
        ) from None


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Raises CheckpointError when the file is missing, torn, or not written by this project."""
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist: give a .safetensors file or a run folder.")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata: Mapping[str, str] = opened.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(
                    f"{file} holds tensors but was not written by instseg: it does not say which model it is of."
                )
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  not a dictionary
        config, extra = json.loads(metadata["config"]), json.loads(metadata.get("extra", "{}"))
        categories = _categories(json.loads(metadata["categories"]))
        if not isinstance(config, dict) or not isinstance(extra, dict):
            raise ValueError("its configuration is not a mapping")
        return Checkpoint(
            metadata["model"],
            config,
            categories,
            {k: v.float() if v.dtype in (torch.float16, torch.bfloat16) else v for k, v in state.items()},
            extra,
            str(file),
        )
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError, ConfigError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise CheckpointError(
            f"{file} cannot be read as a safetensors file ({reason}): it is truncated or not ours; copy it again."
        ) from None


def _categories(content: Any) -> Categories:
    """Raises ValueError or ConfigError for anything but names and ids, one for one."""
    if not isinstance(content, dict):
        raise ValueError("its categories are not a mapping")
    names, ids = content["names"], content["ids"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the names of its categories are not texts")
    if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ValueError("the ids of its categories are not whole numbers")
    return Categories(tuple(names), tuple(ids))
