"""Time and memory of recommending at scale: mfrec's exact search against that of faiss and of implicit.

    python benchmarks/recommend.py [--full] [--users-timed 20000] [--json-output]

top-N   the n items with the highest predictions, for each user: MovieLens-25M's 162,000 × 59,000, rank 64 and biases,
        n 100, random factors.  All search the same tables, of 66 columns; mfrec adds the global mean in a 67th:

    torch.topk   the scores of a block of users by one product, and torch.topk of them
    mfrec        top_n_blocks
    faiss        IndexFlatIP.search
    implicit     implicit.cpu.topk.topk, what its models' recommend() calls, with BLAS on one thread, as its
                 documentation asks for: it makes threads of its own

What the others find is checked against mfrec's before they are timed.  Medians of rounds in which the ways take turns,
after a warm-up, all on as many threads as torch uses; a ratio is the median of the ratios of each round.  --full lets
mfrec recommend to every user, block by block, in a process of its own, and tells its peak of memory.

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

from mfrec.inference.top_k import SCORES, top_n_blocks
from mfrec.model.factorization import MatrixFactorization

MEAN = 3.5
Array = npt.NDArray[Any]
# The indices and scores that were found, each (n_users, n), best first.
Search = Callable[[], tuple[Array, Array]]


class Sizes(NamedTuple):
    """Of a model and of what is asked of it."""

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
        users_timed: users to recommend to when the ways take turns.
        rounds: how often they do.
        full: recommend to all users as well, by mfrec alone, and measure memory.
        json_output: print JSON instead of tables.
    """
    # Before anything large is held here: a process starts with the peak of the one that it was started from.
    all_users = alone(full_pass, Sizes(users, items, rank, n)) if full else None
    timed = Sizes(min(users_timed, users), items, rank, n)
    times = top_n_times(timed, rounds)
    if json_output:
        about = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        print(json.dumps({**about, "timed": timed._asdict(), "top_n": times, "all_users": all_users}, indent=2))
        return
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    Console(width=110).print(top_n_table(times, timed))
    if all_users is not None:
        print(
            f"mfrec, all {users:,} users block by block: {all_users['seconds']:.1f} s, "
            f"{users / all_users['seconds']:,.0f} users a second, peak of the process {all_users['peak_mib']:,.0f} MiB"
        )


def alone(measure: Callable[[Sizes], dict[str, float]], sizes: Sizes) -> dict[str, float]:
    """What a measurement returns in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, sizes).result()


def a_model(sizes: Sizes) -> MatrixFactorization:
    """Of random factors and biases, such that ratings deviate by about 0.8 from their mean."""
    generator = torch.Generator().manual_seed(0)
    model = MatrixFactorization(sizes.users, sizes.items, sizes.rank, offset=torch.tensor(MEAN))
    assert model.item_factors is not None
    assert model.user_bias is not None
    assert model.item_bias is not None
    deviations = {
        model.user_factors: 0.7 / sizes.rank**0.25,
        model.item_factors: 0.7 / sizes.rank**0.25,
        model.user_bias: 0.4,
        model.item_bias: 0.5,
    }
    with torch.no_grad():
        for part, deviation in deviations.items():
            part.weight.normal_(0, deviation, generator=generator)
    return model


def full_pass(sizes: Sizes) -> dict[str, float]:
    """Recommending to all users: seconds, and the peak of the memory that this process ever held."""
    model = a_model(sizes)
    began = time.perf_counter()
    done = sum(len(found) for found, _, _ in top_n_blocks(model, torch.arange(sizes.users), sizes.n))
    seconds = time.perf_counter() - began
    assert done == sizes.users
    # Kilobytes, but bytes on a Mac.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_mib": peak / (2**20 if sys.platform == "darwin" else 2**10)}


def top_n_times(sizes: Sizes, rounds: int) -> dict[str, dict[str, float]]:
    """Of each way: the median of the seconds, the least and the most, and the median ratio to mfrec's."""
    model = a_model(sizes)
    with torch.no_grad():
        user_table, item_table = model.tables()
    ways = {
        "mfrec": mfrec_search(model, sizes.n),
        "torch.topk": torch_search(user_table, item_table, sizes.n),
        "faiss": faiss_search(user_table.numpy(), item_table.numpy(), sizes.n),
        "implicit": implicit_search(user_table.numpy(), item_table.numpy(), sizes.n),
    }
    found, predictions = ways["mfrec"]()
    for name in ("torch.topk", "faiss", "implicit"):
        assert_same_items(name, ways[name](), (found, predictions - MEAN))
    taken = [{name: seconds(way) for name, way in ways.items()} for _ in range(rounds)]
    return {
        name: {
            "seconds": statistics.median(times[name] for times in taken),
            "least": min(times[name] for times in taken),
            "most": max(times[name] for times in taken),
            "users_per_second": sizes.users / statistics.median(times[name] for times in taken),
            "times_mfrec": statistics.median(times[name] / times["mfrec"] for times in taken),
        }
        for name in ways
    }


def top_n_table(times: dict[str, dict[str, float]], sizes: Sizes) -> Table:
    table = Table(
        "", title=f"{sizes.users:,} users: the best {sizes.n} of {sizes.items:,} items each, rank {sizes.rank}"
    )
    for column in ("seconds", "least … most", "users a second", "time / mfrec's"):
        table.add_column(column, justify="right")
    for name, row in times.items():
        spread = f"{row['least']:.2f} … {row['most']:.2f}"
        ratio = f"{row['times_mfrec']:.2f}×"
        table.add_row(name, f"{row['seconds']:.2f}", spread, f"{row['users_per_second']:,.0f}", ratio)
    return table


def mfrec_search(model: MatrixFactorization, n: int) -> Search:
    def search() -> tuple[Array, Array]:
        _, indices, predictions = zip(*top_n_blocks(model, torch.arange(model.n_users), n), strict=True)
        return torch.cat(indices).numpy(), torch.cat(predictions).numpy()

    return search


def torch_search(users: torch.Tensor, items: torch.Tensor, n: int) -> Search:
    def search() -> tuple[Array, Array]:
        found = [(block @ items.T).topk(n, dim=1) for block in users.split(SCORES // len(items))]
        return torch.cat([best.indices for best in found]).numpy(), torch.cat([best.values for best in found]).numpy()

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
            found: tuple[Array, Array] = topk(items, users, n, num_threads=torch.get_num_threads())
        return found

    return search


def assert_same_items(name: str, found: tuple[Array, Array], expected: tuple[Array, Array]) -> None:
    """The scores agree to the precision of float32, and so do the items, but for those whose scores do."""
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-5, err_msg=f"{name} differs from mfrec")
    same = (found[0] == expected[0]).mean()
    assert same > 0.999, f"{name} and mfrec agree on {same:.2%} of the items only"


def seconds(search: Search) -> float:
    began = time.perf_counter()
    search()
    return time.perf_counter() - began


if __name__ == "__main__":
    tyro.cli(main)
