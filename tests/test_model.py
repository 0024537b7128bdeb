"""The model: what it predicts, what it refuses, and that its state is complete."""

import pytest
import torch
from conftest import features_of

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.model.factorization import INITS, ITEM, USER, MatrixFactorization, centring_offset


@pytest.fixture
def ratings() -> Ratings:
    Y = torch.tensor([[5.0, 4.0, torch.nan], [torch.nan, 1.0, torch.nan], [torch.nan] * 3, [2.0, torch.nan, torch.nan]])
    return Ratings.from_dense(Y)


def a_model(ratings: Ratings, **options) -> MatrixFactorization:
    model = MatrixFactorization.from_ratings(ratings, 2, scale=(1.0, 5.0), **options)
    with torch.no_grad():
        for n, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n)))
    return model


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("offset", ["none", "global", "item"])
def test_every_way_to_predict_gives_the_same_numbers(ratings, biases, offset):
    model = a_model(ratings, biases=biases, offset=offset)
    users, items = ratings.users, ratings.items
    U, V = model.tables()
    by_hand = (U[users.long()] * V[items.long()]).sum(1) + (ratings.values - model.targets(ratings))
    torch.testing.assert_close(model(users, items), by_hand)
    torch.testing.assert_close(model.predict(users, items), by_hand.detach())
    torch.testing.assert_close(model.predict_observed(ratings), by_hand.detach())


def test_predictions_are_kept_on_the_rating_scale_on_request(ratings):
    model = a_model(ratings)
    with torch.no_grad():
        model.user_factors.weight.mul_(100)
    every = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    free, clipped = (model.predict(*every.T, clip=clip) for clip in (False, True))
    assert free.min() < 1
    assert free.max() > 5
    torch.testing.assert_close(clipped, free.clamp(1, 5))


@pytest.mark.parametrize(("users", "items", "named"), [([3], [0], "user index 3"), ([0], [-1], "item index -1")])
def test_an_index_outside_the_tables_is_refused_by_name(ratings, users, items, named):
    with pytest.raises(InputError, match=f"{named} is not in this model"):
        a_model(ratings).predict(torch.tensor(users), torch.tensor(items))


def test_predicting_no_pairs_gives_no_predictions(ratings):
    nothing = torch.tensor([], dtype=torch.long)
    assert a_model(ratings).predict(nothing, nothing).shape == (0,)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("offset", ["none", "global", "item"])
def test_the_state_dict_is_the_whole_model(ratings, biases, offset):
    model = a_model(ratings, biases=biases, offset=offset)
    again = MatrixFactorization.from_state_dict(model.state_dict())
    assert again.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(again.predict_observed(ratings, clip=True), model.predict_observed(ratings, clip=True))


def test_a_terms_table_and_its_parts_are_laid_out_alike(ratings):
    model = a_model(ratings)
    for side in (USER, ITEM):
        for term in model.terms(side):
            for name, columns in term.parts(model.table(term)).items():
                assert torch.equal(columns, model.get_parameter(name))


def some_features(n_rows: int, seed: int = 0) -> dict:
    """Two blocks of features for so many rows."""
    generator = torch.Generator().manual_seed(seed)
    return {name: features_of(torch.randn(n_rows, k, generator=generator)) for name, k in (("a", 2), ("b", 3))}


def featured(ratings: Ratings, **options) -> MatrixFactorization:
    """A model with features of both sides, all parameters drawn."""
    return a_model(ratings, user_features=some_features(3), item_features=some_features(4, 1), **options)


@pytest.mark.parametrize("item_ids", [True, False])
@pytest.mark.parametrize("biases", [False, True])
def test_a_side_with_features_is_its_own_rows_plus_each_block_times_its_weights(ratings, item_ids, biases):
    model = featured(ratings, item_ids=item_ids, biases=biases)
    p = dict(model.named_parameters())
    rows = {}
    for side, n, seed in (("user", 3, 0), ("item", 4, 1)):
        for kind in ("factors", "bias") if biases else ("factors",):
            own = p[f"{side}_{kind}.weight"] if side == "user" or item_ids else 0
            products = [
                block(p[f"{side}_feature_{kind}.{name}.weight"]) for name, block in some_features(n, seed).items()
            ]
            rows[side, kind] = sum(products, own)
    users, items = ratings.users.long(), ratings.items.long()
    expected = (rows["user", "factors"][users] * rows["item", "factors"][items]).sum(1) + model.offset
    if biases:
        expected = expected + (rows["user", "bias"][users] + rows["item", "bias"][items])[:, 0]
    torch.testing.assert_close(model(users, items), expected)
    torch.testing.assert_close(model.predict_observed(ratings), expected.detach())
    for side, name in ((USER, "user"), (ITEM, "item")):
        torch.testing.assert_close(model.factors(side), rows[name, "factors"].detach())


@pytest.mark.parametrize("item_ids", [True, False])
@pytest.mark.parametrize("biases", [False, True])
def test_the_terms_hold_every_parameter_once_and_what_is_assigned_to_them_is_their_table(ratings, item_ids, biases):
    model = featured(ratings, item_ids=item_ids, biases=biases)
    terms = [term for side in (USER, ITEM) for term in model.terms(side)]
    assert len(terms) == 6 - (not item_ids)
    assert sorted(name for term in terms for name in term.columns) == sorted(dict(model.named_parameters()))
    for term in terms:
        free = model.free_columns()[term.side] > 0
        table = torch.randn(model.table(term).shape)
        model.assign(term, table)
        # A term has nothing in the columns of the constant 1 and of the other side's bias.
        torch.testing.assert_close(model.table(term).detach(), table * free)


