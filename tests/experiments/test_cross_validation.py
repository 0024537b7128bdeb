"""Every rating is tested once, each fold is a run like any other, and the mean is theirs."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from training_examples import small_config

from mfrec.data.loading import load_dataset
from mfrec.data.splits import TEST
from mfrec.errors import InputError
from mfrec.evaluation.metrics import METRICS
from mfrec.experiments.cross_validation import CrossValidation, cross_validate, fold_names
from mfrec.experiments.run import Run
from mfrec.experiments.training import train

FAST: dict[str, Any] = {"rank": 2, "epochs": 2, "seed": 3}


@pytest.fixture(scope="module")
def validated(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossValidation:
    return cross_validate(small_config(tiny, tmp_path_factory.mktemp("runs"), "als", **FAST), fold_names(3))


def runs_of(result: CrossValidation) -> list[Run]:
    assert result.folder is not None
    return [Run.open(result.folder / f"fold-{number}-of-3") for number in (1, 2, 3)]


def test_the_folds_split_the_ratings_between_them(validated: CrossValidation) -> None:
    tested = [run.dataset()[1] == TEST for run in runs_of(validated)]
    assert torch.equal(torch.stack(tested).sum(0), torch.ones(600, dtype=torch.int64))
    assert [int(mask.sum()) for mask in tested] == [200, 200, 200]


def test_the_frame_has_a_row_for_each_fold_with_the_figures_of_its_run(validated: CrossValidation) -> None:
    metrics = [run.metrics() for run in runs_of(validated)]
    assert list(validated.folds) == ["fold", *METRICS, "epochs", "seconds"]
    assert validated.folds["fold"].tolist() == ["fold-1-of-3", "fold-2-of-3", "fold-3-of-3"]
    for name in METRICS:
        assert validated.folds[name].tolist() == [values["test"][name] for values in metrics]
    assert validated.folds["epochs"].tolist() == [2, 2, 2]


def test_the_summary_is_the_mean_and_the_standard_deviation_of_the_folds(validated: CrossValidation) -> None:
    values = validated.folds["rmse"].tolist()
    assert validated.summary()["rmse"] == {"mean": statistics.mean(values), "std": statistics.stdev(values)}
    assert validated.summary().keys() == METRICS.keys()


def test_a_fold_matches_a_training_on_that_split(validated: CrossValidation, tiny: Path) -> None:
    again = train(small_config(tiny, None, "als", split="fold-2-of-3", **FAST)).metrics
    assert again is not None
    assert again["test"] == runs_of(validated)[1].metrics()["test"]


def test_nothing_is_saved_without_a_run_dir(validated: CrossValidation, tiny: Path) -> None:
    result = cross_validate(small_config(tiny, None, "als", **FAST), fold_names(3))
    assert result.folder is None
    columns = ["fold", *METRICS]
    assert result.folds[columns].equals(validated.folds[columns])


def test_folds_ignore_the_split_that_data_come_with(validated: CrossValidation, tiny: Path) -> None:
    labels = torch.ones(600, dtype=torch.uint8)
    dataset = dataclasses.replace(load_dataset(str(tiny)), split_labels=labels)
    result = cross_validate(small_config(tiny, None, "als", **FAST), fold_names(3), dataset)
    assert result.folds["rmse"].equals(validated.folds["rmse"])


def test_the_folder_is_named_by_data_and_solver(tiny: Path, tmp_path: Path) -> None:
    for _ in range(2):
        cross_validate(small_config(tiny, tmp_path, "als", rank=2, epochs=1), fold_names(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-als-cv-1", "tiny-als-cv-2"]


def test_stop_ends_it_with_the_folds_that_are_done(tiny: Path, tmp_path: Path) -> None:
    done: list[str] = []
    result = cross_validate(
        small_config(tiny, tmp_path, "als", **FAST),
        fold_names(3),
        on_fold=lambda name, fold: done.append(name),
        stop=lambda: bool(done),
    )
    assert (result.interrupted, done) == ("fold-2-of-3", ["fold-1-of-3"])
    assert result.folds["fold"].tolist() == ["fold-1-of-3"]


@pytest.mark.parametrize(
    ("split_names", "options", "words"),
    [
        (["random"], {}, "at least two different splits .got random"),
        ([], {}, "got none"),
        (["u1", "u1"], {}, "two different splits"),
        (["u1", "u2"], {}, "no official split 'u1'"),
        (["fold-1-of-1000", "fold-2-of-1000"], {}, "number of folds"),
        (["fold-4-of-3", "fold-5-of-3"], {}, "fold"),
        (["fold-1-of-2", "fold-2-of-2"], {"rank": 0}, "rank must be at least 1"),
        (["fold-1-of-2", "fold-2-of-2"], {"item_features": "nope"}, "nope"),
        (["fold-1-of-2", "fold-2-of-2"], {"test_data": "a.csv"}, "test_data cannot be used in cross-validation"),
    ],
)
def test_what_cannot_be_cross_validated_is_refused_and_leaves_nothing(
    split_names: list[str], options: dict[str, Any], words: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words) as raised:
        cross_validate(small_config(tiny, tmp_path, "als", **options), split_names)
    assert "--" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_one_fold_is_refused() -> None:
    with pytest.raises(InputError, match=r"folds must be at least 2 \(got 1\)"):
        fold_names(1)
