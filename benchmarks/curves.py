"""Draw the learning curves of runs: benchmarks/curves.png.

    for solver in sgd gd optim; do mfrec train $solver --name $solver --log-every 1; done
    python benchmarks/curves.py runs/sgd runs/gd runs/optim --out benchmarks/curves.png

The curves come from the `metrics.jsonl` of each run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import tyro

Runs = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]


def main(runs: Runs, out: Path = Path("curves.png")) -> None:
    """Draw cost and RMSE against epochs.

    Args:
        runs: run folders.
        out: picture to write.
    """
    figure, (cost, rmse) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for number, run in enumerate(runs):
        color = f"C{number}"
        for axis, tag, style in ((cost, "cost/train", "-"), (rmse, "rmse/train", ":"), (rmse, "rmse/valid", "-")):
            label = run.name if style == "-" else None
            axis.plot(*curve(run, tag), style, color=color, label=label)
        epochs, values = curve(run, "rmse/valid")
        best = min(range(len(values)), key=values.__getitem__)
        rmse.plot(epochs[best], values[best], "o", color=color)
    for axis, label in ((cost, "cost J, training set"), (rmse, "RMSE, stars")):
        axis.set(xlabel="epoch", ylabel=label, xscale="symlog")
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    rmse.set_title("validation (lines, best marked) and training (dots)", fontsize=10)
    figure.savefig(out, dpi=110)


def curve(run: Path, tag: str) -> tuple[list[int], list[float]]:
    """The epochs and values of a scalar of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    points = [(line["epoch"], line[tag]) for line in lines if tag in line]
    return [epoch for epoch, _ in points], [value for _, value in points]


if __name__ == "__main__":
    tyro.cli(main)
