"""Costs of an epoch as ratios to yardsticks in the same process, in half a minute: a check that nothing became slow.

    python benchmarks/run.py smoke      measure, and write a record
    python benchmarks/run.py --smoke    measure, and compare with the last record; exit status 1 if something is slow

An epoch of each solver at rank 64, on synthetic ratings of ML-1M's shape, costs a number of `products`: the seconds of
one `sddmm` and one `spmm` over the same ratings.  `sgd` is compared with `nn.Embedding`, autograd and Adam as well.  A
ratio depends little on the machine.

All run on one thread, and the clock counts the seconds of the processor.  Other processes therefore change a ratio only
through the caches.  After a warm-up, the solvers and the yardsticks take turns in five rounds.  A ratio is that of the
fewest seconds of each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import tyro
from peer import Split
from peers import PEERS
from record import Figure, Report, in_turns, significant
from training_cost import MOST_EPOCHS, WARM_UP, WARM_UP_EPOCHS, construct

from mfrec.data.ratings import Ratings
from mfrec.data.synthetic import synthetic
from mfrec.sparse import sddmm, spmm

SOLVERS = ("sgd", "block-sgd", "gd", "als", "vb", "gibbs")
# Times that the products are measured at once, so that they take as long as an epoch.
REPEATS = 8
PRODUCTS, ADAM = "sddmm and spmm", "nn.Embedding, Adam"


def main(n_ratings: int = 1_000_209, rank: int = 64, rounds: int = 5) -> dict[str, Figure]:
    """Print the table.

    Args:
        n_ratings: number of ratings, of 6,040 users and 3,706 items.
        rank: number of latent factors.
        rounds: number of rounds.
    """
    generator = torch.Generator().manual_seed(0)
    ratings = synthetic(6040, 3706, n_ratings, generator=generator).ratings
    adam = adam_epoch(ratings)  # first, since it sets the number of threads
    torch.set_num_threads(1)
    ways = {PRODUCTS: products(ratings, rank), ADAM: adam} | {name: epoch_of(name, ratings, rank) for name in SOLVERS}
    times = in_turns(ways, rounds, clock=time.process_time)
    times[PRODUCTS] = [seconds / REPEATS for seconds in times[PRODUCTS]]
    report = Report()
    report.table(f"epochs on {n_ratings:,} ratings, rank {rank}", "", "CPU seconds", "products", "of Adam's epoch")
    for name, measured in times.items():
        of_products = ratio(measured, times[PRODUCTS]) if name in SOLVERS else ""
        of_adam = ratio(measured, times[ADAM]) if name == "sgd" else ""
        report.row(name, Figure.median(measured, "s"), of_products, of_adam)
    return report.figures


def ratio(times: list[float], yardstick: list[float]) -> Figure:
    """The ratio of the fewest seconds, and the standard deviation of the rounds' ratios."""
    value = min(times) / min(yardstick)
    rounds = [seconds / of_yardstick for seconds, of_yardstick in zip(times, yardstick, strict=True)]
    return Figure(value, "×", statistics.stdev(rounds) if len(rounds) > 1 else None, f"{significant(value)}×")


def epoch_of(name: str, ratings: Ratings, rank: int) -> Callable[[], object]:
    """The epoch of a solver with its defaults, after those that compile, build and learn precisions."""
    solver, _ = construct(name, ratings, rank)
    solver.plan(MOST_EPOCHS)
    for _ in range(WARM_UP_EPOCHS.get(name, WARM_UP)):
        solver.epoch()
    return solver.epoch


def products(ratings: Ratings, rank: int) -> Callable[[], object]:
    """Several times one `sddmm` and one `spmm` over the ratings."""
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randn(n, rank, generator=generator) for n in ratings.pattern.shape)

    def repeated() -> None:
        for _ in range(REPEATS):
            spmm(ratings.pattern, sddmm(ratings.pattern, users, items), items)

    return repeated


def adam_epoch(ratings: Ratings) -> Callable[[], object]:
    """The epoch of `nn.Embedding`, autograd and Adam, with the settings of `peers.py` for this number of ratings."""
    test = ratings.select(torch.arange(len(ratings)) < 2)
    split, peer = Split.of(ratings, test, (1.0, 5.0), seed=0), PEERS[ADAM]
    points = peer.train(split, peer.settings(len(ratings)), range(1, MOST_EPOCHS))
    next(points)
    return points.__next__


if __name__ == "__main__":
    tyro.cli(main)
