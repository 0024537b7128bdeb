"""Tuning: trials compared on the validation set, then the best one trained again and tested once.

A study is a folder: study.db, where Optuna keeps the trials and their values; dataset/, the data without the test
ratings; a run folder for each trial; and the run of the best.  Any number of processes may work on it at once, and each
may be killed at any moment: the next process finds the abandoned trials, and resumes them from their checkpoints.
However often it was killed, a study ends with the same trials and the same figures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from filelock import FileLock, Timeout

from mfrec.data.dataset import Dataset
from mfrec.errors import InputError, OptionError
from mfrec.evaluation.monitors import monitor
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.loggers import check_loggers
from mfrec.experiments.loop import Epoch
from mfrec.experiments.run import Run
from mfrec.experiments.study_data import StudyData
from mfrec.experiments.study_storage import StudyStorage, quiet_optuna
from mfrec.experiments.training import train
from mfrec.experiments.trial import TrialResult, TrialTraining, resumable_run
from mfrec.plugins import import_plugins
from mfrec.solvers.base import SOLVERS, SearchRange

if TYPE_CHECKING:
    import optuna

N_TRIALS = 20


@dataclass(frozen=True)
class StudyResult:
    """The result of `Study.run`.

    Attributes:
        trials: see `Study.trials`.
        state: "done" with the best trained and tested; "interrupted" by `stop`; "waiting" for another process, which
            will train the best.
        waiting_for: what the other process works on, such as "trial 3".
        best_options: the options of the best trial; its validation metric is best_value.
        run: the run of the best; metrics: its final figures.  None unless the state is "done".
    """

    trials: pd.DataFrame
    state: Literal["done", "interrupted", "waiting"]
    waiting_for: str = ""
    best_options: dict[str, float] = dataclasses.field(default_factory=dict)
    best_value: float | None = None
    run: Run | None = None
    metrics: dict[str, Any] | None = None


def search_space(solver: str, fixed: Collection[str] = ()) -> dict[str, SearchRange]:
    """Where to search: the solver's search space without the options that are fixed.

    Raises:
        InputError: nothing is left to search, or the solver is unknown.
    """
    ranges = SOLVERS[solver].search_space
    searched = {name: limits for name, limits in ranges.items() if name not in fixed}
    if not searched:
        if not ranges:
            raise InputError(f"{solver} has no options to tune; declare a search_space in its SolverSpec")
        raise InputError(
            f"every option that tune can search for {solver} is fixed; leave out one of {', '.join(ranges)}"
        )
    return searched


class Study:
    """A search for the options of a solver that are best on the validation set.

    Attributes:
        folder: the study's folder.
        config: the options that all trials have in common, and the defaults of the others.
        search_space: the options to search, and where.
    """

    def __init__(
        self,
        storage: StudyStorage,
        config: ExperimentConfig,
        search_space: dict[str, SearchRange],
        data: StudyData,
        *,
        is_new: bool = False,
    ) -> None:
        self.folder, self.config, self.search_space = storage.folder, config, search_space
        self.monitor = monitor(config.fit.monitor)
        self._storage, self._data, self._is_new = storage, data, is_new

    @classmethod
    def create(
        cls,
        config: ExperimentConfig,
        fixed: Collection[str] = (),
        trials: int = N_TRIALS,
        dataset: Dataset | None = None,
    ) -> Study:
        """Create a study's folder in `run_dir`, by default DATA-SOLVER-tune-N.

        The first trial has the options of the configuration.

        A solver without early stopping gets a validation set too, unless valid_fraction is fixed; `refit` is ignored,
        since a study always ends with a refit.

        Args:
            fixed: the names of options that must not be searched.
            trials: number of trials to do.
            dataset: the data, instead of loading the configured data.

        Raises:
            InputError: an option cannot be used, nothing is left to search, or Optuna is not installed.
        """
        import_plugins(config.run.plugin)
        if "valid_fraction" not in fixed and not config.data.valid_fraction:
            config = config.updated(valid_fraction=None)
        config = config.updated(refit=False)
        config.check()
        check_loggers(config.run.loggers)
        monitored, searched = monitor(config.fit.monitor), search_space(config.solver, fixed)
        if config.run.run_dir is None:
            raise OptionError("run_dir", "must be a folder to save the study in (got None)")
        _require_trials(trials)
        data = StudyData(config, dataset)
        data.require_validation()
        with quiet_optuna():
            folder = Run.create(config.run.run_dir, config.run.name, f"{data.dataset.name}-{config.solver}-tune").path
            storage = StudyStorage(folder, "maximize" if monitored.higher_is_better else "minimize")
            storage.study.enqueue_trial({name: value for name, value in config.flat().items() if name in searched})
            storage.write_settings(config, searched, trials)
        return cls(storage, config, searched, data, is_new=True)

    @classmethod
    def open(cls, folder: str | Path, dataset: Dataset | None = None) -> Study:
        """Open a study to continue it, or to work on it together with another process.

        Args:
            dataset: the data, if the study was created with data that is not the configured one.

        Raises:
            InputError: the folder has no study, it is damaged, or it was stopped before its first trial.
        """
        with quiet_optuna():
            storage = StudyStorage(Path(folder))
            config, searched = storage.read_settings()
            return cls(storage, config, searched, StudyData(config, dataset))

    def run(
        self,
        *,
        trials: int | None = None,
        timeout: float = math.inf,
        on_trial: Callable[[TrialResult], object] = lambda result: None,
        on_epoch: Callable[[Epoch], object] | None = None,
        stop: Callable[[], bool] | None = None,
        command: str | None = None,
    ) -> StudyResult:
        """Do the trials that are left, then train with the best options on training and validation set and test once.

        Args:
            trials: number of trials in total, instead of the number that the study has.
            timeout: seconds after which no new trial is started.
            on_trial: called after every trial of this process.
            on_epoch, stop, command: see `train`.

        Raises:
            InputError: an option cannot be used, or no trial came to an end.
        """
        started = time.monotonic()
        with self._removed_if_untrained(), quiet_optuna():
            if trials is not None:
                _require_trials(trials)
                self._storage.n_trials = trials
            while True:
                may_start = time.monotonic() - started < timeout
                with self._storage.claim(may_start=may_start) as trial:
                    if trial is None:
                        break
                    result = TrialTraining(self.config, self.search_space, self._storage, trial).run(
                        functools.partial(self._data.for_trials, self.folder), on_epoch, stop, command
                    )
                if result is None:
                    return StudyResult(self.trials(), "interrupted")
                on_trial(result)
            if running := self._storage.running():
                return StudyResult(self.trials(), "waiting", f"trial {running[0]}")
            return self._train_best(on_epoch, stop, command)

    def trials(self) -> pd.DataFrame:
        """The trials that ended, the best first.

        Returns:
            a frame with the columns trial, state ("done" or "pruned"), "valid METRIC", the options that were searched,
            epochs, seconds.
        """
        column = f"valid {self.monitor.label}"
        frame = self._storage.frame(column, list(self.search_space))
        is_ascending = not self.monitor.higher_is_better
        return frame.sort_values(column, ascending=is_ascending, kind="stable", ignore_index=True)

    def _train_best(
        self, on_epoch: Callable[[Epoch], object] | None, stop: Callable[[], bool] | None, command: str | None
    ) -> StudyResult:
        best = self._storage.best()
        if best is None:
            raise InputError(f"no trial of {self.folder} came to an end; resume the study for more trials")
        path = self.folder / f"best-trial-{best.number}"
        try:
            with FileLock(self.folder / ".best.lock", timeout=0):
                if Run(path).has_metrics():
                    metrics: dict[str, Any] | None = Run(path).metrics()
                elif (run := resumable_run(path)) is not None:
                    metrics = train(run.config(), run=run, on_epoch=on_epoch, stop=stop, command=command).metrics
                else:
                    config, dataset = self._best_training(best)
                    metrics = train(config, dataset, on_epoch=on_epoch, stop=stop, command=command).metrics
        except Timeout:
            return StudyResult(self.trials(), "waiting", "the best trial's options")
        state: Literal["done", "interrupted"] = "interrupted" if metrics is None else "done"
        return StudyResult(
            self.trials(), state, best_options=best.params, best_value=best.value, run=Run(path), metrics=metrics
        )

    def _best_training(self, best: optuna.trial.FrozenTrial) -> tuple[ExperimentConfig, Dataset]:
        # Without a validation set nothing says when to stop, so training takes the number of epochs that was best.
        config = self.config.updated(
            **best.params,
            run_dir=str(self.folder),
            name=f"best-trial-{best.number}",
            valid_fraction=0.0,
            epochs=best.user_attrs["best_epoch"] or best.user_attrs["epochs"],
        )
        return config, self._data.for_best()

    @contextlib.contextmanager
    def _removed_if_untrained(self) -> Iterator[None]:
        """Remove the folder of a new study if an error ends it before anything was trained."""
        try:
            yield
        except InputError:
            if self._is_new and not any(self.folder.glob("*/checkpoint.pt")):
                shutil.rmtree(self.folder)
            raise


def _require_trials(trials: int) -> None:
    if trials < 1:
        raise OptionError("trials", f"must be at least 1 (got {trials})")
