"""Ratings per second and bytes per rating of every solver, from 100,000 ratings to 25 million, against the machine.

    python benchmarks/scaling.py [--sizes 100000 1000000 25000000] [--ranks 16 64 128] [--solvers …]
    python benchmarks/scaling.py --against PATH     compare with another checkout, such as an older one

The ratings are synthetic, with the shapes of ML-100K, ML-1M and ML-25M (other sizes: between or beyond these shapes, on
a log scale).  Solvers have their defaults, except the rank, a small step of gd, one iteration per epoch of
quasi-newton, and no burn-in of gibbs.  Nothing is validated or logged.  Every solver and size is measured in a new
process (`training_cost.py`):

    ratings/s   ratings by the median seconds of an epoch, of at least `--epochs`, after a warm-up epoch (vb: six)
    setup       seconds to construct the solver (its layout of the ratings), and those that the first epoch takes longer
                than the median
    memory      bytes per rating, the highest resident memory while training, less the memory before the ratings were
                read, and less the 12 bytes of a rating in the file (two int32 indices and a float32 value)
    pattern     bytes per rating of the index tensors of the ratings' pattern and of its transpose

Kernels are compiled before the measurements, on a few ratings.  In a whole run, gibbs keeps more draws than here.

**Ceilings** are measured in the same run.  `flops` is the rate of multiplications and additions in a product of two
large float32 matrices.  `gather` is the rate of reading, for each rating, its item's row of factors, and then its
user's, in the order of the ratings (`embedding_bag`).  A solver's share is its work per rating (`WORK`), times
ratings/s, divided by the ceiling.  At rank k, for c CG steps, without the two columns of biases:

    solver          bytes                                   flops
    sgd             16 k: reads and writes two rows         8 k: e = y − θ·x (2 k); θ ← c θ + g x (3 k); x likewise
    block-sgd       8 k: reads two rows                     6 k: errors (2 k), gradients of two rows (2 k each)
    gd, optim       8 k                                     6 k, as block-sgd
    quasi-newton    16 k an evaluation: float64             12 k an evaluation: 6 k that count double
    als             8 k                                     (12 + 8 c) k: for users and items errors, right-hand side,
                                                            diagonal of H (2 k each), and c products with H (4 k each)
    vb              40 k: 8 k as als, 8 k for variances,    (34 + 8 c) k: 12 + 8 c as als, 4 for variances, 18 for the
                    24 k for expected squares, 3 times      expected squares
    gibbs           12 k: 8 k as als, 4 k for the noise     (14 + 8 c) k: 12 + 8 c as als, 2 for the noise

Rows count once for each pass over the ratings, even if a solver gathers them again from a cache.  Shares above 1 are
possible.  A solver may order the ratings so that rows stay in the cache, unlike the ceiling.

With `--against`, both checkouts take turns, `--rounds` times each.  A ratio is the median of the rounds' ratios, the
other checkout's seconds by this one's.  If the other checkout has no block-sgd, its sgd is measured instead.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import tyro
from record import ROOT, Figure, Report, in_new_process
from training_cost import Job

from mfrec.data.synthetic import synthetic
from mfrec.solvers.registry import SOLVERS

THREADS = 2
# Ratings, users and items of ML-100K, ML-1M and ML-25M.
SHAPES = ((100_000, 943, 1_682), (1_000_000, 6_040, 3_706), (25_000_000, 162_541, 59_047))
# Bytes and flops per rating and column of the factors in an epoch, or in one evaluation of the cost.
WORK: dict[str, tuple[float, float]] = {
    "sgd": (16, 8),
    "block-sgd": (8, 6),
    "gd": (8, 6),
    "optim": (8, 6),
    "quasi-newton": (16, 12),
    "als": (8, 12 + 8 * 1),
    "vb": (8 + 8 + 24, 16 + 8 * 2 + 18),
    "gibbs": (8 + 4, 14 + 8 * 3),
}
MEASURABLE = 0.002  # seconds; a ratio of less is noise
# By rank: what `training_cost.training_cost` measured.
Costs = Mapping[int, Mapping[str, float]]


def main(
    sizes: tuple[int, ...] = (100_000, 1_000_000, 25_000_000),
    ranks: tuple[int, ...] = (16, 64, 128),
    solvers: tuple[str, ...] = tuple(WORK),
    epochs: int = 3,
    seconds: float = 1.0,
    rounds: int = 1,
    against: Path | None = None,
    cache: Path | None = None,
) -> dict[str, Figure]:
    """Print the tables.

    Args:
        sizes: numbers of ratings.
        ranks: ranks of the models.
        solvers: solvers to measure, by name.
        epochs: number of epochs to time at least; two if they take longer than four times `seconds`.
        seconds: epochs are timed for as long as this.
        rounds: how often to measure everything; figures are medians.
        against: root of another checkout of mfrec to compare with.
        cache: folder for the synthetic ratings, which are used again; by default a temporary one.
    """
    print(f"{THREADS} threads, torch {torch.__version__}")
    report = Report()
    solvers = tuple(name for name in solvers if name in SOLVERS)
    rates: dict[int, dict[tuple[str, int], float]] = {}
    for size in sorted(sizes):
        with ratings_file(size, cache) as (path, shape):
            title = f"{size:,} ratings of {shape[0]:,} users × {shape[1]:,} items"

            def job(solver: str | None, path: Path = path) -> Job:
                return Job(str(path), sorted(ranks), solver, THREADS, epochs, seconds)

            if against is None:
                rates[size] = print_costs(report, title, size, job, ranks, solvers, rounds)
            else:
                print_comparison(report, title, job, ranks, solvers, rounds, against)
    if against is None and len(rates) > 1:
        print_growth(report, rates)
    return report.figures


@contextmanager
def ratings_file(size: int, cache: Path | None) -> Iterator[tuple[Path, tuple[int, int]]]:
    """A file of synthetic ratings, and their numbers of users and items."""
    shape = shape_for(size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if cache is None else cache
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"ratings-{size}.pt"
        if not path.exists():
            in_new_process(save_synthetic, path, size, shape)
        yield path, shape


def save_synthetic(path: Path, size: int, shape: tuple[int, int]) -> None:
    """Write synthetic ratings to a file."""
    ratings = synthetic(*shape, size, generator=torch.Generator().manual_seed(0)).ratings
    torch.save({"users": ratings.users, "items": ratings.items, "values": ratings.values, "shape": shape}, path)


def shape_for(size: int) -> tuple[int, int]:
    """The numbers of users and items for a number of ratings, log-linear between and beyond `SHAPES`.

    Examples:
        >>> shape_for(1_000_000), shape_for(100_000_000)
        ((6040, 3706), (671117, 194535))
    """
    (n, *counts), (next_n, *next_counts) = SHAPES[:2] if size <= SHAPES[1][0] else SHAPES[1:]
    share = math.log(size / n) / math.log(next_n / n)
    pairs = zip(counts, next_counts, strict=True)
    users, items = (round(count * (next_count / count) ** share) for count, next_count in pairs)
    return users, items


def measure(job: Job, checkout: Path = ROOT) -> dict[str, Any]:
    """The results of a job in a new process, with the mfrec of a checkout."""
    program = Path(__file__).with_name("training_cost.py")
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    command = [sys.executable, str(program), json.dumps(asdict(job))]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False, cwd=tempfile.gettempdir())
    if done.returncode:
        print(f"{job.solver} failed with exit status {done.returncode}", file=sys.stderr)
        return {}
    result: dict[str, Any] = json.loads(done.stdout)
    if not Path(result["mfrec"]).is_relative_to(checkout.resolve()):
        sys.exit(f"{result['mfrec']} was imported, which is not in {checkout}; give the root of a checkout")
    result["ranks"] = {int(rank): cost for rank, cost in result.get("ranks", {}).items()}
    return result


def medians(rounds: Sequence[Costs]) -> Costs:
    """By rank: the median over rounds of each figure."""
    return {
        rank: {name: statistics.median(costs[rank][name] for costs in rounds) for name in rounds[0][rank]}
        for rank in rounds[0]
    }


def print_costs(
    report: Report,
    title: str,
    size: int,
    job: Callable[[str | None], Job],
    ranks: Sequence[int],
    solvers: Sequence[str],
    rounds: int,
) -> dict[tuple[str, int], float]:
    """Print the ceilings and a row for each solver and rank; returns ratings per second by solver and rank."""
    ceilings = measure(job(None))
    flops, gather = ceilings["flops"], {int(rank): bandwidth for rank, bandwidth in ceilings["gather"].items()}
    bandwidths = ", ".join(f"{gather[rank] / 1e9:.0f} GB/s at rank {rank}" for rank in sorted(ranks))
    columns = ("M ratings/s", "of gather", "of flops", "epoch, s", "setup, s", "memory, B", "pattern, B")
    report.table(title, "solver, rank", *columns)
    rates = {}
    for solver in solvers:
        results = [costs for _ in range(rounds) if (costs := measure(job(solver)).get("ranks"))]
        for rank in results[0] if results else ():
            costs = {name: [result[rank][name] for result in results] for name in results[0][rank]}
            per_second = [size / epoch for epoch in costs["epoch"]]
            rates[solver, rank] = rate = statistics.median(per_second)
            evaluations = statistics.median(costs["evaluations"])
            n_bytes, n_flops = (rank * evaluations * work for work in WORK.get(solver, (math.nan, math.nan)))
            report.row(
                f"{solver}, {rank}",
                Figure.median([rate / 1e6 for rate in per_second], "M ratings/s"),
                Figure.median([n_bytes * rate / gather[rank]], "of the ceiling"),
                Figure.median([n_flops * rate / flops], "of the ceiling"),
                Figure.median(costs["epoch"], "s"),
                Figure.median(costs["setup"], "s"),
                Figure.median(costs["resident"], "B/rating"),
                Figure.median(costs["pattern"], "B/rating"),
            )
    print(f"\nceilings: {flops / 1e9:.0f} Gflop/s; gather {bandwidths}")
    return rates


def print_growth(report: Report, rates: Mapping[int, Mapping[tuple[str, int], float]]) -> None:
    """Print ratings per second of each size, and those of the largest by those of 1M ratings, or of the smallest."""
    sizes = sorted(rates)
    base, largest = 1_000_000 if 1_000_000 in sizes[:-1] else sizes[0], sizes[-1]
    title = f"Million ratings per second, and the ratio of {largest:,} to {base:,} ratings"
    report.table(title, "solver, rank", *(f"{size:,}" for size in sizes), "ratio")
    for key in rates[largest]:
        values = [rates[size].get(key, math.nan) for size in sizes]
        ratio = values[-1] / rates[base].get(key, math.nan)
        texts = (f"{value / 1e6:.1f}" for value in values)
        report.row(f"{key[0]}, {key[1]}", *texts, Figure.median([ratio], "of the smaller size"))


def print_comparison(
    report: Report,
    title: str,
    job: Callable[[str | None], Job],
    ranks: Sequence[int],
    solvers: Sequence[str],
    rounds: int,
    against: Path,
) -> None:
    """Print the seconds of this checkout and of the other, and their ratios."""
    columns = ("epoch, s: other", "this", "ratio", "setup, s: other", "this", "ratio", "memory, B: other", "this")
    report.table(f"{title}; other checkout: {against.resolve()}", "solver, rank", *columns)
    for solver in solvers:
        pairs = [(measure(job(solver)).get("ranks"), measure(job(solver), against).get("ranks")) for _ in range(rounds)]
        complete = [(ours, theirs) for ours, theirs in pairs if ours and theirs]
        if not complete:
            report.row(solver, "not measured", *[""] * (len(columns) - 1))
            continue
        ours, theirs = (medians(costs) for costs in zip(*complete, strict=True))
        for rank in sorted(ranks):
            cells = []
            for name in ("epoch", "setup"):
                before, now = theirs[rank][name], ours[rank][name]
                ratio = statistics.median(b[rank][name] / max(a[rank][name], 1e-9) for a, b in complete)
                is_measurable = max(before, now) > MEASURABLE
                cells += [f"{before:.3g}", f"{now:.3g}", f"{ratio:.2f}×" if is_measurable else ""]
            memory = f"{theirs[rank]['resident']:.0f}", f"{ours[rank]['resident']:.0f}"
            report.row(f"{solver}, {rank}", *cells, *memory)


if __name__ == "__main__":
    tyro.cli(main)
