"""SGD on blocks: the blocks partition the cost, each step is its formula, and proximal steps are stable."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from conftest import DenseFeatures
from solver_suite import make_model, make_solver, planted_ratings, train
from torch import Tensor
from torch.testing import assert_close

from mfrec.data.features import implicit_features
from mfrec.data.ratings import Ratings
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.solvers.block_sgd import Block, BlockSGD, group_bounds

STEPS = ("plain", "proximal", "adagrad")


@pytest.mark.parametrize(("n", "n_groups"), [(10, 1), (10, 3), (7, 7), (11, 4), (1, 1)])
def test_groups_are_equal_in_size_to_within_one(n, n_groups):
    bounds = group_bounds(n, n_groups)
    sizes = [end - start for start, end in itertools.pairwise(bounds)]
    assert (bounds[0], bounds[-1], len(sizes)) == (0, n, n_groups)
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@pytest.mark.parametrize("blocks", [(1, 1), (3, 4), (11, 13), (100, 2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_blocks_hold_each_rating_once_with_its_weight(odd_ratings, weighted_ratings, blocks, weighted):
    ratings = weighted_ratings if weighted else odd_ratings
    model = make_model(ratings)
    solver = make_solver("block-sgd", model, ratings, Objective(), blocks=blocks)
    assert solver.grid == (min(blocks[0], 11), min(blocks[1], 13))
    assert [block.cell for block in solver.blocks] == [
        (p, q) for p in range(solver.grid[0]) for q in range(solver.grid[1])
    ]
    targets, weights = (torch.full((11, 13), torch.nan, dtype=torch.float64) for _ in range(2))
    for block in solver.blocks:
        (rows, cols), pattern = block.rows, block.targets.pattern
        users = solver.user_order[rows][pattern.row.long()]
        items = solver.item_order[cols][pattern.col.long()]
        assert bool(targets[users, items].isnan().all())
        targets[users, items] = block.targets.values
        weights[users, items] = torch.ones_like(block.targets.values) if block.weights is None else block.weights
    users, items = ratings.users.long(), ratings.items.long()
    assert int(targets.isfinite().sum()) == len(ratings)
    assert torch.equal(targets[users, items], model.targets(ratings))
    assert torch.equal(weights[users, items], ratings.weights if weighted else torch.ones_like(ratings.values))


def block_cost(solver: BlockSGD, block: Block) -> float:
    """J_b: the data term of a block, and its share of the penalties."""
    model, orders, cost = solver.model, (solver.user_order, solver.item_order), 0.0
    factors = [1 - free for free in model.free_columns()]
    for n, term in enumerate(solver.terms):
        weights, ridge = model.weights(term), solver.ridges[n]
        if term.features is None:
            rows = block.rows[term.entity]
            weights, ridge = weights[orders[term.entity]][rows], ridge[rows]
            factors[term.entity] = factors[term.entity] + weights
        else:
            group = solver.feature_groups[n][block.cell[term.entity]]
            factors[term.entity] = factors[term.entity] + group.matrix @ weights
        cost += 0.5 * float((ridge * weights.square()).sum())
    pattern = block.targets.pattern
    predictions = (factors[USER][pattern.row.long()] * factors[ITEM][pattern.col.long()]).sum(1)
    return cost + 0.5 * float(block.weighted((predictions - block.targets.values).square()).sum())


@torch.no_grad()
@pytest.mark.parametrize("featured", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("item_ids", [True, False])
def test_the_costs_of_the_blocks_sum_to_the_whole_cost(
    odd_ratings, weighted_ratings, odd_features, featured, weighted, item_ids
):
    ratings, objective = weighted_ratings if weighted else odd_ratings, Objective(0.7, 0.2, "sqrt")
    features = odd_features.options() if featured or not item_ids else {}
    model = make_model(ratings, item_ids=item_ids, **features)
    for n, parameter in enumerate(model.parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n)))
    solver = make_solver("block-sgd", model, ratings, objective, blocks=(3, 4))
    total = sum(block_cost(solver, block) for block in solver.blocks)
    assert total == pytest.approx(float(objective.cost(model, ratings)))


def dense_curvature(name: str, ratings: Ratings, features: DenseFeatures) -> Tensor:
    """n_b of the rows of a parameter: their sums of weights, and Σ_r |F_rf| ‖F_r‖₁ n_r of a feature."""
    W = torch.zeros(ratings.n_users, ratings.n_items, dtype=torch.float64)
    W[ratings.users.long(), ratings.items.long()] = ratings.weighted(torch.ones_like(ratings.values))
    plural, *path = name.split(".")
    n = W.sum(1 if plural == "users" else 0)
    if path[0] != "features":
        return n[:, None]
    F = getattr(features, plural[:-1])[path[1]].abs()
    return (F * (F.sum(1) * n)[:, None]).sum(0)[:, None]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("features", ["none", "with ids", "alone"])
def test_a_step_on_one_block_is_its_formula(
    odd_ratings, weighted_ratings, odd_features, step, momentum, weighted, features
):
    ratings, objective = weighted_ratings if weighted else odd_ratings, Objective(0.7, 0.2, "rating")
    model_options: dict[str, Any] = {"item_ids": features != "alone"}
    model_options |= odd_features.options() if features != "none" else {}

    def start() -> MatrixFactorization:
        return make_model(ratings, **model_options)

    model, gradients = start(), []
    options = {"step": step, "momentum": momentum, "lr": 0.01, "lr_decay": 0.5, "blocks": (1, 1)}
    solver = make_solver("block-sgd", model, ratings, objective, **options)
    for t in range(3):
        gradients.append(objective.gradients(model, ratings))
        assert solver.epoch()["lr"] == 0.01 / (1 + 0.5 * t)
    for name, parameter in start().named_parameters():
        x, v, squares = parameter.detach().clone(), 0.0, 0.0
        n_terms = len(model.terms(USER if name.startswith("users") else ITEM))
        curvature = n_terms * dense_curvature(name, ratings, odd_features)
        for t, gradient in enumerate(gradients):
            lr = 0.01 / (1 + 0.5 * t)
            v = momentum * v + gradient[name]
            squares = squares + v * v
            divisor = {"plain": 1.0, "proximal": 1 + lr * curvature, "adagrad": squares.sqrt() + 1e-10}[step]
            x = x - lr * v / divisor
        assert_close(model.get_parameter(name).detach(), x, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture(scope="module")
def planted() -> Ratings:
    return planted_ratings()[0]


@pytest.mark.parametrize("lr", [0.02, 0.2])
def test_proximal_steps_stay_stable_with_features(planted, lr):
    implicit = {
        f"{entity}_features": {"implicit": implicit_features(planted, f"{entity}s")} for entity in ("user", "item")
    }
    objective, costs = Objective(0.1), []
    for options in ({}, implicit):
        model = make_model(planted, **options)
        train(make_solver("block-sgd", model, planted, objective, lr=lr), 20)
        costs.append(float(objective.cost(model, planted)))
    assert costs[1] < 2 * costs[0]
