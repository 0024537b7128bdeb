"""Time and memory of recommending at scale: mfrec's exact search against that of faiss and of implicit.

    python benchmarks/recommend.py [--full] [--users-timed 20000]

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

import resource
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import tyro
from record import Figure, Report, in_new_process, in_turns, seconds, significant

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
) -> dict[str, Figure]:
    """Print the table.

    Args:
        users: users of the full model.
        items: items of the model.
        rank: number of latent factors.
        n: items to recommend.
        users_timed: users to recommend to in each round.
        rounds: number of rounds.
        full: also recommend to all users, with mfrec only, and measure memory.
    """
    # First, while this process is small: a new process starts with the peak memory of its parent.
    all_users = in_new_process(full_pass, Sizes(users, items, rank, n)) if full else {}
    report, timed = Report(), Sizes(min(users_timed, users), items, rank, n)
    print_times(report, timed, top_k_times(timed, rounds))
    if full:
        elapsed, memory = all_users["seconds"], all_users["peak_mib"]
        per_second = significant(users / elapsed)
        print(
            f"\nmfrec, all {users:,} users block by block: {significant(elapsed)} s, {per_second} users per second, "
            f"peak memory {significant(memory)} MiB"
        )
        report.figures["all users"] = Figure(elapsed, "s")
        report.figures["all users, peak memory"] = Figure(memory, "MiB")
    return report.figures


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
    done: list[int] = []

    def recommend() -> None:
        done.extend(len(block) for block, _, _ in top_k_blocks(model, torch.arange(sizes.users), sizes.n))

    elapsed = seconds(recommend)
    assert sum(done) == sizes.users
    # In kilobytes, but in bytes on a Mac.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": elapsed, "peak_mib": peak / (2**20 if sys.platform == "darwin" else 2**10)}


def top_k_times(sizes: Sizes, rounds: int) -> dict[str, list[float]]:
    """For each library that is installed: seconds in each round."""
    model = random_model(sizes)
    with torch.no_grad():
        user_factors, item_factors = model.augmented_factors()
    ways = {"mfrec": mfrec_search(model, sizes.n), "torch.topk": torch_search(user_factors, item_factors, sizes.n)}
    for name, searcher in (("faiss", faiss_search), ("implicit", implicit_search)):
        if find_spec(name) is None:
            print(f'{name} is not installed; install it with the other packages: pip install -e ".[bench]"')
        else:
            ways[name] = searcher(user_factors.numpy(), item_factors.numpy(), sizes.n)
    items, predictions = ways["mfrec"]()
    for name in list(ways)[1:]:
        assert_same_items(name, ways[name](), (items, predictions - MEAN))
    return in_turns(ways, rounds)


def print_times(report: Report, sizes: Sizes, times: dict[str, list[float]]) -> None:
    """Print a row for each library."""
    title = f"{sizes.users:,} users: the best {sizes.n} of {sizes.items:,} items each, rank {sizes.rank}"
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    report.table(f"{title}, {threads}", "", "seconds", "least … most", "users per second", "time / mfrec's")
    for name, measured in times.items():
        report.row(
            name,
            Figure.median(measured, "s"),
            f"{significant(min(measured))} … {significant(max(measured))}",
            Figure.median([sizes.users / elapsed for elapsed in measured], "users/s"),
            Figure.median([time / of_mfrec for time, of_mfrec in zip(measured, times["mfrec"], strict=True)], "×"),
        )


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
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)

    def search() -> tuple[Array, Array]:
        scores, indices = index.search(users, n)
        return indices, scores

    return search


def implicit_search(users: Array, items: Array, n: int) -> Search:
    from implicit.cpu.topk import topk
    from threadpoolctl import threadpool_limits

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


if __name__ == "__main__":
    tyro.cli(main)
