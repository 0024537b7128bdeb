"""Every solver through one suite, and what each one's mathematics promises beside."""

import copy
import inspect
import itertools
from typing import NamedTuple

import numpy as np
import pytest
import scipy.io
import torch
from conftest import DenseFeatures, features_of

from mfrec.data.loading import synthetic
from mfrec.data.ratings import Ratings, random_split
from mfrec.errors import InputError
from mfrec.evaluation.baselines import biases_only
from mfrec.evaluation.metrics import rmse
from mfrec.model.factorization import ITEM, USER, MatrixFactorization, Term
from mfrec.model.features import implicit_features
from mfrec.model.objective import Objective
from mfrec.solvers.base import SOLVERS, ridge
from mfrec.solvers.descent import SGD, GradientDescent, Optim

# Knobs with which each solver converges on the small problems here, and another value for each of its knobs.
KNOBS = {
    "sgd": {"lr": 0.05, "blocks": (3, 2)},
    "gd": {"lr": 0.004},
    "optim": {"lr": 0.05},
    "quasi-newton": {},
    "als": {"cg_steps": 2, "relaxation": 1.0},
    "vb": {},
    "gibbs": {"burn_in": 10},
}
OTHER_KNOBS = {
    "sgd": {"lr": 0.01, "lr_decay": 0.5, "step": "plain", "momentum": 0.5, "blocks": (1, 4)},
    "gd": {"lr": 0.001},
    "optim": {"lr": 0.01, "optimizer": "rmsprop"},
    "quasi-newton": {"method": "cg", "iterations": 5},
    "als": {"solve": "cholesky", "cg_steps": 1, "relaxation": 0.5},
    "vb": {"cg_steps": 1},
    "gibbs": {"cg_steps": 2, "same_noise": True},
}
# Knobs that change what is kept and averaged of the draws, or how weights of features are drawn.
KEEPING = {"burn_in", "samples", "feature_steps"}


@pytest.fixture(scope="module")
def planted() -> tuple[Ratings, Ratings]:
    """4,000 ratings of 120 users × 80 items from 2 planted factors with noise 0.2, and 400 held out."""
    generator = torch.Generator().manual_seed(0)
    ratings = synthetic(120, 80, 4400, rank=2, noise=0.2, generator=generator).ratings
    return ratings.split(random_split(ratings, 400 / 4400, generator))


def a_model(ratings: Ratings, rank: int = 3, **options) -> MatrixFactorization:
    return MatrixFactorization.from_ratings(ratings, rank, generator=torch.Generator().manual_seed(1), **options)


def a_solver(name: str, model: MatrixFactorization, ratings: Ratings, objective: Objective, seed: int = 2, **knobs):
    generator = torch.Generator().manual_seed(seed)
    return SOLVERS[name](model, ratings, objective, generator=generator, **{**KNOBS[name], **knobs})


def assert_same_state(one: MatrixFactorization, other: MatrixFactorization) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("biases", [False, True])
def test_planted_factors_are_recovered_to_the_noise(name, biases, planted):
    train, test = planted
    model = a_model(train, biases=biases, offset="item")
    solver = a_solver(name, model, train, Objective(0.1))
    for _ in range(400 if "lr" in KNOBS[name] else 30):
        solver.epoch()
    # 0.2 is the noise that was planted; the clipped rank-2 problem leaves little else.
    assert rmse(model.predict_observed(test), test.values) < 0.27


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("scaling", ["row", "sqrt", "rating"])
def test_the_cost_falls(name, scaling, planted):
    train, _ = planted
    objective, model = Objective(0.05, 0.1, scaling), a_model(train)
    solver = a_solver(name, model, train, objective)
    before = float(objective.cost(model, train))
    for _ in range(30):
        solver.epoch()
    assert float(objective.cost(model, train)) < 0.8 * before


@pytest.mark.parametrize("name", SOLVERS)
def test_the_same_seed_gives_the_same_bits_and_a_restored_solver_goes_on_to_them(name, planted):
    train, _ = planted
    objective = Objective(0.1, scaling="sqrt")
    whole = a_model(train)
    solver = a_solver(name, whole, train, objective)
    for _ in range(3):
        solver.epoch()
    saved = copy.deepcopy((whole.state_dict(), solver.state_dict()))
    for _ in range(3):
        solver.epoch()

    part = a_model(train, rank=3)
    resumed = a_solver(name, part, train, objective, seed=99)
    part.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    again = a_model(train)
    repeated = a_solver(name, again, train, objective)
    for _ in range(3):
        resumed.epoch()
    for _ in range(6):
        repeated.epoch()
    assert_same_state(part, whole)
    assert_same_state(again, whole)


