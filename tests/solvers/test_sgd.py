"""SGD on one rating after another: its blocks, its step sizes, and the same bits on any number of threads."""

from __future__ import annotations

import math

import pytest
import torch
from solver_suite import assert_same_state, make_model, make_solver, planted_ratings, train

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.model.objective import Objective
from mfrec.solvers import sgd
from mfrec.solvers.sgd import SGD


@pytest.fixture(scope="module")
def planted() -> Ratings:
    return planted_ratings()[0]


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    """Blocks of about 60 ratings, so that the planted ratings have 8 × 8 of them."""
    monkeypatch.setattr(sgd, "BLOCK_RATINGS", 60)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("weighted", [False, True])
def test_the_blocks_hold_each_rating_once_in_the_groups_of_its_user_and_item(planted, weighted):
    weights = torch.rand(len(planted), generator=torch.Generator().manual_seed(0)) + 0.5 if weighted else None
    ratings = Ratings(planted.users, planted.items, planted.values, 120, 80, weights=weights)
    model = make_model(ratings, offset="item")
    solver: SGD = make_solver("sgd", model, ratings, Objective())
    (users, items, targets, block_weights), starts = solver.blocks
    assert solver.n_groups == 8
    assert (starts[0], starts[-1]) == (0, len(ratings))
    columns = [torch.from_numpy(column).double() for column in (users, items, targets, block_weights)]
    expected = [ratings.users, ratings.items, model.targets(ratings), ratings.weights]
    laid_out = torch.stack([column for column in columns if len(column)], 1).tolist()
    assert sorted(laid_out) == sorted(torch.stack([t.double() for t in expected if t is not None], 1).tolist())
    for p in range(8):
        for q in range(8):
            block = slice(starts[8 * p + q], starts[8 * p + q + 1])
            assert set(solver.groups[0][users[block].tolist()].tolist()) <= {p}
            assert set(solver.groups[1][items[block].tolist()].tolist()) <= {q}
            assert (users[block][1:] >= users[block][:-1]).all()


@pytest.mark.usefixtures("small_blocks")
def test_any_number_of_threads_gives_the_same_bits(planted, threads):
    models = []
    for n in (threads, 1):
        torch.set_num_threads(n)
        models.append(make_model(planted, rank=5))
        train(make_solver("sgd", models[-1], planted, Objective(0.1)), 5)
    assert_same_state(*models)


def test_groups_are_equal_in_size_to_within_one(planted):
    solver: SGD = make_solver("sgd", make_model(planted), planted, Objective())
    solver.n_groups = 7
    for n_rows in (1, 7, 10, 100):
        sizes = torch.bincount(solver._random_groups(n_rows).long(), minlength=7)
        assert int(sizes.max() - sizes.min()) <= 1


@pytest.mark.parametrize(("lr_epochs", "period"), [(None, 4), (3, 3)])
def test_the_step_size_falls_to_zero_over_the_planned_epochs_and_starts_again(planted, lr_epochs, period):
    solver = make_solver("sgd", make_model(planted), planted, Objective(), lr=0.1, lr_epochs=lr_epochs)
    solver.plan(4)
    for t in range(2 * period):
        assert solver.epoch()["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * (t % period) / period)))


def test_a_resumed_solver_keeps_the_planned_epochs(planted):
    solver = make_solver("sgd", make_model(planted), planted, Objective())
    solver.plan(6)
    train(solver, 2)
    resumed = make_solver("sgd", make_model(planted), planted, Objective(), seed=5)
    resumed.load_state_dict(solver.state_dict())
    assert resumed.epoch() == solver.epoch()


@pytest.mark.parametrize("step", ["proximal", "plain"])
@pytest.mark.parametrize("l2_scaling", ["row", "sqrt", "rating"])
def test_an_epoch_of_small_steps_is_a_step_of_gradient_descent(planted, step, l2_scaling):
    objective, lr = Objective(0.5, 0.2, l2_scaling), 1e-6
    ratings = planted.to(dtype=torch.float64)
    model, before = make_model(ratings, init="uniform"), make_model(ratings, init="uniform")
    train(make_solver("sgd", model, ratings, objective, lr=lr, step=step), 1)
    for name, gradient in objective.gradients(before, ratings).items():
        change = (before.get_parameter(name) - model.get_parameter(name)).detach() / lr
        torch.testing.assert_close(change, gradient, rtol=2e-3, atol=2e-3)


def test_a_loss_without_a_kernel_is_refused(planted):
    def absolute(predictions, targets):  # type: ignore[no-untyped-def]
        errors = predictions - targets
        return errors.abs(), errors.sign()

    with pytest.raises(InputError, match="sgd does not support this loss; use block-sgd, gd, optim, quasi-newton"):
        make_solver("sgd", make_model(planted), planted, Objective(loss=absolute))


@pytest.mark.parametrize(("name", "lr"), [("sgd", 2.0), ("block-sgd", 0.5)])
def test_proximal_steps_stay_stable_where_plain_ones_diverge(planted, name, lr):
    def cost_after(step: str) -> float:
        objective, model = Objective(0.1), make_model(planted, init="uniform")
        train(make_solver(name, model, planted, objective, step=step, lr=lr), 20)
        return float(objective.cost(model, planted))

    assert cost_after("proximal") < 1e4
    assert not cost_after("plain") < 1e4
