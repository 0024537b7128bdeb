"""One call of `train`: the solver, its data, its progress, its run folder and its loggers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.data.partition import data_digests, partitioned_splits
from mfrec.data.ratings import Ratings
from mfrec.data.splits import SPLIT_NAMES, split_by_labels
from mfrec.errors import OptionError
from mfrec.evaluation.metrics import with_coverage
from mfrec.evaluation.monitors import evaluate_monitored, monitor
from mfrec.experiments.building import build_solver, refit_labels, training_device
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.interrupts import Interrupts
from mfrec.experiments.loggers import Logger, open_loggers
from mfrec.experiments.loop import Epoch, Progress, fit, load_solver_state, never, out_of_patience, solver_state
from mfrec.experiments.resuming import MAY_CHANGE, require_work, with_changes
from mfrec.experiments.run import Run
from mfrec.experiments.run_log import log_results, log_settings
from mfrec.model.partial_state import gathering
from mfrec.posteriors.predictive import predictive_model
from mfrec.processes import Processes

# What opens loggers, given the run folder, and the epoch that a resumed run starts from or None.
OpenLoggers = Callable[[Path, int | None], Sequence[Logger]]

# Options that may differ between the processes of a training: where things are.
MAY_DIFFER = {"data", "test_data", "valid_data", "run_dir", "name", "plugin", "device"}


class Session:
    """One call of `train`: a solver on its data, its progress, and its run.

    Args:
        split_labels: as drawn, before a refit.
        first_fit: the results of the first fit, if this is the refit.
        processes: those that train together, each a session of its own; only the first one writes and logs.

    Raises:
        InputError: the model, the solver or the device refuse an option, or a refit lacks validation ratings.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: Dataset,
        split_labels: Tensor,
        run: Run | None = None,
        first_fit: dict[str, Any] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.dataset, self.drawn_labels, self.run = config, dataset, split_labels, run
        self.processes = processes
        self.is_first = processes is None or processes.index == 0
        self.device = training_device(config)
        self.resumed_at: int | None = None
        if processes is not None and config.fit.partial_tables:
            check_partial_tables(config)
        self._build(first_fit)
        if config.fit.refit and first_fit is None and "valid" not in self.splits:
            raise OptionError("refit", "needs validation ratings; set valid_fraction above 0")

    def _build(self, first_fit: dict[str, Any] | None) -> None:
        self.first_fit = first_fit
        self.split_labels = self.drawn_labels if first_fit is None else refit_labels(self.drawn_labels)
        self.splits = self._splits(self.processes)
        self.solver = build_solver(self.config, self.dataset, self.splits["train"])
        self.progress = Progress()

    def _splits(self, processes: Processes | None) -> dict[str, Ratings]:
        """The ratings of each split on the device; those of this process if several share them."""
        if processes is None:
            return split_by_labels(self.dataset.ratings.to(self.device), self.split_labels)
        options = {name: value for name, value in self.config.flat().items() if name not in MAY_DIFFER}
        text = json.dumps({"solver": self.config.solver, **options})
        digests = data_digests(self.dataset.ratings, self.split_labels)
        processes.require_same({"options": hashlib.sha256(text.encode()).digest(), **digests})
        ratings, is_partial = self.dataset.ratings, self.config.fit.partial_tables
        return {**partitioned_splits(ratings, self.split_labels, processes, self.device, partial_tables=is_partial)}

    @classmethod
    def resumed(cls, config: ExperimentConfig, run: Run, processes: Processes | None = None) -> Session:
        """The training of a run, at its last checkpoint.

        Raises:
            InputError: an option changed that may not, or nothing is left to do.
        """
        state, before = run.checkpoint(), run.config()
        first_fit = state["first_fit"]
        config = with_changes(run, before, config, MAY_CHANGE - ({"epochs", "patience"} if first_fit else set()))
        session = cls(config, *run.dataset(), run, first_fit, processes)
        session.progress = run.restore(session.solver, state)
        # A run killed between its last epoch and its metrics has only these left to do.
        if run.has_metrics():
            require_work(run, config, session.progress, first_fit)
        session.resumed_at = session.progress.epoch if first_fit is None else first_fit["epoch"]
        return session

    def create_run(self) -> None:
        """Create the run folder if one is configured; of a resumed run, update its options."""
        options = self.config.run
        if self.processes is not None:
            self.processes.any(False)  # all have read the run
        if not self.is_first:
            return
        if self.run is not None:
            self.run.remove_metrics()
            self.run.write_config(self.config)
        elif options.run_dir is not None:
            self.run = Run.create(options.run_dir, options.name, f"{self.dataset.name}-{self.config.solver}")
            self.config = self.config.updated(name=self.run.path.name)
            self.run.write_config(self.config)
            self.run.write_dataset(self.dataset, self.drawn_labels)

    def remove_run_if_untrained(self) -> None:
        """Remove the run folder unless an epoch in it was saved."""
        if self.run is None or not self.is_first:
            return
        if self.run.has_checkpoint():
            state = self.run.checkpoint()
            if state["progress"]["epoch"] > 0 or state["first_fit"] is not None:
                return
        self.run.remove()

    @contextlib.contextmanager
    def logging(
        self, loggers: Sequence[Logger] | OpenLoggers | None, command: str | None
    ) -> Iterator[Sequence[Logger]]:
        """Open the loggers and log the settings; see `train`.  Only the first process has any."""
        with contextlib.ExitStack() as stack:
            if not self.is_first:
                opened: Sequence[Logger] = ()
            elif isinstance(loggers, Sequence):
                opened = loggers
            else:
                opened = [stack.enter_context(contextlib.closing(logger)) for logger in self._open(loggers)]
            command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if command is None else command
            log_settings(opened, self.config.to_dict(), command, self.device, self.progress.epoch)
            yield opened

    def _open(self, loggers: OpenLoggers | None) -> Sequence[Logger]:
        if self.run is None:
            return ()
        if loggers is not None:
            return loggers(self.run.path, self.resumed_at)
        return open_loggers(active_loggers(self.config), self.run.path, self.resumed_at)

    def fit(
        self,
        loggers: Sequence[Logger],
        on_epoch: Callable[[Epoch], object] | None,
        stop: Callable[[], bool],
        end_early: Callable[[], bool],
    ) -> bool:
        """Fit, and refit if configured; False if `stop` interrupted it."""
        options = self.config.fit
        first_fit = self.first_fit
        if first_fit is None:
            if not self._run_epochs(options.epochs, self.splits.get("valid"), loggers, on_epoch, stop, end_early):
                return False
            if not options.refit:
                return True
            first_fit = self._first_results()
            self._build(first_fit)
        epochs = first_fit["best_epoch"] or first_fit["epoch"]
        report = None if on_epoch is None else lambda epoch: on_epoch(dataclasses.replace(epoch, refit=True))
        return self._run_epochs(epochs, None, (), report, stop, never)

    def _run_epochs(
        self,
        epochs: int,
        validation: Ratings | None,
        loggers: Sequence[Logger],
        on_epoch: Callable[[Epoch], object] | None,
        stop: Callable[[], bool],
        end_early: Callable[[], bool],
    ) -> bool:
        options = self.config.fit
        with stop.listening() if isinstance(stop, Interrupts) else contextlib.nullcontext():
            self.progress = fit(
                self.solver,
                validation,
                epochs=epochs,
                patience=options.patience,
                monitor=options.monitor,
                log_every=self.config.run.log_every or epochs,
                loggers=loggers,
                on_epoch=on_epoch,
                save=self._save if self.is_saved else None,
                progress=self.progress,
                stop=lambda: stop() or end_early(),
                recent_bias=self.config.model.recent_bias,
            )
        is_ended = self.splits["train"].any(end_early())
        return is_ended or self.progress.epoch >= epochs or out_of_patience(self.progress, options.patience)

    @property
    def is_saved(self) -> bool:
        """Whether the first process has a run folder."""
        return self.run is not None or self.config.run.run_dir is not None

    def _save(self, state: Mapping[str, Any]) -> None:
        if self.is_first:
            assert self.run is not None
            self.run.write_checkpoint({**state, "first_fit": self.first_fit})

    def _first_results(self) -> dict[str, Any]:
        progress = self.progress
        return {
            "epoch": progress.epoch,
            "best_epoch": progress.best_epoch,
            "best_value": progress.best_value,
            "seconds": progress.seconds,
            "valid": self._measure(["valid"])["valid"],
        }

    def _measure(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """The metrics of splits, with the monitored one for the validation set."""
        splits = {name: self.splits[name] for name in names}
        posterior, monitored = self.solver.inference(), monitor(self.config.fit.monitor)
        model, train = posterior.mean_model(), self.splits["train"]
        predictive = predictive_model(posterior, train, self.config.model.recent_bias, mean_model=model)
        measured = evaluate_monitored(model, self.solver.objective, splits, train, monitored, predictive)
        return with_coverage(measured, splits, posterior.predicting_by(predictive))

    def finish(self, loggers: Sequence[Logger]) -> dict[str, Any]:
        """Evaluate the trained model, write its metrics, and log them."""
        if self.processes is None:
            return self._finish(loggers)
        # The first process alone measures the final model, on all ratings, as if it had trained alone.
        metrics: dict[str, Any] = {}
        train = self.splits["train"]
        state = None if train.held_rows is None else solver_state(self.solver, gathering(train))
        if self.is_first:
            self.splits = self._splits(None)
            if state is not None:
                self.solver = build_solver(self.config, self.dataset, self.splits["train"])
                load_solver_state(self.solver, state)
            metrics = self._finish(loggers)
        return self.processes.from_first(metrics)

    def _finish(self, loggers: Sequence[Logger]) -> dict[str, Any]:
        progress, first_fit, ratings = self.progress, self.first_fit, self.dataset.ratings
        measured = self._measure(list(self.splits))
        if first_fit is not None:
            measured["valid"] = first_fit["valid"]
        metrics = {
            "solver": self.config.solver,
            "dataset": self.dataset.name,
            "split": self.config.data.split if self.config.data.test_data is None else "files",
            "seed": self.config.fit.seed,
            "rank": self.config.model.rank,
            "monitor": self.config.fit.monitor,
            "epochs": progress.epoch,
            "n_users": ratings.n_users,
            "n_items": ratings.n_items,
            "n_ratings": len(ratings),
            "fit_seconds": round(progress.seconds + (first_fit["seconds"] if first_fit else 0.0), 3),
            **{name: measured.get(name) for name in SPLIT_NAMES},
        }
        if diagnostics := self.solver.diagnostics():
            metrics["diagnostics"] = diagnostics
        if first_fit is not None:
            metrics["first_fit"] = {"epochs": first_fit["epoch"], "best_epoch": first_fit["best_epoch"]}
        if self.run is not None:
            self.run.write_metrics(metrics)
        epoch = progress.epoch if first_fit is None else first_fit["epoch"]
        options, posterior = self.config.hyperparameters(), self.solver.inference()
        predictive = predictive_model(posterior, self.splits["train"], self.config.model.recent_bias)
        posterior = posterior.predicting_by(predictive)
        log_results(loggers, options, self.dataset, posterior, self.splits, measured, epoch)
        return metrics


def active_loggers(config: ExperimentConfig) -> list[str]:
    """The names of the configured loggers; without TensorBoard if log_every is 0."""
    return [name for name in config.run.loggers if name != "tensorboard" or config.run.log_every]


def check_partial_tables(config: ExperimentConfig) -> None:
    """Check that no process needs all rows.

    Raises:
        OptionError: a ranking is monitored, or the model has features.
    """
    if monitor(config.fit.monitor).ranks_items:
        raise OptionError("monitor", "must be an error such as rmse with partial tables, which lack items to rank")
    if config.model.user_features or config.model.item_features:
        raise OptionError("partial_tables", "must be off for a model with features, which need all rows")