@pytest.mark.parametrize(("name", "knob"), [(name, knob) for name in SOLVERS for knob in OTHER_KNOBS[name]])
def test_every_knob_changes_the_result(name, knob, planted):
    def result(**knobs) -> torch.Tensor:
        model = a_model(planted[0])
        solver = a_solver(name, model, planted[0], Objective(0.1), **knobs)
        for _ in range(3):
            solver.epoch()
        return model.item_factors.weight.detach()

    assert not torch.equal(result(), result(**{knob: OTHER_KNOBS[name][knob]}))


def test_no_knob_is_left_out_of_these_tests():
    for name, kind in SOLVERS.items():
        knobs = {k for k, p in inspect.signature(kind).parameters.items() if p.kind is p.KEYWORD_ONLY}
        assert knobs - {"generator"} - KEEPING == set(OTHER_KNOBS[name])


@pytest.mark.parametrize("name", ["sgd", "gd", "optim"])
@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_step_size_is_refused(name, lr, planted):
    with pytest.raises(InputError, match="is not a step size; give a positive number"):
        a_solver(name, a_model(planted[0]), planted[0], Objective(), lr=lr)


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_without_ratings_stay_finite_and_one_user_one_item_one_rating_is_enough(name, odd_ratings):
    single = Ratings(torch.tensor([0]), torch.tensor([0]), torch.tensor([4.0]))
    for ratings in (odd_ratings, single):
        model = a_model(ratings)
        solver = a_solver(name, model, ratings, Objective(0.5, scaling="rating"))
        for _ in range(5):
            solver.epoch()
        assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


# features

FEATURED = [name for name in SOLVERS if name != "vb"]


@pytest.mark.parametrize("name", FEATURED)
@pytest.mark.parametrize("item_ids", [True, False])
def test_every_table_takes_part_and_the_cost_falls_with_features_and_weights(
    name, item_ids, weighted_ratings, odd_features
):
    objective = Objective(0.05, 0.1, "sqrt")
    model = a_model(weighted_ratings, item_ids=item_ids, **odd_features.options())
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    cost = float(objective.cost(model, weighted_ratings))
    solver = a_solver(name, model, weighted_ratings, objective)
    for _ in range(20):
        solver.epoch()
    # gibbs draws from a posterior, which so few ratings without factors behind them leave wide.
    assert name == "gibbs" or float(objective.cost(model, weighted_ratings)) < 0.8 * cost
    for key, parameter in model.named_parameters():
        assert bool(torch.isfinite(parameter).all()), key
        assert not torch.equal(parameter, before[key]), key


@pytest.mark.parametrize("name", FEATURED)
def test_a_restored_solver_with_features_and_weights_goes_on_to_the_same_bits(name, weighted_ratings, odd_features):
    def start(seed: int):
        model = a_model(weighted_ratings, **odd_features.options())
        return model, a_solver(name, model, weighted_ratings, Objective(0.1), seed=seed)

    (whole, solver), (part, resumed) = start(2), start(99)
    for _ in range(3):
        solver.epoch()
    part.load_state_dict(copy.deepcopy(whole.state_dict()))
    resumed.load_state_dict(copy.deepcopy(solver.state_dict()))
    for _ in range(3):
        solver.epoch()
        resumed.epoch()
    assert_same_state(part, whole)


def test_vb_refuses_features_by_name(odd_ratings, odd_features):
    for key, blocks in odd_features.options().items():
        with pytest.raises(InputError, match="vb takes no features; use gibbs, als, sgd, gd, optim or quasi-newton"):
            a_solver("vb", a_model(odd_ratings, **{key: blocks}), odd_ratings, Objective())


class Content(NamedTuple):
    """Ratings of items whose factors and biases are F W, the last 20 of which are in the test part alone."""

    train: Ratings
    test: Ratings
    options: dict


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
    return Content(*ratings.split(ratings.items >= 60), {"item_features": {"side": features_of(F)}})


