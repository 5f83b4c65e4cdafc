"""What a model must be before it predicts: with weights, and in evaluation mode for as long as that takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn

from instseg.core.errors import CheckpointError
from instseg.weights.catalogue import published_for


class Named(Protocol):
    """A model of the zoo, with or without weights."""

    name: str
    has_weights: bool


class Modes(Protocol):
    """A module, or what can be switched as one."""

    def modules(self) -> Iterator[nn.Module]:
        """All of its parts."""
        ...

    def eval(self) -> Any:
        """Switches all of them to evaluation mode."""
        ...


def require_weights(model: Named) -> None:
    """Raises CheckpointError for a model with random weights: its predictions would be noise."""
    if not model.has_weights:
        names = [entry.name for entry in published_for(model.name)]
        published = f", a published checkpoint of it ({names[0]})" if names else ""
        raise CheckpointError(
            f"{model.name} has no weights: give coco, nuclei, a file, a run folder{published}, or train it first "
            f"(instseg train DATA --model {model.name})."
        )


@contextmanager
def evaluating(model: Modes) -> Iterator[None]:
    """The model in evaluation mode, then in the modes that its parts were in, one by one."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
