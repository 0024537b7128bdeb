"""The solver contract: what a solver does (`Solver`), and what it declares about itself (`SolverSpec`).

Nothing here imports torch, so that the command line can list solvers and their options at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mfrec.errors import InputError, OptionError, unknown
from mfrec.options import Options, options_from

if TYPE_CHECKING:
    import torch

    from mfrec.data.ratings import Ratings
    from mfrec.model.factorization import MatrixFactorization
    from mfrec.model.objective import Objective
    from mfrec.model.partial_state import TableMap
    from mfrec.posteriors.base import Posterior

Capability = Literal["features", "non-negative", "losses", "sessions", "partial-tables"]
# The name of each capability in messages.
CAPABILITIES: dict[Capability, str] = {
    "features": "features",
    "non-negative": "non-negative factors",
    "losses": "losses other than the squared error",
    "sessions": "session biases",
    "partial-tables": "partial tables",
}


class Solver:
    """A way to train a model: changes it in place, one `epoch()` at a time.

    A subclass implements `epoch`; `state_dict` and `load_state_dict` if it has a state besides the model; `map_tables`
    if that state has tables of rows and it supports partial tables; and `plan` if the number of epochs matters.

    Args:
        model: the model to train.
        ratings: the training ratings, on the model's device.
        objective: the cost J to lower.
        options: the solver's own options.
        generator: the source of randomness, on the CPU.

    Attributes:
        spec: the declaration that the solver was built from, if it was.

    Examples:
        >>> import torch
        >>> from mfrec.data.ratings import Ratings
        >>> from mfrec.model.factorization import MatrixFactorization
        >>> from mfrec.model.objective import Objective
        >>> from mfrec.solvers.registry import SOLVERS
        >>> ratings = Ratings(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([5.0, 3.0]))
        >>> model = MatrixFactorization.from_ratings(ratings, rank=1)
        >>> solver = SOLVERS["als"](model, ratings, Objective(), generator=torch.Generator().manual_seed(0))
        >>> for _ in range(50):
        ...     values = solver.epoch()
        >>> [round(y, 2) for y in model.predict_observed(ratings).tolist()]
        [5.0, 3.0]
    """

    spec: SolverSpec | None = None

    def __init__(
        self,
        model: MatrixFactorization,
        ratings: Ratings,
        objective: Objective,
        options: Any,
        generator: torch.Generator,
    ) -> None:
        self.model, self.ratings, self.objective = model, ratings, objective
        self.options, self.generator = options, generator

    def plan(self, epochs: int) -> None:
        """Prepare for this many epochs, before the first; for solvers whose step size follows a schedule."""

    def epoch(self) -> dict[str, float]:
        """Go over the ratings once; afterwards the model is usable.

        Returns:
            Values to log, such as {"lr": 0.02}.
        """
        raise NotImplementedError

    def inference(self) -> Posterior:
        """What the solver inferred so far: a point estimate, unless a subclass overrides this."""
        from mfrec.posteriors.point_estimate import PointEstimate

        return PointEstimate(self.model, self.objective)

    def diagnostics(self) -> dict[str, float]:
        """How well a sampler's chains have converged, such as {"r_hat": 1.01}; empty for other solvers."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The state, besides the model, that the next epochs depend on: tensors, numbers, strings, dicts and lists."""
        return {}

    def map_tables(self, state: Mapping[str, Any], change: TableMap) -> dict[str, Any]:
        """A `state_dict()` with change(entity, table) in place of each table of users' or items' rows, (n_rows, …).

        For solvers that support partial tables, whose checkpoints have all rows.
        """
        return dict(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly as the solver that returned this state would have, to the same bits."""


class SearchRange(NamedTuple):
    """Where to search for an option's value: whole numbers if both ends are, evenly on a linear or log scale."""

    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"


@dataclass(frozen=True)
class SolverSpec:
    """What a solver declares: everything that other code needs to know about it.

    Attributes:
        summary: one sentence for lists of solvers.
        options: the class of the solver's own options.
        implementation: the `Solver` subclass, or where to import it from: "package.module:Class".
        supports: which of "features", "non-negative" factors, other "losses", "sessions" and "partial-tables" the
            solver can handle.
        defaults: the options of every solver, such as "rank", whose defaults differ for this one.
        search_space: the options worth tuning, the solver's own and those of every solver.
        learns: the options of every solver that this one infers from the data, so that they cannot be set.
        early_stopping: whether training stops when the validation metric no longer improves, and restores the best
            parameters; solvers without it run all their epochs.  Only for solvers that infer a point estimate: a
            posterior's variances or samples are those of the last epoch.
        cpu_only: whether the solver cannot train on a GPU.
        partitions: whether several processes can train, each on its own ratings; see `mfrec.data.partition`.
    """

    summary: str
    options: type[Options]
    implementation: str | type[Solver]
    supports: frozenset[Capability]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    search_space: Mapping[str, SearchRange] = field(default_factory=dict)
    learns: frozenset[str] = frozenset()
    early_stopping: bool = True
    cpu_only: bool = False
    partitions: bool = False

    def load(self) -> type[Solver]:
        """The solver's class, imported if need be."""
        if isinstance(self.implementation, type):
            return self.implementation
        module, _, name = self.implementation.partition(":")
        solver: type[Solver] = getattr(importlib.import_module(module), name)
        return solver

    def __call__(
        self,
        model: MatrixFactorization,
        ratings: Ratings,
        objective: Objective,
        *,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Solver:
        """A solver at the start of training.

        Args:
            generator: the source of randomness, on the CPU; seeded with 0 by default.
            options: the solver's own, by name.

        Raises:
            InputError: an option is unknown or out of range, or the solver does not support the model or the loss.
        """
        import torch

        chosen = options_from(self.options, options, f"the options of {SOLVERS.name_of(self)}")
        chosen.check()
        self._check_support(model, ratings, objective)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        solver = self.load()(model, ratings, objective, chosen, generator)
        solver.spec = self
        return solver

    def _check_support(self, model: MatrixFactorization, ratings: Ratings, objective: Objective) -> None:
        from mfrec.model.losses import squared_error

        needed: dict[Capability, bool] = {
            "losses": objective.loss is not squared_error,
            "non-negative": model.nonnegative,
            "features": model.has_features,
            "sessions": model.sessions is not None,
            "partial-tables": ratings.held_rows is not None,
        }
        for capability, is_needed in needed.items():
            if is_needed and capability not in self.supports:
                raise unsupported(SOLVERS.name_of(self), capability)
        if self.cpu_only and ratings.device.type != "cpu":
            raise gpu_unsupported(SOLVERS.name_of(self))
        if ratings.is_partitioned and not self.partitions:
            alternatives = ", ".join(name for name, spec in SOLVERS.items() if spec.partitions)
            raise InputError(f"{SOLVERS.name_of(self)} must train in one process; in several, use {alternatives}")
        if ratings.is_partitioned:
            _check_partition(model, ratings)


def _check_partition(model: MatrixFactorization, ratings: Ratings) -> None:
    """Check that several processes can train the model.

    Raises:
        InputError: it has terms that need the ratings of all processes.
    """
    from mfrec.data.features import IMPLICIT_BLOCK

    blocks = [name for entity in model.entities for name in entity.feature_blocks]
    for is_refused, kind in (
        (model.sessions is not None, CAPABILITIES["sessions"]),
        (IMPLICIT_BLOCK in blocks, "implicit features"),
    ):
        if is_refused:
            raise InputError(f"{kind} must be trained in one process; leave them out, or use one")
    if blocks and ratings.held_rows is not None:
        raise InputError("features need all rows in each process; leave them out, or turn partial tables off")


def unsupported(solver: str, capability: Capability) -> InputError:
    """The error, for the caller to raise, for a solver without a capability; lists the solvers that have it."""
    alternatives = [name for name, spec in SOLVERS.items() if capability in spec.supports]
    return InputError(f"{solver} does not support {CAPABILITIES[capability]}; use {', '.join(alternatives)}")


def gpu_unsupported(solver: str) -> OptionError:
    """The error, for the caller to raise, for a solver that cannot train on a GPU; lists those that can."""
    alternatives = [name for name, spec in SOLVERS.items() if not spec.cpu_only]
    return OptionError("device", f"must be cpu or auto for {solver}; on a GPU use {', '.join(alternatives)}")


class SolverTable(dict[str, SolverSpec]):
    """The solvers by name; `table[name]` raises `InputError` with a suggestion if the name is unknown."""

    def __missing__(self, name: str) -> SolverSpec:
        raise unknown("solver", name, self)

    def name_of(self, spec: SolverSpec) -> str:
        """The name that a spec is registered under, or "this solver"."""
        return next((name for name, registered in self.items() if registered is spec), "this solver")


# Filled by `mfrec.solvers.registry`, and by plugins.
SOLVERS = SolverTable()
