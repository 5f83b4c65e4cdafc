"""Damaged images of every format: a picture of the right shape, or one line; no hang, no growth of memory.

INSTSEG_MUTATIONS says how many are tried, by default 200.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("mutations.py")
COUNT = int(os.environ.get("INSTSEG_MUTATIONS", "200"))
GROWTH = 200  # MiB; an image whose decoding leaks would lose more in this many
PEAK = 3000  # MiB


@pytest.mark.slow
def test_mutated_images_are_read_or_refused_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAM), "0", str(COUNT)], capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    last = lines[-1] if lines else ""
    assert done.returncode == 0, f"ended at image {last!r}: {done.returncode} {done.stderr[-2000:]}"
    assert not [line for line in lines if line.startswith("wrong")]
    counts = json.loads(last)
    assert counts["read"] + counts["refused"] == COUNT
    assert (
        counts["read"] > COUNT // 10 and counts["refused"] > COUNT // 10
    )  # the mutations are neither all mild nor all fatal
    assert counts["grown"] < GROWTH and counts["peak"] < PEAK
    assert "Traceback" not in done.stderr
