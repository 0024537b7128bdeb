"""Test RMSE against seconds of training, for mfrec's solvers and for other packages: a table and a picture.

    python benchmarks/speed.py [--data ../shared/data/ml-1m] [--out benchmarks/speed.png]

All train on the same 90 % of ML-1M (random split, seed 0), and are tested on the same 10 %, with two threads.  Each
method runs alone, in a new process.

**Settings.**  All were chosen on validation ratings, taken from the training ratings; no choice looked at a test set.
mfrec's solvers have their defaults, which serve small data too.  `sgd, tuned` has settings for ML-1M, as the other
packages have: λ per rating, and the best validation RMSE of 54 trainings (ranks 64 and 128; 10, 14 and 18 epochs; lr
0.05, 0.065 and 0.08; l2 0.04, 0.045 and 0.05).  The searches for other packages are in `peers.py`.  A curve ends at the
number of epochs that was best on validation ratings.  The lowest RMSE of a curve is therefore its last or nearly so.
(For mfrec's solvers that stop early: the best epoch of `mfrec train SOLVER --data ml-1m --seed 0`.)

**Seconds** include building the model and all data structures of the method.  They do not include reading the file,
converting the ratings to the method's input, and evaluations.  Six epochs on the same data come first and are not
counted (of other packages: one).  They compile kernels and start threads.

**Points.**  A method whose training can be continued is tested after its epochs, and the clock stands still meanwhile.
The others train from the start for each number of epochs.  That includes sgd, whose step sizes fall to zero over the
planned epochs.  Seconds and RMSE are medians of 5 trainings if a training takes less than 3 s, of 3 up to 10 s, and of
one beyond.  Seconds to an RMSE are the fewest of a point at or below it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from peer import THREADS, Peer, Point, Split
from peers import PEERS
from record import SHARED, Figure, Report, in_new_process, significant

from mfrec.data.dataset import Dataset
from mfrec.data.loading import load_dataset
from mfrec.data.ratings import Ratings
from mfrec.evaluation.metrics import rmse
from mfrec.experiments.building import build_solver
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.loop import Epoch, fit
from mfrec.posteriors.base import Posterior
from mfrec.solvers.base import SOLVERS, Solver

TARGETS = (0.86, 0.85, 0.845, 0.84, 0.8395)
# Not in the default set: they learn from who rated what as well, which is another model.
IMPLICIT = ("cmfrec CMF, implicit", "myFM, implicit")


@dataclass(frozen=True)
class Ours:
    """A solver of mfrec.

    Attributes:
        solver: a name in `SOLVERS`.
        lengths: the numbers of epochs of the curve.
        continues: whether one training yields all points.
        options: options other than the defaults.
    """

    solver: str
    lengths: tuple[int, ...]
    continues: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def config(self, **options: Any) -> ExperimentConfig:
        """The configuration of a training on all training ratings."""
        return ExperimentConfig.create(self.solver, **self.options, valid_fraction=0.0, run_dir=None, **options)


class Curve(NamedTuple):
    """Medians over trainings, by number of epochs: seconds of training and test RMSE."""

    name: str
    is_ours: bool
    settings: str
    epochs: list[int]
    seconds: list[float]
    errors: list[float]

    @property
    def best(self) -> int:
        """The position of the lowest RMSE."""
        return min(range(len(self.errors)), key=self.errors.__getitem__)

    def seconds_to(self, error: float) -> float | None:
        """The fewest seconds of a point with this RMSE, or a lower one."""
        return min((s for s, e in zip(self.seconds, self.errors, strict=True) if e <= error), default=None)


def growing(end: int) -> tuple[int, ...]:
    """Numbers of epochs up to an end, each about a tenth larger than the last.

    Examples:
        >>> growing(14)
        (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
        >>> growing(30)[-5:]
        (21, 23, 25, 27, 30)
    """
    lengths = [1]
    while lengths[-1] < end:
        lengths.append(min(end, max(lengths[-1] + 1, round(1.1 * lengths[-1]))))
    return tuple(lengths)


# Numbers of epochs up to the default of sgd.
PLANNED = tuple(n for n in growing(ExperimentConfig.create("sgd").fit.epochs) if n > 1)
OURS: dict[str, Ours] = {
    "sgd": Ours("sgd", PLANNED, continues=False),
    "sgd, tuned": Ours("sgd", PLANNED, continues=False, options={"l2_scaling": "rating", "l2": 0.04, "lr": 0.05}),
    "block-sgd": Ours("block-sgd", growing(52)),
    "als": Ours("als", growing(14)),
    "vb": Ours("vb", growing(16)),
    "gibbs": Ours("gibbs", growing(200)),
    "optim": Ours("optim", growing(55)),
    "quasi-newton": Ours("quasi-newton", growing(6)),
    "gd": Ours("gd", growing(1000)),
}
# The look of other packages' curves, and the pixels of a letter and of a line of text.
GREYS = ("0.35", "0.5")
DASHES = ((0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (2, 1)))
LETTER, LINE = 7.0, 13.0

METHODS = (*OURS, *(name for name in PEERS if name not in IMPLICIT))


def main(
    data: Path = SHARED / "ml-1m",
    methods: tuple[str, ...] = METHODS,
    repeats: int = 5,
    seed: int = 0,
    out: Path | None = None,
    rmse_range: tuple[float, float] = (0.83, 0.88),
) -> dict[str, Figure]:
    """Print the tables, and draw the picture.

    Args:
        data: folder of the data set.
        methods: the methods to measure, by name.
        repeats: number of trainings at most; medians are over them.
        seed: seed of the split, the initial factors and the order of the ratings.
        out: picture to write; by default none.
        rmse_range: lowest and highest RMSE of the picture; it begins lower if a curve does.
    """
    unknown = [name for name in methods if name not in OURS and name not in PEERS]
    if unknown:
        raise SystemExit(f"unknown method {unknown[0]!r}; choose from: {', '.join([*OURS, *PEERS])}")
    report = Report()
    columns = ("", "settings", "best RMSE", "epochs", "s", *(f"s to {target:g}" for target in TARGETS))
    title = f"{data.name}, seed {seed}, {THREADS} threads, torch {torch.__version__}"
    report.table(title, *columns, n_texts=2)
    curves = []
    for name in methods:
        curve = curve_of(name, str(data), seed, repeats)
        if isinstance(curve, str):
            report.row(name, curve, *[""] * (len(columns) - 2))
            continue
        curves.append(curve)
        best = curve.best
        error, epochs = Figure.mean([curve.errors[best]], 4, "RMSE"), str(curve.epochs[best])
        times = [seconds_cell(curve.seconds_to(target)) for target in TARGETS]
        report.row(label(curve), curve.settings, error, epochs, seconds_cell(curve.seconds[best]), *times)
    print_comparison(report, curves)
    if curves and out is not None:
        draw(curves, data.name, rmse_range, out)
    return report.figures


def label(curve: Curve) -> str:
    """The name of a method in a table."""
    return f"`{curve.name}`" if curve.is_ours else f"*{curve.name}*"


def seconds_cell(seconds: float | None) -> Figure | str:
    """Seconds for a table; None if an RMSE was not reached."""
    return "not reached" if seconds is None else Figure.median([seconds], "s")


def print_comparison(report: Report, curves: Sequence[Curve]) -> None:
    """Print who reaches each RMSE first, of mfrec's solvers and of the other packages."""
    ours, theirs = ([curve for curve in curves if curve.is_ours == are_ours] for are_ours in (True, False))
    rows: list[tuple[float, Curve | None]] = [(target, None) for target in TARGETS]
    rows += [(curve.errors[curve.best], curve) for curve in theirs]
    title = "The first to reach an RMSE: the targets, and the best RMSE of each of the other packages."
    report.table(title, "aim", "RMSE", "other package", "s", "mfrec", "s", "ratio")
    for error, peer in sorted(rows, key=lambda row: -row[0]):
        rival = first([peer] if peer is not None else theirs, error)
        if rival is None:
            continue
        winner = first(ours, error)
        cells = f"{error:.4f}", label(rival[0]), significant(rival[1])
        aim = f"{error:g}" if peer is None else f"best of {label(peer)}"
        if winner is None:
            report.row(aim, *cells, "", "not reached", "")
        else:
            ratio = Figure.median([rival[1] / winner[1]], "×")
            report.row(aim, *cells, label(winner[0]), significant(winner[1]), ratio)


def first(curves: Sequence[Curve], error: float) -> tuple[Curve, float] | None:
    """The curve that reaches an RMSE first, and its seconds."""
    reached = [(curve, seconds) for curve in curves if (seconds := curve.seconds_to(error)) is not None]
    return min(reached, key=lambda pair: pair[1], default=None)


def curve_of(*arguments: Any) -> Curve | str:
    """The curve of a method, measured in a process that ends with it; or why there is none."""
    try:
        return in_new_process(measured, *arguments)
    except BrokenProcessPool:
        return "failed: its process crashed"


def measured(name: str, data: str, seed: int, repeats: int) -> Curve | str:
    """The curve of a method, or why there is none."""
    torch.set_num_threads(THREADS)
    dataset = load_dataset(data)
    mask = dataset.test_mask("random", 0.1, torch.Generator().manual_seed(seed))
    training, test = dataset.ratings.split(mask)
    method = OURS[name] if name in OURS else PEERS[name]

    def points(lengths: Sequence[int]) -> Iterator[Point]:
        if isinstance(method, Ours):
            # New ratings, since the old ones keep what earlier trainings derived from them.
            return our_points(method, dataset, dataset.ratings.split(mask)[0], test, seed, lengths)
        split = Split.of(training, test, dataset.rating_range, seed)
        return method.train(split, method.settings(len(training)), lengths)

    try:
        list(points((6 if name in OURS else 1,)))  # warms up: vb begins to learn its precisions after five epochs
    except ImportError as error:
        return f"not installed: {error}"
    results: dict[int, list[tuple[float, float]]] = {}
    for lengths in [method.lengths] if method.continues else [(n,) for n in method.lengths]:
        repeat, n_repeats = 0, 1
        while repeat < n_repeats:
            for point in points(lengths):
                predictions = torch.as_tensor(point.predictions, dtype=test.values.dtype)
                results.setdefault(point.epochs, []).append((point.seconds, rmse(predictions, test.values)))
            if repeat == 0:
                n_repeats = min(repeats, 5 if point.seconds < 3 else 3 if point.seconds < 10 else 1)
            repeat += 1
    seconds, errors = (
        [statistics.median(pair[position] for pair in pairs) for pairs in results.values()] for position in (0, 1)
    )
    settings = our_settings(method) if isinstance(method, Ours) else peer_settings(method, len(training))
    return Curve(name, isinstance(method, Ours), settings, list(results), seconds, errors)


def our_settings(method: Ours) -> str:
    """The rank, and the options that decide accuracy most."""
    config = method.config()
    options = {name: config.flat().get(name) for name in ("rank", "l2", "lr")}
    learned = SOLVERS[method.solver].learns
    return ", ".join(
        f"{name} {value:g}" for name, value in options.items() if value is not None and name not in learned
    )


def peer_settings(peer: Peer, n_ratings: int) -> str:
    """The settings of another package, without the number of epochs."""
    settings = peer.settings(n_ratings)
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items() if name != "epochs")


