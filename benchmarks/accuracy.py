"""Test RMSE and fit time of the solvers and of other packages: the README's tables of results.

    python benchmarks/accuracy.py [--shared ../shared/data] [--seeds 0 1 2] [--tables embedded ml-100k ml-1m cold peers]

Each figure is the mean ± standard deviation over the seeds, which vary the split where it is random, the start and the
order of the ratings; or over the folds u1 … u5 with seed 0.  Every run of ours is the command shown, through
metrics.json; other packages (`peers.py`, from the [bench] extra) train on the same training part, and where one is not
installed its row is left out.  Defaults, ours and theirs, were chosen on validation parts of the training ratings; no
test part was looked at.  Run it with nothing else running: about an hour in all on two cores, most of it the samplers'.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import peers
import torch
import tyro

from mfrec.data import loading as datasets
from mfrec.evaluation.baselines import biases_only
from mfrec.evaluation.metrics import rmse

ROOT = Path(__file__).parents[1]
POINT = ("sgd", "als", "optim", "quasi-newton", "gd")
USERS, ITEMS = "--user-features age,gender,occupation", "--item-features genres,year"
SIDE = f"{USERS} {ITEMS}"
Table = Literal["embedded", "ml-100k", "ml-1m", "cold", "peers"]


def main(
    shared: Path = ROOT.parent / "shared" / "data",
    seeds: tuple[int, ...] = (0, 1, 2),
    tables: tuple[Table, ...] = ("embedded", "ml-100k", "ml-1m", "cold", "peers"),
) -> None:
    """Print the tables, each row as soon as it is measured.

    Args:
        shared: folder that holds ml-100k and ml-1m.
        seeds: seeds of the runs.
        tables: which tables to print.
    """
    small, large = f"--data {shared / 'ml-100k'}", f"--data {shared / 'ml-1m'}"
    by_seed, folds = [f"--seed {seed}" for seed in seeds], [f"--split u{fold}" for fold in range(1, 6)]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, seeds {' '.join(map(str, seeds))}")
    if "embedded" in tables:
        header("ml-latest-small, 80/10/10 (vb and gibbs: 90/10)")
        for solver in (*POINT, "vb", "gibbs", "gibbs --implicit both"):
            row(solver, by_seed)
    if "ml-100k" in tables:
        header("ML-100K, u1")
        for solver in ("sgd", "als", "vb", "gibbs", "gibbs --implicit both", f"gibbs --implicit both {SIDE}"):
            row(f"{solver} {small} --split u1", by_seed)
        header("ML-100K, mean of u1 … u5")
        for solver in ("sgd", "als", "vb", "gibbs", "gibbs --implicit both", f"gibbs --implicit both {SIDE}"):
            row(f"{solver} {small}", folds)
    if "ml-1m" in tables:
        header("ML-1M, random 90/10")
        for solver in (*POINT, "vb", "gibbs", "gibbs --implicit both", f"gibbs --rank 64 --implicit both {SIDE}"):
            row(f"{solver} {large}", by_seed)
    if "cold" in tables:
        for data, name in (("", "ml-latest-small"), (small, "ML-100K"), (large, "ML-1M")):
            header(f"all ratings of a tenth of the items held out, {name}")
            blind_row(datasets.load(data.removeprefix("--data ") or name), seeds)
            for solver in (f"sgd {ITEMS} --no-item-ids", f"sgd {ITEMS}", f"gibbs {ITEMS}"):
                row(f"{solver} {data} --split cold-items", by_seed)
    if "peers" in tables:
        for title, path, splits in (
            ("ML-100K, u1", shared / "ml-100k", [("u1", seed) for seed in seeds]),
            ("ML-1M, random 90/10", shared / "ml-1m", [("random", seed) for seed in seeds]),
        ):
            header(f"other packages, {title}")
            dataset = datasets.load(path)
            for name in peers.PEERS:
                peer_row(name, dataset, splits)


def header(title: str) -> None:
    """Begin a table."""
    print(f"\n{title}\n\n| command | test RMSE | epochs | fit seconds |\n|---|---:|---:|---:|", flush=True)


def row(command: str, variants: list[str]) -> None:
    """Measure a command under each variant, and print its row."""
    metrics = [measure(f"{command} {variant}") for variant in variants]
    shown = " ".join(part.rsplit("/", 1)[-1] for part in command.split())
    found = spread([m["test"]["rmse"] for m in metrics], 4)
    epochs = f"{statistics.mean(m['epochs'] for m in metrics):.0f}"
    print(f"| `{shown}` | {found} | {epochs} | {spread([m['fit_seconds'] for m in metrics], 1)} |", flush=True)


def measure(arguments: str) -> dict[str, Any]:
    """The metrics of one training, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *arguments.split(), "--run-dir", folder, "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    metrics: dict[str, Any] = json.loads(done.stdout)
    return metrics


def blind_row(dataset: datasets.Dataset, seeds: tuple[int, ...]) -> None:
    """What biases alone reach, which know nothing of an item without ratings."""
    errors = []
    for seed in seeds:
        mask = dataset.test_mask("cold-items", 0.1, torch.Generator().manual_seed(seed))
        train, test = dataset.ratings.split(mask)
        errors.append(rmse(biases_only(train, dataset.scale).predict_observed(test, clip=True), test.values))
    print(f"| biases only | {spread(errors, 4)} | | |", flush=True)


def peer_row(name: str, dataset: datasets.Dataset, splits: list[tuple[str, int]]) -> None:
    """Train another package on each split's training part, and print its row."""
    errors, seconds = [], []
    for split, seed in splits:
        mask = dataset.test_mask(split, 0.1, torch.Generator().manual_seed(seed))
        train, test = dataset.ratings.split(mask)
        held = peers.Split(
            train.users.numpy(),
            train.items.numpy(),
            train.values.numpy(),
            test.users.numpy(),
            test.items.numpy(),
            train.n_users,
            train.n_items,
            dataset.scale,
            seed,
        )
        try:
            predictions, took = peers.PEERS[name](held)
        except ImportError as error:
            print(f"| {name}: {error} | | | |", flush=True)
            return
        errors.append(rmse(torch.as_tensor(predictions, dtype=test.values.dtype), test.values))
        seconds.append(took)
    print(f"| {name} | {spread(errors, 4)} | | {spread(seconds, 1)} |", flush=True)


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


if __name__ == "__main__":
    tyro.cli(main)
