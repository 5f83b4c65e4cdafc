"""What `import instseg` adds to `import torch`, and how long `instseg --help` takes, each in processes of its own.

    python benchmarks/startup.py [--rounds 7]

prints the table of the README.
"""

import argparse
import statistics
import subprocess
import sys
import time

CALLS = {
    "`import torch`": ["-c", "import torch"],
    "`import torch, instseg`": ["-c", "import torch, instseg"],
    "`import torch, instseg; instseg.create_model`": ["-c", "import torch, instseg; instseg.create_model"],
    "`instseg --help`": ["-m", "instseg", "--help"],
}


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in CALLS}
    for round_ in range(args.rounds + 1):
        for name, call in CALLS.items():
            taken = seconds(call)
            if round_:  # the first round warms the disk cache
                times[name].append(taken)
    print(f"| process, {args.rounds} rounds in turn | median, s | smallest, s |\n|---|---|---|")
    for name, taken in times.items():
        print(f"| {name} | {statistics.median(taken):.2f} | {min(taken):.2f} |")
    torch, package = times["`import torch`"], times["`import torch, instseg`"]
    added = statistics.median(b - a for a, b in zip(torch, package, strict=True))
    print(f"\n`import instseg` adds {added:.3f} s to `import torch`")


if __name__ == "__main__":
    main()
