"""Several processes: seconds of an epoch on hosts that a network joins, bytes that cross, and a model of larger data.

    sudo python benchmarks/processes.py [--trainings als sgd gibbs gd] [--gbits 10 1 0.1]

Two network namespaces stand in for two hosts.  A pair of virtual devices joins them, whose rate `tc` limits.  Each host
runs one process of one thread, as `torchrun --nnodes=2` starts it.  The ratings are synthetic, with the shape of
ML-10M, prepared once.  There is no validation, and the first epoch is not counted:

    threads     median seconds of an epoch of one process with one thread, and with two
    hosts       the same of two processes, one on each host, at each rate
    efficiency  the seconds of one process with one thread, by twice those of two hosts
    MB crossed  bytes that a host sends and receives in an epoch, from the counters of its device
    MB needed   bytes of the rows that one host has solved and the other needs, in both directions

The model of an epoch of ALS on P hosts of C cores, with n ratings, N rows and rank k:

    seconds = n c / (P C) + 4 N (k + 2) (1 − 1/P) / B

c are the seconds per rating that one thread takes here.  B is the rate at which a host receives.  Rows are sent while
others are solved, so that the sum is an upper bound.  Every host keeps the tables of all rows, 4 N (k + 2) bytes, and
as much for the best epoch, and 16 n/P bytes of ratings.

With partial tables, a host lacks a row that it does not own and that none of its ratings meets.  If the r ratings of
each row fall on any host, a host needs a share 1 − (1 − 1/P)^r of the rows of others.  It holds 1/P + (1 − 1/P) times
this of all rows, and receives (1 − 1/P) times this.  The table "rows that a host holds" compares this to the count in
the synthetic ratings, with r of their mean.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro
from prepared import SHAPES, prepare, write_ratings
from record import Figure, Report, in_new_process

from mfrec.data.held_rows import needed_rows
from mfrec.data.loading import load_dataset
from mfrec.processes import balanced

HOSTS = ("mfrec-a", "mfrec-b")
ADDRESSES = ("10.98.0.1", "10.98.0.2")
# The larger problems: ratings, rows of users and items.  The second has ALX's 365 million nodes on both sides.
LARGER = ((1e9, (10_000_000, 1_000_000)), (50e9, (365_000_000, 365_000_000)))
COUNTS, CORES, GBITS = (8, 32, 128, 512), 32, (10.0, 100.0)
# What to train, by name: a solver and its options.
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "als": ("als", {}),
    "als, partial tables": ("als", {"partial_tables": True}),
    "vb": ("vb", {}),
    "gibbs": ("gibbs", {"burn_in": 0}),
    "gibbs, partial tables": ("gibbs", {"burn_in": 0, "partial_tables": True}),
    "sgd": ("sgd", {}),
    "block-sgd": ("block-sgd", {}),
    "gd": ("gd", {"lr": 1e-7}),
}


def main(
    trainings: tuple[str, ...] = tuple(TRAININGS),
    gbits: tuple[float, ...] = (10.0, 1.0, 0.1),
    n_ratings: int = 10_000_000,
    rank: int = 64,
    epochs: int = 6,
    seed: int = 0,
) -> dict[str, Figure]:
    """Print the tables.

    Args:
        trainings: what to measure, keys of `TRAININGS`.
        gbits: rates of the network in Gbit/s.
        n_ratings: number of ratings, a key of `prepared.SHAPES`.
        rank: rank of the models.
        epochs: epochs of each training.
        seed: of the ratings and of the trainings.
    """
    report = Report()
    if os.geteuid() != 0:
        sys.exit("benchmarks/processes.py makes network namespaces, which only root may do: run it with sudo")
    n_rows = sum(SHAPES[n_ratings])
    per_rating = {}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary)
        in_new_process(write_ratings, path, n_ratings, seed)
        in_new_process(prepare, path)

        def job(name: str) -> list[str]:
            solver, options = TRAININGS[name]
            options = {"epochs": epochs, "rank": rank, "seed": seed, **options}
            return [json.dumps([str(path / "prepared"), solver, options])]

        columns = ("1 thread, s", "2 threads, s", *(f"2 hosts at {rate:g} Gbit/s, s" for rate in gbits))
        efficiencies = (f"efficiency at {rate:g} Gbit/s" for rate in gbits)
        title = f"An epoch of {n_ratings:,} ratings at rank {rank}"
        report.table(title, "solver", *columns, *efficiencies, "MB crossed", "MB needed")
        for name in trainings:
            alone = epoch_costs(job(name), threads=1)[0]
            both_cores = epoch_costs(job(name), threads=2)[0]
            together, crossed = [], 0.0
            for rate in gbits:
                with two_hosts(rate):
                    measured, crossed = epoch_costs(job(name), threads=1, hosts=HOSTS)
                    together.append(measured)
            per_rating[name] = statistics.median(alone) / n_ratings
            efficiency = [statistics.median(alone) / (2 * statistics.median(times)) for times in together]
            report.row(
                name,
                Figure.median(alone, "s"),
                Figure.median(both_cores, "s"),
                *(Figure.median(times, "s") for times in together),
                *(Figure.median([value], "of 2 processes") for value in efficiency),
                Figure.median([crossed / 1e6], "MB"),
                Figure.median([4 * n_rows * (rank + 2) / 1e6], "MB"),
            )
        print_held_rows(report, path / "prepared")
    if "als" in per_rating:
        print_model(report, per_rating["als"], rank)
    return report.figures


def print_held_rows(report: Report, prepared: Path) -> None:
    """Print the share of all rows that a host holds with partial tables, as counted and by the model."""
    report.table("Rows that a host holds with partial tables", "hosts", "share of all rows, counted", "model")
    ratings = load_dataset(prepared).ratings
    patterns = ratings.pattern, ratings.pattern.T
    n_rows = [pattern.shape[0] for pattern in patterns]
    for count in (2, *COUNTS):
        parts = [balanced(pattern.counts, count) for pattern in patterns]
        held = 0
        for entity, (pattern, partners) in enumerate(zip(patterns, patterns[::-1], strict=True)):
            for owned, met in zip(parts[entity], parts[1 - entity], strict=True):
                held += len(needed_rows(pattern.shape[0], owned, partners.col[partners.entries_of(met)]))
        needed = sum(rows * needed_share(len(ratings) / rows, count) for rows in n_rows)
        model = 1 / count + (1 - 1 / count) * needed / sum(n_rows)
        counted = held / count / sum(n_rows)
        report.row(str(count), Figure.median([counted], "of all"), Figure.median([model], "of all"))


def needed_share(ratings_per_row: float, count: int) -> float:
    """The share of the rows of others that a host needs, by the model."""
    return float(1 - (1 - 1 / count) ** ratings_per_row)


def print_model(report: Report, per_rating: float, rank: int) -> None:
    """Print the model of an epoch of ALS on larger data."""
    columns = (
        "ratings",
        "rows",
        "hosts",
        "tables",
        "solving, s",
        *(f"{rate:g} Gbit/s, s" for rate in GBITS),
        "GB per host",
    )
    report.table(f"Model of an epoch of als at rank {rank}, on hosts of {CORES} cores", *columns, n_texts=4)
    for n_ratings, n_rows in LARGER:
        for count in COUNTS:
            solving = n_ratings * per_rating / (count * CORES)
            for tables in ("all rows", "partial"):
                shares = [1.0 if tables == "all rows" else needed_share(n_ratings / rows, count) for rows in n_rows]
                received = sum(
                    4 * rows * (rank + 2) * (1 - 1 / count) * share for rows, share in zip(n_rows, shares, strict=True)
                )
                held = 4 * sum(n_rows) * (rank + 2) / count + received
                memory = 2 * held + 16 * n_ratings / count
                report.row(
                    f"{n_ratings / 1e9:g} billion",
                    f"{sum(n_rows) / 1e6:g} million",
                    str(count),
                    tables,
                    Figure.median([solving], "s"),
                    *(Figure.median([solving + received / (rate * 1e9 / 8)], "s") for rate in GBITS),
                    Figure.median([memory / 1e9], "GB"),
                )


def epoch_costs(job: Sequence[str], threads: int, hosts: Sequence[str] = ("",)) -> tuple[list[float], float]:
    """Seconds of each epoch but the first, and the median bytes that the first host sends and receives in one."""
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    launched = []
    for index, host in enumerate(hosts):
        command = [sys.executable, __file__, "--job", *job]
        if host:
            names = {"WORLD_SIZE": len(hosts), "RANK": index, "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": 29411}
            limits |= {"GLOO_SOCKET_IFNAME": device(host), **{name: str(value) for name, value in names.items()}}
            command = ["ip", "netns", "exec", host, *command]
        launched.append(subprocess.Popen(command, env=os.environ | limits, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in launched]
    if any(process.returncode for process in launched):
        sys.exit(f"a process ended with status {[process.returncode for process in launched]}")
    times, counts = json.loads(outputs[0].splitlines()[-1])
    return times, statistics.median(counts)


def run_job(text: str) -> None:
    """Train as one process of a launch, or alone; print seconds and bytes of each epoch but the first, as JSON."""
    from mfrec.experiments.config import ExperimentConfig
    from mfrec.experiments.launch import launched_processes
    from mfrec.experiments.training import train

    data, solver, options = json.loads(text)
    unmeasured = {"run_dir": None, "valid_fraction": 0.0, "test_fraction": 0.0, "log_every": 0}
    config = ExperimentConfig.create(solver, data=data, **unmeasured, **options)
    ends: list[tuple[float, int]] = []
    with launched_processes() as processes:
        train(config, on_epoch=lambda epoch: ends.append((time.perf_counter(), bytes_crossed())), processes=processes)
    between = list(itertools.pairwise(ends))
    print(json.dumps([[b[0] - a[0] for a, b in between], [b[1] - a[1] for a, b in between]]))


def bytes_crossed() -> int:
    """Bytes that the devices of this host, but the loopback, have received and sent."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    fields = [line.replace(":", " ").split() for line in lines]
    return sum(int(field[1]) + int(field[9]) for field in fields if field[0] != "lo")


