"""Time and memory of recommending at scale: mfrec's exact search against that of faiss and of implicit.

    python benchmarks/recommend.py [--full] [--users-timed 20000] [--json-output]

The task: the 100 items with the highest predictions for each user, of MovieLens-25M's size (162,000 users × 59,000
items), with random factors of rank 64 and biases.  All search the same matrices of 66 columns; mfrec adds the global
mean in a 67th.

    torch.topk   the scores of a block of users by one product, then torch.topk
    mfrec        top_k_blocks
    faiss        IndexFlatIP.search
    implicit     implicit.cpu.topk.topk, which its models' recommend() calls; BLAS on one thread, as its documentation
                 asks, because it starts threads itself

Results are compared with mfrec's before anything is timed.  After a warm-up, the libraries take turns, all on as many
threads as torch uses.  The table has medians over the rounds; a ratio is the median of the rounds' ratios.  With
--full, mfrec also recommends to every user, block by block, in a separate process, whose peak memory is printed.

    pip install -e ".[bench]"
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import tyro
from rich.console import Console
from rich.table import Table

from mfrec.inference.top_k import SCORES, top_k_blocks
from mfrec.model.factorization import MatrixFactorization

MEAN = 3.5
Array = npt.NDArray[Any]
# Returns item indices and scores, (n_users, n) each, best first.
Search = Callable[[], tuple[Array, Array]]


class Sizes(NamedTuple):
    """Sizes of a model and of the lists."""

    users: int
    items: int
    rank: int
    n: int


def main(
    users: int = 162_000,
    items: int = 59_000,
    rank: int = 64,
    n: int = 100,
    users_timed: int = 20_000,
    rounds: int = 5,
    full: bool = False,
    json_output: bool = False,
) -> None:
    """Print the tables.

    Args:
        users: users of the full model.
        items: items of the model.
        rank: number of latent factors.
        n: items to recommend.
        users_timed: users to recommend to in each round.
        rounds: number of rounds.
        full: also recommend to all users, with mfrec only, and measure memory.
        json_output: print JSON instead of tables.
    """
    # First, while this process is small: a new process starts with the peak memory of its parent.
    all_users = in_new_process(full_pass, Sizes(users, items, rank, n)) if full else None
    timed = Sizes(min(users_timed, users), items, rank, n)
    times = top_k_times(timed, rounds)
    if json_output:
        machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        print(json.dumps({**machine, "timed": timed._asdict(), "top_k": times, "all_users": all_users}, indent=2))
        return
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    Console(width=110).print(top_k_table(times, timed))
    if all_users is not None:
        print(
            f"mfrec, all {users:,} users block by block: {all_users['seconds']:.1f} s, "
            f"{users / all_users['seconds']:,.0f} users per second, peak memory {all_users['peak_mib']:,.0f} MiB"
        )


def in_new_process(measure: Callable[[Sizes], dict[str, float]], sizes: Sizes) -> dict[str, float]:
    """The result of a measurement in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, sizes).result()


def random_model(sizes: Sizes) -> MatrixFactorization:
    """A model with random factors and biases, whose predictions have a standard deviation of about 0.8."""
    generator = torch.Generator().manual_seed(0)
    model = MatrixFactorization(sizes.users, sizes.items, sizes.rank, offset=torch.tensor(MEAN))
    assert model.item_factors is not None
    assert model.user_bias is not None
    assert model.item_bias is not None
    stds = {
        model.user_factors: 0.7 / sizes.rank**0.25,
        model.item_factors: 0.7 / sizes.rank**0.25,
        model.user_bias: 0.4,
        model.item_bias: 0.5,
    }
    with torch.no_grad():
        for embedding, std in stds.items():
            embedding.weight.normal_(0, std, generator=generator)
    return model


def full_pass(sizes: Sizes) -> dict[str, float]:
    """Recommend to all users: seconds, and the peak memory of this process."""
    model = random_model(sizes)
    began = time.perf_counter()
    done = sum(len(block) for block, _, _ in top_k_blocks(model, torch.arange(sizes.users), sizes.n))
    seconds = time.perf_counter() - began
    assert done == sizes.users
    # In kilobytes, but in bytes on a Mac.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_mib": peak / (2**20 if sys.platform == "darwin" else 2**10)}