@pytest.mark.parametrize("name", FEATURED)
@pytest.mark.parametrize("item_ids", [False, True])
def test_items_without_a_single_rating_are_predicted_by_their_features(name, item_ids, content):
    # A feature's gradient sums over all ratings of the items that have it.
    slow = {"lr": 0.001} if name == "gd" else {}
    blind = biases_only(content.train, (-99.0, 99.0))
    baseline = rmse(blind.predict_observed(content.test), content.test.values)
    assert baseline > 0.8
    model = a_model(content.train, item_ids=item_ids, **content.options)
    # Items with factors of their own have these to explain the ratings by, too, unless it costs them.
    solver = a_solver(name, model, content.train, Objective(1.0 if item_ids else 0.1), **slow)
    for _ in range(300 if "lr" in KNOBS[name] else 40):
        solver.epoch()
    error = rmse(model.predict_observed(content.test), content.test.values)
    assert error < (0.35 * baseline if item_ids else 0.2)  # 0.1 is the noise


def test_an_item_has_factors_by_its_features_alone_and_without_them_none(content):
    F = content.options["item_features"]["side"](torch.eye(7, dtype=torch.float64))
    F[79] = 0
    model = a_model(content.train, item_features={"side": features_of(F)})
    solver = a_solver("als", model, content.train, Objective(1.0))
    for _ in range(40):
        solver.epoch()
    assert float(model.item_factors.weight[60:].detach().abs().max()) == 0
    assert bool((model.factors(ITEM)[60:79].norm(dim=1) > 0.1).all())
    assert float(model.factors(ITEM)[79].norm()) == 0


# weights


@pytest.mark.parametrize("name", SOLVERS)
def test_ratings_that_count_little_do_little_harm(name, planted):
    train, test = planted
    spoilt = torch.arange(len(train)) % 10 == 0
    values = torch.where(spoilt, 6 - train.values, train.values)

    def error(weights: torch.Tensor | None) -> float:
        ratings = Ratings(train.users, train.items, values, train.n_users, train.n_items, weights=weights)
        # The offset is a mean without weights, so leave it out.
        model = a_model(ratings, offset="none", rank=2)
        solver = a_solver(name, model, ratings, Objective(0.1))
        for _ in range(400 if "lr" in KNOBS[name] else 20):
            solver.epoch()
        return rmse(model.predict_observed(test), test.values)

    with_weights = error(torch.where(spoilt, 1e-3, 1.0))
    assert with_weights < 0.32
    assert error(None) > with_weights + 0.03


@pytest.mark.parametrize(("name", "lr"), [("gd", 0.004), ("sgd", 0.02), ("als", None)])
@pytest.mark.parametrize("scaling", ["row", "sqrt", "rating"])
def test_weights_of_two_with_twice_the_penalty_and_half_the_step_change_nothing(
    name, lr, scaling, odd_ratings, odd_features
):
    r, models = odd_ratings, []
    twice = Ratings(r.users, r.items, r.values, r.n_users, r.n_items, weights=torch.full((len(r),), 2.0))
    for ratings, scale in ((r, 1), (twice, 2)):
        model = a_model(ratings, **odd_features.options())
        knobs = {} if lr is None else {"lr": lr / scale}
        solver = a_solver(name, model, ratings, Objective(scale * 0.7, scale * 0.2, scaling), **knobs)
        for _ in range(5):
            solver.epoch()
        models.append(model)
    assert_close_models(*models, atol=1e-10)


@pytest.mark.parametrize("knobs", [{"solve": "cholesky"}, {"solve": "cg", "cg_steps": 40}])
def test_als_with_a_rating_of_next_to_no_weight_is_als_without_it(odd_ratings, odd_features, knobs):
    r, left_out = odd_ratings, torch.arange(len(odd_ratings)) % 4 == 0
    weighted = Ratings(r.users, r.items, r.values, r.n_users, r.n_items, weights=torch.where(left_out, 1e-14, 1.0))
    models = []
    for ratings in (weighted, r.select(~left_out)):
        # λ by row is the one that does not count ratings, and no offset looks at their values.
        model = a_model(r, offset="none", init="uniform", **odd_features.options())
        solver = a_solver("als", model, ratings, Objective(0.7), **knobs)
        for _ in range(4):
            solver.epoch()
        models.append(model)
    assert_close_models(*models, atol=1e-6)


def assert_close_models(one: MatrixFactorization, other: MatrixFactorization, atol: float) -> None:
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter, other.get_parameter(name), atol=atol, rtol=0)


# non-negative factors


def assert_nonnegative(model: MatrixFactorization) -> None:
    for name, parameter in model.named_parameters():
        assert "_factors." not in name or bool((parameter >= 0).all()), name


