"""The mathematics, checked: loops = vectorized = autograd = gradcheck = central differences; golden numbers."""

import dataclasses

import numpy as np
import pytest
import scipy.io
import torch

from mfrec.errors import InputError
from mfrec.model import MatrixFactorization
from mfrec.objective import SCALINGS, DataCost, Objective, naive_cost_and_gradients, squared_error
from mfrec.ratings import Ratings


def huber(predictions: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    losses = torch.nn.functional.huber_loss(predictions, targets, reduction="none", delta=0.7)
    return losses, (predictions - targets).clamp(-0.7, 0.7)


@pytest.fixture
def ratings(odd_ratings: Ratings) -> Ratings:
    return odd_ratings


def a_model(ratings: Ratings, biases: bool = True, offset: str = "item", rank: int = 3) -> MatrixFactorization:
    generator = torch.Generator().manual_seed(1)
    model = MatrixFactorization.from_ratings(ratings, rank, biases=biases, offset=offset, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def plain_autograd(objective: Objective, model: MatrixFactorization, ratings: Ratings) -> tuple[torch.Tensor, dict]:
    """J by the embeddings and torch's own autograd, without a line of the objective's mathematics."""
    data = objective.loss(model(ratings.users, ratings.items), ratings.values)[0].sum()
    counts = {"user": ratings.users.bincount(minlength=ratings.n_users)}
    counts["item"] = ratings.items.bincount(minlength=ratings.n_items)
    power = {"row": 0.0, "sqrt": 0.5, "rating": 1.0}[objective.scaling]
    cost = data
    for name, parameter in model.named_parameters():
        l2 = objective.bias_l2 if "bias" in name and objective.bias_l2 is not None else objective.l2
        weights = l2 * counts[name[:4]].double() ** power
        cost = cost + 0.5 * (weights[:, None] * parameter**2).sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return cost.detach(), dict(zip(names, torch.autograd.grad(cost, parameters), strict=True))


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("offset", ["none", "global", "item"])
@pytest.mark.parametrize("l2", [0.0, 1.7])
def test_cost_and_gradients_are_those_of_the_plain_loops(ratings, biases, offset, l2):
    model = a_model(ratings, biases, offset)
    cost, gradients = Objective(l2).cost_and_gradients(model, ratings)
    loop_cost, loop_gradients = naive_cost_and_gradients(model, ratings, l2)
    assert float(cost) == pytest.approx(loop_cost, rel=1e-12)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, torch.tensor(loop_gradients[name], dtype=torch.float64))


@pytest.mark.parametrize("loss", [squared_error, huber])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("bias_l2", [None, 0.0, 2.5])
@pytest.mark.parametrize("biases", [False, True])
def test_hand_derived_gradients_are_those_of_autograd_through_plain_embeddings(ratings, loss, scaling, bias_l2, biases):
    objective = Objective(1.3, bias_l2, scaling, loss)
    model = a_model(ratings, biases)
    cost, gradients = objective.cost_and_gradients(model, ratings)
    auto_cost, auto_gradients = plain_autograd(objective, model, ratings)
    torch.testing.assert_close(cost, auto_cost)
    torch.testing.assert_close(gradients, auto_gradients)


@pytest.mark.parametrize("biases", [False, True])
def test_backward_of_the_differentiable_cost_is_the_hand_derived_gradient(ratings, biases):
    objective, model = Objective(0.9, 0.3, "sqrt"), a_model(ratings, biases)
    (3 * objective(model, ratings)).backward()
    for name, gradient in objective.gradients(model, ratings).items():
        torch.testing.assert_close(model.get_parameter(name).grad, 3 * gradient)


@pytest.mark.parametrize("loss", [squared_error, huber])
def test_the_autograd_function_passes_gradcheck(ratings, loss):
    model = a_model(ratings)
    tables = [table.detach().clone().requires_grad_() for table in model.tables()]
    assert torch.autograd.gradcheck(
        lambda U, V: DataCost.apply(U, V, model.targets(ratings), ratings, Objective(loss=loss)), tables
    )


def test_central_differences_agree_with_the_gradient_to_nine_digits(ratings):
    objective, model = Objective(1.5), a_model(ratings)
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


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_costs_of_all_users_and_the_items_penalty_make_up_the_whole_cost(ratings, scaling):
    objective, model = Objective(1.3, 0.4, scaling), a_model(ratings)
    J = objective.cost(model, ratings)
    only = {
        side: sum(
            0.5 * (w * model.get_parameter(name).square()).sum()
            for name, w in objective.penalty_weights(model, ratings).items()
            if name.startswith(side)
        )
        for side in ("user", "item")
    }
    users = sum(objective.user_cost(model, ratings, j) for j in range(ratings.n_users))
    items = sum(objective.item_cost(model, ratings, i) for i in range(ratings.n_items))
    torch.testing.assert_close(users + only["item"], J)
    torch.testing.assert_close(items + only["user"], J)


@pytest.mark.parametrize("l2", [0.0, 2.0])
def test_the_cost_of_one_user_is_a_ridge_regression_of_their_ratings_on_the_items_they_rated(ratings, l2):
    model = a_model(ratings, biases=False, offset="none")
    user = 4
    X = model.item_factors.weight[ratings.items[ratings.users == user].long()]
    theta, y = model.user_factors.weight[user], ratings.values[ratings.users == user]
    expected = 0.5 * (X @ theta - y).square().sum() + 0.5 * l2 * theta.square().sum()
    torch.testing.assert_close(Objective(l2).user_cost(model, ratings, user), expected.detach())


def test_a_row_outside_the_ratings_is_refused(ratings):
    with pytest.raises(InputError, match="user index 11 is not in these ratings"):
        Objective().user_cost(a_model(ratings), ratings, 11)


@pytest.mark.parametrize("options", [{"l2": -1.0}, {"l2": float("nan")}, {"l2": 1.0, "bias_l2": -0.1}])
def test_a_negative_or_undefined_penalty_is_refused(options):
    with pytest.raises(InputError, match="is not a penalty; give 0 or more"):
        Objective(**options)


def test_an_unknown_scaling_is_refused_with_the_near_one():
    with pytest.raises(InputError, match="did you mean 'rating'"):
        Objective(scaling="ratings")


def from_tables(users: np.ndarray, items: np.ndarray) -> MatrixFactorization:
    """A plain model with these factors, in float64."""
    model = MatrixFactorization(len(users), len(items), users.shape[1], biases=False, dtype=torch.float64)
    with torch.no_grad():
        model.user_factors.weight.copy_(torch.as_tensor(users.copy()))
        model.item_factors.weight.copy_(torch.as_tensor(items.copy()))
    return model


def assert_costs(model: MatrixFactorization, ratings: Ratings, golden: dict[float, float]) -> None:
    for l2, expected in golden.items():
        assert float(Objective(l2).cost(model, ratings)) == pytest.approx(expected, abs=1e-6)


def test_golden_cost_of_the_sine_and_cosine_tables():
    X = np.sin(np.arange(1, 21)).reshape(4, 5, order="F")
    Theta = np.cos(np.arange(1, 16)).reshape(3, 5, order="F")
    Y = np.sin(np.arange(1, 25, 2)).reshape(4, 3, order="F")
    ratings = Ratings.from_dense(Y, Y > 0.5)
    assert_costs(from_tables(Theta, X), ratings, {0.0: 1.286785185478467, 1.5: 14.357100818544891})


@pytest.fixture
def ex8(shared_data):
    movies = scipy.io.loadmat(shared_data / "ex8/ex8_movies.mat")
    parameters = scipy.io.loadmat(shared_data / "ex8/ex8_movieParams.mat")
    return movies["Y"].astype(float), movies["R"], parameters["X"], parameters["Theta"]


def test_golden_costs_of_the_course_exercise(ex8):
    Y, R, X, Theta = ex8
    small = Ratings.from_dense(Y[:5, :4], R[:5, :4])
    assert_costs(from_tables(Theta[:4, :3], X[:5, :3]), small, {0.0: 22.2246037257, 1.5: 31.3440562443})
    golden = {0.0: 27918.640125, 1.5: 34821.703613, 10.0: 73939.063381}
    assert_costs(from_tables(Theta, X), Ratings.from_dense(Y, R), golden)


def test_objectives_are_values():
    assert Objective(1.0) == Objective(1.0) != dataclasses.replace(Objective(1.0), scaling="sqrt")
