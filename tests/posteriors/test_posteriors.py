"""One suite for all kinds of posteriors: each row of `POSTERIORS` holds what the protocol promises."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
import torch
from conftest import features_of
from posterior_examples import EXAMPLES, OBJECTIVE, a_model, assert_minimum, mirrored, one_of, ratings_of, seeded
from torch import Tensor
from torch.testing import assert_close

from mfrec.errors import InputError
from mfrec.inference.explain import explain
from mfrec.inference.fold_in import fold_in_items, fold_in_users
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.new_rows import Conditional, NewRows, RowStatistics, SolvedRows
from mfrec.posteriors.registry import POSTERIORS, posterior_from_state

USERS, ITEMS = torch.cartesian_prod(torch.arange(6), torch.arange(8)).T


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """The state after it was written to a file and read again, as runs do it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def answers(posterior: Posterior, generator: torch.Generator) -> list[Tensor]:
    """Predictions, and if the posterior has them, standard deviations and the predictions of a sample."""
    model = posterior.mean_model()
    users, items = torch.cartesian_prod(torch.arange(model.n_users), torch.arange(model.n_items)).T
    tensors = [model.predict(users, items)]
    if posterior.has_std:
        tensors += [posterior.std(users, items), posterior.sample(generator).predict(users, items)]
    return tensors


def test_every_kind_is_registered_by_its_name_and_has_an_example():
    assert {kind: posterior.kind for kind, posterior in POSTERIORS.items()} == {kind: kind for kind in POSTERIORS}
    assert {example(a_model()).kind for example in EXAMPLES.values()} == set(POSTERIORS)


@pytest.fixture(params=EXAMPLES)
def posterior(request: pytest.FixtureRequest) -> Posterior:
    return EXAMPLES[request.param](a_model())


def test_the_mean_model_predicts_for_all_users_and_items(posterior):
    model = posterior.mean_model()
    assert (model.n_users, model.n_items) == (6, 8)
    assert bool(torch.isfinite(model.predict(USERS, ITEMS)).all())
    assert torch.equal(model.rating_range, posterior.model.rating_range)


def test_standard_deviations_and_samples_exist_together_or_are_both_refused(posterior):
    if posterior.has_std:
        posterior.require_std()
        assert posterior.std(USERS, ITEMS).shape == USERS.shape
        assert isinstance(posterior.sample(), MatrixFactorization)
        return
    for call in (posterior.require_std, lambda: posterior.std(USERS, ITEMS), posterior.sample):
        with pytest.raises(InputError, match="has no standard deviations and no samples"):
            call()


def test_noise_adds_to_the_standard_deviation(posterior):
    if not posterior.has_std:
        pytest.skip("this kind has no standard deviations")
    expected, rating = posterior.std(USERS, ITEMS, include_noise=False), posterior.std(USERS, ITEMS)
    assert float(expected.min()) > 0
    assert float((rating - expected).min()) > 0


def test_samples_scatter_around_the_mean_by_the_standard_deviation(posterior):
    if not posterior.has_std:
        pytest.skip("this kind has no samples")
    generator, n = seeded(0), 3000
    samples = torch.stack([posterior.sample(generator).predict(USERS, ITEMS) for _ in range(n)])
    std = posterior.std(USERS, ITEMS, include_noise=False)
    errors = (samples.mean(0) - posterior.mean_model().predict(USERS, ITEMS)).abs()
    assert float((errors / std).max()) < 5 / n**0.5
    # The variance between S draws is the sample variance, S/(S − 1) times that of a draw of them.
    n_draws = len(list(posterior.trace()))
    unbiased = 1.0 if n_draws == 0 else (1 - 1 / n_draws) ** 0.5
    assert_close(samples.std(0), std * unbiased, rtol=0.1, atol=0)


def test_the_trace_holds_models_and_the_noise(posterior):
    trace = list(posterior.trace())
    assert posterior.has_std or not trace
    for model, noise_std in trace:
        assert (model.n_users, model.n_items) == (6, 8)
        assert noise_std > 0


def test_a_stored_state_gives_the_same_answers(posterior):
    state = stored(posterior.state_dict())
    assert state["kind"] == posterior.kind
    model = a_model()
    model.load_state_dict(stored(posterior.model.state_dict()))
    loaded = posterior_from_state(state, model, OBJECTIVE)
    assert type(loaded) is type(posterior)
    ratings = ratings_of(3, 8)
    for before, after in (
        (posterior, loaded),
        (fold_in_users(posterior, ratings), fold_in_users(loaded, ratings)),
    ):
        for expected, again in zip(answers(before, seeded(0)), answers(after, seeded(0)), strict=True):
            assert torch.equal(expected, again)


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="unknown kind of posterior 'sample'; did you mean 'samples'"):
        posterior_from_state({"kind": "sample"}, a_model(), OBJECTIVE)


@pytest.mark.parametrize("entity", [USER, ITEM])
def test_new_rows_have_a_posterior_of_the_same_kind(posterior, entity):
    ratings = ratings_of(4, 8) if entity == USER else mirrored(ratings_of(4, 6))
    folded = (fold_in_users, fold_in_items)[entity](posterior, ratings)
    model = folded.mean_model()
    assert type(folded) is type(posterior)
    assert (model.n_users, model.n_items) == ((4, 8) if entity == USER else (6, 4))
    assert folded.has_std == posterior.has_std
    for tensor in answers(folded, seeded(0)):
        assert bool(torch.isfinite(tensor).all())


