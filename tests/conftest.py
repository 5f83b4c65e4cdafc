"""What all tests share: no network, no screen, and the place of the recorded reference arrays."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest_plugins = ["tests.datasets", "tests.oracle"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Threads that wait for each other in busy loops make many small operations slow, most of all beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

VARIABLE = "INSTSEG_FIXTURES"
COMPACT = Path(__file__).parent / "parity" / "arrays"
COMPLETE = {
    "mmdet": "condinst decoupled_solo decoupled_solo_light matrix_nms solo solov2 solov2_light",
    "aggmask": "agg_cls agg_cls_mask agg_mask agg_mask_plus5 agg_noctx agg_none0 agg_plain agg_self1 "
    "agg_square9 inputs star_ctxmask star_mask star_plain",
}


@dataclass(frozen=True)
class References:
    """Arrays recorded from other implementations: `root / "mmdet" / "solov2.pt"` and so on."""

    root: Path
    complete: bool
    """True: the folder that INSTSEG_FIXTURES names. False: the compact arrays beside the parity tests."""


def _missing(root: Path) -> list[str]:
    wanted = [f"{folder}/{name}.pt" for folder, names in COMPLETE.items() for name in names.split()]
    return [name for name in wanted if not (root / name).is_file()]


def pytest_configure(config: pytest.Config) -> None:
    root = os.environ.get(VARIABLE)
    if root and (missing := _missing(Path(root))):
        raise pytest.UsageError(
            f"{VARIABLE}={root} lacks {len(missing)} files, {missing[0]} first: complete or unset it."
        )


def pytest_report_header(config: pytest.Config) -> str:
    root = os.environ.get(VARIABLE)
    if root:
        return f"reference arrays: all of {root} ({VARIABLE})"
    return f"reference arrays: the compact ones in tests/parity/arrays ({VARIABLE} is not set)"


@pytest.fixture(scope="session")
def references() -> References:
    """Where the parity tests find their recorded arrays."""
    root = os.environ.get(VARIABLE)
    return References(Path(root), True) if root else References(COMPACT, False)
