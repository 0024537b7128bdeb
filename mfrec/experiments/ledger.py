"""The ledger: the accuracy figures that mfrec publishes, each with everything that reproduces it.

An entry names a data set, its splits, and one or several trainings.  The predictions of several trainings are averaged.
`mfrec reproduce NAME` measures an entry, and `benchmarks/accuracy.py` measures them next to other packages.

All options are defaults, or were chosen on validation ratings taken from the training set.  No choice looked at a test
set.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.data.downloads import path_of
from mfrec.data.ids import indices_of
from mfrec.data.loading import load_dataset
from mfrec.data.readers import read_raw_tables
from mfrec.data.splits import TEST, TRAIN, split_by_labels
from mfrec.errors import OptionError, unknown
from mfrec.evaluation.metrics import mae, rmse
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.training import train

SEEDS, FOLDS_OF_ROWS = (0, 1, 2), 10
FOLDS = ("u1", "u2", "u3", "u4", "u5")

Options = Mapping[str, Any]


class Training(NamedTuple):
    """A solver and its options, without data, split and seed."""

    solver: str
    options: Options

    def command(self) -> str:
        """The solver and its options as on a command line.

        Examples:
            >>> Training("sgd", {"item_features": "genres,year", "item_ids": False}).command()
            'sgd --item-features genres,year --no-item-ids'
        """
        words = [self.solver]
        for name, value in self.options.items():
            words.append(f"--{'no-' * (value is False)}{name.replace('_', '-')}")
            words += [] if isinstance(value, bool) else [str(value)]
        return " ".join(words)


@dataclass(frozen=True)
class Task:
    """A data set and the test sets on which the mean of a figure is taken.

    Attributes:
        data: a named data set; None if its files must be given.
        repeats: the options that differ between the trainings of the mean: seeds or splits.
        kfold: whether the test set is the first of ten folds of the file's rows, shuffled by numpy's
            RandomState(0): scikit-learn's KFold(10, shuffle=True, random_state=0), as myFM's examples split.
        description: the split in words.
    """

    data: str | None
    repeats: tuple[Options, ...]
    description: str
    kfold: bool = False


@dataclass(frozen=True)
class Entry:
    """A figure of the ledger.

    Attributes:
        task: a name in `TASKS`.
        trainings: those whose predictions are averaged.
        sees: what the model sees besides the training ratings, in words.
    """

    task: str
    trainings: tuple[Training, ...]
    sees: str = ""


class Predictions(NamedTuple):
    """The predictions of the test ratings by one training, (n_test,), the test ratings, and the seconds of fit."""

    predicted: Tensor
    observed: Tensor
    seconds: float


class Measurement(NamedTuple):
    """One test set of an entry: its split or seed, the errors of the averaged predictions, and the seconds of fit."""

    repeat: str
    rmse: float
    mae: float
    seconds: float


def _seeds(split: str = "random") -> tuple[Options, ...]:
    return tuple({"split": split, "seed": seed} for seed in SEEDS)


TASKS: dict[str, Task] = {
    "ml-100k-u1": Task("ml-100k", _seeds("u1"), "official split u1, seeds 0 to 2"),
    "ml-100k-folds": Task("ml-100k", tuple({"split": fold} for fold in FOLDS), "official folds u1 to u5"),
    "ml-latest-small": Task("ml-latest-small", _seeds(), "random 90/10, seeds 0 to 2"),
    "ml-1m": Task("ml-1m", _seeds(), "random 90/10, seeds 0 to 2"),
    "ml-1m-fold": Task("ml-1m", ({},), "the first fold of KFold(10, shuffle=True, random_state=0)", kfold=True),
    "ml-10m": Task("ml-10m", _seeds(), "random 90/10, seeds 0 to 2"),
    "ml-20m": Task("ml-20m", _seeds(), "random 90/10, seeds 0 to 2"),
    "netflix": Task(None, _seeds(), "random 90/10, seeds 0 to 2"),
}

IMPLICIT: Options = {"implicit": "both"}
GENRES: Options = {**IMPLICIT, "item_features": "genres,year"}
ALL: Options = {**GENRES, "user_features": "age,gender,occupation"}
SESSIONS: Options = {"sessions": True}
ORDINAL: Options = {"likelihood": "ordinal", "rank": 16}
TIMES = "times of ratings"


def _entries() -> Iterator[tuple[str, Entry]]:
    features = {"ml-100k-u1": ALL, "ml-100k-folds": ALL, "ml-latest-small": GENRES, "ml-1m": ALL, "ml-1m-fold": ALL}
    features |= {"ml-10m": GENRES, "ml-20m": GENRES, "netflix": IMPLICIT}
    ranks: dict[str, Options] = {"ml-1m": {"rank": 64}, "ml-1m-fold": {"rank": 64}}
    ranks |= {"ml-10m": {"rank": 128}, "ml-20m": {"rank": 128}, "netflix": {"rank": 128}}
    for task, options in features.items():
        tables = "user and item tables" if "user_features" in options else "item table"
        sees = tables if "item_features" in options else ""
        options = {**ranks.get(task, {}), **options}
        gibbs = Training("gibbs", options)
        yield f"{task}/gibbs", Entry(task, (gibbs,), sees)
        if task == "ml-1m-fold":
            continue
        timed = Training("gibbs", {**options, **SESSIONS})
        sees = f"{sees}, {TIMES}" if sees else TIMES
        yield f"{task}/sessions", Entry(task, (timed,), sees)
        ordinal = Training("gibbs", {**timed.options, **ORDINAL})
        yield f"{task}/ensemble", Entry(task, (timed, ordinal), sees)


LEDGER: dict[str, Entry] = dict(_entries())


def entry_named(name: str) -> Entry:
    """The entry of the ledger with this name.

    Raises:
        InputError: there is none.
    """
    if name not in LEDGER:
        raise unknown("entry", name, LEDGER)
    return LEDGER[name]


def task_dataset(entry: Entry, data: str | None = None) -> Dataset:
    """The data of an entry's task, or other data in their place.

    Args:
        data: a path or a named data set, instead of the task's.

    Raises:
        InputError: the task's data must be given, or cannot be read.
    """
    task = TASKS[entry.task]
    name = task.data if data is None else data
    if name is None:
        raise OptionError("data", f"must be the path of the ratings: {entry.task} cannot be downloaded (got None)")
    dataset = load_dataset(name)
    return _with_first_fold(dataset, name) if task.kfold else dataset


def reproduce(
    entry: Entry,
    dataset: Dataset,
    *,
    repeats: Sequence[Options] | None = None,
    on_measured: Callable[[Measurement], object] | None = None,
    trained: dict[str, Predictions] | None = None,
) -> list[Measurement]:
    """Measure an entry: train on each of its splits, average the predictions, and compare them with the test ratings.

    Args:
        dataset: see `task_dataset`.
        repeats: options of the trainings of the mean, instead of the task's.
        on_measured: called after each test set.
        trained: predictions of earlier trainings, which are not repeated; new ones are added.

    Raises:
        InputError: the data lack the split, the tables or the timestamps of the entry.
    """
    measured = []
    for repeat in TASKS[entry.task].repeats if repeats is None else repeats:
        measured.append(_measure(entry, dataset, repeat, {} if trained is None else trained))
        if on_measured is not None:
            on_measured(measured[-1])
    return measured


def _measure(entry: Entry, dataset: Dataset, repeat: Options, trained: dict[str, Predictions]) -> Measurement:
    members = []
    for training in entry.trainings:
        key = f"{entry.task} {training.command()} {dict(repeat)}"
        if key not in trained:
            trained[key] = _predictions(training, dataset, repeat)
        members.append(trained[key])
    mean, observed = torch.stack([member.predicted for member in members]).mean(0), members[0].observed
    name = ", ".join(f"{key} {value}" for key, value in repeat.items())
    seconds = sum(member.seconds for member in members)
    return Measurement(name, rmse(mean, observed), mae(mean, observed), seconds)


def _predictions(training: Training, dataset: Dataset, repeat: Options) -> Predictions:
    config = ExperimentConfig.create(training.solver, **training.options, **repeat, run_dir=None)
    result = train(config, dataset)
    assert result.metrics is not None
    test = split_by_labels(dataset.ratings, result.split_labels)["test"]
    predicted = result.predictive.mean_model().predict_observed(test, clip=True)
    return Predictions(predicted, test.values, result.metrics["fit_seconds"])


def _with_first_fold(dataset: Dataset, data: str) -> Dataset:
    """The dataset with the first of ten folds of the file's rows as its test set; see `Task.kfold`."""
    rows = read_raw_tables(path_of(data)).ratings
    order = np.arange(len(rows))
    RandomState(0).shuffle(order)
    held_out = rows.iloc[np.sort(order[: -(-len(rows) // FOLDS_OF_ROWS)])]
    users, items = indices_of(dataset.user_ids, held_out["user"]), indices_of(dataset.item_ids, held_out["item"])
    ratings = dataset.ratings
    keys = ratings.users.long() * ratings.n_items + ratings.items
    is_test = torch.isin(keys, torch.from_numpy(users * ratings.n_items + items))
    return dataclasses.replace(dataset, split_labels=torch.where(is_test, TEST, TRAIN).to(torch.uint8))


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the standard deviation; None for a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
