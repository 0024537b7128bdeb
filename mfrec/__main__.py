"""The program `mfrec`, also `python -m mfrec`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status."""
    # Imports make hundreds of thousands of objects that stay.  By default, looking for garbage among them again and
    # again takes a sixth of the time to import torch, pandas and matplotlib.
    gc.set_threshold(200_000)
    try:
        from mfrec.cli.main import main as run

        return run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("mfrec: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
