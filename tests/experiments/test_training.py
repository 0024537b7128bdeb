"""From a configuration to a trained model: files, refusals, loggers, and the same bits from the same seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from training_examples import assert_same_bits, assert_same_runs, small_config, train_small

from mfrec.data.dataset import Dataset
from mfrec.data.loading import load_dataset
from mfrec.data.splits import TEST, TRAIN, VALID
from mfrec.errors import InputError, OptionError
from mfrec.evaluation.metrics import METRICS, evaluate_splits
from mfrec.experiments import loop, session
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.interrupts import Interrupts
from mfrec.experiments.loggers import LOGGERS, Logger
from mfrec.experiments.loop import Diverged, Epoch
from mfrec.experiments.run import Run, load_run
from mfrec.experiments.training import label_splits, train
from mfrec.solvers.registry import SOLVERS


@pytest.fixture(scope="module")
def dataset(tiny: Path) -> Dataset:
    return load_dataset(str(tiny))


# Files.


def test_a_run_holds_its_options_data_model_and_figures(tiny: Path, tmp_path: Path) -> None:
    result = train(small_config(tiny, tmp_path, name="run"))
    run = Run.open(tmp_path / "run")
    assert run.config() == result.config
    assert run.metrics() == result.metrics
    saved, labels = run.dataset()
    assert torch.equal(labels, result.split_labels)
    assert torch.equal(saved.ratings.values, result.dataset.ratings.values)
    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoint.pt",
        "config.json",
        "dataset",
        "metrics.json",
        "split_labels.pt",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": "ndcg@10"}, "monitor must be an error such as rmse with partial tables"),
        ({"item_features": "genres"}, "partial_tables must be off for a model with features"),
    ],
)
def test_what_needs_all_rows_is_refused_with_partial_tables(options: dict[str, Any], message: str, tiny: Path) -> None:
    with pytest.raises(OptionError, match=message):
        session.check_partial_tables(small_config(tiny, None, solver="als", partial_tables=True, **options))


def test_without_a_run_dir_nothing_is_saved(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved = train(small_config(tiny, tmp_path / "runs", name="run"))
    unsaved = train(small_config(tiny, None, loggers=("tensorboard", "jsonl"), log_every=1))
    assert unsaved.run is None
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert_same_bits(saved.solver.model.state_dict(), unsaved.solver.model.state_dict(), "model")
    assert saved.metrics is not None
    assert unsaved.metrics is not None
    assert_same_bits(saved.metrics, unsaved.metrics, "metrics")


def test_the_metrics_are_those_of_the_model_on_each_split(tiny: Path) -> None:
    result = train(small_config(tiny, None))
    assert result.metrics is not None
    measured = evaluate_splits(result.solver.model, result.solver.objective, result.splits)
    assert {name: result.metrics[name] for name in measured} == measured
    assert measured["test"].keys() == {*METRICS, "cost"}
    assert (result.metrics["epochs"], result.metrics["n_ratings"], result.metrics["rank"]) == (4, 600, 3)


def test_bayesian_solvers_report_the_coverage_of_held_out_splits(tiny: Path) -> None:
    metrics = train(small_config(tiny, None, "vb", valid_fraction=0.1)).metrics
    assert metrics is not None
    assert "coverage_90" in metrics["test"]
    assert "coverage_90" in metrics["valid"]
    assert "coverage_90" not in metrics["train"]


def test_the_monitored_ranking_metric_is_in_the_final_figures(tiny: Path) -> None:
    result = train(small_config(tiny, None, monitor="ndcg@3"))
    assert result.metrics is not None
    assert result.metrics["valid"]["ndcg@3"] == result.progress.best_value
    assert result.metrics["monitor"] == "ndcg@3"


def test_runs_without_a_name_are_numbered(tiny: Path, tmp_path: Path) -> None:
    for _ in range(2):
        train(small_config(tiny, tmp_path, epochs=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-sgd-1", "tiny-sgd-2"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(solver: str, tiny: Path, tmp_path: Path) -> None:
    a, same, another = (
        train_small(tiny, tmp_path, name, solver, seed=seed) for name, seed in (("a", 5), ("same", 5), ("another", 6))
    )
    assert_same_runs(a, same)
    labels = [Run.open(run).dataset()[1] for run in (a, another)]
    assert not torch.equal(*labels)
    factors = [Run.open(run).checkpoint()["model"]["users.factors.weight"] for run in (a, another)]
    assert not torch.equal(*factors)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_result_and_the_loaded_run_answer_alike(solver: str, tiny: Path, tmp_path: Path) -> None:
    options = {"burn_in": 1} if solver == "gibbs" else {}
    result = train(small_config(tiny, tmp_path, solver, name="run", **options))
    a, b = result.trained_model(), load_run(tmp_path / "run")
    test = result.splits["test"]
    torch.testing.assert_close(a.model.predict_observed(test), b.model.predict_observed(test), rtol=0, atol=0)
    assert a.posterior.kind == b.posterior.kind
    assert a.posterior.has_std == b.posterior.has_std
    if a.posterior.has_std:
        stds = [model.posterior.std(test.users, test.items) for model in (a, b)]
        torch.testing.assert_close(*stds, rtol=0, atol=0)


def test_the_largest_number_of_epochs_is_logged_and_saved(tiny: Path, tmp_path: Path) -> None:
    epochs = 2**31 - 1
    done: list[Epoch] = []
    config = small_config(
        tiny, tmp_path, name="run", epochs=epochs, log_every=1, loggers=("tensorboard", "jsonl"), plugin=()
    )
    result = train(config, on_epoch=done.append, end_early=lambda: len(done) > 3)
    assert result.metrics is not None
    assert (done[-1].epochs, done[-1].number) == (epochs, 3)
    assert Run.open(tmp_path / "run").config().fit.epochs == epochs


# Splits.


def test_a_dataset_with_split_labels_is_split_by_them(dataset: Dataset, tiny: Path, tmp_path: Path) -> None:
    labels = (torch.arange(600) % 3).to(torch.uint8)
    labelled = dataclasses.replace(dataset, split_labels=labels)
    result = train(small_config(tiny, tmp_path, name="run"), labelled)
    assert torch.equal(result.split_labels, labels)
    assert {name: len(ratings) for name, ratings in result.splits.items()} == {"train": 200, "valid": 200, "test": 200}
    assert torch.equal(Run.open(tmp_path / "run").dataset()[1], labels)


def test_a_dataset_without_test_ratings_gives_no_test_figures(dataset: Dataset, tiny: Path) -> None:
    labels = (torch.arange(600) % 2).to(torch.uint8)
    metrics = train(small_config(tiny, None), dataclasses.replace(dataset, split_labels=labels)).metrics
    assert metrics is not None
    assert metrics["test"] is None


def test_splits_are_drawn_before_and_apart_from_the_initial_factors(dataset: Dataset, tiny: Path) -> None:
    """Labels that were drawn once give the same training when passed in."""
    config = small_config(tiny, None)
    labelled = dataclasses.replace(dataset, split_labels=label_splits(config, dataset))
    a, b = train(config, dataset), train(config, labelled)
    assert_same_bits(a.solver.model.state_dict(), b.solver.model.state_dict(), "model")


def test_the_default_validation_fraction_is_larger_for_the_embedded_data(dataset: Dataset, tiny: Path) -> None:
    embedded = load_dataset("ml-latest-small")
    counts = torch.bincount(label_splits(ExperimentConfig.create("als"), embedded))
    assert counts[[TRAIN, VALID, TEST]].tolist() == [80004, 10000, 10000]
    small = torch.bincount(label_splits(small_config(tiny, None, "als"), dataset))
    assert small[[TRAIN, VALID, TEST]].tolist() == [513, 27, 60]
    assert torch.bincount(label_splits(ExperimentConfig.create("als"), dataset)).tolist() == [513, 27, 60]


# Refusals.


@pytest.mark.parametrize(
    ("options", "option", "words"),
    [
        ({"rank": 0}, "rank", "at least 1 (got 0)"),
        ({"epochs": 0}, "epochs", "at least 1"),
        ({"epochs": 99999999999999999999}, "epochs", "(got 99999999999999999999)"),
        ({"lr": -1.0}, "lr", "positive"),
        ({"seed": -1}, "seed", "(got -1)"),
        ({"l2": math.nan}, "l2", "nan"),
        ({"solver": "als", "device": "cuda"}, "device", "not available"),
        ({"device": "cuda"}, "device", "must be cpu or auto for sgd; on a GPU use block-sgd"),
        ({"name": "a/b"}, "name", "folder name"),
        ({"name": ".."}, "name", "folder name"),
    ],
)
def test_a_wrong_option_is_named_without_flags_and_leaves_no_folder(
    options: dict[str, Any], option: str, words: str, tiny: Path, tmp_path: Path
) -> None:
    if option == "device" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(OptionError) as raised:
        train(small_config(tiny, tmp_path / "runs", **options))
    assert raised.value.option == option
    assert words in str(raised.value)
    assert "--" not in str(raised.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("solver", "options", "words"),
    [
        ("sgd", {"item_features": "nope"}, "nope"),
        ("sgd", {"loss": "hubber"}, "loss"),
        ("als", {"loss": "log-cosh"}, "als does not support"),
        ("sgd", {"split": "u1"}, "u1"),
        ("sgd", {"monitor": "rsme"}, "did you mean 'rmse'"),
        ("sgd", {"loggers": ("tensorbord",)}, "did you mean 'tensorboard'"),
        ("sgd", {"plugin": ("no_such_module",)}, "no_such_module"),
        ("sgd", {"data": "no-such-data"}, "no-such-data"),
        ("sgd", {"refit": True, "valid_fraction": 0.0}, "refit needs validation ratings"),
        ("vb", {"refit": True}, "refit cannot be used with vb, which runs all its epochs; leave it out"),
    ],
)
def test_a_wrong_combination_leaves_no_folder(
    solver: str, options: dict[str, Any], words: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words) as raised:
        train(small_config(tiny, tmp_path / "runs", solver, **options))
    assert "--" not in str(raised.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("solver", "options"),
    [("gd", {"lr": 10.0}), ("sgd", {"step": "plain", "lr": 5.0}), ("optim", {"optimizer": "sgd", "lr": 1.0})],
)
def test_divergence_in_the_first_epochs_leaves_no_folder(
    solver: str, options: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(Diverged, match="is too large; try"):
        train(small_config(tiny, tmp_path, solver, epochs=30, **options))
    assert list(tmp_path.iterdir()) == []


def test_a_monitor_that_the_validation_set_cannot_measure_leaves_no_folder(dataset: Dataset, tmp_path: Path) -> None:
    """A validation set without a liked item has no NDCG."""
    labels = torch.where(dataset.ratings.values < 2, VALID, TRAIN).to(torch.uint8)
    config = small_config(Path("tiny"), tmp_path, monitor="ndcg@3")
    with pytest.raises(InputError):
        train(config, dataclasses.replace(dataset, split_labels=labels))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_not_overwritten(tiny: Path, tmp_path: Path) -> None:
    run = train_small(tiny, tmp_path, "run")
    before = (run / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match="exists; choose another name"):
        train_small(tiny, tmp_path, "run")
    assert (run / "checkpoint.pt").read_bytes() == before


# Loggers.


class Recorder(Logger):
    """Keeps the names of what it gets."""

    wants_figures = True

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.final: Mapping[str, float] = {}
        self.options: Mapping[str, Any] = {}
        self.closed = False

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        self.calls.append("scalars")

    def histograms(self, model: Any, epoch: int) -> None:
        self.calls.append("histograms")

    def text(self, tag: str, text: str, epoch: int) -> None:
        self.calls.append(f"text {tag}")

    def figures(self, figures: Any, epoch: int) -> None:
        self.calls.append("figures")

    def hyperparameters(self, options: Mapping[str, Any], final: Mapping[str, float], epoch: int) -> None:
        self.options, self.final = options, final

    def close(self) -> None:
        self.closed = True


def test_given_loggers_get_everything_and_stay_open(tiny: Path) -> None:
    recorder = Recorder()
    result = train(small_config(tiny, None, log_every=2), loggers=[recorder])
    assert result.metrics is not None
    assert recorder.calls.count("scalars") == 5
    assert recorder.calls.count("histograms") == 3
    assert {"text config", "text command", "text environment", "figures"} <= set(recorder.calls)
    assert recorder.final["final/rmse_test"] == result.metrics["test"]["rmse"]
    assert recorder.options["rank"] == 3
    assert recorder.options["solver"] == "sgd"
    assert "run_dir" not in recorder.options
    assert not recorder.closed


def test_a_configured_logger_is_opened_in_the_run_folder_and_closed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[Path, int | None]] = []
    recorder = Recorder()
    monkeypatch.setitem(LOGGERS, "mine", lambda folder, resumed_at: opened.append((folder, resumed_at)) or recorder)
    train(small_config(tiny, tmp_path, name="run", loggers=("mine",)))
    assert opened == [(tmp_path / "run", None)]
    assert recorder.closed


def test_log_every_0_turns_tensorboard_off_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    run = train_small(tiny, tmp_path, "run", loggers=("tensorboard", "jsonl"))
    assert (run / "metrics.jsonl").exists()
    assert not list(run.glob("events*"))


# Ending.


def test_stop_interrupts_without_figures(tiny: Path, tmp_path: Path) -> None:
    done: list[Epoch] = []
    result = train(small_config(tiny, tmp_path, name="run"), on_epoch=done.append, stop=lambda: len(done) > 2)
    assert result.interrupted
    assert result.metrics is None
    assert result.progress.epoch == 2
    assert not Run.open(tmp_path / "run").has_metrics()


def test_a_stop_in_the_last_epoch_interrupts_nothing(tiny: Path) -> None:
    done: list[Epoch] = []
    result = train(small_config(tiny, None, epochs=3), on_epoch=done.append, stop=lambda: len(done) > 3)
    assert not result.interrupted


def test_end_early_ends_with_figures(tiny: Path) -> None:
    done: list[Epoch] = []
    result = train(small_config(tiny, None), on_epoch=done.append, end_early=lambda: len(done) > 2)
    assert result.metrics is not None
    assert result.metrics["epochs"] == 2


def test_the_first_signal_asks_and_the_second_interrupts() -> None:
    import signal

    announced: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    interrupts = Interrupts(lambda: announced.append("finishing"))
    with interrupts.listening():
        assert not interrupts()
        signal.raise_signal(signal.SIGTERM)
        assert interrupts()
        assert announced == ["finishing"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert announced == ["finishing"]


def test_signals_are_held_back_during_epochs_only(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    def interrupted(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)

    names = ("training.load_configured", "training.label_splits", "session.Session.finish")
    for name in names:
        with monkeypatch.context() as patch:
            patch.setattr(f"mfrec.experiments.{name}", interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(small_config(tiny, tmp_path), stop=Interrupts())
    result = train(small_config(tiny, tmp_path), stop=Interrupts(), on_epoch=interrupted)
    assert result.interrupted


def test_a_run_within_its_refit_has_no_model_yet(tiny: Path, tmp_path: Path) -> None:
    config = small_config(tiny, tmp_path).updated(refit=True)
    refits: list[Epoch] = []
    result = train(
        config, on_epoch=lambda epoch: refits.append(epoch) if epoch.refit else None, stop=lambda: bool(refits)
    )
    assert result.interrupted
    assert result.run is not None
    with pytest.raises(InputError, match="its refit has not ended; resume it"):
        load_run(result.run.path)
    assert train(result.config, run=result.run).metrics is not None
    assert load_run(result.run.path).model.rank == config.model.rank


def test_a_split_of_files_excludes_another_split(tiny: Path, tmp_path: Path) -> None:
    config = small_config(tiny, tmp_path).updated(test_data="test.csv")
    for option, value in {"split": "time", "test_fraction": 0.2}.items():
        with pytest.raises(InputError, match=f"{option} cannot be used with test_data"):
            train(config.updated(**{option: value}))


def test_training_measures_by_the_tables_that_modules_share() -> None:
    """Loop and session evaluate by the same function, so that a metric of a plugin is in curves and in figures."""
    assert loop.evaluate_monitored is session.evaluate_monitored
