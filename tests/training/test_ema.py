"""Averaged weights against the formula."""

import pytest
import torch
from torch import nn

from instseg.training.ema import averaged_model, decay_at


def test_decay_grows_to_its_end_value() -> None:
    assert decay_at(1, 0.99) == pytest.approx(2 / 11)
    assert decay_at(10_000, 0.99) == 0.99


def test_average_follows_weights_and_norm_statistics() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = averaged_model(net, 0.99)
    expected = {}
    for count in range(4):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += torch.randn_like(parameter)
        net(torch.randn(2, 1, 4, 4))  # moves the running statistics
        average.update_parameters(net)
        for name, value in net.state_dict().items():
            decay = decay_at(count, 0.99) if count else 0.0  # the first update copies
            if value.is_floating_point():
                expected[name] = expected.get(name, 0.0) * decay + value.clone() * (1 - decay)
    for name, value in expected.items():
        torch.testing.assert_close(average.module.state_dict()[name], value)
    assert not torch.equal(average.module.state_dict()["1.running_mean"], net.state_dict()["1.running_mean"])
