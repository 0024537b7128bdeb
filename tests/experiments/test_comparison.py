"""The runs of a folder, however deep, in one frame; and what two of them differ in."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest
from training_examples import small_config, train_small

from mfrec.errors import InputError
from mfrec.evaluation.metrics import METRICS, Metric
from mfrec.experiments.comparison import difference, find_runs, overview
from mfrec.experiments.cross_validation import cross_validate, fold_names
from mfrec.experiments.run import Run
from mfrec.experiments.study import Study
from mfrec.solvers.base import SOLVERS


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two solvers, a study, folds, a run of another version, and other files; read it only."""
    folder = tmp_path_factory.mktemp("runs")
    train_small(tiny, folder, "short", epochs=1)
    train_small(tiny, folder, "long", epochs=6, l2=2.0)
    train_small(tiny, folder, "bayes", "vb")
    old = train_small(tiny, folder, "old", epochs=1)
    (old / "config.json").write_text('{"format": 4, "solver": "sgd"}')
    cross_validate(small_config(tiny, folder / "deep", "als", name="folds", epochs=1), fold_names(2))
    Study.create(small_config(tiny, folder, "als", name="study", epochs=1), trials=2).run()
    (folder / "notes.txt").write_text("not a run")
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text('{"name": "of another program"}')
    (folder / ".hidden").mkdir()
    shutil.copytree(folder / "short", folder / ".hidden" / "run")
    shutil.copytree(folder / "short", folder / "short" / "copy-in-a-run")
    return folder


def test_all_runs_are_found_however_deep(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        paths = [str(run.path.relative_to(folder)) for run in find_runs(folder)]
    best = next(folder.glob("study/best-trial-*")).name
    assert paths == [
        "bayes",
        "deep/folds/fold-1-of-2",
        "deep/folds/fold-2-of-2",
        "long",
        "short",
        f"study/{best}",
        "study/trial-0",
        "study/trial-1",
    ]
    assert "1 of 9 runs" in caplog.text
    assert "damaged, of another version, or lack a plugin; they are left out" in caplog.text


def test_the_overview_says_where_each_run_lies(folder: Path) -> None:
    frame = overview(folder).set_index("run")
    assert frame["folder"]["short"] == ""
    assert frame["folder"]["fold-1-of-2"] == "deep/folds"
    assert frame["folder"]["trial-1"] == "study"


def test_only_the_best_of_a_study_is_tested(folder: Path) -> None:
    study = overview(folder / "study")
    assert study["folder"].eq("").all()
    tested = study[study["test RMSE"].notna()]
    assert tested["run"].tolist() == [next(folder.glob("study/best-trial-*")).name]


def test_runs_are_listed_by_validation_error_then_those_without_one_by_test_error(folder: Path) -> None:
    frame = overview(folder)
    n = int(frame["valid RMSE"].notna().sum())
    assert frame["valid RMSE"][:n].is_monotonic_increasing
    assert frame["valid RMSE"][n:].isna().all()
    assert frame["test RMSE"][n:].is_monotonic_increasing
    bayes = frame.set_index("run").loc["bayes"]
    assert pd.isna(bayes["l2"])
    metrics = Run.open(folder / "short").metrics()
    short = frame.set_index("run").loc["short"]
    assert short["test MAE"] == metrics["test"]["mae"]
    assert short["seconds"] == metrics["fit_seconds"]
    assert short["epochs"] == 1


def test_metrics_of_the_table_have_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "worst", Metric("worst", lambda p, r: 0.0))
    assert {"valid RMSE", "test MAE", "valid worst"} <= set(overview(folder))


def test_a_run_that_has_not_ended_is_listed_without_figures(tiny: Path, tmp_path: Path) -> None:
    (train_small(tiny, tmp_path, "killed", epochs=1) / "metrics.json").unlink()
    (row,) = overview(tmp_path).to_dict("records")
    assert (row["run"], row["test RMSE"], row["epochs"]) == ("killed", None, None)


def test_a_run_with_damaged_figures_is_left_out(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train_small(tiny, tmp_path, "good", epochs=1)
    metrics = train_small(tiny, tmp_path, "damaged", epochs=1) / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"epochs": 1', '"epochs": 2'))
    with caplog.at_level(logging.WARNING):
        assert overview(tmp_path)["run"].tolist() == ["good"]
    assert "1 of 2 runs" in caplog.text


def test_a_run_folder_itself_is_a_folder_of_one_run(folder: Path) -> None:
    assert overview(folder / "short")["run"].tolist() == ["short"]


def test_the_difference_is_what_two_runs_differ_in_and_nothing_else(folder: Path) -> None:
    short, long = Run.open(folder / "short"), Run.open(folder / "long")
    frame = difference(short, long).set_index("what")
    assert frame.loc["l2"].tolist() == [SOLVERS["sgd"].defaults["l2"], 2.0]
    assert frame.loc["epochs"].tolist() == [1, 6]
    assert "test rmse" in frame.index
    assert not {"rank", "solver", "name", "run_dir", "data"} & set(frame.index)
    assert difference(long, long).empty


def test_runs_of_different_solvers_differ_in_the_solver_and_its_options(folder: Path) -> None:
    frame = difference(Run.open(folder / "short"), Run.open(folder / "bayes")).set_index("what")
    assert frame.loc["solver"].tolist() == ["sgd", "vb"]
    assert frame.loc["lr", "bayes"] is None


def test_runs_of_the_same_name_are_distinguished_by_their_paths(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder / "short", tmp_path / "short"))
    (tmp_path / "short" / "metrics.json").unlink()
    assert list(difference(Run.open(folder / "short"), Run.open(copy))) == ["what", str(folder / "short"), str(copy)]


def test_a_folder_without_runs_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} holds no runs; train one with mfrec train"):
        overview(tmp_path)


def test_a_folder_of_unusable_runs_says_so(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "old", tmp_path / "old")
    with pytest.raises(
        InputError, match=f"1 of 1 runs in {tmp_path} are damaged, of another version, or lack a plugin; train again"
    ):
        overview(tmp_path)


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(InputError, match="there is no folder nowhere"):
        overview("nowhere")
