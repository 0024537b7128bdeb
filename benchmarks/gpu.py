"""Seconds an epoch on a GPU, and how far they are from its bandwidth; on ratings of MovieLens-25M's shape.

    python benchmarks/gpu.py              all tables, on one GPU
    python benchmarks/run.py gpu          the same, with a record
    python benchmarks/gpu.py --triton     the solvers with the products of `mfrec.kernels.triton_products`
    python benchmarks/gpu.py --small      few ratings, on the CPU if there is no GPU: whether the program runs

The first table has each product's milliseconds in the order of the users and of the items, by torch and by Triton.
The second has each solver's:

    s / epoch     median of a few epochs, each with a synchronization at its end
    Adam /        the same for nn.Embedding, autograd and Adam over batches of 8,192 ratings, divided by it
    / floor       it divided by the floor: the bytes of its products, at the bandwidth of a copy
    GiB           the peak of the GPU's memory, with the ratings
    pinned MiB    the peak of the CPU's memory that the GPU reads directly
    waits         calls in an epoch after which the CPU waits for the GPU, as the profiler counts them

A product reads an index, a value and the factors of the column of each entry, and each row's factors once.  Columns
that are read from a cache take less than the floor allows for.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
import tyro
from peers import Embeddings
from record import Figure, Report, seconds
from torch import Tensor, nn
from training_cost import construct

from mfrec import sparse
from mfrec.data.ratings import Ratings
from mfrec.data.synthetic import synthetic
from mfrec.solvers.registry import SOLVERS
from mfrec.sparse import CSRPattern, Products

ML_25M, FEW = (162_541, 59_047, 25_000_095), (300, 200, 6_000)
BATCH = 8192
# Epochs that compile and choose algorithms, before those that are timed; vb learns its precisions after five.
WARM_UP, TIMED = 6, 3
COPIED = 2**28  # numbers
# Calls that wait, as the profiler names them; it waits for the whole device itself, at its end.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def main(ranks: tuple[int, ...] = (64, 128), small: bool = False, triton: bool = False) -> dict[str, Figure]:
    """Print the tables.

    Args:
        ranks: ranks to measure.
        small: measure few ratings, on the CPU if there is no GPU.
        triton: train with the products in Triton.
    """
    if not (small or torch.cuda.is_available()):
        print("there is no GPU, so nothing was measured; --small runs on the CPU")
        return {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    n_users, n_items, n_ratings = FEW if small else ML_25M
    ratings = synthetic(n_users, n_items, n_ratings, generator=torch.Generator().manual_seed(0)).ratings.to(device)
    ratings.pattern.transpose_order  # noqa: B018 (so that no solver's first epoch sorts)
    bandwidth, report = copy_bandwidth(device, FEW[2] if small else COPIED), Report()
    place = f"{n_ratings:,} ratings of {n_users:,} × {n_items:,}, {name}"
    print(f"{place}, torch {torch.__version__}: a copy moves {bandwidth / 1e9:,.0f} GB/s")
    with_triton = device.type == "cuda" and find_spec("triton") is not None
    heads = [f"{way}{of}" for way in ("torch", "Triton") for of in (", ms", " / floor")]
    report.table(f"products, {place}", "", *heads)
    for rank in ranks:
        for label, pattern in (("users", ratings.pattern), ("items", ratings.pattern.T)):
            for product, *cells in product_rows(pattern, rank, bandwidth, with_triton):
                report.row(f"{product}, {label}, rank {rank}", *cells)
    report.table(f"epochs, {place}", "", "s / epoch", "Adam /", "/ floor", "GiB", "pinned MiB", "waits")
    with products_by_triton(device, triton and with_triton):
        for rank in ranks:
            adam = [seconds(finished(adam_epoch(ratings, rank), device)) for _ in range(2)][1]
            report.row(f"nn.Embedding, Adam, rank {rank}", Figure.median([adam], "s"), *[""] * 5)
            for solver in (name for name, spec in SOLVERS.items() if not spec.cpu_only):
                report.row(f"`{solver}`, rank {rank}", *epoch_cells(solver, ratings, rank, adam, bandwidth))
    return report.figures


def finished(call: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """The call, and waiting for the device."""

    def whole() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return whole


def copy_bandwidth(device: torch.device, n: int) -> float:
    """Bytes per second that a copy of n numbers reads and writes."""
    source = torch.ones(n, device=device)
    target = torch.empty_like(source)
    copy = finished(lambda: target.copy_(source), device)
    copy()
    return 2 * 4 * n / min(seconds(copy) for _ in range(5))


@contextmanager
def products_by_triton(device: torch.device, chosen: bool) -> Iterator[None]:
    """Let Triton compute the products of a device."""
    before = set(sparse.TRITON_DEVICES)
    if chosen:
        sparse.TRITON_DEVICES.add(device.type)
    try:
        yield
    finally:
        sparse.TRITON_DEVICES.clear()
        sparse.TRITON_DEVICES.update(before)


def product_bytes(pattern: CSRPattern, k: int, itemsize: int) -> int:
    """The bytes of a product at rank k: an index, a value and a column's factors per entry, and each row's factors."""
    return pattern.n_entries * (pattern.col.itemsize + itemsize * (1 + k)) + pattern.shape[0] * k * itemsize


def product_rows(
    pattern: CSRPattern, rank: int, bandwidth: float, with_triton: bool
) -> Iterator[tuple[str | Figure, ...]]:
    """For each product its name, and its time and its ratio to the floor by torch and by Triton."""
    device, k = pattern.col.device, rank + 2
    A, B = (torch.randn(n, k, device=device) for n in pattern.shape)
    values = torch.randn(pattern.n_entries, device=device)
    calls: dict[str, Callable[[], Tensor]] = {
        "sddmm": lambda: sparse.sddmm(pattern, A, B),
        "spmm": lambda: sparse.spmm(pattern, values, B),
        "row_products": lambda: sparse.row_products(pattern, values, A, B),
    }
    floor = product_bytes(pattern, k, 4) / bandwidth
    for name, call in calls.items():
        cells: list[str | Figure] = [name]
        for chosen in (False, True):
            if chosen and not with_triton:
                cells += ["", ""]
                continue
            with products_by_triton(device, chosen):
                whole = finished(call, device)
                whole()
                times = [seconds(whole) for _ in range(5)]
            cells += [Figure.median([1e3 * t for t in times], "ms"), Figure.median([t / floor for t in times], "×")]
        yield tuple(cells)


def adam_epoch(ratings: Ratings, rank: int) -> Callable[[], None]:
    """An epoch of nn.Embedding, autograd and Adam, over shuffled batches on the ratings' device."""
    users, items, values, device = ratings.users.long(), ratings.items.long(), ratings.values, ratings.device
    model = Embeddings(ratings.n_users, ratings.n_items, rank, float(values.mean())).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005, weight_decay=4e-5)

    def epoch() -> None:
        for batch in torch.randperm(len(values), device=device).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(users[batch], items[batch]), values[batch])
            loss.backward()
            optimizer.step()

    return epoch


