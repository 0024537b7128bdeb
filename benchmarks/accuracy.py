"""Test RMSE and fit time of each solver with its defaults: the README's table of results.

    python benchmarks/accuracy.py [--shared ../shared/data] [--seeds 0 1 2] [--solvers sgd gd optim]

Each figure is the mean ± standard deviation over the seeds, which vary the split where it is random, the start and the
order of the ratings; or over the folds u1 … u5 with seed 0.  Every run is the command shown, through metrics.json.  The
defaults were chosen on validation parts of the training ratings; no test part was looked at.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]


def main(
    shared: Path = ROOT.parent / "shared" / "data",
    seeds: tuple[int, ...] = (0, 1, 2),
    solvers: tuple[str, ...] = ("sgd", "gd", "optim"),
) -> None:
    """Print the table.

    Args:
        shared: folder that holds ml-100k and ml-1m; what is not there is left out.
        seeds: seeds of the runs.
        solvers: solvers to compare.
    """
    options: list[tuple[str, str, list[str]]] = [("ml-latest-small 80/10/10", "", [f"--seed {s}" for s in seeds])]
    if (shared / "ml-100k").is_dir():
        data = f"--data {shared / 'ml-100k'}"
        options.append(("ml-100k u1", f"{data} --split u1", [f"--seed {s}" for s in seeds]))
        options.append(("ml-100k u1–u5", data, [f"--split u{fold}" for fold in range(1, 6)]))
    if (shared / "ml-1m").is_dir():
        options.append(("ml-1m 90/10", f"--data {shared / 'ml-1m'}", [f"--seed {s}" for s in seeds]))

    table = Table(title=f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for column in ("data", "command", "test RMSE", "epochs", "fit seconds"):
        table.add_column(column, justify="left" if column in ("data", "command") else "right", no_wrap=True)
    for name, common, variants in options:
        for solver in solvers:
            metrics = [measure(f"{solver} {common} {variant}") for variant in variants]
            command = " ".join(f"train.py {solver} {common} {variants[0]} …".split())
            table.add_row(
                name,
                command.replace(str(shared), "…"),
                spread([m["test"]["rmse"] for m in metrics], 4),
                f"{statistics.mean(m['epochs'] for m in metrics):.0f}",
                spread([m["fit_seconds"] for m in metrics], 1),
            )
    Console(width=150).print(table)


def measure(arguments: str) -> dict[str, Any]:
    """The metrics of one training, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *arguments.split(), "--run-dir", folder, "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    metrics: dict[str, Any] = json.loads(done.stdout)
    return metrics


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


if __name__ == "__main__":
    tyro.cli(main)