def device(host: str) -> str:
    """The name of a host's device."""
    return f"{host}-0"


@contextlib.contextmanager
def two_hosts(gbits: float) -> Iterator[None]:
    """Two network namespaces, joined at a rate in Gbit/s."""
    remove_hosts()
    try:
        for host in HOSTS:
            run("ip", "netns", "add", host)
        ends = [word for host in HOSTS for word in (device(host), host)]
        run("ip", "link", "add", ends[0], "netns", ends[1], "type", "veth", "peer", "name", ends[2], "netns", ends[3])
        for host, address in zip(HOSTS, ADDRESSES, strict=True):
            inside = ("ip", "netns", "exec", host)
            run(*inside, "ip", "address", "add", f"{address}/24", "dev", device(host))
            run(*inside, "ip", "link", "set", device(host), "up")
            run(*inside, "ip", "link", "set", "lo", "up")
            limit = ("rate", f"{gbits:g}gbit", "burst", "1mb", "latency", "50ms")
            run(*inside, "tc", "qdisc", "add", "dev", device(host), "root", "tbf", *limit)
        yield
    finally:
        remove_hosts()


def remove_hosts() -> None:
    """Remove the namespaces, if they are there."""
    for host in HOSTS:
        subprocess.run(["ip", "netns", "delete", host], stderr=subprocess.DEVNULL, check=False)


def run(*command: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        run_job(sys.argv[2])
    else:
        tyro.cli(main)
