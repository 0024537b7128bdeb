"""One solver's training cost on ratings in a file, as JSON: seconds, memory, and the machine's ceilings.

    python benchmarks/training_cost.py JOB

`scaling.py` starts it, in a new process for each measurement.  JOB is a `Job` as a JSON object.  It uses only functions
that any version of mfrec has, so that the PYTHONPATH decides which version is measured.  Without a solver, it measures
the bandwidth of gathered rows and the rate of multiplications instead.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

import mfrec
from mfrec.data.ratings import Ratings
from mfrec.experiments.config import ExperimentConfig
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import SOLVERS

FILE_BYTES = 12  # of a rating: two int32 indices and a float32 value
MOST_EPOCHS = 100
MATRIX = 3072  # rows and columns of the matrices whose product measures the rate of multiplications
# Options other than the defaults.  Steps of gd are small, so that it does not diverge at any size; an epoch of
# quasi-newton is one iteration; gibbs keeps its first draws, as it does in most epochs of a run.
OPTIONS: dict[str, dict[str, Any]] = {
    "gd": {"lr": 1e-7},
    "quasi-newton": {"iterations": 1},
    "gibbs": {"burn_in": 0},
}
# Epochs before the timed ones; vb learns its precisions after five.
WARM_UP, WARM_UP_EPOCHS = 1, {"vb": 6}


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        path: file of the ratings, from `torch.save`: users, items and values, sorted, and the shape.
        ranks: ranks to measure, ascending.
        solver: a name in `SOLVERS`; None for the machine's ceilings.
        threads: number of threads.
        epochs: number of epochs to time, at least.
        seconds: epochs are timed for as long as this, and fewer of them if this is over after two.
    """

    path: str
    ranks: list[int]
    solver: str | None
    threads: int
    epochs: int
    seconds: float


def main() -> None:
    """Measure, and print the results as one line of JSON."""
    job = Job(**json.loads(sys.argv[1]))
    torch.set_num_threads(job.threads)
    result: dict[str, Any] = {"mfrec": mfrec.__file__}
    if job.solver is None:
        result |= {"flops": flops(), "gather": gather_bandwidths(job)}
    elif solver_name(job.solver) in SOLVERS:
        result["ranks"] = {rank: training_cost(job, rank) for rank in job.ranks}
    print(json.dumps(result))


def solver_name(name: str) -> str:
    """The solver's name in this version: SGD on blocks is called sgd in versions without a solver block-sgd."""
    return "sgd" if name == "block-sgd" and name not in SOLVERS else name


def training_cost(job: Job, rank: int) -> dict[str, float]:
    """The cost of training at a rank.

    Returns:
        setup: seconds to construct the solver, plus those that the first epoch takes longer than the median.
        epoch: median seconds of an epoch.
        epochs: number of epochs timed.
        evaluations: of the cost and gradient in an epoch, if the solver reports it, else 1.
        resident: peak bytes of memory while training, less those before the ratings were read, per rating; without
            the `FILE_BYTES` of the ratings themselves.
        pattern: bytes of all tensors of the ratings' pattern, per rating.
    """
    assert job.solver is not None
    solver, _ = construct(job.solver, warm_up_ratings(), rank)
    epochs_of(solver, job.solver, 2, 0.0)  # compiles, and starts threads
    del solver
    before = memory_after_cleaning()
    ratings = read_ratings(job.path)
    reset_peak()
    solver, construction = construct(job.solver, ratings, rank)
    first, seconds, values = epochs_of(solver, job.solver, job.epochs, job.seconds)
    epoch = statistics.median(seconds)
    n = len(ratings)
    return {
        "setup": construction + max(0.0, first - epoch),
        "epoch": epoch,
        "epochs": len(seconds),
        "evaluations": values.get("evaluations", 1.0),
        "resident": (status_bytes("VmHWM") - before) / n - FILE_BYTES,
        "pattern": tensor_bytes(ratings.pattern) / n,
    }


