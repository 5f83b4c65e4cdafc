"""The machine: what is reported about it, and which device is taken."""

import pytest
import torch

from instseg.core.environment import cores, environment, pick_device
from instseg.core.errors import ConfigError


def test_report_starts_with_the_versions_and_has_one_line_each() -> None:
    report = environment()
    assert list(report)[:3] == ["instseg", "python", "torch"]
    assert report["torch"] == torch.__version__
    assert all(value and "\n" not in value for value in report.values())


def test_at_least_one_core_is_counted() -> None:
    assert cores() >= 1


def test_the_fastest_device_present_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device() == torch.device("cuda")


def test_a_number_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="no device"):
        pick_device("2")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "xpu"])
def test_a_device_that_does_not_exist_is_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(ConfigError, match="cpu"):
        pick_device(name)
