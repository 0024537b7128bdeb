"""What TensorBoard costs: the same training without it, with its curves and histograms, and with its pictures too.

    python benchmarks/tensorboard_cost.py                      the embedded data
    python benchmarks/tensorboard_cost.py --data path/to/ml-1m

Rounds are interleaved, and of each way the fastest counts: what TensorBoard takes is less than what two trainings of
the same kind differ by on a machine that others use too.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time

import tyro
from rich.console import Console
from rich.table import Table

from mfrec.cli.train import Train
from mfrec.cli.train_arguments import parse_train


def main(
    data: str = "ml-latest-small", solvers: tuple[str, ...] = ("sgd", "als", "vb", "gibbs"), rounds: int = 9
) -> None:
    """Time trainings with and without TensorBoard.

    Args:
        data: a named set, or a folder, zip or file.
        solvers: which to time, with their defaults.
        rounds: how often each.
    """
    table = Table(
        "solver", "fit, s", "curves and histograms, s", "share of the fit", "pictures and projection, once, s"
    )
    for solver in solvers:
        base = dataclasses.replace(parse_train([solver, "--data", data]), json=True, trial=True)
        ways = {
            "none": dataclasses.replace(base, log_every=0),
            "curves": base,
            "pictures": dataclasses.replace(base, trial=False),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        fits = []
        for _ in range(rounds):
            for way, train in ways.items():
                taken, fit_seconds = timed(train)
                seconds[way].append(taken)
                if way == "none":
                    fits.append(fit_seconds)
        fit, (none, curves, pictures) = min(fits), (min(seconds[way]) for way in ways)
        row = f"{fit:.2f}", f"{curves - none:.3f}", f"{(curves - none) / fit:.1%}", f"{pictures - curves:.2f}"
        table.add_row(solver, *row)
    Console(width=120).print(table)


def timed(train: Train) -> tuple[float, float]:
    """Seconds of a whole training, and of its epochs and what is measured after them."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        outcome = dataclasses.replace(train, run_dir=folder).train()
        return time.perf_counter() - started, outcome.progress.seconds


if __name__ == "__main__":
    tyro.cli(main)
