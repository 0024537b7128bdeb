"""The program: `mfrec …`, which is `python -m mfrec …`; what the process needs before torch is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # GNU OpenMP's threads spin for milliseconds between two small products.  Alone on its cores a process gains
        # little from that, and two processes that share them keep each other from working.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        from mfrec import cli  # after the environment is set: this imports torch

        return cli.main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("mfrec: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