class Clocked(Solver):
    """A solver whose clock runs during its epochs only.

    Args:
        solver: the solver to clock.
        seconds: the seconds of building it.
    """

    def __init__(self, solver: Solver, seconds: float) -> None:
        super().__init__(solver.model, solver.ratings, solver.objective, solver.options, solver.generator)
        self.spec, self.solver, self.seconds = solver.spec, solver, seconds

    def epoch(self) -> dict[str, float]:
        began = perf_counter()
        values = self.solver.epoch()
        self.seconds += perf_counter() - began
        return values

    def plan(self, epochs: int) -> None:
        self.solver.plan(epochs)

    def inference(self) -> Posterior:
        return self.solver.inference()


def our_points(
    method: Ours, dataset: Dataset, training: Ratings, test: Ratings, seed: int, lengths: Sequence[int]
) -> Iterator[Point]:
    """The points of one training with `mfrec.experiments.loop.fit`, tested after its epochs."""
    config = method.config(seed=seed, device="cpu")
    points: list[Point] = []
    began = perf_counter()
    solver = build_solver(config, dataset, training)
    clocked = Clocked(solver, perf_counter() - began)

    def after_epoch(epoch: Epoch) -> None:
        if epoch.number in lengths:
            predictions = clocked.inference().mean_model().predict_observed(test, clip=True)
            points.append(Point(epoch.number, clocked.seconds, predictions.detach().numpy()))

    fit(clocked, epochs=max(lengths), log_every=max(lengths), on_epoch=after_epoch)
    return iter(points)


