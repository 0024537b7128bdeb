"""The objective: plain loops, products, autograd, gradcheck, central differences and golden numbers agree."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import scipy.io
import torch
from conftest import DenseFeatures, features_of
from torch.testing import assert_close

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.model.entity import ENTITY_NAMES, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.losses import LOSSES
from mfrec.model.objective import L2_SCALINGS, DataCost, Objective
from mfrec.model.reference import naive_cost_and_gradients


def huber(predictions: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    losses = torch.nn.functional.huber_loss(predictions, targets, reduction="none", delta=0.7)
    return losses, (predictions - targets).clamp(-0.7, 0.7)


@pytest.fixture
def ratings(odd_ratings: Ratings) -> Ratings:
    return odd_ratings


def make_model(
    ratings: Ratings, biases: bool = True, offset: str = "item", rank: int = 3, **options
) -> MatrixFactorization:
    generator = torch.Generator().manual_seed(1)
    model = MatrixFactorization.from_ratings(
        ratings, rank, biases=biases, offset=offset, generator=generator, **options
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def plain_autograd(objective: Objective, model: MatrixFactorization, ratings: Ratings) -> tuple[torch.Tensor, dict]:
    """J by the model's embeddings and torch's autograd, without the objective's own derivation."""
    cost = objective.loss(model(ratings.users, ratings.items), ratings.values)[0].sum()
    counts = {"users": ratings.users.bincount(minlength=ratings.n_users)}
    counts["items"] = ratings.items.bincount(minlength=ratings.n_items)
    power = {"row": 0.0, "sqrt": 0.5, "rating": 1.0}[objective.l2_scaling]
    for name, parameter in model.named_parameters():
        l2 = objective.bias_l2 if "bias" in name and objective.bias_l2 is not None else objective.l2
        weights = l2 * counts[name.split(".")[0]].double() ** power
        cost = cost + 0.5 * (weights[:, None] * parameter**2).sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return cost.detach(), dict(zip(names, torch.autograd.grad(cost, parameters), strict=True))


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("offset", ["none", "global", "item"])
@pytest.mark.parametrize("l2", [0.0, 1.7])
@pytest.mark.parametrize("featured", [False, True])
def test_cost_and_gradients_are_those_of_the_plain_loops(ratings, odd_features, biases, offset, l2, featured):
    model = make_model(ratings, biases, offset, **odd_features.options() if featured else {})
    cost, gradients = Objective(l2).cost_and_gradients(model, ratings)
    loop_cost, loop_gradients = naive_cost_and_gradients(model, ratings, l2)
    assert float(cost) == pytest.approx(loop_cost, rel=1e-12)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        assert_close(gradient, torch.tensor(loop_gradients[name], dtype=torch.float64))


@pytest.mark.parametrize("loss", [*LOSSES.values(), huber])
@pytest.mark.parametrize("l2_scaling", L2_SCALINGS)
@pytest.mark.parametrize("bias_l2", [None, 0.0, 2.5])
@pytest.mark.parametrize("biases", [False, True])
def test_hand_derived_gradients_are_those_of_autograd_through_plain_embeddings(
    ratings, loss, l2_scaling, bias_l2, biases
):
    objective = Objective(1.3, bias_l2, l2_scaling, loss)
    model = make_model(ratings, biases)
    cost, gradients = objective.cost_and_gradients(model, ratings)
    auto_cost, auto_gradients = plain_autograd(objective, model, ratings)
    assert_close(cost, auto_cost)
    assert_close(gradients, auto_gradients)