@pytest.mark.parametrize("entity", [USER, ITEM])
def test_new_rows_follow_their_ratings(posterior, entity):
    new = ratings_of(1, 8) if entity == USER else mirrored(ratings_of(1, 6))
    predictions = []
    for shift in (-2.0, 2.0):
        ratings = copy.deepcopy(new)
        ratings.values[:] = 3.0 + shift
        model = (fold_in_users, fold_in_items)[entity](posterior, ratings, generator=seeded(0)).mean_model()
        predictions.append(float(model.predict_observed(ratings).mean()))
    assert predictions[0] + 0.5 < predictions[1]


def test_many_ratings_leave_a_smaller_standard_deviation_than_none(posterior):
    if not posterior.has_std:
        pytest.skip("this kind has no standard deviations")
    everything = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(8)).T
    ratings = copy.deepcopy(ratings_of(1, 8))
    nothing = ratings.select(torch.zeros(len(ratings), dtype=torch.bool))
    many, none = (fold_in_users(posterior, r, generator=seeded(0)) for r in (ratings, nothing))
    spread = [p.std(*everything, include_noise=False).mean() for p in (many, none)]
    assert float(spread[0]) < float(spread[1])


def test_folding_in_does_not_change_the_posterior_or_the_ratings(posterior):
    ratings = ratings_of(3, 8)
    state = copy.deepcopy([posterior.model.state_dict(), posterior.state_dict()])
    values = ratings.values.clone()
    folded = fold_in_users(posterior, ratings).mean_model()
    with torch.no_grad():
        folded.item_factors.weight.zero_()
    after = [posterior.model.state_dict(), posterior.state_dict()]
    assert state[1].pop("kind") == after[1].pop("kind")
    assert_close(after, state, rtol=0, atol=0)
    assert torch.equal(ratings.values, values)


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_samples(posterior):
    ratings = ratings_of(4, 8)

    def bits(generator: torch.Generator | None) -> list[Tensor]:
        return answers(fold_in_users(posterior, ratings, generator=generator), seeded(0))

    assert all(torch.equal(a, b) for a, b in zip(bits(seeded(1)), bits(seeded(1)), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(bits(None), bits(None), strict=True))
    if list(posterior.trace()):
        # The mean of homoscedastic draws is their expectation, which needs no random number.
        pairs = list(zip(bits(seeded(1)), bits(seeded(2)), strict=True))[1:]
        assert not any(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_features_of_new_rows_count(kind):
    kinds = torch.eye(3).double()
    posterior = EXAMPLES[kind](a_model(user_features={"kind": features_of(kinds[torch.arange(6) % 3])}))
    ratings, items = ratings_of(1, 8), torch.arange(8)
    predictions = []
    for row in (0, 2):
        folded = fold_in_users(posterior, ratings, features={"kind": features_of(kinds[[row]])}, generator=seeded(0))
        predictions.append(folded.mean_model().predict(items * 0, items))
    assert float((predictions[0] - predictions[1]).abs().max()) > 0.05


def test_each_user_is_folded_in_alone_like_together(posterior):
    if list(posterior.trace()) and not posterior.homoscedastic:
        pytest.skip("other users' draws come from the same generator")
    many = ratings_of(5, 8)
    together = fold_in_users(posterior, many).mean_model()
    for user in (0, 1, 4):
        alone = fold_in_users(posterior, one_of(many, user)).mean_model()
        items = torch.arange(8)
        assert_close(alone.predict(items * 0, items), together.predict(items * 0 + user, items))


class RidgeRows(Conditional):
    """New rows with the same penalty on all numbers."""

    def ridge(self, rows: slice, tau: Tensor) -> Tensor:
        return torch.full_like(tau, 2.0).expand(-1, len(self.new_rows.columns))

    def solve_block(self, statistics: RowStatistics) -> SolvedRows:
        tau = torch.ones_like(statistics.squares)
        theta, _ = statistics.minimum(tau, self.ridge(statistics.rows, tau))
        return SolvedRows(theta, theta, torch.zeros_like(theta), tau, self.partners)


class RidgePosterior(Posterior):
    """A kind of posterior as a plugin adds it."""

    kind = "ridge"

    def __init__(self, model: MatrixFactorization) -> None:
        self.model = model

    def mean_model(self) -> MatrixFactorization:
        return self.model

    def conditionals(self, new_rows: NewRows, generator: torch.Generator | None = None) -> Iterator[Conditional]:
        yield RidgeRows(new_rows)

    def folded(self, new_rows: NewRows, solved: Iterable[SolvedRows]) -> RidgePosterior:
        (rows,) = solved
        return RidgePosterior(new_rows.model(rows.mean, rows.partners))

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], model: MatrixFactorization, objective: Objective) -> RidgePosterior:
        return cls(model)


def test_a_new_kind_is_a_class_and_a_row_in_the_table(monkeypatch):
    monkeypatch.setitem(POSTERIORS, "ridge", RidgePosterior)
    model, single, items = a_model(), ratings_of(1, 8), torch.arange(8)
    posterior = posterior_from_state(stored(RidgePosterior(model).state_dict()), model, OBJECTIVE)
    assert isinstance(posterior, RidgePosterior)
    assert not posterior.has_std
    folded = fold_in_users(posterior, single).mean_model()
    assert_minimum(model, fold_in_users(posterior, single), USER, single, objective=Objective(2.0))
    predicted = folded.predict(items * 0, items)
    shares = explain(posterior, single, items)
    assert_close(shares.sum(1), predicted - 3.0 - model.item_bias.weight.detach()[:, 0])
    assert fold_in_items(posterior, mirrored(ratings_of(4, 6))).mean_model().n_items == 4
