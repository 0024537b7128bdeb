"""The model: its predictions, the models that it refuses, and that its state is complete."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
from conftest import features_of
from torch.testing import assert_close

from mfrec.data.features import Features
from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.model import pair_products
from mfrec.model.entity import INITS, ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.pair_products import pair_dots


@pytest.fixture
def ratings() -> Ratings:
    """3 users × 4 items; user 2 and item 2 have no rating."""
    Y = torch.tensor([[5.0, 4.0, torch.nan], [torch.nan, 1.0, torch.nan], [torch.nan] * 3, [2.0, torch.nan, torch.nan]])
    return Ratings.from_dense(Y)


def make_model(ratings: Ratings, **options) -> MatrixFactorization:
    """A model whose parameters are all drawn."""
    model = MatrixFactorization.from_ratings(ratings, 2, rating_range=(1.0, 5.0), **options)
    with torch.no_grad():
        for n, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n)))
    return model


def two_blocks(n_rows: int, seed: int = 0) -> dict[str, Features]:
    generator = torch.Generator().manual_seed(seed)
    return {name: features_of(torch.randn(n_rows, k, generator=generator)) for name, k in (("a", 2), ("b", 3))}


def both_features() -> dict[str, Mapping[str, Features]]:
    return {"user_features": two_blocks(3), "item_features": two_blocks(4, 1)}


def make_featured(ratings: Ratings, **options) -> MatrixFactorization:
    """A model with features of users and items, whose parameters are all drawn."""
    return make_model(ratings, **both_features(), **options)


# predictions


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("offset", ["none", "global", "item"])
def test_every_way_to_predict_gives_the_same_numbers(ratings, biases, offset):
    model = make_model(ratings, biases=biases, offset=offset)
    users, items = ratings.users, ratings.items
    U, V = model.augmented_factors()
    by_hand = (U[users.long()] * V[items.long()]).sum(1) + (ratings.values - model.targets(ratings))
    assert_close(model(users, items), by_hand)
    assert_close(model.predict(users, items), by_hand.detach())
    assert_close(model.predict_observed(ratings), by_hand.detach())


@pytest.mark.parametrize("biases", [False, True])
def test_a_prediction_is_the_dot_product_plus_biases_and_offset(ratings, biases):
    model = make_model(ratings, biases=biases, offset="item")
    p = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expected = p["users.factors.weight"] @ p["items.factors.weight"].T + model.offset
    if biases:
        expected = expected + p["users.bias.weight"] + p["items.bias.weight"].T
    users, items = torch.cartesian_prod(torch.arange(3), torch.arange(4)).T
    assert_close(model.predict(users, items), expected.flatten())


def test_clipped_predictions_stay_in_the_rating_range(ratings):
    model = make_model(ratings)
    with torch.no_grad():
        model.user_factors.weight.mul_(100)
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    unclipped, clipped = (model.predict(*pairs.T, clip=clip) for clip in (False, True))
    assert unclipped.min() < 1
    assert unclipped.max() > 5
    assert_close(clipped, unclipped.clamp(1, 5))
    assert_close(model.predict_observed(ratings, clip=True), model.predict_observed(ratings).clamp(1, 5))


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([0, 3], [0, 0], "user index must be in 0 … 2 (got 3)"),
        ([0], [-1], "item index must be in 0 … 3 (got -1)"),
        ([2], [4], "item index must be in 0 … 3 (got 4)"),
    ],
)
def test_an_index_outside_the_model_is_refused_with_the_valid_ones(ratings, users, items, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        make_model(ratings).predict(torch.tensor(users), torch.tensor(items))


def test_no_pairs_have_no_predictions(ratings):
    nothing = torch.tensor([], dtype=torch.long)
    assert make_model(ratings).predict(nothing, nothing).shape == (0,)


def test_pairs_are_predicted_in_blocks_of_any_size(ratings, monkeypatch):
    model = make_model(ratings)
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    whole = model.predict(*pairs.T)
    monkeypatch.setattr(pair_products, "PAIR_BLOCK", 5)
    assert torch.equal(model.predict(*pairs.T), whole)
    assert torch.equal(pair_dots(*model.augmented_factors(), *pairs.T) + model.offset, whole)


def test_an_item_without_ratings_is_predicted_by_the_offset_and_the_users_bias(ratings):
    model = MatrixFactorization.from_ratings(ratings, 2)
    with torch.no_grad():
        model.user_bias.weight.fill_(0.25)
    assert model.predict(torch.tensor([0]), torch.tensor([2])).tolist() == [3.25]


# features


@pytest.mark.parametrize("item_ids", [True, False])
@pytest.mark.parametrize("biases", [False, True])
def test_an_entity_is_its_rows_plus_each_feature_block_times_its_weights(ratings, item_ids, biases):
    model = make_featured(ratings, item_ids=item_ids, biases=biases)
    p, sums = dict(model.named_parameters()), {}
    for plural, n_rows, seed in (("users", 3, 0), ("items", 4, 1)):
        for part in ("factors", "bias") if biases else ("factors",):
            rows = p[f"{plural}.{part}.weight"] if plural == "users" or item_ids else 0
            blocks = two_blocks(n_rows, seed).items()
            products = [F.matrix @ p[f"{plural}.features.{name}.{part}.weight"] for name, F in blocks]
            sums[plural, part] = sum(products, rows)
    users, items = ratings.users.long(), ratings.items.long()
    expected = (sums["users", "factors"][users] * sums["items", "factors"][items]).sum(1) + model.offset
    if biases:
        expected = expected + (sums["users", "bias"][users] + sums["items", "bias"][items])[:, 0]
    assert_close(model(users, items), expected)
    assert_close(model.predict_observed(ratings), expected.detach())
    for entity, plural in ((USER, "users"), (ITEM, "items")):
        assert_close(model.factors(entity), sums[plural, "factors"].detach())


@pytest.mark.parametrize("item_ids", [True, False])
@pytest.mark.parametrize("biases", [False, True])
def test_the_terms_hold_each_parameter_once_and_take_the_weights_assigned_to_them(ratings, item_ids, biases):
    model = make_featured(ratings, item_ids=item_ids, biases=biases)
    terms = [term for entity in (USER, ITEM) for term in model.terms(entity)]
    assert len(terms) == len(model.all_terms) == 6 - (not item_ids)
    assert sorted(name for term in terms for name in term.columns) == sorted(dict(model.named_parameters()))
    for term in terms:
        free = model.free_columns()[term.entity] > 0
        weights = torch.randn(model.weights(term).shape)
        model.assign(term, weights)
        # A term is 0 in the columns of the constant 1 and of the partner's bias.
        assert_close(model.weights(term).detach(), weights * free)
        for name, columns in term.split(weights).items():
            assert torch.equal(columns, model.get_parameter(name))


def test_augmented_factors_of_given_parameters_leave_the_models_alone(ratings):
    model = make_featured(ratings)
    before = [factors.detach().clone() for factors in model.augmented_factors()]
    doubled = {name: 2 * parameter.detach() for name, parameter in model.named_parameters()}
    constants = [1 - free for free in model.free_columns()]
    for factors, original, constant in zip(model.augmented_factors(doubled), before, constants, strict=True):
        assert_close(factors - constant, 2 * (original - constant))
    assert all(torch.equal(*pair) for pair in zip(model.augmented_factors(), before, strict=True))


def test_items_without_ids_have_no_factors_of_their_own_and_do_not_start_at_zero(ratings):
    model = MatrixFactorization.from_ratings(ratings, 2, item_features=two_blocks(4), item_ids=False)
    assert not model.item_ids
    assert not any(name.startswith(("items.factors", "items.bias")) for name in model.state_dict())
    assert all(bool((model.factors(entity)[0] != 0).any()) for entity in (USER, ITEM))


def test_features_do_not_change_the_predictions_of_a_new_model(ratings):
    plain = MatrixFactorization.from_ratings(ratings, 2)
    model = MatrixFactorization.from_ratings(ratings, 2, **both_features())
    assert model.has_features
    assert not plain.has_features
    assert_close(model.predict_observed(ratings), plain.predict_observed(ratings))


def test_gradients_follow_the_chain_rule_of_the_augmented_factors(ratings):
    model, generator = make_featured(ratings), torch.Generator().manual_seed(3)
    upstream = [torch.randn(factors.shape, generator=generator) for factors in model.augmented_factors()]
    torch.autograd.backward(model.augmented_factors(), upstream)
    gradients = model.gradients(*upstream)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        assert_close(gradient, model.get_parameter(name).grad)


# state


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("offset", ["none", "global", "item"])
def test_the_state_dict_is_the_whole_model(ratings, biases, offset):
    model = make_model(ratings, biases=biases, offset=offset)
    again = MatrixFactorization.from_state_dict(model.state_dict())
    assert again.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(again.predict_observed(ratings, clip=True), model.predict_observed(ratings, clip=True))


@pytest.mark.parametrize("item_ids", [True, False])
@pytest.mark.parametrize("nonnegative", [True, False])
def test_the_state_dict_and_the_features_are_the_whole_model(ratings, item_ids, nonnegative):
    model = make_featured(ratings, item_ids=item_ids, nonnegative=nonnegative)
    again = MatrixFactorization.from_state_dict(model.state_dict(), **both_features(), nonnegative=nonnegative)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert (again.item_ids, again.nonnegative) == (item_ids, nonnegative)
    assert torch.equal(again.predict_observed(ratings, clip=True), model.predict_observed(ratings, clip=True))


def test_the_state_of_a_model_whose_items_are_their_features_needs_them(ratings):
    state = make_featured(ratings, item_ids=False).state_dict()
    with pytest.raises(InputError, match="give the item_features that it was made with"):
        MatrixFactorization.from_state_dict(state, user_features=two_blocks(3))


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("offset", ["none", "item"])
def test_augmented_factors_make_a_model_that_predicts_the_same(ratings, biases, offset):
    model = make_featured(ratings, biases=biases, offset=offset)
    users, items = (factors.detach() for factors in model.augmented_factors())
    again = MatrixFactorization.from_augmented_factors(
        users, items, biases=biases, offset=model.offset, rating_range=model.rating_range
    )
    assert not again.has_features
    assert again.rank == model.rank
    assert_close(again.predict_observed(ratings, clip=True), model.predict_observed(ratings, clip=True))


# starts


@pytest.mark.parametrize("init", INITS)
def test_a_nonnegative_model_starts_and_is_projected_at_or_above_zero_except_for_biases(ratings, init):
    start = MatrixFactorization.from_ratings(ratings, 2, init=init, nonnegative=True, **both_features())
    assert all(bool((p >= 0).all()) for p in start.parameters())
    model = make_featured(ratings, nonnegative=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[0] = -1
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.project()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name].clamp_min(0) if name.endswith("factors.weight") else before[name])


def test_projection_leaves_a_model_that_may_be_negative_alone(ratings):
    model = make_featured(ratings)
    before = model.predict_observed(ratings)
    model.project()
    assert torch.equal(model.predict_observed(ratings), before)


def test_initial_factors_have_the_spread_of_their_name():
    def factors(init: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return MatrixFactorization(400, 10, 25, init=init, generator=generator).user_factors.weight.detach()

    assert float(factors("scaled-normal").std()) == pytest.approx(0.1 / 5, rel=0.05)
    assert float(factors("small-normal").std()) == pytest.approx(0.01, rel=0.05)
    uniform = factors("uniform")
    assert 0 <= float(uniform.min()) < 0.01
    assert 0.99 < float(uniform.max()) < 1
    assert float(factors("zeros").abs().max()) == 0


@pytest.mark.parametrize("init", [init for init in INITS if init != "zeros"])
def test_initial_factors_come_from_the_generator_alone(ratings, init):
    def start(global_seed: int, seed: int | None) -> torch.Tensor:
        torch.manual_seed(global_seed)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return MatrixFactorization.from_ratings(ratings, 3, init=init, generator=generator).item_factors.weight

    assert torch.equal(start(1, 5), start(2, 5))
    assert not torch.equal(start(1, 5), start(1, 6))
    assert torch.equal(start(1, None), start(2, 0))  # the default is a generator seeded with 0


def test_a_model_has_the_size_and_the_type_of_its_ratings_and_zeros_where_there_are_none(ratings):
    model = MatrixFactorization.from_ratings(ratings.to(dtype=torch.float64), 3, init="uniform")
    assert (model.n_users, model.n_items, model.dtype) == (3, 4, torch.float64)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float64}
    for entity, counts in zip(model.entities, (ratings.user_counts, ratings.item_counts), strict=True):
        assert torch.equal((entity.factors.weight != 0).any(1), counts > 0)


@pytest.mark.parametrize("biases", [False, True])
def test_rank_zero_is_a_model_of_offset_and_biases(ratings, biases):
    model = MatrixFactorization.from_ratings(ratings, 0, biases=biases)
    assert_close(model.predict_observed(ratings), torch.full((len(ratings),), 3.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_users": 0}, "a model needs at least one user and one item (got 0 and 4)"),
        ({"n_items": 0}, "a model needs at least one user and one item (got 3 and 0)"),
        ({"rank": -1}, "rank must be at least 0 (got -1)"),
        ({"init": "normal"}, "unknown init 'normal'; did you mean"),
        ({"item_ids": False}, "items without ids need features: set item_features, for example to genres"),
        ({"user_features": two_blocks(4)}, "a features must have a row for each of 3 users (got 4)"),
        ({"item_features": two_blocks(3)}, "a features must have a row for each of 4 items (got 3)"),
    ],
)
def test_an_impossible_model_is_refused_in_one_sentence(options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        MatrixFactorization(**{"n_users": 3, "n_items": 4, "rank": 2, **options})
