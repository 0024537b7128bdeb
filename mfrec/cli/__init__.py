"""The command line: one dataclass a verb, whose fields are its options.  The only room that sees configuration."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence

from mfrec.cli.cv import CrossValidate, parse_cv
from mfrec.cli.evaluate import Evaluate, Predict
from mfrec.cli.options import parse
from mfrec.cli.recommend import Recommend, Similar
from mfrec.cli.runs import Runs
from mfrec.cli.show import Data, Solvers
from mfrec.cli.train import Train
from mfrec.cli.train_arguments import parse_train
from mfrec.cli.tune import Tune, parse_tune
from mfrec.errors import InputError, unknown

VERBS: dict[str, Callable[..., Callable[[], int]]] = {
    "train": Train,
    "cv": CrossValidate,
    "tune": Tune,
    "evaluate": Evaluate,
    "predict": Predict,
    "recommend": Recommend,
    "similar": Similar,
    "runs": Runs,
    "data": Data,
    "solvers": Solvers,
}
# Of the verbs whose options are those of a solver's training, and more.
PARSERS: dict[str, Callable[[list[str]], Callable[[], int]]] = {
    "train": parse_train,
    "cv": parse_cv,
    "tune": parse_tune,
}


def main(arguments: Sequence[str]) -> int:
    """Run a command line; returns its exit status.

    0, or 2 for what the user got wrong, 130 when interrupted, 141 where nobody reads the output any longer.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal that lacks λ or é shows ? instead; it is no reason to stop.
            stream.reconfigure(errors="replace")
    try:
        return _verb(list(arguments))()
    except BrokenPipeError:
        # The reader of our output, such as `head`, has gone: nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except InputError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _refuse(f"{error.filename or 'a file'}: {error.strerror or error}")


def _verb(arguments: list[str]) -> Callable[[], int]:
    """The verb that a command line asks for, with its options, ready to be called."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(
            "usage: mfrec COMMAND [OPTIONS]    (mfrec COMMAND --help tells more)\n\nMatrix factorization of ratings.\n"
        )
        for known, kind in VERBS.items():
            print(f"  {known:<14}{(inspect.getdoc(kind) or '').splitlines()[0]}")
        raise SystemExit(0)
    if name not in VERBS:
        raise unknown("command", name, VERBS)
    if name in PARSERS:
        return PARSERS[name](arguments[1:])
    verb: Callable[[], int] = parse(VERBS[name], f"mfrec {name}", arguments[1:])
    return verb


def _refuse(sentence: str) -> int:
    print(f"mfrec: {' '.join(sentence.split())}", file=sys.stderr)
    return 2
