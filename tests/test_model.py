"""The model: what it predicts, what it refuses, and that its state is complete."""

import pytest
import torch

from mfrec.errors import InputError
from mfrec.model import INITS, ITEM, USER, MatrixFactorization, centring_offset
from mfrec.ratings import Ratings


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


@pytest.mark.parametrize("init", INITS)
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
])  # fmt: skip
def test_impossible_models_are_refused_in_one_sentence(options, message):
    with pytest.raises(InputError, match=message):
        MatrixFactorization(**{"n_users": 3, "n_items": 4, "rank": 2, **options})
