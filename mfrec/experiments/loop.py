"""The training loop: an epoch, its evaluation, a checkpoint, and when to stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, OptionError
from mfrec.evaluation.monitors import Monitor, evaluate_monitored, monitor
from mfrec.experiments.loggers import Logger
from mfrec.model.entity import entity_of
from mfrec.model.partial_state import TableMap, gathering, map_model_state
from mfrec.posteriors.predictive import predictive_model
from mfrec.solvers.base import Solver

# Training has diverged if its cost exceeds both EXPLODED times the lowest cost so far, and
# ALMOST_PERFECT · EXPLODED · ½ Σ y².  The second bound lets an almost perfect fit fluctuate.
EXPLODED, ALMOST_PERFECT = 10.0, 0.01
# Seconds between checkpoints, or this many times the seconds that one takes: the work that a kill can lose.
SAVE_SECONDS, SAVE_SHARE = 2.0, 50.0
# Gradient norms cost as much as an epoch of gradient descent, so they are logged this many times less often.
NORM_INTERVAL = 10

logger = logging.getLogger("mfrec")


class Diverged(InputError):
    """The cost became infinite, NaN, or many times as large as before."""


@dataclass
class Progress:
    """How far a fit is; together with the states of the model and the solver, everything that resuming needs.

    Attributes:
        epoch: number of epochs done.
        seconds: wall time of epochs and evaluations.
        lowest_cost: lowest training cost so far.
        best_epoch, best_value: the epoch with the best validation metric, and its value; 0 and None before the first.
        best_model: the state of the model after that epoch; empty without a validation set.
    """

    epoch: int = 0
    seconds: float = 0.0
    lowest_cost: float = math.inf
    best_epoch: int = 0
    best_value: float | None = None
    best_model: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Epoch:
    """The result of one epoch.

    Attributes:
        number: number of epochs done.
        epochs: number of epochs to do at most.
        train, valid: metrics and cost of a split, by name; None if it was not evaluated after this epoch.
        solver: the solver's own values, such as {"lr": 0.02}.
        n_ratings: number of training ratings.
        refit: whether this is an epoch of the refit on the training and validation ratings.
    """

    number: int
    epochs: int
    train: dict[str, float] | None
    valid: dict[str, float] | None
    solver: dict[str, float]
    n_ratings: int
    refit: bool = False


def never() -> bool:
    """The default of `stop`: training is not interrupted."""
    return False


def fit(
    solver: Solver,
    validation: Ratings | None = None,
    *,
    epochs: int,
    patience: int | None = 8,
    monitor: str = "rmse",
    log_every: int = 1,
    loggers: Sequence[Logger] = (),
    on_epoch: Callable[[Epoch], object] | None = None,
    save: Callable[[dict[str, Any]], object] | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] = never,
    recent_bias: int = 0,
) -> Progress:
    """Run the solver for `epochs`, or until the validation metric has not improved for `patience` epochs.

    Afterwards the model has the parameters of the best epoch, or of the last one without a validation set.  A solver
    whose specification has `early_stopping=False` runs all its epochs.

    Evaluating the training set is slow and affects nothing: it is done at the start, at the last of `epochs`, and
    every `log_every` epochs if there are loggers or a callback.  The validation set is evaluated after every epoch
    if the solver stops early, else together with the training set.

    Args:
        epochs: number of epochs in total, including those of `progress`.
        patience: None runs all epochs; ignored without a validation set.
        monitor: the validation metric to stop early by: a name in `METRICS`, or a ranking metric such as "ndcg@10".
        log_every: number of epochs between evaluations of the training set.
        loggers: where metrics, the solver's values, gradient norms and histograms of the parameters go.
        on_epoch: called after every epoch, and once before the first with number 0.
        save: takes a checkpoint (see `checkpoint`); called at the start, every few seconds, and at the end.
        progress: the progress of an earlier fit, whose model and solver were restored with it.
        stop: asked before every epoch; True ends the fit there, ready to be resumed.
        recent_bias: see `mfrec.posteriors.predictive`, by which the validation set is predicted.

    Raises:
        Diverged: the cost is not finite, or exploded; the last checkpoint remains as it is.
        InputError: log_every is below 1, or the monitored metric is unknown.
    """
    if log_every < 1:
        raise OptionError("log_every", f"must be at least 1 (got {log_every})")
    progress = Progress() if progress is None else progress
    loop = _Loop(solver, validation, epochs, monitor, log_every, loggers, on_epoch, save, progress, recent_bias)
    if progress.epoch == 0:
        solver.plan(epochs)
        loop.evaluate_epoch({})
        loop.save_now()
    while progress.epoch < epochs and not out_of_patience(progress, patience) and not loop.any(stop()):
        loop.run_epoch()
    loop.save_now()
    if progress.best_model:
        solver.model.load_state_dict(progress.best_model)
    return progress


def checkpoint(solver: Solver, progress: Progress) -> dict[str, Any]:
    """Everything that resuming to the same bits and loading need, as tensors, numbers and strings.

    Of several processes, the first one has the tables of all rows in it.

    Returns:
        {"model", "solver", "posterior", "progress"}.  Tensors that occur in several of them are saved once.
    """
    gather, posterior = gathering(solver.ratings), solver.inference()
    return {
        **solver_state(solver, gather),
        "posterior": posterior.map_tables(posterior.state_dict(), gather),
        "progress": {**vars(progress), "best_model": map_model_state(progress.best_model, gather)},
    }


def solver_state(solver: Solver, gather: TableMap) -> dict[str, Any]:
    """{"model", "solver"}: the states of a solver and of its model, with tables of all rows."""
    return {
        "model": map_model_state(solver.model.state_dict(), gather),
        "solver": solver.map_tables(solver.state_dict(), gather),
    }


def load_solver_state(solver: Solver, state: Mapping[str, Any]) -> None:
    """Bring a solver and its model to a `solver_state`; with partial tables, they take the rows that they hold."""
    held_of = solver.ratings.held_of
    solver.model.load_state_dict(map_model_state(state["model"], held_of))
    solver.load_state_dict(solver.map_tables(state["solver"], held_of))


def out_of_patience(progress: Progress, patience: int | None) -> bool:
    """Whether the validation metric has not improved for `patience` epochs; never if that is None."""
    return patience is not None and bool(progress.best_model) and progress.epoch - progress.best_epoch >= patience


def uses_early_stopping(solver: Solver) -> bool:
    """Whether training stops once the validation metric no longer improves."""
    return solver.spec is None or solver.spec.early_stopping


class _Loop:
    """The state of a fit between its epochs."""

    def __init__(
        self,
        solver: Solver,
        validation: Ratings | None,
        epochs: int,
        monitored: str,
        log_every: int,
        loggers: Sequence[Logger],
        on_epoch: Callable[[Epoch], object] | None,
        save: Callable[[dict[str, Any]], object] | None,
        progress: Progress,
        recent_bias: int,
    ) -> None:
        self.recent_bias = recent_bias
        self.solver, self.epochs, self.progress = solver, epochs, progress
        self.monitor: Monitor = monitor(monitored)
        self.loggers, self.on_epoch, self.save = loggers, on_epoch, save
        # Only the first of several processes has loggers, but all must measure alike.
        self.is_logged = self.any(bool(loggers))
        self.train_every = log_every if self.is_logged or self.any(on_epoch is not None) else epochs
        self.norms_every = NORM_INTERVAL * log_every
        self.stops_early = uses_early_stopping(solver)
        self.splits = {"train": solver.ratings} | ({} if validation is None else {"valid": validation})
        self.ceilings = {
            name: EXPLODED * 0.5 * float(ratings.total(ratings.values.double().square().sum()))
            if self.stops_early
            else math.inf
            for name, ratings in self.splits.items()
        }
        self.save_due = 0.0

    def run_epoch(self) -> None:
        """An epoch, its evaluation, and a checkpoint if one is due."""
        progress = self.progress
        started = time.perf_counter()
        values = self.solver.epoch()
        progress.seconds += time.perf_counter() - started
        progress.epoch += 1
        result = self.evaluate_epoch(values)
        if self.stops_early and result.valid is not None:
            self._note_if_best(result.valid[self.monitor.name])
        if self.save is not None and self.any(time.monotonic() > self.save_due):
            if result.train is None and result.valid is None:
                # A diverged state must not replace the last checkpoint.
                self._check_cost(self._evaluate(["train"]), result)
            self.save_now()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes that train together: they go on, or end, together."""
        return self.solver.ratings.any(flag)

    def evaluate_epoch(self, solver_values: dict[str, float]) -> Epoch:
        """Evaluate the splits that are due, log them, and check that the cost has not exploded."""
        progress = self.progress
        started = time.perf_counter()
        measured = self._evaluate(self._due_splits())
        progress.seconds += time.perf_counter() - started
        train, valid, n_ratings = measured.get("train"), measured.get("valid"), self.splits["train"].n_ratings
        result = Epoch(progress.epoch, self.epochs, train, valid, solver_values, n_ratings)
        if result.train is not None:
            shown = self.monitor.name
            errors = ", ".join(
                f"{split} {shown} {values[shown]:.4f}" for split, values in measured.items() if shown in values
            )
            logger.info("epoch %s: %s, cost %.6g", result.number, errors, result.train["cost"])
        self._log(result)
        if self.on_epoch is not None:
            self.on_epoch(result)
        self._check_cost(measured, result)
        return result

    def save_now(self) -> None:
        """Save a checkpoint, and say when the next one is due."""
        if self.save is not None:
            started = time.monotonic()
            self.save(checkpoint(self.solver, self.progress))
            ended = time.monotonic()
            self.save_due = ended + max(SAVE_SECONDS, SAVE_SHARE * (ended - started))

    def _due_splits(self) -> list[str]:
        epoch = self.progress.epoch
        if epoch % self.train_every == 0 or epoch == self.epochs:
            return list(self.splits)
        return [name for name in self.splits if name == "valid" and self.stops_early]

    def _evaluate(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        if not names:
            return {}
        posterior, train = self.solver.inference(), self.splits["train"]
        model = posterior.mean_model()
        splits, predictive = {name: self.splits[name] for name in names}, model
        if splits.keys() != {"train"}:
            predictive = predictive_model(posterior, train, self.recent_bias, mean_model=model)
        measured = evaluate_monitored(model, self.solver.objective, splits, train, self.monitor, predictive)
        # Processes on unlike hosts may differ in the last digit, but must decide alike.
        shared: dict[str, dict[str, float]] = train.from_first(measured)
        return shared

    def _note_if_best(self, value: float) -> None:
        best = self.progress.best_value
        if not math.isnan(value) and (best is None or self.monitor.is_better(value, best)):
            self.progress.best_value, self.progress.best_epoch = value, self.progress.epoch
            self.progress.best_model = {key: kept.clone() for key, kept in self.solver.model.state_dict().items()}

    def _check_cost(self, measured: Mapping[str, Mapping[str, float]], result: Epoch) -> None:
        """Raise Diverged if a cost is not finite, or exploded; the training cost shows it first."""
        for name, values in measured.items():
            cost, lowest, ceiling = values["cost"], self.progress.lowest_cost, self.ceilings[name]
            if name == "train":
                ceiling = max(EXPLODED * lowest, ALMOST_PERFECT * ceiling)
                self.progress.lowest_cost = min(lowest, cost)
            if not math.isfinite(cost) or cost > ceiling:
                if name == "train" and result.number == 0:
                    raise Diverged(
                        f"the training cost must be finite (got {cost:.4g}); lower l2, or scale the ratings down"
                    )
                change = f"training cost went from {lowest:.4g} to" if name == "train" else "validation cost became"
                raise Diverged(f"the {change} {cost:.4g} in epoch {result.number}: {self._advice(result)}")

    def _advice(self, result: Epoch) -> str:
        """How to avoid divergence."""
        lr, spec = result.solver.get("lr"), self.solver.spec
        if lr is not None:
            return f"lr {lr:g} is too large; try {lr / 4:.2g}"
        can_set_l2 = spec is None or "l2" not in spec.learns
        return "raise l2, or choose another solver" if can_set_l2 else "choose another solver"

    def _log(self, result: Epoch) -> None:
        if not self.is_logged:
            return
        model, number = self.solver.model, result.number
        scalars = {
            f"{metric}/{split}": value
            for split, values in (("train", result.train), ("valid", result.valid))
            for metric, value in (values or {}).items()
        } | result.solver
        if number % self.norms_every == 0:
            ratings = self.solver.ratings
            for name, gradient in self.solver.objective.gradients(model, ratings).items():
                norm = ratings.row_sum(entity_of(name), gradient.double().square()).sqrt()
                scalars[f"gradient_norm/{name.removesuffix('.weight')}"] = float(norm)
        for sink in self.loggers:
            sink.scalars(scalars, number)
            if result.train is not None:
                sink.histograms(model, number)