def draw(curves: Sequence[Curve], data: str, rmse_range: tuple[float, float], out: Path) -> None:
    """Draw RMSE against seconds; mfrec's solvers in colours, other packages in grey."""
    figure, axis = plt.subplots(figsize=(9.0, 5.2), layout="constrained")
    bottom, top = rmse_range
    lowest = min(min(curve.errors) for curve in curves)
    labels = []
    for is_ours in (False, True):
        for n, curve in enumerate(curve for curve in curves if curve.is_ours == is_ours):
            color = f"C{n}" if is_ours else GREYS[n % len(GREYS)]
            style: Any = "-" if is_ours else DASHES[n % len(DASHES)]
            (line,) = axis.plot(curve.seconds, curve.errors, ls=style, color=color)
            line.set(linewidth=2.0 if is_ours else 1.2, marker="o", markersize=3.5 if is_ours else 2.5)
            if curve.errors[-1] <= top:
                labels.append((curve, color))
    visible = [s for curve in curves for s, e in zip(curve.seconds, curve.errors, strict=True) if e <= top]
    if visible:
        axis.set_xlim(0.7 * min(visible), max(visible))
    axis.set(xscale="log", xlabel="seconds of training", ylabel=f"test RMSE, {data}")
    axis.set_ylim(min(bottom, np.floor(200 * lowest) / 200), top)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, which="both", linewidth=0.6)
    axis.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    place_labels(axis, labels)
    figure.savefig(out, dpi=100)
    plt.close(figure)


def place_labels(axis: Axes, labels: Sequence[tuple[Curve, str]]) -> None:
    """Write each name at the end of its curve, moved up or down until it does not cover another."""
    left, right = axis.get_xlim()
    axis.set_xlim(left, 3 * right)  # space for the names of the slowest methods
    axis.figure.canvas.draw()
    boxes: list[tuple[float, float, float]] = []
    for curve, color in sorted(labels, key=lambda pair: pair[0].errors[-1]):
        end = (curve.seconds[-1], curve.errors[-1])
        x, y = axis.transData.transform(end)
        length = LETTER * (len(curve.name) + 1)
        candidates = sorted((y + step * LINE / 4 for step in range(-40, 41)), key=lambda place: abs(place - y))
        free = (
            place
            for place in candidates
            if not any(abs(place - v) < LINE and x < last and begin < x + length for begin, last, v in boxes)
        )
        place = next(free, y)
        boxes.append((x, x + length, place))
        points = (6.0, (place - y) * 72 / axis.figure.dpi)
        text = axis.annotate(curve.name, end, points, textcoords="offset points", va="center", color=color, fontsize=9)
        text.set_fontweight("bold" if curve.is_ours else "normal")


if __name__ == "__main__":
    tyro.cli(main)
