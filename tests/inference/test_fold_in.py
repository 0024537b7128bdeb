"""Fold-in works alike for every kind of posterior, for rows with ratings, with features or with neither."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import features_of
from posterior_examples import (
    EXAMPLES,
    OBJECTIVE,
    a_mean_field,
    a_model,
    a_point_estimate,
    a_rating,
    assert_minimum,
    assert_moments,
    conditional_moments,
    mirrored,
    one_of,
    ratings_of,
    repeated,
    samples_of,
    seeded,
)
from session_examples import samples_with_sessions, with_times
from torch import Tensor
from torch.testing import assert_close

from mfrec.data.features import Features
from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.data.splits import per_user_split
from mfrec.errors import InputError
from mfrec.inference.fold_in import fold_in_items, fold_in_users
from mfrec.model import ridge as ridge_module
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.model.session_biases import SESSION_BIAS
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.mean_field import MeanFieldPosterior
from mfrec.posteriors.point_estimate import PointEstimate
from mfrec.posteriors.registry import posterior_from_state
from mfrec.posteriors.samples import SampledRows
from mfrec.posteriors.session_field import SessionField
from mfrec.solvers.registry import SOLVERS


@pytest.mark.parametrize("all_empty", [False, True])
@torch.no_grad()
def test_a_row_without_ratings_is_its_prior(all_empty):
    model, ratings = a_model(), ratings_of(3, 8)
    ratings = ratings.select(torch.zeros(len(ratings), dtype=torch.bool)) if all_empty else ratings
    users, items = torch.ones(8, dtype=torch.long), torch.arange(8)
    # λ scaled by the number of ratings is 0.
    for objective in (OBJECTIVE, Objective(0.3, l2_scaling="row"), Objective()):
        folded = fold_in_users(PointEstimate(model, objective), ratings).mean_model()
        assert_close(folded.predict(users, items), 3.0 + model.item_bias.weight[:, 0])
    trained = a_mean_field(model)
    folded = fold_in_users(trained, ratings)
    assert_close(folded.mean_model().predict(users, items), 3.0 + model.item_bias.weight[:, 0])
    free = model.free_columns()[USER]
    assert_close(folded.variances[USER][1:2], free / trained.precision[USER])
    assert_close(folded.precision_scales[USER][1], torch.ones(1).double())
    for homoscedastic in (False, True):
        samples, free = samples_of(model, homoscedastic=homoscedastic), model.free_columns()[USER][0]
        expected = [
            model.augmented_factors(draw.parameters)[ITEM] @ torch.where(free > 0, draw.priors[USER][1], 1)
            for draw in samples.draws
        ]
        folded = fold_in_users(samples, ratings).mean_model()
        assert_close(folded.predict(users, items), 3.0 + torch.stack(expected).mean(0))


@pytest.mark.parametrize("kind", ["point-estimate", "mean-field", "homoscedastic samples"])
@pytest.mark.parametrize("entity", [USER, ITEM])
@torch.no_grad()
def test_many_rows_at_once_are_what_each_is_alone(monkeypatch, kind, entity):
    posterior, many = EXAMPLES[kind](a_model(8, 8)), ratings_of(7, 8)

    def folded(ratings: Ratings) -> list[Tensor]:
        """Predictions for each new row, and its variances and precision scales if it has them."""
        new = (fold_in_users, fold_in_items)[entity](posterior, ratings if entity == USER else mirrored(ratings))
        users, items = new.mean_model().augmented_factors()
        tensors = [users @ items.T if entity == USER else items @ users.T]
        return tensors + ([new.variances[entity], new.precision_scales[entity]] if kind == "mean-field" else [])

    together = folded(many)
    alone = [torch.cat(parts) for parts in zip(*(folded(one_of(many, user)) for user in range(7)), strict=True)]
    assert_close(together, alone)
    monkeypatch.setattr(ridge_module, "NORMAL_NUMBERS", 2 * 3 * 3)
    assert_close(folded(many), alone)


def content_model(**options: Any) -> tuple[MatrixFactorization, dict[str, Features]]:
    """A model that represents items by their kinds alone, and the kinds of two new items."""
    kinds = features_of(torch.eye(3).double()[torch.arange(8) % 3])
    model = a_model(item_features={"kind": kinds}, item_ids=False, **options)
    return model, {"kind": features_of(torch.eye(3).double()[[2, 0]])}


@pytest.mark.parametrize("kind", ["point-estimate", "samples", "homoscedastic samples", "non-negative"])
@torch.no_grad()
def test_a_new_item_of_a_model_without_item_ids_is_its_features_alone(kind):
    model, features = content_model(nonnegative=kind == "non-negative")
    posterior = EXAMPLES["point-estimate" if kind == "non-negative" else kind](model)
    new = mirrored(ratings_of(2, model.n_users))
    folded = fold_in_items(posterior, new, features=features).mean_model()
    parameters = [draw.parameters for draw in posterior.draws] if "samples" in kind else [None]
    users, items = torch.arange(6).repeat_interleave(2), torch.arange(2).repeat(6)
    # Items 2 and 0 are of the kinds of the new ones.
    factors = [model.augmented_factors(each) for each in parameters]
    expected = torch.stack([(theta @ x[[2, 0]].T).flatten() for theta, x in factors]).mean(0)
    assert_close(folded.predict(users, items), 3.0 + expected)


@torch.no_grad()
def test_new_users_of_a_model_without_item_ids_fold_in():
    model, _ = content_model()
    ratings = ratings_of(4, 8)
    assert_minimum(model, fold_in_users(a_point_estimate(model), ratings), USER, ratings)
    samples, single = samples_of(model, 1, homoscedastic=True), one_of(ratings, 2)
    (draw,) = samples.draws
    x, free = model.augmented_factors(draw.parameters)[ITEM], model.free_columns()[USER][0] > 0
    rated = single.items.long()
    residuals, weights = single.values - 3.0 - x[rated][:, -1], single.weights * draw.precision_scales[ITEM][rated, 0]
    mean, _ = conditional_moments(x[rated], free, residuals, weights, draw.alpha, draw.priors[0])
    folded = fold_in_users(samples, ratings).mean_model()
    items = torch.arange(8)
    assert_close(folded.predict(items * 0 + 2, items), 3.0 + x[:, free] @ mean + x[:, -1])


@pytest.mark.parametrize("kind", EXAMPLES)
@torch.no_grad()
def test_a_new_item_for_a_new_user_is_a_model_of_one_rating(kind):
    model = a_model()
    user = fold_in_users(EXAMPLES[kind](model), ratings_of(1, 8))
    low, high = (fold_in_items(user, a_rating(value)) for value in (1.0, 5.0))
    zero = torch.zeros(1, dtype=torch.long)
    assert (high.mean_model().n_users, high.mean_model().n_items) == (1, 1)
    assert float(low.mean_model().predict(zero, zero)) + 0.1 < float(high.mean_model().predict(zero, zero))
    if high.has_std:
        assert float(high.std(zero, zero)) > 0.1
    else:
        assert_minimum(user.mean_model(), high, ITEM, a_rating(5.0))
    if kind == "homoscedastic samples":
        expected = []
        for draw in user.draws:
            theta = user.model.augmented_factors(draw.parameters)[USER]
            free = model.free_columns()[ITEM][0] > 0
            residuals = torch.tensor([2.0]).double() - theta[:, model.rank]
            weights = draw.precision_scales[USER][:, 0]
            mean, _ = conditional_moments(theta, free, residuals, weights, draw.alpha, draw.priors[ITEM])
            expected.append(3.0 + theta[:, model.rank] + theta[:, free] @ mean)
        assert_close(high.mean_model().predict(zero, zero), torch.stack(expected).mean(0))


def test_a_new_item_for_a_new_user_of_a_model_without_item_ids_is_a_model_of_one_rating():
    model, _ = content_model()
    user = fold_in_users(samples_of(model), ratings_of(1, 8))
    item = fold_in_items(user, a_rating(5.0)).mean_model()
    assert bool(torch.isfinite(item.predict(torch.tensor([0]), torch.tensor([0]))).all())


def test_ratings_of_another_number_of_items_or_users_are_refused():
    posterior = a_point_estimate(a_model())
    with pytest.raises(InputError, match=r"ratings must be of the model's 8 items \(got 9 items\)"):
        fold_in_users(posterior, ratings_of(2, 9))
    with pytest.raises(InputError, match=r"ratings must be of the model's 6 users \(got 5 users\)"):
        fold_in_items(posterior, ratings_of(5, 2))


def test_other_features_than_those_of_training_are_refused():
    kinds = features_of(torch.eye(3).double()[torch.arange(6) % 3])
    plain, featured = a_point_estimate(a_model()), a_point_estimate(a_model(user_features={"kind": kinds}))
    new = ratings_of(6, 8)
    with pytest.raises(InputError, match="this model needs user features 'kind'; give those it was trained with"):
        fold_in_users(featured, new)
    with pytest.raises(InputError, match="this model has no user features 'kind'; give those it was trained with"):
        fold_in_users(plain, new, features={"kind": kinds})
    with pytest.raises(InputError, match="this model has no item features 'kind'"):
        fold_in_items(featured, new, features={"kind": kinds})


@pytest.mark.parametrize(
    ("new_kinds", "got"), [(torch.eye(3)[[1]], "1 × 3"), (torch.eye(4)[[1, 2]], "2 × 4")], ids=["rows", "features"]
)
def test_features_of_another_shape_are_refused(new_kinds, got):
    kinds = features_of(torch.eye(3).double()[torch.arange(6) % 3])
    posterior = a_point_estimate(a_model(user_features={"kind": kinds}))
    with pytest.raises(InputError, match=rf"'kind' must be 2 rows × 3 features \(got {got}\)"):
        fold_in_users(posterior, ratings_of(2, 8), features={"kind": features_of(new_kinds.double())})


def with_item_offsets() -> MatrixFactorization:
    model = a_model(offset=0.0)
    model.offset = torch.linspace(2, 4, 8, dtype=torch.float64)
    return model


def test_new_items_need_an_offset_if_each_item_has_one():
    model, new = with_item_offsets(), mirrored(ratings_of(3, 6))
    posterior = a_point_estimate(model)
    with pytest.raises(InputError, match=r"offset must be one number for each of the 3 new items \(got none\)"):
        fold_in_items(posterior, new)
    offset = torch.tensor([2.0, 5.0, 3.0], dtype=torch.float64)
    folded = fold_in_items(posterior, new, offset=offset)
    assert_close(folded.mean_model().offset, offset)
    assert_minimum(model, folded, ITEM, new)
    # New users have the items' offsets.
    users = ratings_of(3, 8)
    assert_minimum(model, fold_in_users(posterior, users), USER, users)


@pytest.mark.parametrize("n", [1, 5])
def test_another_number_of_offsets_than_of_new_items_is_refused(n):
    with pytest.raises(InputError, match=rf"each of the 3 new items \(got {n}\)"):
        fold_in_items(a_point_estimate(with_item_offsets()), mirrored(ratings_of(3, 6)), offset=torch.zeros(n))


# Sessions.

GAPS = (0, 6)


def session_model(n_users: int = 6, **options: Any) -> MatrixFactorization:
    """A model whose users rated in sessions."""
    return a_model(n_users, sessions=Sessions(with_times(ratings_of(n_users, 8)), GAPS), **options)


def a_session_field(model: MatrixFactorization) -> MeanFieldPosterior:
    plain = a_mean_field(model)
    field = SessionField(model.sessions, 4.0, torch.tensor([0.7, 1.5]).double())
    tau = plain.precision_scales
    return MeanFieldPosterior(model, plain.own_variances, plain.precision, plain.alpha, tau, sessions=field)


WITH_SESSIONS = {
    "point-estimate": lambda model: PointEstimate(model, replace(OBJECTIVE, session_l2=2.0)),
    "mean-field": a_session_field,
    "samples": samples_with_sessions,
    "homoscedastic samples": lambda model: samples_with_sessions(model, homoscedastic=True),
}


@pytest.mark.parametrize("session_l2", [2.0, 15.0])
@torch.no_grad()
def test_new_users_and_their_sessions_are_at_the_minimum_of_the_cost(session_l2):
    model, new = session_model(), with_times(ratings_of(3, 8, seed=5), seed=7)
    objective = replace(OBJECTIVE, session_l2=session_l2)
    folded = fold_in_users(PointEstimate(model, objective), new).mean_model()
    assert folded.sessions.sessions.starts == Sessions(new, GAPS).starts
    gradients = objective.gradients(folded, new)
    for name in ("users.factors.weight", "users.bias.weight", SESSION_BIAS):
        assert_close(gradients[name], torch.zeros_like(gradients[name]), atol=1e-7, rtol=0, msg=name)
    assert_close(folded.augmented_factors()[ITEM][:, :2], model.augmented_factors()[ITEM][:, :2])


@torch.no_grad()
def test_non_negative_new_users_and_their_sessions_are_at_the_bounded_minimum():
    model, new = session_model(nonnegative=True), with_times(ratings_of(3, 8, seed=5), seed=7)
    objective = replace(OBJECTIVE, session_l2=2.0)
    folded = fold_in_users(PointEstimate(model, objective), new).mean_model()
    gradients, factors = objective.gradients(folded, new), folded.user_factors.weight
    for name in ("users.bias.weight", SESSION_BIAS):
        assert_close(gradients[name], torch.zeros_like(gradients[name]), atol=1e-6, rtol=0, msg=name)
    gradient, is_zero = gradients["users.factors.weight"], factors == 0
    assert float(gradient[~is_zero].abs().max()) < 1e-5
    assert bool((gradient[is_zero] > -1e-5).all())


@torch.no_grad()
def test_draws_of_new_users_and_their_sessions_have_the_moments_of_their_joint_conditional(monkeypatch):
    """Given one draw with Gaussian session biases, θ and b are Gaussian."""
    monkeypatch.setattr(SampledRows, "session_turns", 40)
    model, n = session_model(), 1500
    samples = samples_with_sessions(model, 1, homoscedastic=True, freedom=None)
    single = with_times(one_of(ratings_of(3, 8, seed=5), 0), seed=7)
    copies, k = repeated(single, n), model.rank + 1
    seconds = single.timestamps.repeat(n)
    copies = Ratings(copies.users, copies.items, copies.values, n, 8, seconds, copies.weights)
    folded = fold_in_users(samples, copies, generator=seeded(2))
    (draw,), (solved,) = samples.draws, folded.draws
    sessions = Sessions(single, GAPS)
    x, rated = model.augmented_factors(draw.parameters)[ITEM], single.items.long()
    A = torch.zeros(len(single), k + len(sessions)).double()
    A[:, :k] = x[rated][:, :k]
    for numbers in sessions.at(single.users, single.timestamps):
        A[torch.arange(len(single)), k + numbers] = 1
    precision, mean = (torch.zeros(A.shape[1]).double() for _ in range(2))
    precision[:k], mean[:k] = (tensor[:k] for tensor in samples.prior(draw, USER))
    sizes = torch.tensor(sessions.starts).diff()
    precision[k:] = draw.session_precision.repeat_interleave(sizes)
    v = draw.alpha * single.weights * draw.precision_scales[ITEM][rated, 0]
    covariance = torch.linalg.inv(A.T @ (v[:, None] * A) + torch.diag(precision))
    expected = covariance @ (A.T @ (v * (single.values - 3.0 - x[rated][:, -1])) + precision * mean)
    # The sessions of all copies are sorted by gap, then by user.
    bias = solved.parameters[SESSION_BIAS][:, 0].split((n * sizes).tolist())
    rows = folded.model.augmented_factors(solved.parameters)[USER][:, :k]
    assert_moments(torch.cat([rows, *(part.reshape(n, -1) for part in bias)], 1), expected, covariance)


@pytest.mark.parametrize("kind", WITH_SESSIONS)
@torch.no_grad()
def test_new_users_whose_ratings_have_no_times_are_those_of_a_model_without_sessions(kind):
    model, new = session_model(), ratings_of(3, 8, seed=5)
    posterior = WITH_SESSIONS[kind](model)
    folded = fold_in_users(posterior, new)
    assert folded.mean_model().sessions is None
    users, items = torch.cartesian_prod(torch.arange(3), torch.arange(8)).T
    expected = fold_in_users(without_sessions(posterior), new)
    assert torch.equal(folded.mean_model().predict(users, items), expected.mean_model().predict(users, items))
    if folded.has_std:
        assert torch.equal(folded.std(users, items), expected.std(users, items))


def without_sessions(posterior: Posterior) -> Posterior:
    """The posterior of the same model and parameters, without session biases."""
    model, state = copy.copy(posterior.model), posterior.state_dict()
    model._modules = dict(model._modules) | {"sessions": None}
    if "draws" in state:
        state["draws"] = [draw | {"session_precision": None} for draw in state["draws"]]
        for draw in state["draws"]:
            draw["parameters"] = {name: p for name, p in draw["parameters"].items() if name != SESSION_BIAS}
    return posterior_from_state(state, model, OBJECTIVE)


@pytest.mark.parametrize("kind", WITH_SESSIONS)
@torch.no_grad()
def test_ratings_of_new_items_are_in_the_trained_users_sessions(kind):
    """They are predicted as if the ratings had been less the trained session biases."""
    model, new = session_model(), with_times(mirrored(ratings_of(3, 6, seed=5)), seed=7)
    # Of a single draw, so that its session biases are their mean.
    of_one_draw = {"samples": False, "homoscedastic samples": True}
    if kind in of_one_draw:
        posterior: Posterior = samples_with_sessions(model, 1, homoscedastic=of_one_draw[kind])
    else:
        posterior = WITH_SESSIONS[kind](model)
    biases = posterior.mean_model().sessions
    folded = fold_in_items(posterior, new)
    effect = biases.effect(new)
    assert bool((effect != 0).any())
    shifted = Ratings(new.users, new.items, new.values - effect, 6, 3, weights=new.weights)
    expected = fold_in_items(without_sessions(posterior), shifted).mean_model()
    users, items = torch.cartesian_prod(torch.arange(6), torch.arange(3)).T
    assert_close(folded.mean_model().predict(users, items), expected.predict(users, items))
    assert torch.equal(folded.mean_model().sessions.bias.weight, biases.bias.weight)
    assert_close(folded.mean_model().predict_observed(new), expected.predict_observed(new) + effect)


@torch.no_grad()
def test_ratings_of_new_items_are_less_the_session_biases_of_each_draw():
    model, new = session_model(), with_times(mirrored(ratings_of(3, 6, seed=5)), seed=7)
    samples, predictions = samples_with_sessions(model, 3, homoscedastic=True), []
    pairs = new.users.long(), new.items.long()
    folded = fold_in_items(samples, new)
    for draw in samples.draws:
        single = copy.copy(samples)
        single.draws = [draw]
        predictions.append(fold_in_items(single, new).mean_model().predict_observed(new))
    assert_close(folded.mean_model().predict_observed(new), torch.stack(predictions).mean(0))
    assert bool((folded.std(*pairs, timestamps=new.timestamps) > 0).all())


def test_new_users_of_ml_100k_are_predicted_as_if_they_had_been_in_training(shared_data):
    from mfrec.data.loading import load_dataset
    from mfrec.evaluation.metrics import rmse

    dataset, generator = load_dataset(str(shared_data / "ml-100k")), seeded(0)
    ratings = dataset.ratings
    held = torch.zeros(ratings.n_users, dtype=torch.bool)
    held[torch.randperm(ratings.n_users, generator=generator)[: ratings.n_users // 10]] = True
    new, half = held[ratings.users.long()], per_user_split(ratings, 0.5, generator)
    visible, hidden = ratings.select(new & ~half), ratings.select(new & half)

    def trained(train: Ratings) -> Posterior:
        model = MatrixFactorization.from_ratings(train, 14, rating_range=dataset.rating_range, generator=seeded(0))
        solver = SOLVERS["vb"](model, train, Objective())
        for _ in range(16):
            solver.epoch()
        return solver.inference()

    with_them, without = trained(ratings.select(~(new & half))), trained(ratings.select(~new))
    number = torch.cumsum(held, 0) - 1
    of_new = Ratings(number[visible.users.long()], visible.items, visible.values, int(held.sum()), ratings.n_items)
    folded = fold_in_users(without, of_new).mean_model()
    expected = rmse(with_them.mean_model().predict(hidden.users, hidden.items, clip=True), hidden.values)
    predicted = folded.predict(number[hidden.users.long()], hidden.items, clip=True)
    error = rmse(predicted, hidden.values)
    assert abs(error - expected) < 0.01
    bias_alone = without.model.offset + without.model.item_bias.weight.detach()[hidden.items.long(), 0]
    assert error < rmse(bias_alone, hidden.values) - 0.05