@pytest.mark.parametrize(("name", "knobs"), [
    ("gd", {}),
    ("sgd", {}),
    ("sgd", {"step": "adagrad", "momentum": 0.5}),
    ("optim", {}),
    ("quasi-newton", {}),
    ("quasi-newton", {"method": "tnc", "iterations": 30}),
    ("als", {}),
])  # fmt: skip
@pytest.mark.parametrize("featured", [False, True])
def test_factors_stay_at_or_above_zero_and_the_cost_falls(name, knobs, featured, weighted_ratings, odd_features):
    if featured and name == "als":
        return  # it refuses these, as another test says
    options = odd_features.options() if featured else {}
    objective, model = Objective(0.05), a_model(weighted_ratings, nonnegative=True, init="uniform", **options)
    cost = float(objective.cost(model, weighted_ratings))
    solver = a_solver(name, model, weighted_ratings, objective, **knobs)
    for _ in range(60 if "lr" in KNOBS[name] else 8):
        solver.epoch()
        assert_nonnegative(model)
    assert float(objective.cost(model, weighted_ratings)) < 0.8 * cost
    parameters = dict(model.named_parameters())
    assert any(bool((p == 0).any()) for key, p in parameters.items() if "_factors." in key)
    assert bool((parameters["user_bias.weight"] < 0).any())


@pytest.mark.parametrize(("name", "knobs", "epochs"), [
    ("als", {}, 400),
    ("quasi-newton", {"iterations": 100}, 4),
    ("quasi-newton", {"method": "tnc", "iterations": 500}, 4),
])  # fmt: skip
def test_nonnegative_factors_end_where_none_can_lower_the_cost(name, knobs, epochs, weighted_ratings):
    objective, model = Objective(0.7), a_model(weighted_ratings, nonnegative=True, init="uniform")
    solver = a_solver(name, model, weighted_ratings, objective, **knobs)
    for _ in range(epochs):
        solver.epoch()
    for key, gradient in objective.gradients(model, weighted_ratings).items():
        at_bound = (model.get_parameter(key) < 1e-9) & ("_factors." in key)
        assert float(gradient[~at_bound].abs().max()) < 1e-4, key
        assert bool((gradient[at_bound] > -1e-4).all()), key


@pytest.mark.parametrize("scaling", ["row", "sqrt", "rating"])
@pytest.mark.parametrize(("biases", "offset"), [(True, "item"), (False, "none")])
def test_a_pass_over_the_columns_never_raises_the_cost(weighted_ratings, scaling, biases, offset, monkeypatch):
    objective = Objective(0.3, 0.1, scaling)
    model = a_model(weighted_ratings, biases=biases, offset=offset, nonnegative=True, init="uniform")
    costs = [float(objective.cost(model, weighted_ratings))]
    assign = model.assign

    def watched(term: Term, table: torch.Tensor) -> None:
        assign(term, table)
        costs.append(float(objective.cost(model, weighted_ratings)))

    monkeypatch.setattr(model, "assign", watched)
    solver = a_solver("als", model, weighted_ratings, objective)
    for _ in range(20):
        solver.epoch()
    assert len(costs) == 41
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(costs))
    assert costs[-1] < 0.5 * costs[0]


def test_one_column_of_free_numbers_is_solved_by_its_pass_as_exactly_as_by_cholesky(weighted_ratings):
    # With one factor and no biases a row's problem has one number, whose minimum is above 0 or at it.
    models = [a_model(weighted_ratings, rank=1, biases=False, init="uniform", nonnegative=n) for n in (True, False)]
    columns, exact = (a_solver("als", m, weighted_ratings, Objective(0.5), solve="cholesky") for m in models)
    columns.terms, exact.terms = columns.terms[:1], exact.terms[:1]
    columns.epoch()
    exact.epoch()
    free = models[1].user_factors.weight
    assert bool((free < 0).any())
    torch.testing.assert_close(models[0].user_factors.weight, free.clamp_min(0))


@pytest.mark.parametrize(("name", "knobs", "message"), [
    ("vb", {}, "vb has Gaussian factors, which are not non-negative; use als, gd or sgd"),
    ("gibbs", {}, "gibbs samples Gaussian factors, which are not non-negative; use als, gd or sgd"),
    ("quasi-newton", {"method": "cg"}, "method cg knows no bounds, so not non-negative factors; use l-bfgs-b or tnc"),
])  # fmt: skip
def test_solvers_that_cannot_keep_factors_above_zero_refuse_by_name(name, knobs, message, odd_ratings):
    with pytest.raises(InputError, match=message):
        a_solver(name, a_model(odd_ratings, nonnegative=True), odd_ratings, Objective(), **knobs)


