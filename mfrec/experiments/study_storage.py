"""A study's trials in Optuna's SQLite database, and file locks that say which process works on which trial."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from filelock import FileLock, Timeout

from mfrec.errors import InputError
from mfrec.experiments.config import ExperimentConfig, config_from
from mfrec.solvers.base import SearchRange

if TYPE_CHECKING:
    import optuna

DATABASE = "study.db"
STUDY_NAME = "mfrec"
# Epochs between the values that pruning compares, and epochs before the first.
REPORT_EPOCHS, WARM_UP_EPOCHS = 5, 10
# Seconds to wait while another process writes to the database.
WRITE_SECONDS = 60


class StudyStorage:
    """The trials and the settings of a study.

    A trial belongs to the process that holds its lock.  A process's lock ends with it, so a running trial with a free
    lock was left by a killed process.  The next process continues it.

    Args:
        folder: the study's folder.
        direction: the direction of the metric, to create a study; without it the folder must have one.

    Attributes:
        study: Optuna's study.

    Raises:
        InputError: the folder has no study, or it is damaged.
    """

    def __init__(self, folder: Path, direction: Literal["minimize", "maximize"] | None = None) -> None:
        import optuna

        self.folder = folder
        path = folder / DATABASE
        if direction is None and not path.is_file():
            raise InputError(f"{folder} is not a study: it has no {DATABASE}; give the folder of a study")
        # A trial among the worst quarter at some epoch is pruned: slow starters may still win, so not the worst half.
        pruner = optuna.pruners.PercentilePruner(
            75.0, n_startup_trials=5, n_warmup_steps=WARM_UP_EPOCHS, interval_steps=REPORT_EPOCHS
        )
        connection = {"connect_args": {"timeout": WRITE_SECONDS}}
        try:
            self._storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs=connection)
            if direction is None:
                self.study = optuna.load_study(study_name=STUDY_NAME, storage=self._storage, pruner=pruner)
            else:
                self.study = optuna.create_study(
                    study_name=STUDY_NAME, storage=self._storage, pruner=pruner, direction=direction
                )
            self._id = self._storage.get_study_id_from_name(STUDY_NAME)
        except Exception as error:  # SQLAlchemy and Optuna raise many kinds for a foreign file
            raise InputError(
                f"{path} cannot be read ({type(error).__name__}); restore it from a copy, or start a new study"
            ) from error

    def write_settings(self, config: ExperimentConfig, search_space: dict[str, SearchRange], n_trials: int) -> None:
        """Write what every process of the study needs; the number of trials last, which completes the study."""
        self.study.set_user_attr("config", config.to_dict())
        self.study.set_user_attr("search_space", {name: list(limits) for name, limits in search_space.items()})
        self.n_trials = n_trials

    def read_settings(self) -> tuple[ExperimentConfig, dict[str, SearchRange]]:
        """Read what `write_settings` wrote.

        Raises:
            InputError: the study was stopped before it was complete, or a plugin is missing.
        """
        settings = self.study.user_attrs
        if "trials" not in settings:
            raise InputError(f"{self.folder} was stopped before its first trial; delete it, and start a new study")
        search_space = {name: SearchRange(*limits) for name, limits in settings["search_space"].items()}
        return config_from(settings["config"], str(self.folder)), search_space

    @property
    def n_trials(self) -> int:
        """The number of trials to do."""
        number: int = self.study.user_attrs["trials"]
        return number

    @n_trials.setter
    def n_trials(self, number: int) -> None:
        self.study.set_user_attr("trials", number)

    @contextlib.contextmanager
    def claim(self, *, may_start: bool) -> Iterator[optuna.Trial | None]:
        """Hold a trial that no other process works on: one that a killed process left, or a new one.

        Args:
            may_start: whether a new one may be started.

        Yields:
            the trial; None if there is none to work on.
        """
        with contextlib.ExitStack() as stack:
            trial = None
            with FileLock(self.folder / ".study.lock"):
                for number in self.running():
                    with contextlib.suppress(Timeout):
                        stack.enter_context(FileLock(self._lock(number), timeout=0))
                        trial = self._trial(number)
                        break
                if trial is None and may_start and self._n_started() < self.n_trials:
                    trial = self.study.ask()
                    stack.enter_context(FileLock(self._lock(trial.number), timeout=0))
            yield trial

    def running(self) -> list[int]:
        """The numbers of the trials that were started and have not ended."""
        import optuna

        state = optuna.trial.TrialState.RUNNING
        return [trial.number for trial in self.study.get_trials(deepcopy=False, states=(state,))]

    def last_step(self, number: int) -> int:
        """The last epoch that a trial reported a value for; 0 before the first."""
        return self.study.get_trials(deepcopy=False)[number].last_step or 0

    def finish(self, trial: optuna.Trial, value: float | None = None, *, pruned: bool = False) -> None:
        """End a trial with a value, as pruned, or as failed."""
        import optuna

        if pruned:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif value is None or math.isnan(value):
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(trial, value)

    def best(self) -> optuna.trial.FrozenTrial | None:
        """The best of the trials that have ended, without pruned ones."""
        import optuna

        state = optuna.trial.TrialState.COMPLETE
        return self.study.best_trial if self.study.get_trials(deepcopy=False, states=(state,)) else None

    def frame(self, value: str, options: list[str]) -> pd.DataFrame:
        """The trials that were trained to their end or pruned, in their order.

        Args:
            value: the name of the column for the trial's value.
            options: the options that are searched.

        Returns:
            a frame with the columns trial, state ("done" or "pruned"), value, the options, epochs, seconds.
        """
        rows = [
            {
                "trial": trial.number,
                "state": "pruned" if "pruned" in trial.user_attrs else "done",
                value: trial.user_attrs.get("value", trial.value),
                **trial.params,
                "epochs": trial.user_attrs["epochs"],
                "seconds": trial.user_attrs["seconds"],
            }
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.is_finished() and "epochs" in trial.user_attrs
        ]
        return pd.DataFrame(rows, columns=["trial", "state", value, *options, "epochs", "seconds"])

    def _trial(self, number: int) -> Any:
        import optuna

        return optuna.trial.Trial(self.study, self._storage.get_trial_id_from_study_id_trial_number(self._id, number))

    def _n_started(self) -> int:
        import optuna

        waiting = optuna.trial.TrialState.WAITING
        return sum(trial.state != waiting for trial in self.study.get_trials(deepcopy=False))

    def _lock(self, number: int) -> Path:
        return self.folder / f".trial-{number}.lock"


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's progress messages, and its warnings that a step was reported before, as happens after a kill.

    Raises:
        InputError: Optuna is not installed.
    """
    require_optuna()
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="optuna")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def require_optuna() -> None:
    """Check that Optuna is installed.

    Raises:
        InputError: it is not.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise InputError('tuning needs Optuna; install it with: pip install "mfrec[tune]"') from None
