"""A trial of a study: its options, its training, and whether it is pruned."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mfrec.data.dataset import Dataset
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.loggers import Logger, open_loggers
from mfrec.experiments.loop import Diverged, Epoch
from mfrec.experiments.run import Run
from mfrec.experiments.session import active_loggers
from mfrec.experiments.study_storage import REPORT_EPOCHS, StudyStorage
from mfrec.experiments.training import train
from mfrec.solvers.base import SearchRange

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class TrialResult:
    """The end of a trial.

    Attributes:
        number: the trial's number, from 0.
        state: whether it was trained to its end, was pruned, or diverged.
        value: the validation metric; None if it diverged.
        options: the options that were tried.
        is_best: whether it is the best so far.
        problem: why it diverged.
    """

    number: int
    state: Literal["done", "pruned", "diverged"]
    value: float | None
    options: dict[str, float]
    is_best: bool = False
    problem: str = ""


class TrialTraining:
    """Trains a trial that this process has claimed.

    Args:
        config: the configuration that all trials have in common.
        search_space: the options to search, and where.
        storage: the study's trials; trial: the one to train.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        search_space: Mapping[str, SearchRange],
        storage: StudyStorage,
        trial: optuna.Trial,
    ) -> None:
        self.storage, self.trial, self.monitored = storage, trial, config.fit.monitor
        self.path = storage.folder / f"trial-{trial.number}"
        self.options = self._suggest(search_space, config.fit.seed)
        self.config = config.updated(**self.options, run_dir=str(storage.folder), name=self.path.name)
        self.run_before = resumable_run(self.path)
        self.reached = 0 if self.run_before is None else self.run_before.checkpoint()["progress"]["epoch"]
        self.reported = storage.last_step(trial.number)
        # The epoch after which the trial is pruned, noted before that epoch is in a checkpoint: a process that resumes
        # the trial finds it here, or decides it again.
        self.pruned_after: float = trial.user_attrs.get("pruned", math.inf)

    def _suggest(self, search_space: Mapping[str, SearchRange], seed: int) -> dict[str, float]:
        import optuna

        options: dict[str, float] = {}
        for index, (name, (low, high, scale)) in enumerate(search_space.items()):
            # Each option of each trial has a generator of its own: the options that a killed process had drawn are in
            # the study, and the others are drawn as they would have been.  Two processes never try the same.
            entropy = np.random.SeedSequence([seed, self.trial.number, index])
            self.storage.study.sampler = optuna.samplers.TPESampler(seed=int(entropy.generate_state(1)[0]))
            if isinstance(low, int) and isinstance(high, int):
                options[name] = self.trial.suggest_int(name, low, high, log=scale == "log")
            else:
                options[name] = self.trial.suggest_float(name, low, high, log=scale == "log")
        return options

    def run(
        self,
        data: Callable[[], Dataset],
        on_epoch: Callable[[Epoch], object] | None,
        stop: Callable[[], bool] | None,
        command: str | None,
    ) -> TrialResult | None:
        """Train, or resume, and enter the result in the study; None if `stop` interrupted the training.

        Args:
            data: gives the data without the test ratings.
            on_epoch, stop, command: see `train`.
        """

        def report_epoch(epoch: Epoch) -> None:
            if on_epoch is not None:
                on_epoch(epoch)
            self._report(epoch)

        try:
            metrics = self._train(data, report_epoch, stop, command)
        except Diverged as error:
            self.storage.finish(self.trial)
            return TrialResult(self.trial.number, "diverged", None, self.options, problem=str(error))
        return None if metrics is None else self._finish(metrics)

    def _train(
        self,
        data: Callable[[], Dataset],
        on_epoch: Callable[[Epoch], object],
        stop: Callable[[], bool] | None,
        command: str | None,
    ) -> dict[str, Any] | None:
        run = self.run_before
        if run is not None and run.has_metrics():
            return run.metrics()
        return train(
            self.config if run is None else run.config(),
            data() if run is None else None,
            run=run,
            loggers=functools.partial(loggers_without_figures, active_loggers(self.config)),
            on_epoch=on_epoch,
            stop=stop,
            end_early=self._is_pruned,
            command=command,
        ).metrics

    def _is_pruned(self) -> bool:
        return self.reached >= self.pruned_after

    def _report(self, epoch: Epoch) -> None:
        self.reached = epoch.number
        if epoch.valid is None or self.reached % REPORT_EPOCHS or self.reached < max(self.reported, 1):
            return
        if self.reached > self.reported:
            self.trial.report(epoch.valid[self.monitored], self.reached)
        if self.trial.should_prune():
            self.trial.set_user_attr("pruned", self.reached)
            self.pruned_after = self.reached

    def _finish(self, metrics: dict[str, Any]) -> TrialResult:
        progress = Run(self.path).checkpoint()["progress"]
        for name, number in {"epochs": progress["epoch"], "best_epoch": progress["best_epoch"]}.items():
            self.trial.set_user_attr(name, number)
        self.trial.set_user_attr("seconds", metrics["fit_seconds"])
        value: float = metrics["valid"][self.monitored]
        pruned = self._is_pruned()
        if pruned:
            # Optuna's value of a pruned trial is the last one reported.
            self.trial.set_user_attr("value", value)
        self.storage.finish(self.trial, value, pruned=pruned)
        best = self.storage.best()
        is_best = not pruned and best is not None and best.number == self.trial.number
        return TrialResult(self.trial.number, "pruned" if pruned else "done", value, self.options, is_best)


def loggers_without_figures(names: Sequence[str], folder: Path, resumed_at: int | None) -> list[Logger]:
    """Open loggers that get no figures, which take longer to draw than a trial takes to train."""
    loggers = open_loggers(names, folder, resumed_at)
    for logger in loggers:
        logger.wants_figures = False
    return loggers


def resumable_run(path: Path) -> Run | None:
    """The run in a folder if it has a checkpoint; a folder without one is removed, to start again."""
    if Run(path).has_checkpoint():
        return Run(path)
    if path.exists():
        shutil.rmtree(path)
    return None