def test_als_refuses_non_negative_weights_of_features_by_name(odd_ratings, odd_features):
    for key, blocks in odd_features.options().items():
        model = a_model(odd_ratings, nonnegative=True, **{key: blocks})
        with pytest.raises(InputError, match="not the weights of features; use gd or sgd for them"):
            a_solver("als", model, odd_ratings, Objective())


# gd


def test_gradient_descent_is_the_texts_update_from_the_same_tables(odd_ratings):
    objective, model = Objective(1.5), a_model(odd_ratings, biases=False, offset="none")
    X, Theta = model.item_factors.weight.detach().clone(), model.user_factors.weight.detach().clone()
    R = torch.zeros(13, 11, dtype=torch.float64)
    R[odd_ratings.items.long(), odd_ratings.users.long()] = 1
    Y = torch.zeros_like(R)
    Y[odd_ratings.items.long(), odd_ratings.users.long()] = odd_ratings.values
    solver = GradientDescent(model, odd_ratings, objective, lr=0.03)
    for _ in range(4):
        E = (X @ Theta.T - Y) * R
        X, Theta = X - 0.03 * (E @ Theta + 1.5 * X), Theta - 0.03 * (E.T @ X + 1.5 * Theta)
        solver.epoch()
    torch.testing.assert_close(model.item_factors.weight.detach(), X)
    torch.testing.assert_close(model.user_factors.weight.detach(), Theta)


# sgd


@torch.no_grad()
def test_the_blocks_hold_every_rating_once_and_their_costs_sum_to_the_whole(odd_ratings):
    objective, model = Objective(0.7, 0.2, "sqrt"), a_model(odd_ratings)
    solver = SGD(model, odd_ratings, objective, generator=torch.Generator().manual_seed(0), blocks=(3, 4))
    users, items = (t[order] for t, order in zip(model.tables(), (solver.user_order, solver.item_order), strict=True))
    cost, seen = 0.0, []
    for block in solver.parts:
        (rows, columns), r = block.rows, block.ratings
        U, V = users[rows], items[columns]
        cost += 0.5 * float(((U[r.users.long()] * V[r.items.long()]).sum(1) - r.values).square().sum())
        for table, side, own in ((U, 0, rows), (V, 1, columns)):
            cost += 0.5 * float((solver.penalty[side][own] * table.square()).sum())
        own_users = solver.user_order[rows][r.users.long()]
        own_items = solver.item_order[columns][r.items.long()]
        seen += list(zip(own_users.tolist(), own_items.tolist(), strict=True))
    assert sorted(seen) == list(zip(odd_ratings.users.tolist(), odd_ratings.items.tolist(), strict=True))
    assert cost == pytest.approx(float(objective.cost(model, odd_ratings)))


def one_block_steps(ratings: Ratings, n: int, **knobs) -> tuple[MatrixFactorization, list[dict[str, torch.Tensor]]]:
    """SGD with one block, and the full gradient before each of its steps."""
    objective, model = Objective(0.7, 0.2, "rating"), a_model(ratings)
    solver = SGD(model, ratings, objective, generator=torch.Generator().manual_seed(0), blocks=(1, 1), **knobs)
    gradients = []
    for _ in range(n):
        gradients.append(objective.gradients(model, ratings))
        solver.epoch()
    return model, gradients


@pytest.mark.parametrize("step", ["plain", "implicit", "adagrad"])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_a_step_on_one_block_is_its_formula(odd_ratings, step, momentum):
    model, gradients = one_block_steps(odd_ratings, 3, step=step, momentum=momentum, lr=0.03, lr_decay=0.5)
    counts = {"user": odd_ratings.by_user.counts[:, None], "item": odd_ratings.by_item.counts[:, None]}
    for name, start in a_model(odd_ratings).named_parameters():
        x, v, squares = start.detach().clone(), 0.0, 0.0
        for t, gradient in enumerate(gradients):
            lr = 0.03 / (1 + 0.5 * t)
            v = momentum * v + gradient[name]
            squares = squares + v * v
            divisor = {"plain": 1.0, "implicit": 1 + lr * counts[name[:4]], "adagrad": (squares + 1e-300) ** 0.5}[step]
            x = x - lr * v / divisor
        torch.testing.assert_close(model.get_parameter(name).detach(), x)


