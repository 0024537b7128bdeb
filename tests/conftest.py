"""Fixtures that several test modules share."""

from __future__ import annotations

import contextlib
import csv
import gc
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Everything here is small, and one process per core runs it: a second thread would cost more than it gains.  Numpy
# reads this when it is imported; the workers and the notebooks' kernels inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

from mfrec.data.features import Features
from mfrec.data.ratings import Ratings
from mfrec.sums import torch_threads

# A file outlasts a killed process without this; only a power failure, which no test has, makes the wait matter.
os.fsync = lambda descriptor: None

# No deadline: the first call of torch takes a second.
settings.register_profile("mfrec", deadline=None)
settings.load_profile("mfrec")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the notebooks first: each takes so long that a worker would be alone with the last of them."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lives as long as the worker: modules and thousands of tests."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """1, 2 and 3 threads of torch and of kernels; a test may set another number, which does not outlast it."""
    with torch_threads(request.param):
        yield request.param


@pytest.fixture(scope="session")
def odd_ratings() -> Ratings:
    """11 users × 13 items in float64; users 3 and 10 and items 0 and 12 have no rating."""
    generator = torch.Generator().manual_seed(0)
    observed = torch.rand(13, 11, generator=generator) < 0.4
    observed[[0, 12]] = False
    observed[:, [3, 10]] = False
    return Ratings.from_dense(torch.randn(13, 11, generator=generator, dtype=torch.float64), observed)


@pytest.fixture(scope="session")
def weighted_ratings(odd_ratings: Ratings) -> Ratings:
    """`odd_ratings` with weights from 0.25 to 4."""
    weights = 4 ** (2 * torch.rand(len(odd_ratings), generator=torch.Generator().manual_seed(1)).double() - 1)
    r = odd_ratings
    return Ratings(r.users, r.items, r.values, r.n_users, r.n_items, weights=weights)


class DenseFeatures(NamedTuple):
    """Feature blocks of the users and items of `odd_ratings` by name, as dense matrices."""

    user: dict[str, torch.Tensor]
    item: dict[str, torch.Tensor]

    def options(self) -> dict[str, dict[str, Features]]:
        """Keyword arguments of a model with these features."""
        entities = (("user_features", self.user), ("item_features", self.item))
        return {key: {name: features_of(dense) for name, dense in blocks.items()} for key, blocks in entities}


def features_of(dense: torch.Tensor) -> Features:
    """Features with the non-zero entries of a dense matrix."""
    rows, columns = dense.nonzero(as_tuple=True)
    names = [f"feature {f}" for f in range(dense.shape[1])]
    return Features.from_entries(rows, columns, dense[rows, columns], len(dense), names)


@pytest.fixture(scope="session")
def odd_features() -> DenseFeatures:
    """For users and for items a nearly full block of both signs, and one-hot features with empty rows."""
    generator = torch.Generator().manual_seed(2)

    def blocks(n_rows: int) -> dict[str, torch.Tensor]:
        full = torch.randn(n_rows, 3, generator=generator, dtype=torch.float64)
        full[torch.rand(full.shape, generator=generator) < 0.2] = 0
        # No row has label 5, and rows with label 0 have no feature.
        labels = torch.randint(0, 5, (n_rows,), generator=generator)
        one_hot = torch.nn.functional.one_hot(labels, 6).double()
        one_hot[labels == 0] = 0
        return {"full": full, "kind": one_hot}

    return DenseFeatures(blocks(11), blocks(13))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets that may not be in the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not at {folder}")
    return folder


class Output(NamedTuple):
    """The result of a command line: exit status and both outputs."""

    status: int
    out: str
    err: str


Cli = Callable[..., Output]
TrainRun = Callable[..., Path]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Runs `mfrec ARGUMENTS …` in this process."""
    from mfrec.cli.main import main  # most tests need none of its imports

    def call(*arguments: object, encoding: str = "utf-8") -> Output:
        # Like the streams of a process, and unlike a StringIO, these have an encoding.
        out = io.TextIOWrapper(io.BytesIO(), encoding, newline="")
        err = io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace", newline="")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main([str(argument) for argument in arguments])
            except SystemExit as stop:
                status = 0 if stop.code is None else stop.code
        for stream in (out, err):
            stream.seek(0)
        return Output(status, out.read(), err.read())

    return call


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like ml-latest-small's: 40 users, 30 films, 600 ratings of planted factors; read it only."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    users, films = torch.randn(40, 3, generator=generator), torch.randn(30, 3, generator=generator)
    stars = (3 + (users @ films.T) / 2).clamp(1, 5).round()
    pairs = [divmod(n, 30) for n in torch.randperm(1200, generator=generator)[:600].tolist()]
    titles = {film: f"Film {film} ({1980 + film})" for film in range(1, 31)}
    long = "Dr. Strangelove or: How I Learned to Stop Worrying and Love the Bomb, and What Became of It (1964)"
    titles |= {7: 'Amélie, or "Fate" (2001)', 8: "Seven Samurai (1954)", 9: long}
    ratings = [(u + 1, i + 1, stars[u, i].item(), 10**9 + n) for n, (u, i) in enumerate(pairs)]
    write_csv(folder / "ratings.csv", [("userId", "movieId", "rating", "timestamp"), *ratings])
    write_csv(
        folder / "movies.csv",
        [("movieId", "title", "genres"), *((i, t, "Drama|Film-Noir|Mystery") for i, t in titles.items())],
    )
    return folder


@pytest.fixture(scope="session")
def train_run(cli: Cli, tiny: Path) -> TrainRun:
    """Trains a small model on the tiny data; returns its run folder in `run_dir`."""

    def call(run_dir: Path, name: str, *options: object, solver: str = "sgd", epochs: int = 4) -> Path:
        # Step sizes that do not depend on the number of epochs.
        schedule = ("--lr-epochs", 8) if solver == "sgd" else ()
        # Without TensorBoard: drawing figures takes longer than training this model.
        place = ("--data", tiny, "--run-dir", run_dir, "--name", name, "--json", "--log-every", 0)
        size = ("--rank", 3, "--epochs", epochs, "--patience", 100, *schedule)
        output = cli("train", solver, *place, *size, *options)
        assert output.status == 0, output.err
        return run_dir / name

    return call


@pytest.fixture(scope="session")
def trained_run(train_run: TrainRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 epochs on the tiny data; read it only."""
    return train_run(tmp_path_factory.mktemp("runs"), "trained")


@pytest.fixture(scope="session")
def forkserver() -> Any:
    """A multiprocessing context whose processes start at once, since torch is already imported in them."""
    context = multiprocessing.get_context("forkserver")
    # What solvers, studies and loggers import when they are first used takes seconds too.
    lazily = ["mfrec.kernels.sgd", "scipy.optimize", "torch._dynamo", "matplotlib.figure", "torch.utils.tensorboard"]
    context.set_forkserver_preload(
        ["mfrec.cli.main", "mfrec.experiments.training", "optuna", "sqlalchemy.dialects.sqlite", *lazily]
    )
    return context


def write_csv(path: Path, rows: list[tuple[object, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path
