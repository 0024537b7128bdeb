"""Checks and inputs that the tests of the command line share."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import Output

ROOT = Path(__file__).parents[2]
SMALL = ("--rank", 3, "--epochs", 2, "--log-every", 0)
HEADER = ("userId", "movieId", "rating")
BOX = re.compile(r"[─│╭╮╰╯]")


def assert_refused(output: Output, *words: object) -> None:
    """Exit status 2, nothing on stdout, and one line on stderr with these words."""
    assert (output.status, output.out) == (2, ""), output
    assert output.err.startswith("mfrec: "), output.err
    assert output.err.count("\n") == 1, output.err
    assert output.err.endswith("\n")
    assert "Traceback" not in output.err
    for word in words:
        assert str(word) in output.err, output.err


def assert_usage_error(output: Output, *words: object) -> None:
    """Exit status 2, nothing on stdout, and a box on stderr with these words, as tyro reports an error of usage."""
    assert (output.status, output.out) == (2, ""), output
    assert "Traceback" not in output.err
    assert BOX.search(output.err), output.err
    text = " ".join(BOX.sub(" ", output.err).split())
    for word in words:
        assert str(word) in text, output.err


def loads_strictly(text: str) -> Any:
    """JSON as other languages read it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def answer(output: Output) -> Any:
    """The JSON that a command printed."""
    assert output.status == 0, output.err
    return loads_strictly(output.out)


def in_a_process(*arguments: object, program: str = "train.py", **environment: str) -> Output:
    """`python PROGRAM ARGUMENTS …` in a process of its own."""
    done = subprocess.run(
        [sys.executable, ROOT / program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )
    return Output(done.returncode, done.stdout, done.stderr)


def ratings_text(*rows: str) -> bytes:
    """A file like MovieLens's with these rows."""
    return "\n".join((",".join(HEADER), *rows, "")).encode()
