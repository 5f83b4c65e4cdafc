"""The `instseg` program: one file a verb; each parses, calls the library and prints."""

import sys
from collections.abc import Sequence

from instseg.cli.stopping import Stopped

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status: 0 done, 2 wrong usage, 1 anything else, 130 interrupted."""
    stopped = Stopped()
    try:
        with stopped.handled():
            try:
                from instseg.cli.app import run  # within: the import takes a while

                return run(arguments, stopped)
            except Exception:
                if not stopped.asked:
                    raise
    except KeyboardInterrupt:
        pass
    print("interrupted", file=sys.stderr)
    return 130
