"""Solvers: each one way to lower the cost, one `epoch()` at a time.

A new solver is one class that keeps the promise of `Solver`, and one row in `SOLVERS`.  Its keyword arguments after
`generator` are its knobs: they become its command-line options, with the help its docstring gives them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch

from mfrec.data.ratings import Ratings
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.solvers.als import ALS
from mfrec.solvers.descent import SGD, GradientDescent, Optim
from mfrec.solvers.gibbs import Gibbs
from mfrec.solvers.quasi_newton import QuasiNewton
from mfrec.solvers.variational import VariationalBayes


class Solver(Protocol):
    """Constructed from these and, by keyword, its own knobs; changes the model in place.

    A solver that has a posterior offers it as the attribute `posterior`, and one that learns what others take as
    options names these in `learned`.  In `space` are the options worth tuning, its own and those of all solvers, and
    where to search: {"lr": (0.005, 0.08, "log"), "rank": (16, 128, "log"), …}, from lowest to highest, evenly on a
    "log" or "linear" scale, in whole numbers where both ends are.  `takes` says which of "features", "non-negative"
    factors and other "losses" than the squared error it can do.

    Raises:
        InputError: a knob is out of its range, or the solver cannot do what the model or the objective asks of it.

    Examples:
        >>> ratings = Ratings(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([5.0, 3.0]))
        >>> model = MatrixFactorization.from_ratings(ratings, rank=1)
        >>> solver = SOLVERS["als"](model, ratings, Objective(), generator=torch.Generator().manual_seed(0))
        >>> for _ in range(50):
        ...     values = solver.epoch()
        >>> [round(y, 2) for y in model.predict_observed(ratings).tolist()]
        [5.0, 3.0]
    """

    model: MatrixFactorization
    ratings: Ratings
    objective: Objective

    def __init__(
        self, model: MatrixFactorization, ratings: Ratings, objective: Objective, *, generator: torch.Generator
    ) -> None: ...

    defaults: ClassVar[dict[str, Any]]
    """What suits this solver of the options that every solver has, e.g. {"l2": 10.0}, or {"valid_fraction": 0.0}
    where no validation part is needed."""

    def epoch(self) -> dict[str, float]:
        """Go over the ratings once; afterwards the model is usable.  Returns what is worth a curve, such as "lr"."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What, beside the model, decides the epochs to come: tensors, numbers and strings, in dicts and lists."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the solver that gave this state would have, to the same bits."""
        ...


SOLVERS: dict[str, type[Solver]] = {
    "sgd": SGD,
    "gd": GradientDescent,
    "optim": Optim,
    "quasi-newton": QuasiNewton,
    "als": ALS,
    "vb": VariationalBayes,
    "gibbs": Gibbs,
}
DEFAULT = "sgd"
