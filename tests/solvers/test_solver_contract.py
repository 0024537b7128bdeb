"""The solver contract: every declaration is complete and true, and the table of solvers answers by name."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from unittest.mock import patch

import pytest
import torch
from solver_suite import (
    assert_same_state,
    default_epochs,
    helps,
    make_model,
    make_solver,
    numbers_out_of_range,
    option_cases,
    other_values,
    shared_options,
    train,
)

from mfrec.errors import InputError, OptionError
from mfrec.experiments.config import ExperimentConfig
from mfrec.model.objective import Objective
from mfrec.options import Count, Options, Positive, option_names, options_from
from mfrec.solvers.base import CAPABILITIES, SearchRange, Solver, SolverSpec, unsupported
from mfrec.solvers.registry import DEFAULT_SOLVER, SOLVERS


def declaration_problems(spec: SolverSpec) -> Iterator[str]:
    """Everything in a solver's declaration that other code could not rely on."""
    kind, shared = spec.options, shared_options()
    if not re.fullmatch(r"[A-Z][^\n]{10,100}\.", spec.summary):
        yield "the summary is not a short sentence"
    if not (issubclass(kind, Options) and dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen):
        yield "the options are not a frozen dataclass of Options"
    if not kind.__doc__ or kind.__doc__.startswith(f"{kind.__name__}("):
        yield "the options have no docstring"
    for name in option_names(kind):
        if name in shared:
            yield f"{name} is also an option of all solvers"
        if len(helps(kind).get(name, "")) < 10:
            yield f"{name} has no help"
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        for part in typing.get_args(hint) if typing.get_origin(hint) is tuple else (hint,):
            if part in (int, float):
                yield f"{name} has no range"
    implementation = spec.load()
    if not (isinstance(implementation, type) and issubclass(implementation, Solver)):
        yield "the implementation is not a Solver"
    elif implementation.epoch is Solver.epoch or not implementation.__doc__:
        yield "the implementation has no epoch or no docstring"
    if not spec.supports <= CAPABILITIES.keys():
        yield "supports an unknown capability"
    if not spec.defaults.keys() <= shared:
        yield "defaults name an option that not all solvers have"
    if not spec.learns <= shared:
        yield "learns an option that not all solvers have"
    if not spec.search_space.keys() <= shared | set(option_names(kind)):
        yield "the search space names an unknown option"
    if spec.learns & spec.search_space.keys():
        yield "the search space names a learned option"
    for name, (low, high, scale) in spec.search_space.items():
        if not low < high or (scale == "log" and low <= 0):
            yield f"the search range of {name} is empty"


@pytest.mark.parametrize("name", SOLVERS)
def test_a_declaration_is_complete(name):
    assert list(declaration_problems(SOLVERS[name])) == []


@dataclass(frozen=True)
class EveryKind(Options):
    """An option of every kind."""

    rank: int = 1
    lr: Positive = 0.1
    """Step size of each epoch."""
    step: Literal["plain", "proximal", "adagrad"] = "plain"
    flag: bool = False
    limit: Count | None = None
    blocks: tuple[Count, Count] = (1, 4)
    title: str = "text"


class Idle(Solver):
    def epoch(self) -> dict[str, float]:
        return {}


def test_an_incomplete_declaration_has_these_problems():
    spec = SolverSpec(
        summary="fast",
        options=EveryKind,
        implementation=Idle,
        supports=frozenset({"speed"}),  # type: ignore[arg-type]
        defaults={"lr": 0.1},
        search_space={"l2": SearchRange(0, 1, "log"), "lr": SearchRange(2, 1), "size": SearchRange(0, 1)},
        learns=frozenset({"l2", "step"}),
    )
    assert list(declaration_problems(spec)) == [
        "the summary is not a short sentence",
        "rank is also an option of all solvers",
        "rank has no help",
        "step has no help",
        "flag has no help",
        "limit has no help",
        "blocks has no help",
        "title has no help",
        "rank has no range",
        "the implementation has no epoch or no docstring",
        "supports an unknown capability",
        "defaults name an option that not all solvers have",
        "learns an option that not all solvers have",
        "the search space names an unknown option",
        "the search space names a learned option",
        "the search range of l2 is empty",
        "the search range of lr is empty",
    ]


