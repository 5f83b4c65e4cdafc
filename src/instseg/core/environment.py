"""The machine that the library runs on: what a bug report needs to say, and which device to use."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from instseg._version import __version__
from instseg.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

PACKAGES = ("torchvision", "timm", "accelerate", "numpy", "pillow", "pycocotools", "hotcoco")


def cores() -> int:
    """Processor cores that this process may use, which in a container is fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def environment() -> dict[str, str]:
    """Versions, devices and cores, one short line each, in the order in which a reader looks for them."""
    import torch

    report = {"instseg": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            report[package] = version(package)
        except PackageNotFoundError:
            report[package] = "not installed"
    report["cuda"] = _cuda()
    report["mps"] = "available" if torch.backends.mps.is_available() else "not available"
    report["device"] = str(pick_device())
    report["os"] = platform.platform()
    report["cores"] = f"{cores()} ({torch.get_num_threads()} torch threads)"
    return report


def _cuda() -> str:
    import torch

    built = torch.version.cuda or (f"ROCm {torch.version.hip}" if torch.version.hip else None)
    if built is None:
        return "not available (this torch is built without it)"
    if not torch.cuda.is_available():
        return f"not available (torch is built for {built}, no device found)"
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return f"{built}, " + ", ".join(f"{d.name} ({d.total_memory / 2**30:.0f} GiB)" for d in devices)


def pick_device(name: str | None = None) -> "torch.device":
    """The device called ``name`` ("cpu", "cuda", "cuda:1", "mps"); the fastest present for None, "auto".

    Raises:
        ConfigError: no such device here.
    """
    import torch

    if name is None or name == "auto":
        fastest = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(fastest)
    try:
        # Digits alone mean a GPU, as users of other tools write them.
        device = torch.device(f"cuda:{name}" if name.isdigit() else name)
    except RuntimeError:
        raise ConfigError(f'"{name}" is not a device: use cpu, cuda, cuda:1 or mps.') from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    found = counts.get(device.type, 0)
    if (device.index or 0) >= found:
        raise ConfigError(f'no device "{name}" here ({found} of kind {device.type} found): use --device cpu.')
    return device
