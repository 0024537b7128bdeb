"""`mfrec cv`: every rating is tested once, each fold is a run like any other, and the mean is theirs."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch
from conftest import Mfrec

from mfrec.experiments.run import Run
from mfrec.experiments.training import TEST

FAST = ("--rank", 2, "--epochs", 2)


@pytest.fixture(scope="module")
def validated(mfrec: Mfrec, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The folder of three folds, and what was printed of them as JSON."""
    place = ("--data", tiny, "--run-dir", tmp_path_factory.mktemp("runs"), "--seed", 3)
    said = mfrec("cv", "als", "--folds", 3, *FAST, *place, "--json")
    assert said.status == 0, said.err
    found = json.loads(said.out)
    return Path(found["runs"]), found


def test_the_folds_part_the_ratings_between_them(validated: tuple[Path, dict[str, object]]) -> None:
    folder, _ = validated
    parts = [Run.open(folder / f"fold-{n}-of-3").dataset()[1] == TEST for n in (1, 2, 3)]
    assert torch.equal(sum(part.int() for part in parts), torch.ones(600, dtype=torch.int32))
    assert [int(part.sum()) for part in parts] == [200, 200, 200]


def test_the_mean_and_its_spread_are_those_of_the_runs(validated: tuple[Path, dict[str, object]]) -> None:
    folder, found = validated
    figures = [Run.open(folder / f"fold-{n}-of-3").metrics()["test"]["rmse"] for n in (1, 2, 3)]
    assert [fold["rmse"] for fold in found["folds"]] == figures
    assert found["rmse"] == {"mean": statistics.mean(figures), "deviation": statistics.stdev(figures)}
    assert found["seed"] == 3


def test_a_fold_is_what_training_on_that_split_gives(
    validated: tuple[Path, dict[str, object]], mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    folder, _ = validated
    again = ("--data", tiny, "--seed", 3, "--split", "fold-2-of-3", "--run-dir", tmp_path, "--name", "again")
    assert mfrec("train", "als", *FAST, *again).status == 0
    ours, theirs = (Run.open(path).metrics() for path in (tmp_path / "again", folder / "fold-2-of-3"))
    assert ours["test"] == theirs["test"]


def test_the_folds_are_listed_and_their_mean_is_shown(
    validated: tuple[Path, dict[str, object]], mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    assert len(json.loads(mfrec("runs", validated[0], "--json").out)) == 3
    said = mfrec("cv", "vb", "--folds", 2, *FAST, "--data", tiny, "--run-dir", tmp_path, "--name", "mine")
    assert "±" in said.out
    assert f"tensorboard --logdir {tmp_path / 'mine'}" in said.out


@pytest.mark.parametrize(("arguments", "words"), [
    (("--folds", 1), "folds '1' cannot be"),
    (("--folds",), "--folds lacks its value"),
    (("--folds", 3, "--split", "u1..u5"), "give one of them"),
    (("--split", "random"), "is one part, not folds"),
    (("--split", "u1..u5"), "no official split 'u1'"),
    (("--test-fraction", 0.2), "--test-fraction has no place"),
    (("alss",), "did you mean 'als'"),
    (("als", "--rnk", 3), "did you mean --rank"),
    (("als", "--folds", 1000), "1000 folds of 600 ratings"),
    (("als", "--rank", 0), "rank 0 leaves no factors"),
])  # fmt: skip
def test_what_cannot_be_cross_validated_is_refused_and_leaves_nothing(
    arguments: tuple[object, ...], words: str, mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    own = arguments if arguments == ("--folds",) else (*arguments, "--data", tiny, "--run-dir", tmp_path)
    said = mfrec("cv", *own)
    assert (said.status, said.out) == (2, ""), said
    assert words in said.err
    assert not list(tmp_path.iterdir())


def test_a_fold_that_is_not_one_of_so_many_is_refused(mfrec: Mfrec, tiny: Path, tmp_path: Path) -> None:
    said = mfrec("train", "als", "--data", tiny, "--split", "fold-4-of-3", "--run-dir", tmp_path)
    assert "there is no fold 4 of 3" in said.err
