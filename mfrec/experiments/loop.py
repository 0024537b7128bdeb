"""The loop: an epoch, a look at how far it got, a checkpoint, and when to stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.evaluation.metrics import evaluate_parts
from mfrec.model.factorization import MatrixFactorization
from mfrec.posteriors.posterior import Posterior
from mfrec.solvers.base import Solver

# A cost this many times the lowest so far is not noise of the solver, unless the fit is all but perfect: unless, that
# is, it is below so many times this share of ½ Σ y².
EXPLODED, PERFECT = 10.0, 0.01
# Seconds between checkpoints, or where saving is slow so many times its duration: what a killed process can lose.
SAVE_SECONDS, SAVE_SHARE = 2.0, 50.0
# Of the times that the training part is measured, the share at which the norms of the gradients are: they cost as much
# as an epoch of gradient descent.
NORM_LOOKS = 10

logger = logging.getLogger("mfrec")


class Diverged(InputError):
    """The cost became infinite, NaN, or many times what it was."""


@dataclass
class Progress:
    """How far a fit has got; with the model's and the solver's state, all that resuming needs.

    `best_model` is the state of the model at `best_epoch`, where the validation RMSE was lowest; empty without a
    validation part.  `seconds` is the wall time of epochs and evaluations.
    """

    epoch: int = 0
    seconds: float = 0.0
    lowest_cost: float = math.inf
    best_epoch: int = 0
    best_rmse: float = math.inf
    best_model: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Epoch:
    """One epoch's news: the number of epochs done, the parts' {"rmse", "mae", "cost"}, and the solver's own values.

    A part that there is not, or that was not measured after this epoch, is None.
    """

    number: int
    train: dict[str, float] | None
    valid: dict[str, float] | None
    solver: dict[str, float]


def fit(
    solver: Solver,
    valid: Ratings | None = None,
    *,
    epochs: int,
    patience: int = 8,
    log_every: int = 1,
    log: Callable[[str, float, int], object] | None = None,
    on_epoch: Callable[[Epoch], object] | None = None,
    save: Callable[[dict[str, Any]], object] | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Run the solver until `epochs` are done or the validation RMSE has not improved for `patience` epochs.

    Afterwards the model holds the best validated factors, or the last where nothing is validated.  A solver with a
    posterior needs no validation to know when to stop: it runs all its epochs, and what is measured is
    `answer(solver)`, the mean of its posterior.

    To measure the training part costs a good part of an epoch, and decides nothing, so that it is done at the start, at
    the last of `epochs`, and for those who listen, by `log` or `on_epoch`, every `log_every` epochs.  The validation
    part is measured after every epoch, where it decides something, and else with the training part.

    Args:
        epochs: epochs in all, those of `progress` included.
        patience: without a validation part it says nothing.
        log_every: epochs between points of the training part's curves.
        log: takes (tag, value, epoch), as `SummaryWriter.add_scalar` does.
        on_epoch: called after every epoch, and once before the first with number 0.
        save: takes a checkpoint: {"model", "solver", "progress"}; called at the start, every few seconds, at the end.
        progress: where an earlier fit got to, for a model and a solver that were restored with it.
        stop: asked before every epoch; True ends the fit there, ready to be resumed.

    Raises:
        Diverged: the cost is not finite, or exploded.  What was saved before stays as it is.
        InputError: log_every is below 1.
    """
    model, train = solver.model, solver.ratings
    decides = not hasattr(solver, "posterior")
    progress = Progress() if progress is None else progress
    parts = {"train": train} if valid is None else {"train": train, "valid": valid}
    # Above these a part's cost has exploded, whatever it was before.
    ceilings = {
        name: EXPLODED * 0.5 * float(part.values.double().square().sum()) if decides else math.inf
        for name, part in parts.items()
    }
    save_due = 0.0
    if log_every < 1:
        raise InputError(f"log_every {log_every} is no number of epochs; give 1 or more")

    def save_now() -> None:
        nonlocal save_due
        if save is not None:
            started = time.monotonic()
            save(checkpoint(solver, progress))
            ended = time.monotonic()
            save_due = ended + max(SAVE_SECONDS, SAVE_SHARE * (ended - started))

    def look(solver_values: dict[str, float]) -> Epoch:
        due = log_every if log is not None or on_epoch is not None else epochs
        names = list(parts) if progress.epoch % due == 0 or progress.epoch == epochs else ["valid"] if decides else []
        started = time.perf_counter()
        measured = _measure(solver, {name: parts[name] for name in names if name in parts})
        progress.seconds += time.perf_counter() - started
        news = Epoch(progress.epoch, measured.get("train"), measured.get("valid"), solver_values)
        if news.train is not None:
            errors = ", ".join(f"{part} RMSE {values['rmse']:.4f}" for part, values in measured.items())
            logger.info("epoch %s: %s, cost %.6g", progress.epoch, errors, news.train["cost"])
        if log is not None:
            _log(news, solver, NORM_LOOKS * log_every, log)
        if on_epoch is not None:
            on_epoch(news)
        _check_cost(measured, news, progress, ceilings)
        return news

    if progress.epoch == 0:
        look({})
        save_now()
    while progress.epoch < epochs and not stalled(progress, patience) and not stop():
        started = time.perf_counter()
        values = solver.epoch()
        progress.seconds += time.perf_counter() - started
        progress.epoch += 1
        news = look(values)
        if decides and news.valid is not None and news.valid["rmse"] < progress.best_rmse:
            progress.best_rmse, progress.best_epoch = news.valid["rmse"], progress.epoch
            progress.best_model = {name: value.clone() for name, value in model.state_dict().items()}
        if time.monotonic() > save_due:
            if news.train is None and news.valid is None:
                # What has diverged is not to replace what was saved.
                _check_cost(_measure(solver, {"train": train}), news, progress, ceilings)
            save_now()
    save_now()
    if progress.best_model:
        model.load_state_dict(progress.best_model)
    return progress


