"""The entry point: from arguments to an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mfrec.cli.arguments import parse
from mfrec.errors import InputError, OptionError

INPUT_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def main(arguments: Sequence[str]) -> int:
    """Run a command line; returns its exit status.

    0, or 2 for an input error, 130 when interrupted, 141 when the output's reader has gone.  Input errors print one
    line to stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal without λ or é shows ? instead.
            stream.reconfigure(errors="replace")
    try:
        return parse(list(arguments))()
    except BrokenPipeError:
        # Python flushes stdout at exit, which would raise once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OptionError as error:
        return _refuse(f"{flag(error.option)} {error.problem}")
    except InputError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return _refuse(f"{error.filename or 'a file'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _refuse("not enough memory; lower --rank or --number, or use less data")


def flag(option: str) -> str:
    """The flag of an option that the library names as an argument, such as --log-every for log_every."""
    return "--" + ("number" if option == "n" else option.replace("_", "-"))


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, numpy or torch ran out of memory; on a CPU, torch says so in a `RuntimeError`."""
    is_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or is_torch


def _refuse(sentence: str) -> int:
    # Of several processes on a host, which torchrun started, the first one says it.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"mfrec: {' '.join(sentence.split())}", file=sys.stderr)
    return INPUT_ERROR