def epochs_of(solver: Solver, name: str, n_epochs: int, limit: float) -> tuple[float, list[float], dict[str, float]]:
    """Seconds of the first epoch, seconds of those after the warm-up, and the values that the last epoch returned."""
    plan: Callable[[int], object] | None = getattr(solver, "plan", None)
    if plan is not None:
        plan(MOST_EPOCHS)

    def timed() -> tuple[float, dict[str, float]]:
        started = time.perf_counter()
        values = solver.epoch()
        return time.perf_counter() - started, values

    n_warm_up = WARM_UP_EPOCHS.get(name, WARM_UP)
    first, *_ = [timed()[0] for _ in range(n_warm_up)]
    seconds: list[float] = []
    values: dict[str, float] = {}
    while len(seconds) < MOST_EPOCHS - n_warm_up:
        enough = n_epochs if sum(seconds) < 4 * limit else 2
        if len(seconds) >= enough and sum(seconds) >= limit:
            break
        elapsed, values = timed()
        seconds.append(elapsed)
    return first, seconds, values


def construct(name: str, ratings: Ratings, rank: int) -> tuple[Solver, float]:
    """A solver with its defaults and `OPTIONS`, at the start of training, and the seconds to construct it."""
    name, options = solver_name(name), OPTIONS.get(name, {})
    config = ExperimentConfig.create(name)
    objective = Objective(config.objective.l2, config.objective.bias_l2, config.objective.l2_scaling)
    generator = torch.Generator().manual_seed(0)
    model = MatrixFactorization.from_ratings(ratings, rank, rating_range=(1.0, 5.0), generator=generator)
    started = time.perf_counter()
    solver = SOLVERS[name](model, ratings, objective, generator=generator, **options)
    return solver, time.perf_counter() - started


def read_ratings(path: str) -> Ratings:
    """The ratings in a file."""
    saved = torch.load(path, weights_only=True)
    return Ratings(saved["users"], saved["items"], saved["values"], *saved["shape"])


def warm_up_ratings() -> Ratings:
    """Every third rating of 40 users and of 40 items, among 6,000 each: short and long rows of both entities."""
    columns = torch.cartesian_prod(torch.arange(6000), torch.arange(40))
    rows = torch.cartesian_prod(torch.arange(40), torch.arange(40, 6000))
    users, items = torch.cat([columns, rows]).unbind(1)
    rated = (users + items) % 3 == 0
    return Ratings(users[rated], items[rated], 1.0 + (users + items)[rated] % 5)


def tensor_bytes(value: object) -> int:
    """Bytes of the tensors that an object holds in its attributes, each counted once."""
    storages: dict[int, int] = {}
    pending, visited = [value], {id(value)}
    while pending:
        current = pending.pop()
        if isinstance(current, Tensor):
            storages[current.untyped_storage().data_ptr()] = current.untyped_storage().nbytes()
            continue
        inside = current if isinstance(current, list | tuple) else vars(current).values()
        for part in inside:
            if id(part) not in visited and (isinstance(part, list | tuple | Tensor) or hasattr(part, "__dict__")):
                visited.add(id(part))
                pending.append(part)
    return sum(storages.values())


def memory_after_cleaning() -> int:
    """Resident bytes of this process, after free memory has gone back to the system."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return status_bytes("VmRSS")


def reset_peak() -> None:
    """Forget the highest resident memory so far (Linux only)."""
    memory_after_cleaning()
    if sys.platform == "linux":
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")


def status_bytes(field: str) -> int:
    """A number of bytes that Linux states about this process: VmRSS, or VmHWM, the peak; elsewhere 0."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def flops() -> float:
    """Multiplications and additions per second in float32, in a product of two large matrices."""
    A, B = torch.rand(MATRIX, MATRIX), torch.rand(MATRIX, MATRIX)
    return 2 * MATRIX**3 / fastest(lambda: torch.mm(A, B))


def gather_bandwidths(job: Job) -> dict[int, float]:
    """By rank: bytes per second of gathering, for each rating, its item's factors, and then its user's.

    `embedding_bag` adds up the gathered rows of each user or item, so that it writes little and reads each row once.
    The order is that of a pass over users, and of one over items.
    """
    pattern = read_ratings(job.path).pattern
    bandwidths = {}
    for rank in job.ranks:
        seconds = 0.0
        for entries in (pattern, pattern.T):
            factors = torch.rand(entries.shape[1], rank)
            seconds += fastest(lambda e=entries, f=factors: embedding_bag(e.col, f, e.crow[:-1], mode="sum"))  # type: ignore[misc]
        bandwidths[rank] = 2 * 4 * rank * pattern.n_entries / seconds
    return bandwidths


def fastest(call: Callable[[], object], limit: float = 1.0) -> float:
    """Seconds of the fastest of several calls, after one to warm up: as many as `limit` seconds allow, at least two."""
    call()
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < limit:
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