def epoch_cells(name: str, ratings: Ratings, rank: int, adam: float, bandwidth: float) -> Iterator[Figure | str]:
    """The cells of a solver in the second table."""
    device = ratings.device
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    solver, _ = construct(name, ratings, rank)
    epoch = finished(solver.epoch, device)
    for _ in range(WARM_UP):
        epoch()
    times = [seconds(epoch) for _ in range(TIMED)]
    floor = bytes_of_products(solver.epoch) / bandwidth
    yield Figure.median(times, "s")
    yield Figure.median([adam / t for t in times], "×")
    yield Figure.median([t / floor for t in times], "×") if floor else ""
    if device.type != "cuda":
        yield from ("", "", "")
        return
    yield Figure.median([torch.cuda.max_memory_allocated() / 2**30], "GiB")
    # From torch 2.7 on.
    statistics: dict[str, int] = torch.cuda.host_memory_stats() if hasattr(torch.cuda, "host_memory_stats") else {}
    pinned = statistics.get("allocated_bytes.peak")
    yield "" if pinned is None else Figure.median([pinned / 2**20], "MiB")
    waits = count_waits(solver.epoch)
    yield Figure(waits, "waits", text=str(waits))


def bytes_of_products(epoch: Callable[[], object]) -> int:
    """The bytes of all products in an epoch."""
    total, products_on = 0, sparse.products_on

    def counted(device: str, dtype: torch.dtype) -> Products:
        products = products_on(device, dtype)

        def count(pattern: CSRPattern, B: Tensor) -> None:
            nonlocal total
            total += product_bytes(pattern, B.shape[1], B.itemsize)

        def sddmm(pattern: CSRPattern, A: Tensor, B: Tensor) -> Tensor:
            count(pattern, B)
            return products.sddmm(pattern, A, B)

        def spmm(pattern: CSRPattern, values: Tensor, B: Tensor) -> Tensor:
            count(pattern, B)
            return products.spmm(pattern, values, B)

        def row_products(pattern: CSRPattern, weights: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
            assert products.row_products is not None
            count(pattern, B)
            return products.row_products(pattern, weights, A, B)

        return Products(sddmm, spmm, None if products.row_products is None else row_products)

    sparse.products_on = counted
    try:
        epoch()
    finally:
        sparse.products_on = products_on
    return total


def count_waits(epoch: Callable[[], object]) -> int:
    """How often the CPU waits for the GPU in an epoch; a copy to the CPU waits as well."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profiler:
        epoch()
    return sum(event.name in WAITS for event in profiler.events())


if __name__ == "__main__":
    tyro.cli(main)
