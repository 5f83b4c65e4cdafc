"""What a model must be before it predicts: with weights, and in evaluation mode for as long as that takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

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


class Learned:
    """Whether the parameters of a network are more than random numbers. Models that share parameters share this.

    A network has learned when its parameters have changed since its first loss with gradients, whatever changed them,
    or when a complete state has been loaded. A forward pass alone changes nothing, nor does a backward pass. What is
    compared are the least and the largest value of each parameter, which do not depend on device and memory layout.
    """

    def __init__(self) -> None:
        self._known = False
        self._before: Tensor | None = None

    def say(self, known: bool) -> None:
        """What the caller knows; False: the parameters as they are now are random."""
        self._known, self._before = known, None

    def watch(self, net: nn.Module) -> None:
        """Remembers the parameters as they are before training."""
        if not self._known and self._before is None:
            self._before = _extremes(net)

    def holds(self, net: nn.Module) -> bool:
        """Whether ``net`` has learned."""
        if not self._known and self._before is not None:
            self._known = not torch.equal(self._before, _extremes(net))
        return self._known

    @contextmanager
    def converted(self, net: nn.Module) -> Iterator[None]:
        """Around what moves or casts the parameters, which is no training either."""
        known = self.holds(net)
        yield
        if not known and self._before is not None:
            self._before = _extremes(net)

    def loaded(self, net: nn.Module, keys: Any) -> None:
        """Called after ``net.load_state_dict``, of a part of a model, too; a part of a state leaves the rest random."""
        own = tuple(net.state_dict())
        missing = [key for key in keys.missing_keys if key.endswith(own)]
        self._known = self._known or not missing

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Around ``load_state_dict``: what does not fit is refused after :meth:`loaded` and teaches nothing."""
        known = self._known
        try:
            yield
        except Exception:
            self._known = known
            raise


def _extremes(net: nn.Module) -> Tensor:
    """(parameters, 2) on the CPU."""
    found = [torch.stack(p.detach().aminmax()).float() for p in net.parameters() if p.numel() and not p.is_meta]
    return torch.stack(found).cpu() if found else torch.zeros(0, 2)


@contextmanager
def same_modes(model: Modes) -> Iterator[None]:
    """Whatever happens within, the parts of the model come back in the modes that they were in, one by one."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: Modes) -> Iterator[None]:
    """The model in evaluation mode, then in the modes that its parts were in, one by one."""
    with same_modes(model):
        if any(module.training for module in model.modules()):
            model.eval()
        yield
