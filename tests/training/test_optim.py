"""Parameter groups by what a step does to the weights."""

from typing import Any

import pytest
import torch
from torch import nn

from instseg.core.errors import ConfigError
from instseg.training.optim import build_optimizer, freeze, frozen_norms, set_rate
from instseg.training.recipe import Recipe


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(1, 2, 1)
        self.norm = nn.GroupNorm(1, 2)
        self.head = nn.Conv2d(2, 1, 1)


def _changes(gradient: float, factor: float = 1.0, **fields: Any) -> dict[str, torch.Tensor]:
    """By how much one step moves each parameter when all are 1 and all gradients ``gradient``."""
    net = Net()
    for parameter in net.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer = build_optimizer(net, Recipe(**fields), float(fields["lr"]))
    set_rate(optimizer, factor)
    optimizer.step()
    return {name: parameter.detach() - 1 for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_norms_and_biases_are_not_decayed(optimizer: str) -> None:
    moved = _changes(0.0, optimizer=optimizer, lr=0.1, weight_decay=0.5, decay_norms_and_biases=False)
    for name, change in moved.items():
        decays = name in ("backbone.weight", "head.weight")
        torch.testing.assert_close(change, torch.full_like(change, -0.1 * 0.5 if decays else 0.0))


def test_the_papers_decay_takes_every_parameter() -> None:
    for change in _changes(0.0, optimizer="sgd", lr=0.1, weight_decay=0.5, decay_norms_and_biases=True).values():
        torch.testing.assert_close(change, torch.full_like(change, -0.05))


def test_backbone_learns_at_its_own_rate_and_the_schedule_scales_both() -> None:
    moved = _changes(1.0, factor=0.5, optimizer="sgd", lr=0.1, weight_decay=0.0, backbone_lr_factor=0.1)
    torch.testing.assert_close(moved["backbone.weight"], torch.full((2, 1, 1, 1), -0.005))
    torch.testing.assert_close(moved["head.weight"], torch.full((1, 2, 1, 1), -0.05))


def test_momentum_carries_the_last_step_on() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    optimizer = build_optimizer(net, Recipe(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0.0), 0.1)
    for _ in range(2):
        net.weight.grad = torch.ones_like(net.weight)
        optimizer.step()
    assert net.weight.item() == pytest.approx(-0.1 - 0.1 * 1.9)


def test_adamw_takes_its_betas_from_the_recipe() -> None:
    optimizer = build_optimizer(Net(), Recipe(optimizer="adamw", lr=0.1, beta1=0.8, beta2=0.95), 0.1)
    assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)


def test_frozen_parameters_are_left_out() -> None:
    net = Net()
    net.backbone.requires_grad_(False)
    optimizer = build_optimizer(net, Recipe(lr=0.1), 0.1)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in (*net.norm.parameters(), *net.head.parameters())}


def test_a_model_with_everything_frozen_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trainable parameters"):
        build_optimizer(Net().requires_grad_(False), Recipe(), 0.1)


def test_norms_and_biases_have_a_decay_of_their_own() -> None:
    fields: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.5, "decay_norms_and_biases": True}
    moved = _changes(0.0, **fields, norm_weight_decay=0.0, bias_weight_decay=0.2)
    wanted = {"backbone.weight": 0.5, "backbone.bias": 0.2, "norm.weight": 0.0, "norm.bias": 0.0,
              "head.weight": 0.5, "head.bias": 0.2}  # fmt: skip
    for name, change in moved.items():
        torch.testing.assert_close(change, torch.full_like(change, -0.1 * wanted[name]))


def test_biases_have_a_rate_of_their_own() -> None:
    moved = _changes(1.0, optimizer="sgd", lr=0.1, weight_decay=0.0, bias_lr_factor=2.0, backbone_lr_factor=0.1)
    rates = {name: -float(change.flatten()[0]) for name, change in moved.items()}
    assert rates["head.weight"] == pytest.approx(0.1) and rates["head.bias"] == pytest.approx(0.2)
    assert rates["backbone.bias"] == pytest.approx(0.02) and rates["norm.bias"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("backbone", {"backbone.weight", "backbone.bias"}), ("*.bias", {"backbone.bias", "norm.bias", "head.bias"}),
     ("head.weight", {"head.weight"})],
)  # fmt: skip
def test_a_pattern_freezes_what_it_names(pattern: str, names: set[str]) -> None:
    net = Net()
    freeze(net, [pattern])
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == names


def test_a_pattern_that_names_nothing_is_one_line_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="backbone") as error:
        freeze(Net(), ["backbon"])
    text = str(error.value)
    assert '"backbone"' in text and "backbone, norm, head" in text and "\n" not in text and text.endswith(".")


def test_a_norm_counts_as_frozen_when_all_of_it_is() -> None:
    net = Net()
    freeze(net, ["norm.weight"])
    assert frozen_norms(net) == []
    freeze(net, ["norm"])
    assert frozen_norms(net) == [net.norm]
