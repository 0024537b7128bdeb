"""Every solver through one suite: it learns, uses its options, keeps its promises and refuses the rest.

The solvers, their options and their numbers of epochs come from `SOLVERS`, so that a new solver is tested as it is
declared.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from conftest import features_of
from session_examples import with_times
from solver_suite import (
    SESSION_GAPS,
    Case,
    assert_finite,
    default_epochs,
    make_model,
    make_solver,
    option_cases,
    planted_ratings,
    supporting,
    train,
    with_sessions,
)

from mfrec.data.features import implicit_features
from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.errors import InputError
from mfrec.evaluation.baselines import biases_only
from mfrec.evaluation.metrics import rmse
from mfrec.model.entity import ENTITY_NAMES
from mfrec.model.losses import LOSSES, squared_error
from mfrec.model.objective import L2_SCALINGS, Objective
from mfrec.posteriors.registry import POSTERIORS, posterior_from_state
from mfrec.solvers.base import CAPABILITIES, Solver
from mfrec.solvers.registry import SOLVERS

CASES = option_cases()


@pytest.fixture(scope="module")
def planted() -> tuple[Ratings, Ratings]:
    return planted_ratings()


def mean_predictions(solver: Solver, ratings: Ratings) -> torch.Tensor:
    """The predictions of a solver's inference."""
    return solver.inference().mean_model().predict_observed(ratings)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("biases", [False, True])
def test_the_defaults_recover_planted_factors_to_the_noise(name, biases, planted):
    train_ratings, test_ratings = planted
    solver = make_solver(name, make_model(train_ratings, biases=biases, offset="item"), train_ratings, Objective(0.1))
    train(solver, default_epochs(name))
    # The planted noise is 0.2.
    assert rmse(mean_predictions(solver, test_ratings), test_ratings.values) < 0.27


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("l2_scaling", L2_SCALINGS)
def test_the_cost_falls(name, l2_scaling, planted):
    ratings, _ = planted
    objective, model = Objective(0.05, 0.1, l2_scaling), make_model(ratings)
    before = float(objective.cost(model, ratings))
    train(make_solver(name, model, ratings, objective), min(60, default_epochs(name)))
    assert float(objective.cost(model, ratings)) < 0.7 * before


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_epoch_returns_finite_numbers_and_leaves_a_finite_model(case, odd_ratings, odd_features):
    features = odd_features.options() if case.solver in supporting("features") else {}
    ratings, sessions = with_sessions(odd_ratings, case.solver)
    model = make_model(ratings, **features, **sessions)
    solver = make_solver(case.solver, model, ratings, Objective(0.5), **case.options)
    for _ in range(5):
        values = solver.epoch()
        assert all(isinstance(key, str) and math.isfinite(value) for key, value in values.items())
        assert_finite(model)


@pytest.fixture(scope="module")
def results(weighted_ratings, odd_features) -> Callable[[Case], list[torch.Tensor]]:
    """All numbers that a short training with these options gives: parameters, predictions and standard deviations."""

    @functools.cache
    def call(name: str, *options: tuple[str, Any]) -> list[torch.Tensor]:
        features = odd_features.options() if name in supporting("features") else {}
        ratings, sessions = with_sessions(weighted_ratings, name)
        model = make_model(ratings, **features, **sessions)
        solver = make_solver(name, model, ratings, Objective(0.5), **dict(options))
        # Enough for the burn-in of a sampler, and for more samples than it keeps.
        train(solver, 3 if SOLVERS[name].early_stopping else 40)
        posterior, pairs = solver.inference(), (ratings.users, ratings.items)
        std = [posterior.std(*pairs)] if posterior.has_std else []
        return [*(p.detach() for p in model.parameters()), mean_predictions(solver, ratings), *std]

    return lambda case: call(case.solver, *case.options.items())


@pytest.mark.parametrize("case", [case for case in CASES if case.options], ids=str)
def test_every_option_changes_the_result(case, results):
    default, changed = results(case._replace(options={})), results(case)
    assert not all(itertools.starmap(torch.equal, zip(default, changed, strict=True)))


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_without_ratings_stay_finite_and_a_single_rating_is_enough(name, odd_ratings):
    single = Ratings(torch.tensor([0]), torch.tensor([0]), torch.tensor([4.0]))
    for ratings in (odd_ratings, single):
        model = make_model(ratings)
        train(make_solver(name, model, ratings, Objective(0.5, l2_scaling="rating")), 5)
        assert_finite(model)


