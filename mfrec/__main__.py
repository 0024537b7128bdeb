"""The program `mfrec`, also `python -m mfrec`; sets what must be set before torch is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # GNU OpenMP's threads spin for milliseconds between two small products.  A process alone on its cores gains
        # little from that, and two processes that share them slow each other down tenfold.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        from mfrec.cli.main import main as run

        return run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("mfrec: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