def test_a_new_solver_and_each_of_its_options_are_in_the_suite(monkeypatch):
    monkeypatch.setitem(SOLVERS, "mine", SolverSpec("Nothing at all.", EveryKind, Idle, frozenset()))
    assert other_values(EveryKind) == {
        "rank": [0],
        "lr": [0.05],
        "step": ["proximal", "adagrad"],
        "flag": [True],
        "limit": [1],
        "blocks": [(2, 4), (1, 2)],
        "title": [],
    }
    cases = [str(case) for case in option_cases()]
    assert [case for case in cases if case.startswith("mine")] == [
        "mine", "mine-rank=0", "mine-lr=0.05", "mine-step=proximal", "mine-step=adagrad", "mine-flag=True",
        "mine-limit=1", "mine-blocks=(2, 4)", "mine-blocks=(1, 2)",
    ]  # fmt: skip
    outside = [(name, value) for name, value, _ in numbers_out_of_range(EveryKind)]
    assert {("lr", -1.0), ("lr", 0.0), ("lr", math.inf), ("blocks", (0, 4)), ("blocks", (1, 0))} <= set(outside)
    assert all(name in ("lr", "blocks") for name, _ in outside)


# options


@pytest.mark.parametrize("name", SOLVERS)
def test_default_options_are_valid_and_survive_json(name):
    kind = SOLVERS[name].options
    kind().check()
    assert options_from(kind, json.loads(json.dumps(kind().to_dict())), "options") == kind()


@pytest.mark.parametrize("case", option_cases(), ids=str)
def test_the_suites_other_values_are_valid_options(case):
    ExperimentConfig.create(case.solver, **case.options).check()


@pytest.mark.parametrize("name", SOLVERS)
def test_the_declared_defaults_make_a_valid_configuration(name):
    spec, config = SOLVERS[name], ExperimentConfig.create(name)
    config.check()
    assert {option: config.flat()[option] for option in spec.defaults} == spec.defaults
    assert default_epochs(name) == config.fit.epochs


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, spec in SOLVERS.items() for option in spec.search_space]
)
def test_both_ends_of_a_search_range_are_valid_and_the_default_is_between(name, option):
    low, high, _ = SOLVERS[name].search_space[option]
    for end in (low, high):
        config = ExperimentConfig.create(name, **{option: end})
        config.check()
        assert config.flat()[option] == end
    assert low <= ExperimentConfig.create(name).flat()[option] <= high


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, spec in SOLVERS.items() for option in sorted(spec.learns)]
)
def test_a_learned_option_cannot_be_set(name, option):
    message = f"{option} cannot be set for {name}, which learns it; leave it out"
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        ExperimentConfig.create(name, **{option: ExperimentConfig.create("sgd").flat()[option]})


@pytest.mark.parametrize(
    ("name", "option", "value", "problem"),
    [(name, *outside) for name, spec in SOLVERS.items() for outside in numbers_out_of_range(spec.options)],
)
def test_a_number_out_of_its_range_is_refused_by_its_options_name(name, option, value, problem, odd_ratings):
    with pytest.raises(OptionError, match=f"^{re.escape(f'{option} {problem}')}$"):
        make_solver(name, make_model(odd_ratings), odd_ratings, Objective(), **{option: value})


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, spec in SOLVERS.items() for option in option_names(spec.options)]
)
@pytest.mark.parametrize("value", ["no-such-value", None, [[]]])
def test_a_value_that_an_option_cannot_have_is_refused(name, option, value, odd_ratings):
    if value is None and getattr(SOLVERS[name].options(), option) is None:
        return  # None is the default
    with pytest.raises(InputError, match=rf"{option}.* must be |^unknown {option} 'no-such-value'; "):
        make_solver(name, make_model(odd_ratings), odd_ratings, Objective(), **{option: value})


