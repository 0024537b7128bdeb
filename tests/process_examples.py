"""The program in a process that a test starts from the `forkserver` fixture."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mfrec.__main__ import main


def run_program(folder: Path, arguments: list[str], output: Path) -> None:
    """Run `mfrec ARGUMENTS …` in a folder, write what it prints to a file, and exit with its status."""
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (open(stream, "w", encoding="utf-8", closefd=False) for stream in (1, 2))  # noqa: SIM115
    sys.exit(main(arguments))