def checkpoint(solver: Solver, progress: Progress) -> dict[str, Any]:
    """All that going on to the same bits needs, as tensors, numbers and strings."""
    return {"model": solver.model.state_dict(), "solver": solver.state_dict(), "progress": dict(vars(progress))}


def posterior_of(solver: Solver) -> Posterior | None:
    """The posterior of a solver that has one; None of one that samples and has no draws to show yet."""
    return getattr(solver, "posterior", None)


def answer(solver: Solver) -> MatrixFactorization:
    """The model that predicts what the solver has found: its model, or the mean of its posterior."""
    posterior = posterior_of(solver)
    return solver.model if posterior is None else posterior.mean_model()


def stalled(progress: Progress, patience: int) -> bool:
    """Whether the validation RMSE has not improved for `patience` epochs."""
    return bool(progress.best_model) and progress.epoch - progress.best_epoch >= patience


def _measure(solver: Solver, parts: Mapping[str, Ratings]) -> dict[str, dict[str, float]]:
    return evaluate_parts(answer(solver), solver.objective, parts) if parts else {}


def _check_cost(
    measured: Mapping[str, Mapping[str, float]], news: Epoch, progress: Progress, ceilings: Mapping[str, float]
) -> None:
    """Raise Diverged for a cost that is not finite, or exploded; that of the training part tells soonest."""
    lr = news.solver.get("lr")
    way_out = f"lr {lr:g} is too large, try {lr / 4:.2g}" if lr is not None else "the solver diverged"
    for part, values in measured.items():
        cost, lowest, ceiling = values["cost"], progress.lowest_cost, ceilings[part]
        if part == "train":
            ceiling = max(EXPLODED * lowest, PERFECT * ceiling)
            progress.lowest_cost = min(lowest, cost)
        if not math.isfinite(cost) or cost > ceiling:
            before = f"went from {lowest:.4g} to" if part == "train" else "of the validation part became"
            raise Diverged(f"the cost {before} {cost:.4g} in epoch {news.number}: {way_out}")


def _log(news: Epoch, solver: Solver, norms_every: int, log: Callable[..., object]) -> None:
    for part, measured in (("train", news.train or {}), ("valid", news.valid or {})):
        for metric, value in measured.items():
            log(f"{metric}/{part}", value, news.number)
    for name, value in news.solver.items():
        log(name, value, news.number)
    if news.number % norms_every == 0:
        for name, gradient in solver.objective.gradients(solver.model, solver.ratings).items():
            log(f"gradient_norm/{name.removesuffix('.weight')}", float(gradient.norm()), news.number)
