"""Time of one evaluation of the cost and its gradients, in the usual implementations.

    python benchmarks/gradients.py [--device cuda] [--ranks 16 64 128]

On planted ratings of MovieLens-1M's shape: 1,000,209 of 6,040 users × 3,706 items, float32, λ per row, no biases.

    loops      for every movie, for every user, if a rating exists; on few ratings, in µs per rating
    dense      E = (X Θᵀ − Y) ∘ R, then E Θ and Eᵀ X
    gather     the factors of every rating gathered, gradients added up by index_add
    autograd   nn.Embedding and loss.backward()
    mfrec      on the CPU a kernel, a pass over the ratings of each entity; elsewhere the two sparse products

Each implementation is checked against mfrec's numbers before it is timed.  After a warm-up, the implementations take
turns in five rounds.  The table has medians over the rounds; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import tyro
from record import Figure, Report, in_turns, seconds
from torch import Tensor, nn

from mfrec.data.ratings import Ratings
from mfrec.data.synthetic import synthetic
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.model.reference import naive_cost_and_gradients

L2, ROUNDS = 1.5, 5
Evaluation = Callable[[], tuple[Tensor, Tensor, Tensor]]


def main(ranks: tuple[int, ...] = (16, 64, 128), device: str = "cpu") -> dict[str, Figure]:
    """Print the table.

    Args:
        ranks: ranks to measure.
        device: cpu or cuda.
    """
    place = torch.device(device)
    ratings = synthetic(6040, 3706, 1_000_209, generator=torch.Generator().manual_seed(0)).ratings.to(place)
    objective, report = Objective(L2), Report()
    names = ("dense", "gather", "autograd", "mfrec")
    title = f"one cost and gradient, ms, {place.type}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    report.table(title, "rank", *names, "autograd / mfrec", "dense / mfrec")
    for rank in ranks:
        generator = torch.Generator().manual_seed(0)
        model = MatrixFactorization.from_ratings(ratings, rank, biases=False, offset="none", generator=generator)
        evaluations = dense(model, ratings), gather(model, ratings), autograd(model, ratings)
        ways = dict(zip(names, (*evaluations, sparse(model, ratings, objective)), strict=True))
        expected = ways["mfrec"]()
        for name, way in ways.items():
            for actual, value in zip(way(), expected, strict=True):
                torch.testing.assert_close(actual, value, rtol=1e-3, atol=1e-2, msg=f"{name} differs from mfrec")
        times = in_turns({name: finished(way, place) for name, way in ways.items()}, ROUNDS)
        cells = [Figure.median([1e3 * elapsed for elapsed in times[name]], "ms") for name in names]
        for name in ("autograd", "dense"):
            ratios = [theirs / ours for theirs, ours in zip(times[name], times["mfrec"], strict=True)]
            cells.append(Figure.median(ratios, "×"))
        report.row(str(rank), *cells)
    loops = Figure.median([loops_us_per_rating()], "µs")
    print(f"\nloops, on 2,000 ratings at rank 16: {loops.text} µs per rating")
    return report.figures | {"loops, per rating": loops}


def finished(evaluate: Evaluation, device: torch.device) -> Callable[[], None]:
    """The evaluation, and waiting for the device."""

    def call() -> None:
        evaluate()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return call


def sparse(model: MatrixFactorization, ratings: Ratings, objective: Objective) -> Evaluation:
    def evaluate() -> tuple[Tensor, Tensor, Tensor]:
        cost, gradients = objective.cost_and_gradients(model, ratings)
        return cost, gradients["users.factors.weight"], gradients["items.factors.weight"]

    return evaluate


def dense(model: MatrixFactorization, ratings: Ratings) -> Evaluation:
    users, items = ratings.users.long(), ratings.items.long()
    Y = torch.zeros(model.n_items, model.n_users, device=ratings.device)
    R = torch.zeros_like(Y)
    Y[items, users], R[items, users] = ratings.values, 1.0
    Theta, X = (factors.detach() for factors in model.augmented_factors())

    def evaluate() -> tuple[Tensor, Tensor, Tensor]:
        E = (X @ Theta.T - Y) * R
        penalty = L2 * (X.square().sum() + Theta.square().sum())
        return 0.5 * (E.square().sum() + penalty), E.T @ X + L2 * Theta, E @ Theta + L2 * X

    return evaluate


def gather(model: MatrixFactorization, ratings: Ratings) -> Evaluation:
    Theta, X = (factors.detach() for factors in model.augmented_factors())
    users, items, y = ratings.users, ratings.items, ratings.values

    def evaluate() -> tuple[Tensor, Tensor, Tensor]:
        theta, x = Theta.index_select(0, users), X.index_select(0, items)
        e = (theta * x).sum(1) - y
        penalty = L2 * (X.square().sum() + Theta.square().sum())
        d_theta = (L2 * Theta).index_add_(0, users, e[:, None] * x)
        return 0.5 * (e.square().sum() + penalty), d_theta, (L2 * X).index_add_(0, items, e[:, None] * theta)

    return evaluate


def autograd(model: MatrixFactorization, ratings: Ratings) -> Evaluation:
    Theta, X = (nn.Embedding.from_pretrained(factors.detach(), freeze=False) for factors in model.augmented_factors())

    def evaluate() -> tuple[Tensor, Tensor, Tensor]:
        e = (Theta(ratings.users) * X(ratings.items)).sum(1) - ratings.values
        cost = 0.5 * (e.square().sum() + L2 * (Theta.weight.square().sum() + X.weight.square().sum()))
        d_theta, d_x = torch.autograd.grad(cost, (Theta.weight, X.weight))
        return cost.detach(), d_theta, d_x

    return evaluate


def loops_us_per_rating() -> float:
    """Plain loops on 2,000 ratings of 100 × 100, rank 16; the time is proportional to ratings and rank."""
    ratings = synthetic(100, 100, 2000, generator=torch.Generator().manual_seed(0)).ratings
    model = MatrixFactorization.from_ratings(ratings, 16, biases=False, offset="none")
    return 1e6 * seconds(lambda: naive_cost_and_gradients(model, ratings, L2)) / len(ratings)


if __name__ == "__main__":
    tyro.cli(main)
