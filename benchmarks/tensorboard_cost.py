"""Time of TensorBoard's logs: the same training without them, with curves and histograms, and with figures too.

    python benchmarks/tensorboard_cost.py                      the embedded data
    python benchmarks/tensorboard_cost.py --data path/to/ml-1m

The variants take turns, and the fastest round of each counts: on a shared machine, two equal trainings differ by more
than the logs take.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import tyro
from record import Figure, Report, in_turns

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
) -> dict[str, Figure]:
    """Time trainings with and without TensorBoard.

    Args:
        data: a named set, or a folder, zip or file.
        solvers: solvers to time, with their defaults.
        rounds: number of rounds.
    """
    dataset, report = load_dataset(data), Report()
    columns = ("fit, s", "curves and histograms, s", "share of the fit", "figures and projection, once, s")
    report.table(f"logs of TensorBoard, {Path(data).name}", "solver", *columns)
    for solver in solvers:
        config, fits = ExperimentConfig.create(solver, data=data), list[float]()
        ways = {variant: partial(trained, config, dataset, logger, fits) for variant, logger in VARIANTS.items()}
        times = in_turns(ways, rounds)
        fit, (none, curves, figures) = min(fits), (min(times[variant]) for variant in VARIANTS)
        share = (curves - none) / fit
        report.row(
            solver,
            Figure.median([fit], "s"),
            Figure.median([curves - none], "s"),
            Figure(share, "of the fit", text=f"{share:.1%}"),
            Figure.median([figures - curves], "s"),
        )
    return report.figures


def trained(config: ExperimentConfig, dataset: Dataset, logger: type[Logger] | None, fits: list[float]) -> None:
    """Train once; without a logger, the seconds of epochs and their evaluations are added to a list."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(config.updated(run_dir=folder), dataset, loggers=partial(opened, logger))
    if logger is None:
        fits.append(result.progress.seconds)


def opened(logger: type[Logger] | None, folder: Path, resumed_at: int | None) -> Sequence[Logger]:
    """The loggers of a run folder."""
    return [] if logger is None else [logger(folder, resumed_at)]  # type: ignore[call-arg]


if __name__ == "__main__":
    tyro.cli(main)