def top_k_times(sizes: Sizes, rounds: int) -> dict[str, dict[str, float]]:
    """For each library: median, least and most seconds, and the median ratio to mfrec's."""
    model = random_model(sizes)
    with torch.no_grad():
        user_factors, item_factors = model.augmented_factors()
    ways = {
        "mfrec": mfrec_search(model, sizes.n),
        "torch.topk": torch_search(user_factors, item_factors, sizes.n),
        "faiss": faiss_search(user_factors.numpy(), item_factors.numpy(), sizes.n),
        "implicit": implicit_search(user_factors.numpy(), item_factors.numpy(), sizes.n),
    }
    items, predictions = ways["mfrec"]()
    for name in ("torch.topk", "faiss", "implicit"):
        assert_same_items(name, ways[name](), (items, predictions - MEAN))
    measured = [{name: seconds(way) for name, way in ways.items()} for _ in range(rounds)]
    return {
        name: {
            "seconds": statistics.median(times[name] for times in measured),
            "least": min(times[name] for times in measured),
            "most": max(times[name] for times in measured),
            "users_per_second": sizes.users / statistics.median(times[name] for times in measured),
            "times_mfrec": statistics.median(times[name] / times["mfrec"] for times in measured),
        }
        for name in ways
    }


def top_k_table(times: dict[str, dict[str, float]], sizes: Sizes) -> Table:
    table = Table(
        "", title=f"{sizes.users:,} users: the best {sizes.n} of {sizes.items:,} items each, rank {sizes.rank}"
    )
    for column in ("seconds", "least … most", "users per second", "time / mfrec's"):
        table.add_column(column, justify="right")
    for name, row in times.items():
        spread = f"{row['least']:.2f} … {row['most']:.2f}"
        ratio = f"{row['times_mfrec']:.2f}×"
        table.add_row(name, f"{row['seconds']:.2f}", spread, f"{row['users_per_second']:,.0f}", ratio)
    return table


def mfrec_search(model: MatrixFactorization, n: int) -> Search:
    def search() -> tuple[Array, Array]:
        _, indices, predictions = zip(*top_k_blocks(model, torch.arange(model.n_users), n), strict=True)
        return torch.cat(indices).numpy(), torch.cat(predictions).numpy()

    return search


def torch_search(users: torch.Tensor, items: torch.Tensor, n: int) -> Search:
    def search() -> tuple[Array, Array]:
        blocks = [(block @ items.T).topk(n, dim=1) for block in users.split(SCORES // len(items))]
        return torch.cat([best.indices for best in blocks]).numpy(), torch.cat([best.values for best in blocks]).numpy()

    return search


def faiss_search(users: Array, items: Array, n: int) -> Search:
    try:
        import faiss
    except ImportError:
        sys.exit('faiss is not installed; install it with the other packages: pip install -e ".[bench]"')
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)

    def search() -> tuple[Array, Array]:
        scores, indices = index.search(users, n)
        return indices, scores

    return search


def implicit_search(users: Array, items: Array, n: int) -> Search:
    try:
        from implicit.cpu.topk import topk
        from threadpoolctl import threadpool_limits
    except ImportError:
        sys.exit('implicit is not installed; install it with the other packages: pip install -e ".[bench]"')

    def search() -> tuple[Array, Array]:
        with threadpool_limits(1, "blas"):
            best: tuple[Array, Array] = topk(items, users, n, num_threads=torch.get_num_threads())
        return best

    return search


def assert_same_items(name: str, actual: tuple[Array, Array], expected: tuple[Array, Array]) -> None:
    """Check that scores agree to the precision of float32, and items too, except those with equal scores."""
    np.testing.assert_allclose(actual[1], expected[1], rtol=0, atol=1e-5, err_msg=f"{name} differs from mfrec")
    same = (actual[0] == expected[0]).mean()
    assert same > 0.999, f"{name} and mfrec agree on {same:.2%} of the items only"


def seconds(search: Search) -> float:
    began = time.perf_counter()
    search()
    return time.perf_counter() - began


if __name__ == "__main__":
    tyro.cli(main)