@pytest.mark.parametrize("name", SOLVERS)
def test_an_unknown_option_is_refused_with_the_solvers_name(name, odd_ratings):
    with pytest.raises(InputError, match=f"^unknown option 'speed' in the options of {name}; "):
        make_solver(name, make_model(odd_ratings), odd_ratings, Objective(), speed=1)


# solvers


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_without_a_generator_is_seeded_with_zero(name, odd_ratings):
    models = [make_model(odd_ratings) for _ in range(2)]
    train(SOLVERS[name](models[0], odd_ratings, Objective(0.5)), 2)
    train(make_solver(name, models[1], odd_ratings, Objective(0.5), seed=0), 2)
    assert_same_state(*models)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_trains_the_model_it_was_given(name, odd_ratings):
    model, objective = make_model(odd_ratings), Objective(0.5)
    solver = make_solver(name, model, odd_ratings, objective)
    assert type(solver) is SOLVERS[name].load()
    assert (solver.model, solver.ratings, solver.objective) == (model, odd_ratings, objective)
    assert solver.options == SOLVERS[name].options()


def test_the_base_class_has_no_epoch_and_no_state(odd_ratings):
    solver = Solver(make_model(odd_ratings), odd_ratings, Objective(), EveryKind(), torch.Generator())
    with pytest.raises(NotImplementedError):
        solver.epoch()
    assert solver.state_dict() == {}
    assert solver.inference().kind == "point-estimate"


def test_a_solver_outside_the_table_is_built_like_the_others(odd_ratings):
    spec = SolverSpec("Nothing at all.", EveryKind, "test_solver_contract:Idle", frozenset())
    assert spec.load() is Idle
    assert spec(make_model(odd_ratings), odd_ratings, Objective(), lr=0.5).options == EveryKind(lr=0.5)
    with pytest.raises(InputError, match=r"^unknown option 'l' in the options of this solver; "):
        spec(make_model(odd_ratings), odd_ratings, Objective(), l=0.5)
    with pytest.raises(InputError, match=r"^this solver does not support non-negative factors; use sgd, "):
        spec(make_model(odd_ratings, nonnegative=True), odd_ratings, Objective())


# the table


@patch.dict(SOLVERS)
def test_the_table_of_solvers_finds_and_suggests_names():
    assert DEFAULT_SOLVER in SOLVERS
    assert len(SOLVERS) == len(list(SOLVERS))
    with pytest.raises(InputError, match=r"^unknown solver 'sdg'; did you mean 'sgd'\?$"):
        SOLVERS["sdg"]
    assert "sdg" not in SOLVERS
    spec = SolverSpec("Nothing at all.", EveryKind, Idle, frozenset({"features"}))
    assert SOLVERS.name_of(spec) == "this solver"
    SOLVERS["mine"] = spec
    assert SOLVERS.name_of(SOLVERS["mine"]) == "mine"
    assert str(unsupported("vb", "features")).endswith(", gibbs, mine")
    del SOLVERS["mine"]
    assert "mine" not in SOLVERS
    assert SOLVERS.get("mine") is None


def test_listing_solvers_imports_no_torch_and_building_one_imports_only_its_own_module():
    code = """
import sys
from mfrec.experiments.config import ExperimentConfig
from mfrec.solvers.registry import SOLVERS
assert [ExperimentConfig.create(name).solver for name in SOLVERS] == list(SOLVERS)
assert "torch" not in sys.modules
modules = {name: spec.implementation.partition(":")[0] for name, spec in SOLVERS.items()}
SOLVERS["als"].load()
assert [name for name, module in modules.items() if module in sys.modules] == ["als"]
for spec in SOLVERS.values():
    spec.load()
assert "scipy.optimize" not in sys.modules and "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
