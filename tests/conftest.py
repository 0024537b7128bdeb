"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings

from mfrec.ratings import Ratings

# How long an example takes says nothing here: the first call of torch takes a second.
settings.register_profile("mfrec", deadline=None)
settings.load_profile("mfrec")


@pytest.fixture(scope="session")
def odd_ratings() -> Ratings:
    """11 users × 13 items in float64; users 3 and 10 and items 0 and 12 have no rating."""
    generator = torch.Generator().manual_seed(0)
    observed = torch.rand(13, 11, generator=generator) < 0.4
    observed[[0, 12]] = False
    observed[:, [3, 10]] = False
    return Ratings.from_dense(torch.randn(13, 11, generator=generator, dtype=torch.float64), observed)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets that may not be in the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not at {folder}")
    return folder


class Said(NamedTuple):
    """What a command line answered."""

    status: int
    out: str
    err: str


Mfrec = Callable[..., Said]
Train = Callable[..., Path]


@pytest.fixture(scope="session")
def mfrec() -> Mfrec:
    """`mfrec ARGUMENTS …` in this process."""
    from mfrec.cli import main  # most rooms' tests need none of what it imports

    def call(*arguments: object, encoding: str = "utf-8") -> Said:
        # Like those of a process, and unlike a StringIO, these know an encoding.
        out = io.TextIOWrapper(io.BytesIO(), encoding, newline="")
        err = io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace", newline="")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main([str(argument) for argument in arguments])
            except SystemExit as stop:
                status = 0 if stop.code is None else stop.code
        for stream in (out, err):
            stream.seek(0)
        return Said(status, out.read(), err.read())

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
def train(mfrec: Mfrec, tiny: Path) -> Train:
    """Train a small model on the tiny data and give the run folder that it leaves in `run_dir`."""

    def call(run_dir: Path, name: str, *options: object, solver: str = "sgd", epochs: int = 4) -> Path:
        blocks = ("--blocks", 2, 2) if solver == "sgd" else ()
        place = ("--data", tiny, "--run-dir", run_dir, "--name", name, "--json")
        size = ("--rank", 3, "--epochs", epochs, "--patience", 100, *blocks)
        said = mfrec("train", solver, *place, *size, *options)
        assert said.status == 0, said.err
        return run_dir / name

    return call


@pytest.fixture(scope="session")
def trained(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 epochs on the tiny data; read it only."""
    return train(tmp_path_factory.mktemp("runs"), "trained")


def write_csv(path: Path, rows: list[tuple[object, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path
