"""`python -m instseg` and `accelerate launch -m instseg`: the same program as `instseg`."""

import sys

from instseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