@pytest.mark.parametrize("name", SOLVERS)
def test_what_a_solver_inferred_is_a_known_kind_that_survives_saving(name, odd_ratings):
    solver = make_solver(name, make_model(odd_ratings), odd_ratings, Objective(0.5))
    train(solver, 3 if SOLVERS[name].early_stopping else 24)
    posterior = solver.inference()
    assert isinstance(posterior, POSTERIORS[posterior.kind])
    assert posterior.model is solver.model
    again = posterior_from_state(posterior.state_dict(), solver.model, solver.objective)
    assert torch.equal(again.mean_model().predict_observed(odd_ratings), mean_predictions(solver, odd_ratings))
    assert again.has_std == posterior.has_std
    if posterior.has_std:
        pairs = odd_ratings.users, odd_ratings.items
        assert torch.equal(again.std(*pairs), posterior.std(*pairs))
        assert bool((posterior.std(*pairs) > 0).all())


# capabilities


def model_and_objective(needs: frozenset[str], ratings: Ratings, entity: str = "user") -> tuple[Any, Objective]:
    """A model and an objective that need these capabilities of a solver; sessions need timestamps."""
    options: dict[str, Any] = {"nonnegative": True} if "non-negative" in needs else {}
    if "features" in needs:
        options[f"{entity}_features"] = {"implicit": implicit_features(ratings, f"{entity}s")}
    if "sessions" in needs:
        options["sessions"] = Sessions(ratings, SESSION_GAPS)
    loss = LOSSES["log-cosh"] if "losses" in needs else squared_error
    return make_model(ratings, **options), Objective(1.0, loss=loss)


@pytest.mark.parametrize("name", SOLVERS)
# test_partitioned_solvers.py has the tests of partial tables, which need several processes.
@pytest.mark.parametrize("capability", [each for each in CAPABILITIES if each != "partial-tables"])
@pytest.mark.parametrize("entity", ENTITY_NAMES)
def test_a_solver_supports_its_capabilities_and_refuses_the_others_by_name(name, capability, entity, odd_ratings):
    ratings = with_times(odd_ratings)
    model, objective = model_and_objective(frozenset({capability}), ratings, entity)
    before = model.predict_observed(ratings)
    if capability in SOLVERS[name].supports:
        train(make_solver(name, model, ratings, objective), 2)
        assert_finite(model)
        assert not torch.equal(model.predict_observed(ratings), before)
    else:
        alternatives = ", ".join(supporting(capability))
        message = f"{name} does not support {CAPABILITIES[capability]}; use {alternatives}"
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            make_solver(name, model, ratings, objective)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_capabilities_and_options_go_together_or_are_refused_before_training(case, odd_ratings):
    supports, combinations, ratings = SOLVERS[case.solver].supports, 0, with_times(odd_ratings)
    for n in range(len(supports) + 1):
        for needs in itertools.combinations(sorted(supports), n):
            model, objective = model_and_objective(frozenset(needs), ratings)
            try:
                solver = make_solver(case.solver, model, ratings, objective, **case.options)
            except InputError as error:
                assert "does not support" in str(error)  # noqa: PT017
                assert len(needs) > 1 or case.options
            else:
                train(solver, 2)
                assert_finite(model)
                combinations += 1
    assert combinations > 0


# features


