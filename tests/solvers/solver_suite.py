"""Problems and settings for tests of all solvers; the settings come from each solver's own declaration."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import textwrap
import typing
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Literal, NamedTuple, Union

import torch
from session_examples import with_times
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.experiments.config import ExperimentConfig, FitConfig
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.options import Options, Range
from mfrec.solvers.base import Capability, Solver
from mfrec.solvers.registry import SOLVERS

SESSION_GAPS = (0, 5)


class Case(NamedTuple):
    """A solver, and options of its own that differ from their defaults."""

    solver: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return "-".join([self.solver, *(f"{name}={value}" for name, value in self.options.items())])


def make_model(ratings: Ratings, rank: int = 3, **options: Any) -> MatrixFactorization:
    """A model at the start of training, always the same for the same arguments."""
    return MatrixFactorization.from_ratings(ratings, rank, generator=torch.Generator().manual_seed(1), **options)


def with_sessions(ratings: Ratings, name: str) -> tuple[Ratings, dict[str, Any]]:
    """The ratings at some times, and the option of a model with their sessions if the solver supports them."""
    timed = with_times(ratings)
    return timed, {"sessions": Sessions(timed, SESSION_GAPS)} if name in supporting("sessions") else {}


def make_solver(
    name: str, model: MatrixFactorization, ratings: Ratings, objective: Objective, seed: int = 2, **options: Any
) -> Any:
    """A solver with its default options, except for those given."""
    generator = torch.Generator().manual_seed(seed)
    return SOLVERS[name](model, ratings, objective, generator=generator, **options)


def train(solver: Solver, epochs: int) -> None:
    for _ in range(epochs):
        solver.epoch()


def default_epochs(name: str) -> int:
    """The number of epochs that a solver declares, or that of all solvers."""
    return int(SOLVERS[name].defaults.get("epochs", FitConfig().epochs))


def supporting(*capabilities: Capability) -> list[str]:
    """The solvers with all of these capabilities."""
    return [name for name, spec in SOLVERS.items() if spec.supports.issuperset(capabilities)]


def option_cases(*names: str) -> list[Case]:
    """For each solver, or for these, a case of its defaults, and one for each other value of each of its options."""
    cases = []
    for name in names or SOLVERS:
        kind = SOLVERS[name].options
        values = other_values(kind)
        cases.append(Case(name, {}))
        cases += [Case(name, {option: value}) for option in values for value in values[option]]
    return cases


def other_values(kind: type[Options]) -> dict[str, list[Any]]:
    """Values that differ from the default, for each option of a class; none for options that are free text."""
    defaults = kind()
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: list(_others(hint, getattr(defaults, name))) for name, hint in hints.items()}


def _others(hint: Any, default: Any) -> Iterator[Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, UnionType):
        for argument in arguments:
            if argument is not type(None):
                yield from _others(argument, default)
    elif origin is Literal:
        yield from (value for value in arguments if value != default)
    elif origin is tuple and Ellipsis not in arguments:
        for n, argument in enumerate(arguments):
            for value in _others(argument, default[n]):
                yield (*default[:n], value, *default[n + 1 :])
    elif hint is bool:
        yield not default
    elif hint is not str:
        yield _other_number(hint, default)


def _other_number(hint: Any, default: float | None) -> float:
    kind, limits = ranged(hint)
    start = default or 0
    # Smaller numbers first: a step half as large converges too.
    candidates = [start // 2, start + 1] if kind is int else [start / 2, 0.5, start + 1]
    for candidate in candidates:
        if candidate != default and limits.problem(candidate) is None:
            return kind(candidate)
    raise AssertionError(f"no other number than {default} in {limits}")


def ranged(hint: Any) -> tuple[type, Range]:
    """The type of a number and its range.

    Raises:
        TypeError: the type hint is not that of a number.
    """
    kind, *metadata = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    if kind not in (int, float):
        raise TypeError(f"the suite needs a rule for options of type {hint}")
    return kind, next((limits for limits in metadata if isinstance(limits, Range)), Range())


def numbers_out_of_range(kind: type[Options]) -> Iterator[tuple[str, Any, str]]:
    """(option, value, problem) for numbers just outside the ranges of a class's options."""
    defaults = kind()
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        default, is_tuple = getattr(defaults, name), typing.get_origin(hint) is tuple
        for n, part in enumerate(typing.get_args(hint) if is_tuple else (hint,)):
            for number, problem in _outside(part):
                yield name, (*default[:n], number, *default[n + 1 :]) if is_tuple else number, problem


def _outside(hint: Any) -> Iterator[tuple[float, str]]:
    try:
        kind, limits = ranged(hint)
    except TypeError:
        return
    ends = [end for end in (limits.low, limits.high) if math.isfinite(end)]
    candidates = {kind(number) for end in ends for number in (end - 1, end, end + 1, 2 * end)}
    for number in sorted(candidates) + ([math.nan, math.inf, -math.inf] if kind is float else []):
        if problem := limits.problem(number):
            yield number, problem


def helps(kind: type[Options]) -> dict[str, str]:
    """The string below each field of an option class, by the field's name."""
    texts: dict[str, str] = {}
    for base in kind.__mro__:
        if base in (Options, object):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[field.target.id] = text.value.value  # type: ignore[union-attr, attr-defined]
    return texts


def shared_options() -> set[str]:
    """The names of the options that all solvers have."""
    names = [{field.name for field in dataclasses.fields(group)} for _, group in _shared_groups()]
    return set().union(*names)


def _shared_groups() -> Iterator[tuple[str, Options]]:
    return ((name, group) for name, group in ExperimentConfig("", Options()).groups() if name != "options")


def planted_ratings() -> tuple[Ratings, Ratings]:
    """4,000 ratings of 120 users × 80 items by 2 planted factors and biases with noise 0.2, and 400 held out."""
    generator = torch.Generator().manual_seed(0)

    def drawn(std: float, *shape: int) -> Tensor:
        return std * torch.randn(*shape, generator=generator)

    pairs = torch.randperm(120 * 80, generator=generator)[:4400]
    users, items = pairs // 80, pairs % 80
    factors, biases = (drawn(0.6, 120, 2), drawn(0.6, 80, 2)), (drawn(0.35, 120), drawn(0.35, 80))
    values = 3 + biases[0][users] + biases[1][items] + (factors[0][users] * factors[1][items]).sum(1) + drawn(0.2, 4400)
    ratings = Ratings(users, items, values, 120, 80)
    return ratings.split(torch.arange(4400) % 11 == 0)


def assert_same_state(model: MatrixFactorization, expected: MatrixFactorization) -> None:
    """Every tensor of two models has the same bits."""
    state = model.state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(state[name], value), name


def assert_near(model: MatrixFactorization, expected: MatrixFactorization, atol: float) -> None:
    """Every parameter of two models is nearly the same."""
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, expected.get_parameter(name), atol=atol, rtol=0)


def assert_finite(model: MatrixFactorization) -> None:
    for name, parameter in model.named_parameters():
        assert bool(torch.isfinite(parameter).all()), name
