"""All benchmarks by one command: print their tables, record the figures, and compare them with the last records.

    python benchmarks/run.py                    all benchmarks with their defaults: hours
    python benchmarks/run.py gradients speed    some of them
    python benchmarks/run.py --quick            smaller sizes and fewer repeats: minutes
    python benchmarks/run.py --smoke            the gate's check: half a minute, exit status 1 if something became slow

Each benchmark runs in a new process.  Its figures go to `benchmarks/records` (see `record.py`).  `--smoke` writes no
record.  To accept slower ratios, write one with `python benchmarks/run.py smoke`, and commit it.

A program of a benchmark can also be run alone, with options of its own: `python benchmarks/speed.py --help`.  It then
writes no record.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro
from record import RECORDS, Record, compared, in_new_process, print_comparison

Options = dict[str, Any]
Names = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME …]")]

# The benchmarks, each a module with a function `main` that returns figures, and the options of the quick set.
BENCHMARKS: dict[str, Options] = {
    "accuracy": {"tables": ("embedded",), "seeds": (0,)},
    "speed": {"methods": ("sgd", "als", "nn.Embedding, Adam"), "repeats": 1},
    "scaling": {"sizes": (100_000, 1_000_000), "ranks": (64,)},
    "gradients": {"ranks": (16, 64)},
    "fold_in": {"seeds": (0,), "ways": ("sgd", "als")},
    "recommend": {"users_timed": 2_000},
    "prepared": {"sizes": (1_000_000,)},
    "processes": {"trainings": ("als",), "gbits": (1.0,), "n_ratings": 1_000_000},
    "gpu": {"small": True},
    "tensorboard_cost": {"solvers": ("sgd", "als"), "rounds": 3},
    "smoke": {},
}
# A ratio that grows by more fails the check.  Between runs on a busy machine, a ratio changes by up to a half.
SLACK = 2.5


def main(names: Names = (), quick: bool = False, smoke: bool = False) -> None:
    """Run benchmarks, record their figures, and compare them with the last records.

    Args:
        names: benchmarks to run; by default all.
        quick: run a smaller set of each, which takes minutes.
        smoke: only check that no ratio of the benchmark "smoke" is much larger than in its last record.
    """
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        sys.exit(f"unknown benchmark {unknown[0]!r}; choose from {', '.join(BENCHMARKS)}")
    if smoke and (names or quick):
        sys.exit("--smoke runs alone; leave out names and --quick")
    if smoke:
        sys.exit(check())
    failed = [name for name in names or BENCHMARKS if not run(name, BENCHMARKS[name] if quick else {})]
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def run(name: str, options: Options) -> bool:
    """Run a benchmark, write its record, and compare it with earlier ones; returns whether it ran to its end."""
    print(f"\n# {name}", flush=True)
    try:
        record = in_new_process(measured, name, options)
    except SystemExit as refusal:
        print(refusal, file=sys.stderr)
        return False
    except Exception:
        traceback.print_exc()
        return False
    print_comparison(record)
    print(f"\nrecord: {record.write()}", flush=True)
    return True


def measured(name: str, options: Options) -> Record:
    """The record of a benchmark, run with options besides its defaults."""
    figures = importlib.import_module(name).main(**options)
    return Record.now(name, options_of(name, options), figures)


def options_of(name: str, options: Options) -> Options:
    """All options of a benchmark: its defaults, and these in their place."""
    parameters = inspect.signature(importlib.import_module(name).main).parameters
    return {option: parameter.default for option, parameter in parameters.items()} | options


def check(folder: Path = RECORDS) -> str | None:
    """Measure the benchmark "smoke", once more if a ratio is too large; returns the message if it still is."""
    for _ in range(2):
        slow = list(slower(in_new_process(measured, "smoke", {}), folder))
        if not slow:
            return None
    return f"much slower than in the last record: {'; '.join(slow)}; see the docstring of benchmarks/run.py"


def slower(record: Record, folder: Path) -> Iterator[str]:
    """The ratios of a record that are larger than those of the last one by more than the slack, or new, in words."""
    for name, figure, _, last in compared(record, folder):
        if figure.is_portable and last is None:
            yield f"{name} has no record"
        elif last is not None and figure.value > SLACK * last.value:
            yield f"{name} is {figure.value:.3g} (limit {SLACK:g} × {last.value:.3g})"


if __name__ == "__main__":
    tyro.cli(main)