def test_items_without_ids_have_no_table_of_their_own_and_start_off_zero(ratings):
    model = MatrixFactorization.from_ratings(ratings, 2, item_features=some_features(4), item_ids=False)
    assert not model.item_ids
    assert not any(name.startswith(("item_factors", "item_bias")) for name in model.state_dict())
    assert all(bool((model.factors(side)[0] != 0).any()) for side in (USER, ITEM))


def test_features_do_not_change_what_a_model_predicts_at_its_start(ratings):
    plain = MatrixFactorization.from_ratings(ratings, 2)
    model = MatrixFactorization.from_ratings(
        ratings, 2, user_features=some_features(3), item_features=some_features(4, 1)
    )
    torch.testing.assert_close(model.predict_observed(ratings), plain.predict_observed(ratings))


@pytest.mark.parametrize("item_ids", [True, False])
def test_the_state_dict_and_the_features_are_the_whole_model(ratings, item_ids):
    model = featured(ratings, item_ids=item_ids)
    features = {"user_features": some_features(3), "item_features": some_features(4, 1)}
    again = MatrixFactorization.from_state_dict(model.state_dict(), **features)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert again.item_ids == item_ids
    assert torch.equal(again.predict_observed(ratings, clip=True), model.predict_observed(ratings, clip=True))


def test_a_model_whose_items_are_their_features_is_not_made_again_without_them(ratings):
    state = featured(ratings, item_ids=False).state_dict()
    with pytest.raises(InputError, match="give the item_features that it was made with"):
        MatrixFactorization.from_state_dict(state, user_features=some_features(3))


@pytest.mark.parametrize("init", INITS)
def test_a_nonnegative_model_starts_and_is_projected_at_or_above_zero_but_for_its_biases(ratings, init):
    features = {"user_features": some_features(3), "item_features": some_features(4, 1)}
    start = MatrixFactorization.from_ratings(ratings, 2, init=init, nonnegative=True, **features)
    assert all(bool((p >= 0).all()) for p in start.parameters())
    model = featured(ratings, nonnegative=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert all(bool((p < 0).any()) for p in before.values())
    model.project()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name].clamp_min(0) if "_factors." in name else before[name])


def test_projection_leaves_a_model_that_may_be_negative_alone(ratings):
    model = featured(ratings)
    before = model.predict_observed(ratings)
    model.project()
    assert torch.equal(model.predict_observed(ratings), before)


def test_the_global_offset_is_the_mean_and_the_item_offset_each_items_mean(ratings):
    assert centring_offset(ratings, "none") is None
    assert float(centring_offset(ratings, "global")) == 3.0
    plain = centring_offset(ratings, "item", damping=0.0)
    assert plain.tolist() == [4.5, 1.0, 3.0, 2.0]  # item 2 has no rating: the global mean


def test_damping_draws_item_means_toward_the_global_mean_the_more_the_fewer_ratings(ratings):
    damped = centring_offset(ratings, "item", damping=2.0)
    assert damped.tolist() == pytest.approx([(9 + 6) / 4, (1 + 6) / 3, 3.0, 8 / 3])


def test_negative_damping_and_unknown_offsets_are_refused(ratings):
    with pytest.raises(InputError, match="damping -1 is negative"):
        centring_offset(ratings, "item", damping=-1.0)
    with pytest.raises(InputError, match="unknown offset 'items'; did you mean 'item'"):
        centring_offset(ratings, "items")


def test_starts_have_the_spread_their_name_promises():
    def factors(init: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return MatrixFactorization(400, 10, 25, init=init, generator=generator).user_factors.weight.detach()

    assert float(factors("scaled-normal").std()) == pytest.approx(0.1 / 5, rel=0.05)
    assert float(factors("small-normal").std()) == pytest.approx(0.01, rel=0.05)
    uniform = factors("uniform")
    assert 0 <= float(uniform.min()) < 0.01
    assert 0.99 < float(uniform.max()) < 1


@pytest.mark.parametrize("init", [init for init in INITS if init != "zeros"])
def test_the_start_comes_from_the_generator_alone(ratings, init):
    torch.manual_seed(1)
    one = MatrixFactorization.from_ratings(ratings, 3, init=init, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    same, other = (
        MatrixFactorization.from_ratings(ratings, 3, init=init, generator=torch.Generator().manual_seed(seed))
        for seed in (5, 6)
    )
    assert torch.equal(one.item_factors.weight, same.item_factors.weight)
    assert not torch.equal(one.item_factors.weight, other.item_factors.weight)


def test_an_item_without_ratings_is_predicted_by_the_offset_and_the_users_bias(ratings):
    model = MatrixFactorization.from_ratings(ratings, 2)
    with torch.no_grad():
        model.user_bias.weight.fill_(0.25)
    assert model.predict(torch.tensor([0]), torch.tensor([2])).tolist() == [3.25]


@pytest.mark.parametrize(("options", "message"), [
    ({"n_users": 0}, "a model of 0 users and 4 items is empty"),
    ({"rank": -1}, "rank -1 is negative"),
    ({"init": "normal"}, "unknown init 'normal'; did you mean"),
    ({"item_ids": False}, "items without ids of their own need features, such as genres"),
    ({"user_features": some_features(4)}, "the a features have 4 rows for 3 users"),
    ({"item_features": some_features(3)}, "the a features have 3 rows for 4 items"),
])  # fmt: skip
def test_impossible_models_are_refused_in_one_sentence(options, message):
    with pytest.raises(InputError, match=message):
        MatrixFactorization(**{"n_users": 3, "n_items": 4, "rank": 2, **options})
