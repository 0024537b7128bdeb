"""Time of TensorBoard's logs: the same training without them, with curves and histograms, and with figures too.

    python benchmarks/tensorboard_cost.py                      the embedded data
    python benchmarks/tensorboard_cost.py --data path/to/ml-1m

The variants take turns, and the fastest round of each counts: on a shared machine, two equal trainings differ by more
than the logs take.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from mfrec.data.dataset import Dataset
from mfrec.data.loading import load_dataset
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.loggers import Logger
from mfrec.experiments.tensorboard import TensorBoardLogger
from mfrec.experiments.training import train


class CurvesOnly(TensorBoardLogger):
    """TensorBoard without figures and the projection."""

    wants_figures = False


VARIANTS: dict[str, type[Logger] | None] = {"none": None, "curves": CurvesOnly, "figures": TensorBoardLogger}


def main(
    data: str = "ml-latest-small", solvers: tuple[str, ...] = ("sgd", "als", "vb", "gibbs"), rounds: int = 9
) -> None:
    """Time trainings with and without TensorBoard.

    Args:
        data: a named set, or a folder, zip or file.
        solvers: solvers to time, with their defaults.
        rounds: number of rounds.
    """
    dataset = load_dataset(data)
    table = Table("solver", "fit, s", "curves and histograms, s", "share of the fit", "figures and projection, once, s")
    for solver in solvers:
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        fits = []
        for _ in range(rounds):
            for variant, logger in VARIANTS.items():
                total, fit_seconds = timed(ExperimentConfig.create(solver, data=data), dataset, logger)
                seconds[variant].append(total)
                if logger is None:
                    fits.append(fit_seconds)
        fit, (none, curves, figures) = min(fits), (min(seconds[variant]) for variant in VARIANTS)
        row = f"{fit:.2f}", f"{curves - none:.3f}", f"{(curves - none) / fit:.1%}", f"{figures - curves:.2f}"
        table.add_row(solver, *row)
    Console(width=120).print(table)


def timed(config: ExperimentConfig, dataset: Dataset, logger: type[Logger] | None) -> tuple[float, float]:
    """Seconds of a whole training, and of its epochs and their evaluations."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        config = config.updated(run_dir=folder)
        result = train(config, dataset, loggers=partial(opened, logger))
        return time.perf_counter() - started, result.progress.seconds


def opened(logger: type[Logger] | None, folder: Path, resumed_at: int | None) -> Sequence[Logger]:
    """The loggers of a run folder."""
    return [] if logger is None else [logger(folder, resumed_at)]  # type: ignore[call-arg]


if __name__ == "__main__":
    tyro.cli(main)
