"""Reproducible training: the same bits for a seed, for any number of threads, and after a solver is restored."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from session_examples import with_times
from solver_suite import (
    SESSION_GAPS,
    Case,
    assert_same_state,
    make_model,
    make_solver,
    option_cases,
    supporting,
    train,
    with_sessions,
)

from mfrec.data.features import implicit_features
from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.evaluation.metrics import evaluate
from mfrec.model.entity import ENTITY_NAMES
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.posteriors.product_mean import BUFFERED, MEAN_RANKS
from mfrec.solvers.registry import SOLVERS
from mfrec.sums import torch_threads

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
    """40,000 ratings of 6,000 × 5,000: torch divides sums of this length, and over factors, among its threads."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(6000 * 5000, (40_000,), generator=generator).unique()
    values = torch.randint(1, 6, (len(pairs),), generator=generator).float()
    return with_times(Ratings(pairs // 5000, pairs % 5000, values, 6000, 5000))


@pytest.mark.parametrize("is_plain", [True, False], ids=["plain", "features and sessions"])
@pytest.mark.parametrize(
    ("case", "epochs"),
    [
        *((Case(name, {}), 2) for name in SOLVERS),
        (Case("optim", {"optimizer": "lbfgs"}), 2),
        (Case("gibbs", {"likelihood": "ordinal"}), 2),
        (Case("gibbs", {"burn_in": 0}), MEAN_RANKS + BUFFERED),
    ],
    ids=str,
)
def test_the_number_of_threads_does_not_change_a_bit(case, epochs, is_plain, many_ratings):
    options: dict[str, Any] = {}
    if not is_plain and case.solver in supporting("features"):
        options = {
            f"{entity}_features": {"implicit": implicit_features(many_ratings, f"{entity}s")} for entity in ENTITY_NAMES
        }
    if not is_plain and case.solver in supporting("sessions"):
        options["sessions"] = Sessions(many_ratings, SESSION_GAPS)
    results = []
    for n in (1, 2):
        with torch_threads(n):
            model, objective = make_model(many_ratings, rank=8, **options), Objective(1.0)
            solver = make_solver(case.solver, model, many_ratings, objective, **case.options)
            train(solver, epochs)
            has_mean = case.solver != "gibbs" or "burn_in" in case.options
            mean = solver.inference().mean_model() if has_mean else model
            results.append((model, mean, evaluate(mean, many_ratings, objective)))
    (model, mean, measured), again = results
    assert_same_state(model, again[0])
    assert_same_state(mean, again[1])
    assert measured == again[2]