@torch.no_grad()
@pytest.mark.parametrize("item_ids", [True, False])
def test_the_costs_of_the_blocks_sum_to_the_whole_with_features_and_weights(weighted_ratings, odd_features, item_ids):
    objective = Objective(0.7, 0.2, "sqrt")
    model = a_model(weighted_ratings, item_ids=item_ids, init="uniform", **odd_features.options())
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    solver = SGD(model, weighted_ratings, objective, generator=torch.Generator().manual_seed(0), blocks=(3, 4))
    orders = (solver.user_order, solver.item_order)
    cost = 0.0
    for block in solver.parts:
        composed = [1 - free for free in model.free_columns()]
        for t, term in enumerate(solver.terms):
            table, rows = model.table(term), block.rows[term.side]
            if term.features is None:
                own = table[orders[term.side]][rows]
                composed[term.side] = composed[term.side] + own
                cost += 0.5 * float((solver.penalty[t][rows] * own.square()).sum())
            else:
                composed[term.side] = composed[term.side] + solver.features[t][block.part[term.side]](table)
                cost += 0.5 * float((solver.penalty[t] * table.square()).sum())
        r = block.ratings
        errors = (composed[USER][r.users.long()] * composed[ITEM][r.items.long()]).sum(1) - r.values
        cost += 0.5 * float((r.weights * errors.square()).sum())
    assert cost == pytest.approx(float(objective.cost(model, weighted_ratings)))


@pytest.mark.parametrize("step", ["plain", "implicit", "adagrad"])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("item_ids", [True, False])
def test_a_step_on_one_block_with_features_and_weights_is_its_formula(
    weighted_ratings, odd_features, step, momentum, item_ids
):
    ratings, objective = weighted_ratings, Objective(0.7, 0.2, "rating")

    def start() -> MatrixFactorization:
        return a_model(ratings, item_ids=item_ids, **odd_features.options())

    model = start()
    generator = torch.Generator().manual_seed(0)
    knobs = {"step": step, "momentum": momentum, "lr": 0.01, "lr_decay": 0.5, "blocks": (1, 1)}
    solver, gradients = SGD(model, ratings, objective, generator=generator, **knobs), []
    for _ in range(3):
        gradients.append(objective.gradients(model, ratings))
        solver.epoch()
    for name, parameter in start().named_parameters():
        x, v, squares = parameter.detach().clone(), 0.0, 0.0
        n_terms = len(model.terms(USER if name.startswith("user") else ITEM))
        curvature = n_terms * dense_curvature(name, ratings, odd_features)
        for t, gradient in enumerate(gradients):
            lr = 0.01 / (1 + 0.5 * t)
            v = momentum * v + gradient[name]
            squares = squares + v * v
            divisor = {"plain": 1.0, "implicit": 1 + lr * curvature, "adagrad": squares.sqrt() + 1e-10}[step]
            x = x - lr * v / divisor
        torch.testing.assert_close(model.get_parameter(name).detach(), x, msg=lambda m, name=name: f"{name}: {m}")


def dense_curvature(name: str, ratings: Ratings, features: DenseFeatures) -> torch.Tensor:
    """n_b of the rows of a parameter: their weights' sum, and Σ_r |F_rf| ‖F_r‖₁ n_r of a feature."""
    W = torch.zeros(ratings.n_users, ratings.n_items, dtype=torch.float64)
    W[ratings.users.long(), ratings.items.long()] = ratings.weights
    side, *_, block = name.removesuffix(".weight").replace(".", "_").split("_")
    n = W.sum(1 if side == "user" else 0)
    if "feature" not in name:
        return n[:, None]
    F = getattr(features, side)[block].abs()
    return (F * (F.sum(1) * n)[:, None]).sum(0)[:, None]


@pytest.mark.parametrize("lr", [0.02, 0.2])
def test_implicit_steps_stay_stable_with_features(planted, lr):
    train, _ = planted
    implicit = {f"{side}_features": {"implicit": implicit_features(train, f"{side}s")} for side in ("user", "item")}
    objective, costs = Objective(0.1), []
    for options in ({}, implicit):
        model = a_model(train, **options)
        solver = a_solver("sgd", model, train, objective, lr=lr)
        for _ in range(20):
            solver.epoch()
        costs.append(float(objective.cost(model, train)))
    assert costs[1] < 2 * costs[0]


