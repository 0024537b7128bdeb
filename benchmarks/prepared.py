"""Whole runs on prepared data, from a million ratings to a hundred million: seconds per rating, and memory.

    python benchmarks/prepared.py [--sizes 1000000 10000000 100000000] [--solvers sgd als gibbs]

The ratings are synthetic, in a parquet file as `mfrec synthetic` writes it, with the shapes of ML-1M, ML-10M and the
Netflix Prize.  Each step runs in a process of its own:

    prepare   the file becomes a prepared data set; seconds, and the highest resident memory
    open      the median milliseconds to open it again
    train     `mfrec train SOLVER` as by default, with a test set and a validation set, but for a few epochs: seconds
              until the first epoch ends, less those of an epoch; median seconds of an epoch with its validation, but
              not of the last, which measures the training set; the highest resident memory, with the mapped pages of
              the data set; bytes of the run's folder that are not shared with the data set

The picture `scale.png` shows nanoseconds per rating.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from record import Figure, Report, in_new_process, seconds

# Users and items by the number of ratings.
SHAPES = {1_000_000: (6_040, 3_706), 10_000_000: (71_567, 10_681), 100_000_000: (480_000, 17_700)}
# So that gibbs averages draws, as in most of its epochs.
OPTIONS: dict[str, dict[str, Any]] = {"gibbs": {"burn_in": 0}}
PICTURE = Path(__file__).with_name("scale.png")
OPENINGS = 5
GB = 1e9


def main(
    sizes: tuple[int, ...] = tuple(SHAPES),
    solvers: tuple[str, ...] = ("sgd", "als", "gibbs"),
    rank: int = 64,
    epochs: int = 7,
    seed: int = 0,
    folder: Path | None = None,
    picture: Path | None = None,
) -> dict[str, Figure]:
    """Print the tables.

    Args:
        sizes: numbers of ratings, each a key of `SHAPES`.
        solvers: solvers to measure, by name.
        rank: rank of the models.
        epochs: epochs of each training.
        seed: of the ratings and of the trainings.
        folder: where files are kept for another run; by default a temporary folder.
        picture: a file for the picture.
    """
    report, times = Report(), dict[str, list[float]]()
    with tempfile.TemporaryDirectory() as temporary:
        for size in sizes:
            path = (folder or Path(temporary)) / str(size)
            n_users, n_items = SHAPES[size]
            title = f"{size:,} ratings of {n_users:,} users × {n_items:,} items"
            report.table(title, "step", "setup, s", "s", "ns per rating", "memory, GB", "disk, MB")
            in_new_process(write_ratings, path, size, seed)
            elapsed, memory = in_new_process(prepare, path)
            opening = in_new_process(open_again, path)
            disk = sum(file.stat().st_size for file in (path / "prepared").iterdir())
            print_step(report, times, "prepare", size, opening, [elapsed], memory, disk)
            for solver in solvers:
                setup, epoch_seconds, memory, disk = in_new_process(train, path, solver, rank, epochs, seed)
                print_step(report, times, solver, size, setup, epoch_seconds, memory, disk)
    print_growth(report, times, sizes)
    if picture is not None:
        draw(times, sizes, picture)
    return report.figures


def print_step(
    report: Report,
    times: dict[str, list[float]],
    step: str,
    size: int,
    setup: float,
    elapsed: list[float],
    memory: float,
    disk: int,
) -> None:
    """Print a row: of prepare, the set-up is the opening."""
    nanoseconds = [1e9 * each / size for each in elapsed]
    times.setdefault(step, []).append(statistics.median(nanoseconds))
    report.row(
        step,
        Figure.median([setup], "s"),
        Figure.median(elapsed, "s"),
        Figure.median(nanoseconds, "ns"),
        Figure.median([memory / GB], "GB"),
        Figure.median([disk / 1e6], "MB"),
    )


def print_growth(report: Report, times: dict[str, list[float]], sizes: tuple[int, ...]) -> None:
    """Print the time per rating of each size, by that of the smallest."""
    report.table(f"Time per rating, by that of {sizes[0]:,} ratings", "step", *(f"{size:,}" for size in sizes))
    for step, nanoseconds in times.items():
        report.row(step, *(Figure.median([each / nanoseconds[0]], "×") for each in nanoseconds))


def write_ratings(path: Path, size: int, seed: int) -> None:
    """Write the file of ratings unless it is there."""
    from mfrec.cli.synthetic import Synthetic

    file = path / "ratings.parquet"
    if not file.exists():
        path.mkdir(parents=True, exist_ok=True)
        n_users, n_items = SHAPES[size]
        with contextlib.redirect_stdout(io.StringIO()):
            Synthetic(output=str(file), users=n_users, items=n_items, ratings=size, seed=seed)()


def prepare(path: Path) -> tuple[float, float]:
    """Prepare the file; the seconds, and the peak of the memory."""
    import shutil

    from mfrec.data.loading import prepare

    shutil.rmtree(path / "prepared", ignore_errors=True)
    elapsed = seconds(lambda: prepare(path / "ratings.parquet", path / "prepared"))
    return elapsed, peak()


def open_again(path: Path) -> float:
    """Seconds to open the prepared data set, its checksums verified before."""
    from mfrec.data.loading import load_dataset

    load_dataset(path / "prepared")
    time.sleep(3)  # so that the files are old enough to be believed unchanged
    load_dataset(path / "prepared")
    return statistics.median(seconds(lambda: load_dataset(path / "prepared")) for _ in range(OPENINGS))


def train(path: Path, solver: str, rank: int, epochs: int, seed: int) -> tuple[float, list[float], float, int]:
    """Train; seconds before the first epoch and of each epoch, the peak of the memory, bytes of the run's own files."""
    from mfrec.experiments.config import ExperimentConfig
    from mfrec.experiments.training import train

    with tempfile.TemporaryDirectory(dir=path) as runs:
        options = {"epochs": epochs, "rank": rank, "seed": seed, "run_dir": runs, "log_every": 0}
        config = ExperimentConfig.create(solver, data=str(path / "prepared"), **options, **OPTIONS.get(solver, {}))
        began, ends = time.perf_counter(), list[float]()
        result = train(config, on_epoch=lambda epoch: ends.append(time.perf_counter()))
        assert result.run is not None
        first, *elapsed = [end - start for start, end in itertools.pairwise([began, *ends[1:-1]])]
        files = [file.stat() for file in result.run.path.rglob("*") if file.is_file()]
        n_bytes = sum(file.st_size for file in files if file.st_nlink == 1)
    return first - statistics.median(elapsed), elapsed, peak(), n_bytes


def peak() -> float:
    """The highest resident memory of this process, in bytes."""
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def draw(times: dict[str, list[float]], sizes: tuple[int, ...], file: Path) -> None:
    """Draw the time per rating against the number of ratings."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for step, nanoseconds in times.items():
        axes.plot(sizes, nanoseconds, marker="o")
        name = "prepare" if step == "prepare" else f"{step}, an epoch"
        axes.annotate(name, (sizes[-1], nanoseconds[-1]), xytext=(8, -3), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_ylim(0)
    axes.set_xlim(right=sizes[-1] * 5)
    axes.set_xlabel("ratings")
    axes.set_ylabel("nanoseconds per rating")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    print(f"{os.cpu_count()} cores")
    tyro.cli(main)
