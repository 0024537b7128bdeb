"""Cross-validation: one model for each fold, each in its own run folder."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mfrec.data.dataset import Dataset
from mfrec.data.prepared import open_prepared, write_prepared
from mfrec.errors import InputError, OptionError
from mfrec.evaluation.metrics import METRICS
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.loop import Epoch
from mfrec.experiments.run import DATASET, Run
from mfrec.experiments.training import TrainingResult, load_configured, train
from mfrec.plugins import import_plugins


@dataclass(frozen=True)
class CrossValidation:
    """The result of `cross_validate`.

    Attributes:
        folds: a row per fold, with the columns fold (the split's name), test metrics by name, epochs, seconds.
        folder: the folder of the folds' runs; None if nothing was saved.
        interrupted: the fold in which `stop` ended it; None if all folds are done.
    """

    folds: pd.DataFrame
    folder: Path | None = None
    interrupted: str | None = None

    def summary(self) -> dict[str, dict[str, float]]:
        """The mean and the standard deviation over the folds of each metric: {"rmse": {"mean": …, "std": …}, …}."""
        return {
            name: {"mean": statistics.mean(self.folds[name]), "std": statistics.stdev(self.folds[name])}
            for name in METRICS
        }


def fold_names(k: int) -> list[str]:
    """The names of k random folds as splits: "fold-1-of-5", "fold-2-of-5", ….

    Raises:
        InputError: k is below 2.
    """
    if k < 2:
        raise OptionError("folds", f"must be at least 2 (got {k})")
    return [f"fold-{number}-of-{k}" for number in range(1, k + 1)]


def cross_validate(
    config: ExperimentConfig,
    split_names: Sequence[str],
    dataset: Dataset | None = None,
    *,
    on_fold: Callable[[str, TrainingResult], object] | None = None,
    on_epoch: Callable[[Epoch], object] | None = None,
    stop: Callable[[], bool] | None = None,
    command: str | None = None,
) -> CrossValidation:
    """Train and test once for each split, such as `fold_names(5)` or the official splits u1 … u5.

    The runs, named by their splits, are in a folder of their own, by default DATA-SOLVER-cv-N in `run_dir`.

    Args:
        config: of every fold, but for its split.
        dataset: the data, instead of loading the configured data.
        on_fold: called with a split's name and its result after each fold.
        on_epoch, stop, command: see `train`.

    Raises:
        InputError: there are not two splits, an option cannot be used, or `train` fails.  A folder in which nothing
            was trained is removed.
    """
    _require_folds(config, split_names)
    import_plugins(config.run.plugin)
    dataset = (load_configured(config) if dataset is None else dataset).with_split_labels(None)
    folder = None
    if config.run.run_dir is not None:
        stem = f"{dataset.name}-{config.solver}-cv"
        folder = Run.create(config.run.run_dir, config.run.name, stem).path
        config = config.updated(run_dir=str(folder))
        dataset = _kept(dataset, folder)
    rows: list[dict[str, Any]] = []
    for name in split_names:
        fold = config.updated(split=name, name=name)
        try:
            result = train(fold, dataset, on_epoch=on_epoch, stop=stop, command=command)
        except InputError:
            if folder is not None and not any(folder.glob("*/config.json")):
                shutil.rmtree(folder)
            raise
        if result.metrics is None:
            return CrossValidation(pd.DataFrame(rows), folder, interrupted=name)
        figures, metrics = {metric: result.metrics["test"][metric] for metric in METRICS}, result.metrics
        rows.append({"fold": name, **figures, "epochs": metrics["epochs"], "seconds": metrics["fit_seconds"]})
        if on_fold is not None:
            on_fold(name, result)
    return CrossValidation(pd.DataFrame(rows), folder)


def _kept(dataset: Dataset, folder: Path) -> Dataset:
    """The data, written into the folder once unless they have a folder, so that each fold keeps them by hard links."""
    if dataset.prepared is not None:
        return dataset
    write_prepared(dataset, folder / DATASET)
    return open_prepared(folder / DATASET)


def _require_folds(config: ExperimentConfig, split_names: Sequence[str]) -> None:
    config.check()
    if len(set(split_names)) < 2 or len(set(split_names)) < len(split_names):
        raise OptionError("split", f"must name at least two different splits (got {', '.join(split_names) or 'none'})")
    for option in ("test_data", "valid_data"):
        if getattr(config.data, option) is not None:
            raise OptionError(option, "cannot be used in cross-validation: each fold is the test set")