def test_the_implicit_step_stays_stable_where_the_plain_one_explodes(planted):
    train, _ = planted

    def cost_after(step: str) -> float:
        objective, model = Objective(0.1), a_model(train, init="uniform")
        solver = a_solver("sgd", model, train, objective, step=step, lr=0.5)
        for _ in range(20):
            solver.epoch()
        return float(objective.cost(model, train))

    assert cost_after("implicit") < 1e4
    assert not cost_after("plain") < 1e4


@pytest.mark.parametrize(("knobs", "message"), [
    ({"step": "adagrat"}, "unknown step 'adagrat'; did you mean 'adagrad'"),
    ({"momentum": 1.0}, "momentum 1 is not in"),
    ({"lr_decay": -0.1}, "lr_decay -0.1 is negative"),
    ({"blocks": (0, 2)}, "blocks 0 × 2 leave no batch"),
])  # fmt: skip
def test_impossible_knobs_of_sgd_are_refused_in_one_sentence(planted, knobs, message):
    with pytest.raises(InputError, match=message):
        a_solver("sgd", a_model(planted[0]), planted[0], Objective(), **knobs)


# als


@pytest.mark.parametrize("scaling", ["row", "sqrt", "rating"])
@pytest.mark.parametrize(("biases", "offset"), [(True, "item"), (False, "none")])
@pytest.mark.parametrize("knobs", [{"solve": "cholesky"}, {"solve": "cg", "cg_steps": 40}])
def test_a_sweep_ends_where_the_gradient_of_the_half_solved_last_is_zero(odd_ratings, scaling, biases, offset, knobs):
    objective = Objective(0.7, 0.2, scaling)
    model = a_model(odd_ratings, biases=biases, offset=offset, init="uniform")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    a_solver("als", model, odd_ratings, objective, **knobs).epoch()
    for name, gradient in objective.gradients(model, odd_ratings).items():
        if name.startswith("item"):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0)
        else:
            assert not torch.equal(model.get_parameter(name), before[name])


@pytest.mark.parametrize("scaling", ["row", "sqrt", "rating"])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("item_ids", [False, True])
@pytest.mark.parametrize("knobs", [{"solve": "cholesky", "cg_steps": 80}, {"solve": "cg", "cg_steps": 80}])
def test_each_term_ends_where_the_gradient_of_its_parameters_is_zero(
    weighted_ratings, odd_features, scaling, biases, item_ids, knobs, monkeypatch
):
    objective = Objective(0.7, 0.2, scaling)
    model = a_model(weighted_ratings, biases=biases, item_ids=item_ids, init="uniform", **odd_features.options())
    assign, seen = model.assign, []

    def watched(term: Term, table: torch.Tensor) -> None:
        assign(term, table)
        gradients = objective.gradients(model, weighted_ratings)
        for name in term.columns:
            assert float(gradients[name].abs().max()) < 1e-8, name
            seen.append(name)

    monkeypatch.setattr(model, "assign", watched)
    solver = a_solver("als", model, weighted_ratings, objective, **knobs)
    for _ in range(2):
        solver.epoch()
    assert sorted(seen) == sorted(2 * list(dict(model.named_parameters())))


def test_a_few_steps_on_the_weights_of_features_never_raise_the_cost(weighted_ratings, odd_features, monkeypatch):
    objective, model = Objective(0.3), a_model(weighted_ratings, init="uniform", **odd_features.options())
    costs, assign = [float(objective.cost(model, weighted_ratings))], model.assign

    def watched(term: Term, table: torch.Tensor) -> None:
        assign(term, table)
        costs.append(float(objective.cost(model, weighted_ratings)))

    monkeypatch.setattr(model, "assign", watched)
    solver = a_solver("als", model, weighted_ratings, objective, cg_steps=1)
    for _ in range(10):
        solver.epoch()
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(costs))


def test_exact_and_iterative_sweeps_agree_block_by_block(odd_ratings, monkeypatch):
    monkeypatch.setattr(ridge, "NORMAL_NUMBERS", 60)  # two or three rows a block
    exact, iterative = (a_model(odd_ratings, init="uniform") for _ in range(2))
    for model, knobs in ((exact, {"solve": "cholesky"}), (iterative, {"solve": "cg", "cg_steps": 60})):
        solver = a_solver("als", model, odd_ratings, Objective(0.7, scaling="rating"), **knobs)
        for _ in range(3):
            solver.epoch()
    for name, parameter in exact.named_parameters():
        torch.testing.assert_close(parameter, iterative.get_parameter(name), atol=1e-7, rtol=0)


