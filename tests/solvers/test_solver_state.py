"""Reproducible training: the same bits for a seed, for any number of threads, and after a solver is restored."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from solver_suite import (
    Case,
    assert_same_state,
    make_model,
    make_solver,
    option_cases,
    supporting,
    train,
    with_sessions,
)

from mfrec.data.ratings import Ratings
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.solvers.registry import SOLVERS

CASES = option_cases()


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """A state after it was saved to a file and read back by a reader that runs no code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.fixture(scope="module")
def start(weighted_ratings, odd_features):
    """Makes a model and a solver at the start of training, with features and sessions if the solver supports them.

    A plain model has none of them, and single precision.
    """

    def make(case: Case, seed: int = 2, plain: bool = False) -> tuple[MatrixFactorization, Any]:
        options = odd_features.options() if case.solver in supporting("features") and not plain else {}
        ratings, sessions = with_sessions(weighted_ratings, case.solver)
        ratings = ratings.to(dtype=torch.float32) if plain else ratings
        options |= {} if plain else sessions
        model, objective = make_model(ratings, **options), Objective(0.5, l2_scaling="sqrt", session_l2=0.5)
        return model, make_solver(case.solver, model, ratings, objective, seed, **case.options)

    return make


@pytest.mark.parametrize(
    ("case", "plain"), [*((case, False) for case in CASES), *((Case(name, {}), True) for name in SOLVERS)], ids=str
)
def test_the_same_seed_gives_the_same_bits_and_a_restored_solver_continues_to_them(case, plain, start):
    # A sampler keeps draws after its burn-in.
    epochs = 3 if SOLVERS[case.solver].early_stopping else 22
    whole, solver = start(case, plain=plain)
    train(solver, epochs)
    model_state, solver_state = saved(whole.state_dict()), saved(solver.state_dict())

    again, repeated = start(case, plain=plain)
    train(repeated, epochs)
    assert_same_state(again, whole)
    assert_same_state(repeated.inference().mean_model(), solver.inference().mean_model())

    continued, restored = start(case, seed=99, plain=plain)
    train(restored, 1)
    continued.load_state_dict(model_state)
    restored.load_state_dict(solver_state)
    train(solver, 3)
    train(restored, 3)
    assert_same_state(continued, whole)
    assert_same_state(restored.inference().mean_model(), solver.inference().mean_model())


@pytest.mark.parametrize("name", SOLVERS)
def test_a_state_can_be_loaded_more_than_once(name, start):
    model, solver = start(Case(name, {}))
    train(solver, 2)
    model_state, solver_state = saved(model.state_dict()), saved(solver.state_dict())
    results = []
    for _ in range(2):
        continued, restored = start(Case(name, {}), seed=99)
        continued.load_state_dict(model_state)
        restored.load_state_dict(solver_state)
        train(restored, 2)
        results.append(continued)
    assert_same_state(*results)


@pytest.mark.parametrize("name", SOLVERS)
def test_training_neither_uses_nor_changes_the_global_random_state(name, start):
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        model, solver = start(Case(name, {}))
        train(solver, 2)
        assert torch.equal(torch.get_rng_state(), before)
        models.append(model)
    assert_same_state(*models)


@pytest.fixture(scope="module")
def many_ratings() -> Ratings:
    """40,000 ratings of 400 × 300: torch splits sums of this length over its threads."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(400 * 300, generator=generator)[:40_000]
    return Ratings(pairs // 300, pairs % 300, 3 + torch.randn(40_000, generator=generator), 400, 300)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_number_of_threads_does_not_change_a_bit(name, many_ratings):
    models, n_threads = [], torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            models.append(make_model(many_ratings, rank=8))
            train(make_solver(name, models[-1], many_ratings, Objective(1.0)), 2)
    finally:
        torch.set_num_threads(n_threads)
    assert_same_state(*models)