def dense_autograd(
    objective: Objective, model: MatrixFactorization, ratings: Ratings, features: DenseFeatures
) -> tuple[torch.Tensor, dict]:
    """J of Θ = P + F W by dense matrices F, the ratings' weights and torch's autograd."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    power = {"row": 0.0, "sqrt": 0.5, "rating": 1.0}[objective.l2_scaling]
    users, items = ratings.users.long(), ratings.items.long()
    sums, penalty = {}, 0.0
    for entity, indices, n_rows in (("user", users, ratings.n_users), ("item", items, ratings.n_items)):
        counts = torch.zeros(n_rows, dtype=torch.float64)
        for index in indices.tolist():
            counts[index] += 1
        for part in ("factors", "bias"):
            total = torch.zeros(n_rows, 1, dtype=torch.float64)
            matrices = {f"{entity}s.features.{name}": F for name, F in getattr(features, entity).items()}
            matrices[f"{entity}s"] = torch.eye(n_rows, dtype=torch.float64)
            for path, F in matrices.items():
                name = f"{path}.{part}.weight"
                if name in parameters:
                    total = total + F @ parameters[name]
                    l2 = objective.bias_l2 if part == "bias" and objective.bias_l2 is not None else objective.l2
                    n = (F.square() * counts[:, None]).sum(0)
                    penalty = penalty + 0.5 * (l2 * n[:, None] ** power * parameters[name].square()).sum()
            sums[entity, part] = total[indices]
    predictions = (sums["user", "factors"] * sums["item", "factors"]).sum(1)
    predictions = predictions + (sums["user", "bias"] + sums["item", "bias"])[:, 0] + model.offset[items]
    losses = objective.loss(predictions, ratings.values)[0]
    cost = penalty + (losses if ratings.weights is None else losses * ratings.weights).sum()
    gradients = torch.autograd.grad(cost, parameters.values())
    return cost.detach(), dict(zip(parameters, gradients, strict=True))


@pytest.mark.parametrize("loss", [*LOSSES.values(), huber])
@pytest.mark.parametrize("l2_scaling", L2_SCALINGS)
@pytest.mark.parametrize("item_ids", [True, False])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_with_features_and_weights_are_those_of_autograd_through_dense_matrices(
    odd_ratings, weighted_ratings, odd_features, loss, l2_scaling, item_ids, biases, weighted
):
    ratings = weighted_ratings if weighted else odd_ratings
    model = make_model(ratings, biases, item_ids=item_ids, **odd_features.options())
    objective = Objective(1.3, 0.4, l2_scaling, loss)
    cost, gradients = objective.cost_and_gradients(model, ratings)
    auto_cost, auto_gradients = dense_autograd(objective, model, ratings, odd_features)
    assert len(gradients) == (1 + biases) * (7 - (not item_ids) - 1)
    assert_close(cost, auto_cost)
    assert_close(objective.cost(model, ratings), auto_cost)
    assert_close(gradients, auto_gradients)


@pytest.mark.parametrize("item_ids", [True, False])
def test_the_backward_pass_reaches_feature_weights(weighted_ratings, odd_features, item_ids):
    objective = Objective(0.9, 0.3, "sqrt")
    model = make_model(weighted_ratings, item_ids=item_ids, **odd_features.options())
    (3 * objective(model, weighted_ratings)).backward()
    for name, gradient in objective.gradients(model, weighted_ratings).items():
        assert_close(model.get_parameter(name).grad, 3 * gradient)


@pytest.mark.parametrize(("l2_scaling", "expected"), [
    ("row", [1, 1, 1]),
    ("sqrt", [5**0.5, 2.5**0.5, 0]),
    ("rating", [5, 2.5, 0]),
])  # fmt: skip
def test_a_feature_counts_the_ratings_of_its_rows_by_the_square_of_its_values(l2_scaling, expected):
    # Users with 2, 3 and 5 ratings: the first two have feature 0, the last √½ of feature 1; nobody has feature 2.
    observed = torch.tensor([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1], [0, 1, 1]])
    ratings = Ratings.from_dense(torch.ones(5, 3, dtype=torch.float64), observed)
    F = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 0.5**0.5, 0]], dtype=torch.float64)
    model = make_model(ratings, user_features={"job": features_of(F)})
    objective, expected = Objective(2.0, 3.0, l2_scaling), torch.tensor(expected, dtype=torch.float64)
    weights = objective.penalty_weights(model, ratings)
    assert_close(weights["users.features.job.factors.weight"][:, 0], 2 * expected)
    assert_close(weights["users.features.job.bias.weight"][:, 0], 3 * expected)
    ridge = objective.ridge(model, ratings, model.terms(USER)[1])
    assert_close(ridge, torch.stack([2 * expected, 2 * expected, 2 * expected, 3 * expected, 0 * expected], 1))


def test_weights_of_ratings_do_not_change_the_penalty(ratings, weighted_ratings, odd_features):
    model, objective = make_model(ratings, **odd_features.options()), Objective(1.3, 0.4, "rating")
    assert_close(objective.penalty(model, weighted_ratings), objective.penalty(model, ratings))


@pytest.mark.parametrize("loss", [*LOSSES.values(), huber])
def test_a_rating_with_weight_two_counts_twice(ratings, odd_features, loss):
    objective, twice = Objective(loss=loss), torch.arange(len(ratings)) % 3 == 0
    r, weights = ratings, 1.0 + twice.double()
    weighted = Ratings(r.users, r.items, r.values, r.n_users, r.n_items, weights=weights)
    model = make_model(ratings, **odd_features.options())
    cost, gradients = objective.cost_and_gradients(model, weighted)
    whole, again = (objective.cost_and_gradients(model, subset) for subset in (ratings, ratings.select(twice)))
    assert_close(cost, whole[0] + again[0])
    for name, gradient in gradients.items():
        assert_close(gradient, whole[1][name] + again[1][name])


def test_the_cost_of_one_rating_is_its_weight_times_its_cost_without(weighted_ratings):
    model, objective = make_model(weighted_ratings), Objective()
    for n in range(len(weighted_ratings)):
        r = weighted_ratings.select(torch.arange(len(weighted_ratings)) == n)
        plain = Ratings(r.users, r.items, r.values, r.n_users, r.n_items)
        assert_close(objective.cost(model, r), r.weights[0] * objective.cost(model, plain))


@pytest.mark.parametrize("biases", [False, True])
def test_backward_of_the_differentiable_cost_is_the_hand_derived_gradient(ratings, biases):
    objective, model = Objective(0.9, 0.3, "sqrt"), make_model(ratings, biases)
    (3 * objective(model, ratings)).backward()
    for name, gradient in objective.gradients(model, ratings).items():
        assert_close(model.get_parameter(name).grad, 3 * gradient)


@pytest.mark.parametrize("loss", [*LOSSES.values(), huber])
def test_the_autograd_function_passes_gradcheck(ratings, loss):
    model = make_model(ratings)
    factors = [factors.detach().clone().requires_grad_() for factors in model.augmented_factors()]
    assert torch.autograd.gradcheck(
        lambda U, V: DataCost.apply(U, V, model.targets(ratings), ratings, Objective(loss=loss)), factors
    )


def test_an_offset_apart_from_the_targets_gives_the_same_cost(ratings):
    model, objective = make_model(ratings), Objective()
    factors = [factors.detach() for factors in model.augmented_factors()]
    centred = DataCost.apply(*factors, model.targets(ratings), ratings, objective)
    assert_close(DataCost.apply(*factors, ratings.values, ratings, objective, model.offset), centred)


def test_without_l2_there_is_no_penalty(ratings):
    assert float(Objective().penalty(make_model(ratings), ratings)) == 0
    assert float(Objective(0.0, 1.0).penalty(make_model(ratings), ratings).detach()) > 0


def test_central_differences_agree_with_the_gradient_to_nine_digits(ratings):
    objective, model = Objective(1.5), make_model(ratings)
    gradients, step = objective.gradients(model, ratings), 1e-4
    numerical, derived = [], []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for n in range(parameter.numel()):
                entry = parameter.view(-1)[n : n + 1]
                before = entry.clone()
                costs = []
                for sign in (1, -1):
                    entry.copy_(before + sign * step)
                    costs.append(objective.cost(model, ratings))
                entry.copy_(before)
                numerical.append((costs[0] - costs[1]) / (2 * step))
                derived.append(gradients[name].reshape(-1)[n])
    num, grad = torch.stack(numerical), torch.stack(derived)
    assert float((num - grad).norm() / (num + grad).norm()) < 1e-9


@pytest.mark.parametrize("l2_scaling", L2_SCALINGS)
@pytest.mark.parametrize("weights_and_features", [False, True])
def test_the_costs_of_all_rows_and_the_penalties_of_all_else_sum_to_the_whole_cost(
    odd_ratings, weighted_ratings, odd_features, l2_scaling, weights_and_features
):
    ratings = weighted_ratings if weights_and_features else odd_ratings
    objective = Objective(1.3, 0.4, l2_scaling)
    model = make_model(ratings, **odd_features.options() if weights_and_features else {})
    penalties = {
        name: 0.5 * (w * model.get_parameter(name).square()).sum()
        for name, w in objective.penalty_weights(model, ratings).items()
    }
    J = objective.cost(model, ratings)
    users = sum(objective.user_cost(model, ratings, j) for j in range(ratings.n_users))
    items = sum(objective.item_cost(model, ratings, i) for i in range(ratings.n_items))
    for total, entity in ((users, "users"), (items, "items")):
        rows = (f"{entity}.factors.weight", f"{entity}.bias.weight")
        assert_close(total + sum(p for name, p in penalties.items() if name not in rows), J)


@pytest.mark.parametrize("l2", [0.0, 2.0])
def test_the_cost_of_a_user_is_a_ridge_regression_on_the_items_they_rated(ratings, l2):
    model = make_model(ratings, biases=False, offset="none")
    user = 4
    X = model.item_factors.weight[ratings.items[ratings.users == user].long()]
    theta, y = model.user_factors.weight[user], ratings.values[ratings.users == user]
    expected = 0.5 * (X @ theta - y).square().sum() + 0.5 * l2 * theta.square().sum()
    assert_close(Objective(l2).user_cost(model, ratings, user), expected.detach())


@pytest.mark.parametrize("entity", ENTITY_NAMES)
@pytest.mark.parametrize("index", [-1, 13])
def test_the_cost_of_a_row_outside_the_ratings_is_refused(ratings, entity, index):
    last = {"user": 10, "item": 12}[entity]
    cost = {"user": Objective().user_cost, "item": Objective().item_cost}[entity]
    with pytest.raises(InputError, match=re.escape(f"{entity} index must be in 0 … {last} (got {index})")):
        cost(make_model(ratings), ratings, index)


@pytest.mark.parametrize("option", ["l2", "bias_l2"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_negative_or_infinite_penalty_is_refused(option, value):
    with pytest.raises(InputError, match=re.escape(f"{option} must be at least 0 and finite (got {value:g})")):
        Objective(**{option: value})


def test_an_unknown_scaling_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"^unknown l2 scaling 'ratings'; did you mean 'rating'\?$"):
        Objective(l2_scaling="ratings")


def from_factors(users: np.ndarray, items: np.ndarray) -> MatrixFactorization:
    """A model without biases that has these factors, in float64."""
    factors = (torch.from_numpy(np.ascontiguousarray(matrix)).double() for matrix in (users, items))
    unlimited = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)
    return MatrixFactorization.from_augmented_factors(*factors, biases=False, offset=None, rating_range=unlimited)


def assert_costs(model: MatrixFactorization, ratings: Ratings, golden: dict[float, float]) -> None:
    for l2, expected in golden.items():
        assert float(Objective(l2).cost(model, ratings)) == pytest.approx(expected, abs=1e-6)


def test_golden_costs_of_factors_that_are_sines_and_cosines():
    X = np.sin(np.arange(1, 21)).reshape(4, 5, order="F")
    Theta = np.cos(np.arange(1, 16)).reshape(3, 5, order="F")
    Y = np.sin(np.arange(1, 25, 2)).reshape(4, 3, order="F")
    ratings = Ratings.from_dense(Y, Y > 0.5)
    assert_costs(from_factors(Theta, X), ratings, {0.0: 1.286785185478467, 1.5: 14.357100818544891})


@pytest.fixture
def ex8(shared_data):
    movies = scipy.io.loadmat(shared_data / "ex8/ex8_movies.mat")
    parameters = scipy.io.loadmat(shared_data / "ex8/ex8_movieParams.mat")
    return movies["Y"].astype(float), movies["R"], parameters["X"], parameters["Theta"]


def test_golden_costs_of_the_course_exercise(ex8):
    Y, R, X, Theta = ex8
    small = Ratings.from_dense(Y[:5, :4], R[:5, :4])
    assert_costs(from_factors(Theta[:4, :3], X[:5, :3]), small, {0.0: 22.2246037257, 1.5: 31.3440562443})
    golden = {0.0: 27918.640125, 1.5: 34821.703613, 10.0: 73939.063381}
    assert_costs(from_factors(Theta, X), Ratings.from_dense(Y, R), golden)


def test_objectives_with_equal_arguments_are_equal():
    assert Objective(1.0) == Objective(1.0) != dataclasses.replace(Objective(1.0), l2_scaling="sqrt")