def test_als_refuses_another_loss_by_name(odd_ratings):
    def absolute(predictions: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (predictions - targets).abs(), (predictions - targets).sign()

    with pytest.raises(InputError, match="als solves least squares, not other losses; use sgd, gd or optim"):
        a_solver("als", a_model(odd_ratings), odd_ratings, Objective(1.0, loss=absolute))


# optim


def test_optim_takes_the_steps_that_adam_takes_with_autograd_through_plain_embeddings(odd_ratings):
    objective, model, plain = Objective(0.7), a_model(odd_ratings), a_model(odd_ratings)
    solver = Optim(model, odd_ratings, objective, optimizer="Adam", lr=0.05)
    adam = torch.optim.Adam(plain.parameters(), lr=0.05)
    for _ in range(5):
        solver.epoch()
        adam.zero_grad()
        errors = plain(odd_ratings.users, odd_ratings.items) - odd_ratings.values
        (0.5 * errors.square().sum() + 0.35 * sum(p.square().sum() for p in plain.parameters())).backward()
        adam.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, plain.get_parameter(name))


def test_an_unknown_optimizer_is_refused_with_the_near_one(odd_ratings):
    with pytest.raises(InputError, match="unknown optimizer 'adamm'; did you mean 'adam"):
        Optim(a_model(odd_ratings), odd_ratings, Objective(), optimizer="adamm")


@pytest.fixture(scope="module")
def anchor(shared_data) -> Ratings:
    """The course exercise's ratings with its new user as the first column."""
    movies = scipy.io.loadmat(shared_data / "ex8/ex8_movies.mat")
    new = np.zeros((len(movies["Y"]), 1))
    stars = {1: 4, 98: 2, 7: 3, 12: 5, 54: 4, 64: 5, 66: 3, 69: 5, 183: 4, 226: 5, 355: 5}
    new[np.array(list(stars)) - 1, 0] = list(stars.values())
    return Ratings.from_dense(
        np.hstack([new, movies["Y"].astype(float)]), np.hstack([new > 0, movies["R"].astype(bool)])
    )


def test_the_cost_of_predicting_each_movies_mean_is_that_of_the_course_exercise(anchor):
    model = MatrixFactorization.from_ratings(anchor, 10, biases=False, offset="item", damping=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert float(Objective(10.0).cost(model, anchor)) == pytest.approx(50014.817, abs=1e-3)


@pytest.mark.parametrize(("name", "knobs", "epochs", "seed"), [
    ("optim", {"optimizer": "lbfgs", "lr": 1.0}, 20, 3),
    *(("quasi-newton", {"method": method, "iterations": 200}, 15, seed)
      for method in ("l-bfgs-b", "cg", "tnc") for seed in (10, 11, 12)),
    ("als", {"solve": "cg"}, 300, 4),
    ("als", {"solve": "cholesky"}, 300, 4),
])  # fmt: skip
def test_every_solver_that_converges_lands_on_the_minimum_of_the_course_exercise(anchor, name, knobs, epochs, seed):
    # From some other starts (seed 4, say) l-bfgs-b ends in a stationary point 12.6 higher: J is not convex.
    objective = Objective(10.0)
    model = MatrixFactorization.from_ratings(anchor, 10, biases=False, offset="item", damping=0.0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    solver, costs = a_solver(name, model, anchor, objective, **knobs), [float("inf")]
    for _ in range(epochs):
        solver.epoch()
        costs.append(float(objective.cost(model, anchor)))
        if costs[-2] - costs[-1] < 1e-5:
            break
    assert costs[-1] == pytest.approx(38951.848, abs=0.01)
    assert rmse(model.predict_observed(anchor), anchor.values) == pytest.approx(0.7798, abs=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("ability", ["features", "non-negative", "losses"])
def test_a_solver_takes_what_it_says_and_refuses_the_rest_by_name(name, ability, odd_ratings):
    def absolute(predictions: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (predictions - targets).abs(), (predictions - targets).sign()

    options, objective = {}, Objective(1.0)
    if ability == "features":
        options["user_features"] = {"implicit": implicit_features(odd_ratings, "users")}
    elif ability == "non-negative":
        options["nonnegative"] = True
    else:
        objective = Objective(1.0, loss=absolute)
    model = a_model(odd_ratings, **options)
    if ability in SOLVERS[name].takes:
        a_solver(name, model, odd_ratings, objective).epoch()
        assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    else:
        with pytest.raises(InputError, match=f"^{name} "):
            a_solver(name, model, odd_ratings, objective)