@pytest.mark.parametrize("name", supporting("features"))
@pytest.mark.parametrize("item_ids", [True, False])
def test_every_parameter_moves_and_errors_fall_with_features_and_weights(
    name, item_ids, weighted_ratings, odd_features
):
    model = make_model(weighted_ratings, item_ids=item_ids, **odd_features.options())
    start = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    solver = make_solver(name, model, weighted_ratings, Objective(0.05, 0.1, "sqrt"))
    before = float(Objective().cost(model, weighted_ratings))
    train(solver, default_epochs(name) // 3)
    assert_finite(model)
    assert float(Objective().cost(solver.inference().mean_model(), weighted_ratings)) < 0.8 * before
    for key, parameter in model.named_parameters():
        assert not torch.equal(parameter, start[key]), key


class Content(NamedTuple):
    """Ratings of items whose factors and biases are F W; the last 20 items have ratings in the test set alone."""

    train: Ratings
    test: Ratings
    features: torch.Tensor


@pytest.fixture(scope="module")
def content() -> Content:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # Each of 80 items has one of 4 kinds and one of 3 decades.
    kinds = torch.nn.functional.one_hot(torch.randint(0, 4, (80,), generator=generator), 4).double()
    decades = torch.nn.functional.one_hot(torch.randint(0, 3, (80,), generator=generator), 3).double()
    F = torch.cat([kinds, decades], 1) / 2**0.5
    predictions = 3 + 0.4 * drawn(60, 1) + (F @ drawn(7, 1)).T * 0.6 + (drawn(60, 2) @ (F @ drawn(7, 2)).T) * 0.8
    ratings = Ratings.from_dense((predictions + 0.1 * drawn(60, 80)).T, torch.rand(80, 60, generator=generator) < 0.5)
    return Content(*ratings.split(ratings.items >= 60), F)


@pytest.mark.parametrize("name", supporting("features"))
@pytest.mark.parametrize("item_ids", [False, True])
def test_items_without_ratings_are_predicted_by_their_features(name, item_ids, content):
    biases = biases_only(content.train, (-99.0, 99.0))
    baseline = rmse(biases.predict_observed(content.test), content.test.values)
    assert baseline > 0.8
    model = make_model(content.train, item_ids=item_ids, item_features={"kind": features_of(content.features)})
    # A penalty makes features explain what the items' own factors could explain too.
    solver = make_solver(name, model, content.train, Objective(1.0 if item_ids else 0.1))
    train(solver, default_epochs(name) // 2)
    error = rmse(mean_predictions(solver, content.test), content.test.values)
    assert error < (0.35 * baseline if item_ids else 0.2)  # the noise is 0.1


# weights of ratings


@pytest.mark.parametrize("name", SOLVERS)
def test_ratings_with_small_weights_do_little_harm(name, planted):
    train_ratings, test_ratings = planted
    is_spoilt = torch.arange(len(train_ratings)) % 10 == 0
    values = torch.where(is_spoilt, 6 - train_ratings.values, train_ratings.values)

    def error(weights: torch.Tensor | None) -> float:
        r = train_ratings
        ratings = Ratings(r.users, r.items, values, r.n_users, r.n_items, weights=weights)
        # The offset is a mean without weights, which spoiling about 3 does not move much.
        solver = make_solver(name, make_model(ratings, rank=2), ratings, Objective(0.1))
        train(solver, default_epochs(name))
        return rmse(mean_predictions(solver, test_ratings), test_ratings.values)

    with_weights = error(torch.where(is_spoilt, 1e-3, 1.0))
    assert with_weights < 0.32
    assert error(None) > with_weights + 0.03


# non-negative factors


@pytest.mark.parametrize("case", option_cases(*supporting("non-negative")), ids=str)
@pytest.mark.parametrize("featured", [False, True])
def test_factors_stay_at_or_above_zero_and_errors_fall(case, featured, weighted_ratings, odd_features):
    features = odd_features.options() if featured else {}
    model = make_model(weighted_ratings, nonnegative=True, init="uniform", **features)
    before = float(Objective().cost(model, weighted_ratings))
    try:
        solver = make_solver(case.solver, model, weighted_ratings, Objective(0.05), **case.options)
    except InputError as error:
        # The test of capabilities and options has these.
        pytest.skip(str(error))
    for _ in range(default_epochs(case.solver) // 4):
        solver.epoch()
        factors = [p for key, p in model.named_parameters() if key.endswith("factors.weight")]
        assert all(bool((p >= 0).all()) for p in factors)
    assert float(Objective().cost(model, weighted_ratings)) < 0.8 * before
    assert any(bool((p == 0).any()) for p in factors)
    assert bool((model.user_bias.weight < 0).any())
