"""Time of one evaluation of the cost and its gradients, in the usual implementations.

    python benchmarks/gradients.py [--device cuda] [--ranks 16 64 128] [--json]

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

import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mfrec.data.ratings import Ratings
from mfrec.data.synthetic import synthetic
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.model.reference import naive_cost_and_gradients

L2 = 1.5
Evaluation = Callable[[], tuple[Tensor, Tensor, Tensor]]


def main(ranks: tuple[int, ...] = (16, 64, 128), device: str = "cpu", json_output: bool = False) -> None:
    """Print the table.

    Args:
        ranks: ranks to measure.
        device: cpu or cuda.
        json_output: print JSON instead of a table.
    """
    place = torch.device(device)
    ratings = synthetic(6040, 3706, 1_000_209, generator=torch.Generator().manual_seed(0)).ratings.to(place)
    objective = Objective(L2)
    rows = {}
    for rank in ranks:
        generator = torch.Generator().manual_seed(0)
        model = MatrixFactorization.from_ratings(ratings, rank, biases=False, offset="none", generator=generator)
        ways = {
            "dense": dense(model, ratings),
            "gather": gather(model, ratings),
            "autograd": autograd(model, ratings),
            "mfrec": sparse(model, ratings, objective),
        }
        expected = ways["mfrec"]()
        for name, way in ways.items():
            for actual, value in zip(way(), expected, strict=True):
                torch.testing.assert_close(actual, value, rtol=1e-3, atol=1e-2, msg=f"{name} differs from mfrec")
        times = rounds_ms(ways, place)
        rows[rank] = {name: statistics.median(ms) for name, ms in times.items()}
        for name in ("autograd", "dense"):
            ratios = [theirs / ours for theirs, ours in zip(times[name], times["mfrec"], strict=True)]
            rows[rank][f"{name} / mfrec"] = statistics.median(ratios)
    result = {
        "machine": f"{torch.cuda.get_device_name() if place.type == 'cuda' else platform.processor() or 'CPU'}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "loops_us_per_rating": loops_us_per_rating(),
        "ms": rows,
    }
    if json_output:
        print(json.dumps(result, indent=2))
        return
    table = Table(
        title=f"one cost and gradient, ms — {result['machine']}, {result['threads']} threads, torch {torch.__version__}"
    )
    for column in ("rank", "dense", "gather", "autograd", "mfrec", "autograd / mfrec", "dense / mfrec"):
        table.add_column(column, justify="right")
    for rank, ms in rows.items():
        cells = [f"{ms[name]:.2f}" for name in ("dense", "gather", "autograd", "mfrec")]
        cells += [f"{ms[name]:.1f}×" for name in ("autograd / mfrec", "dense / mfrec")]
        table.add_row(str(rank), *cells)
    Console(width=110).print(table)
    print(f"loops, on 2,000 ratings at rank 16: {result['loops_us_per_rating']:.1f} µs per rating")


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
    start = time.perf_counter()
    naive_cost_and_gradients(model, ratings, L2)
    return (time.perf_counter() - start) / len(ratings) * 1e6


def rounds_ms(ways: dict[str, Evaluation], device: torch.device, rounds: int = 5) -> dict[str, list[float]]:
    """Milliseconds of each implementation in each round, after one to warm up; waits for the device.

    The implementations take turns, so that a disturbance of the machine affects all of them.
    """

    def once(evaluate: Evaluation) -> float:
        start = time.perf_counter()
        evaluate()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3

    measured = [{name: once(way) for name, way in ways.items()} for _ in range(rounds + 1)][1:]
    return {name: [ms[name] for ms in measured] for name in ways}


if __name__ == "__main__":
    tyro.cli(main)
