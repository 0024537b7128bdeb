"""Draw the curves of runs, as TensorBoard shows them: the README's picture.

    for solver in sgd gd optim; do python train.py $solver --name $solver; done
    python benchmarks/curves.py runs/sgd runs/gd runs/optim --out benchmarks/curves.png

Read from the runs' TensorBoard events; needs matplotlib (the [test] extra).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import tyro
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

Runs = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]


def main(runs: Runs, out: Path = Path("curves.png")) -> None:
    """Draw cost and RMSE against epochs.

    Args:
        runs: run folders.
        out: picture to write.
    """
    figure, (cost, rmse) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for number, run in enumerate(runs):
        events = EventAccumulator(str(run), size_guidance={SCALARS: 0}).Reload()
        color = f"C{number}"
        for axis, tag, style in ((cost, "cost/train", "-"), (rmse, "rmse/train", ":"), (rmse, "rmse/valid", "-")):
            points = events.Scalars(tag)
            label = run.name if style == "-" else None
            axis.plot([p.step for p in points], [p.value for p in points], style, color=color, label=label)
        best = min(events.Scalars("rmse/valid"), key=lambda point: point.value)
        rmse.plot(best.step, best.value, "o", color=color)
    for axis, label in ((cost, "cost J, training part"), (rmse, "RMSE, stars")):
        axis.set(xlabel="epoch", ylabel=label, xscale="symlog")
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    rmse.set_title("validation (lines, best marked) and training (dots)", fontsize=10)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    tyro.cli(main)
