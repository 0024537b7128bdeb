"""Loggers: the lines of metrics.jsonl after kills and resumes, a plugin's logger, and the logs at the end of a run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfrec.data.synthetic import synthetic
from mfrec.errors import InputError
from mfrec.evaluation.metrics import METRICS, Metric
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.loggers import LOGGERS, JSONLinesLogger, Logger, check_loggers, open_loggers
from mfrec.experiments.run import Run
from mfrec.experiments.run_log import item_embedding
from mfrec.experiments.training import train

EPOCHS = 8


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; NaN is not JSON and is refused."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def log_epochs(folder: Path, epochs: range, resumed_at: int | None = None) -> None:
    logger = JSONLinesLogger(folder, resumed_at)
    for epoch in epochs:
        logger.scalars({"rmse/valid": 1 / (1 + epoch)}, epoch)
    logger.close()


def test_each_call_is_a_line_with_its_epoch(tmp_path):
    logger = JSONLinesLogger(tmp_path)
    logger.scalars({"rmse/train": 0.5, "rmse/valid": 0.1 + 0.2}, 0)
    logger.scalars({}, 1)
    logger.scalars({"lr": torch.tensor(0.25).double(), "cost/valid": math.nan, "cost/train": math.inf}, 2)
    logger.hyperparameters({"rank": 3}, {"final/rmse_test": 0.9}, 2)
    logger.close()
    assert read_lines(tmp_path) == [
        {"epoch": 0, "rmse/train": 0.5, "rmse/valid": 0.1 + 0.2},
        {"epoch": 2, "lr": 0.25, "cost/valid": None, "cost/train": None},
        {"epoch": 2, "final/rmse_test": 0.9},
    ]


def test_a_line_is_in_the_file_before_the_next_epoch(tmp_path):
    logger = JSONLinesLogger(tmp_path)
    for epoch in range(3):
        logger.scalars({"rmse/valid": 1.0}, epoch)
        assert [line["epoch"] for line in read_lines(tmp_path)] == list(range(epoch + 1))


@pytest.mark.parametrize("resumed_at", range(1, EPOCHS + 1))
def test_a_resumed_run_has_the_lines_of_one_that_never_stopped(tmp_path, resumed_at):
    log_epochs(tmp_path, range(EPOCHS + 1))
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    log_epochs(tmp_path, range(resumed_at + 1, EPOCHS + 1), resumed_at)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_a_run_resumed_at_epoch_0_starts_its_lines_anew(tmp_path):
    log_epochs(tmp_path, range(5))
    log_epochs(tmp_path, range(3), 0)
    assert [line["epoch"] for line in read_lines(tmp_path)] == [0, 1, 2]


def test_a_resumed_run_without_a_file_starts_one(tmp_path):
    log_epochs(tmp_path, range(5, 7), 4)
    assert [line["epoch"] for line in read_lines(tmp_path)] == [5, 6]


def test_final_values_are_dropped_when_a_run_is_resumed(tmp_path):
    log_epochs(tmp_path, range(5))
    logger = JSONLinesLogger(tmp_path, 4)
    logger.hyperparameters({}, {"final/rmse_test": 0.9}, 4)
    logger.close()
    log_epochs(tmp_path, range(5, 7), 4)
    assert [sorted(line) for line in read_lines(tmp_path)] == [["epoch", "rmse/valid"]] * 7


@given(st.integers(0, 400), st.integers(1, EPOCHS), st.sampled_from([b"", b"\x00\xff", b"[1]\n", b'{"epoch": "x"}\n']))
def test_a_kill_at_any_byte_neither_doubles_nor_loses_a_line(tmp_path_factory, cut, resumed_at, rubbish):
    folder = tmp_path_factory.mktemp("run")
    log_epochs(folder, range(EPOCHS + 1))
    path, whole = folder / "metrics.jsonl", (folder / "metrics.jsonl").read_bytes()
    # A checkpoint follows the lines of its epoch: the cut is after them.
    saved = b"".join(whole.splitlines(keepends=True)[: resumed_at + 1])
    path.write_bytes(whole[: max(cut, len(saved))] + rubbish)
    log_epochs(folder, range(resumed_at + 1, EPOCHS + 1), resumed_at)
    assert path.read_bytes() == whole


class FakeTracker:
    """A tracker's client that remembers its calls."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.points: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def start(self, name: str) -> FakeTracker:
        self.name = name
        return self

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.points.append((step, dict(values)))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> FakeTracker:
    """A fake tracker that is sent what the ten-line logger of the documentation logs."""
    tracker = FakeTracker()

    class TrackerLogger(Logger):
        def __init__(self, folder, resumed_at=None):
            self.run = tracker.start(folder.name)

        def scalars(self, values, epoch):
            self.run.log(values, step=epoch)

        def close(self):
            self.run.finish()

    monkeypatch.setitem(LOGGERS, "tracker", TrackerLogger)
    return tracker


@pytest.fixture(scope="module")
def dataset():
    return synthetic(40, 30, 600, generator=torch.Generator().manual_seed(0))


def config_for(folder: Path, **options: Any) -> ExperimentConfig:
    options = {
        "rank": 2,
        "epochs": EPOCHS,
        "lr_epochs": EPOCHS,
        "patience": 100,
        "log_every": 1,
        "loggers": ("jsonl",),
    } | options
    return ExperimentConfig.create("sgd", run_dir=str(folder), name="run", **options)


def test_a_plugin_s_logger_of_ten_lines_gets_every_epoch(tracker, dataset, tmp_path):
    train(config_for(tmp_path, loggers=("jsonl", "tracker")), dataset)
    lines = [line for line in read_lines(tmp_path / "run") if not any(tag.startswith("final/") for tag in line)]
    assert tracker.name == "run"
    assert tracker.finished == 1
    assert [step for step, _ in tracker.points] == list(range(EPOCHS + 1))
    assert [{"epoch": step, **values} for step, values in tracker.points] == lines
    assert {"rmse/train", "rmse/valid", "mae/valid", "cost/train", "lr"} <= set(tracker.points[-1][1])


def test_loggers_are_closed_when_a_training_fails(tracker, dataset, tmp_path):
    def interrupt(epoch: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config_for(tmp_path, loggers=("tracker",)), dataset, on_epoch=interrupt)
    assert tracker.finished == 1


def test_a_training_resumed_twice_logs_the_lines_of_one_that_never_stopped(dataset, tmp_path):
    train(config_for(tmp_path / "whole"), dataset)
    for epochs in (2, 5, EPOCHS):
        if epochs == 2:
            train(config_for(tmp_path / "resumed", epochs=epochs), dataset)
            continue
        run = Run.open(tmp_path / "resumed" / "run")
        train(run.config().updated(epochs=epochs), run=run)
    resumed, whole = (read_lines(tmp_path / name / "run") for name in ("resumed", "whole"))
    assert [line["epoch"] for line in whole] == [*range(EPOCHS + 1), EPOCHS]
    assert "final/rmse_test" in whole[-1]
    assert resumed == whole


def test_a_metric_added_to_the_table_is_logged_and_monitored(dataset, tmp_path, monkeypatch):
    def median_error(predictions: torch.Tensor, ratings: torch.Tensor) -> float:
        return float((predictions - ratings).abs().median())

    monkeypatch.setitem(METRICS, "median", Metric("median error", median_error))
    result = train(config_for(tmp_path, monitor="median"), dataset)
    lines = read_lines(tmp_path / "run")
    assert all({"median/train", "median/valid"} <= set(line) for line in lines[:-1])
    best = min(lines[1:-1], key=lambda line: line["median/valid"])
    assert (result.progress.best_epoch, result.progress.best_value) == (best["epoch"], best["median/valid"])
    assert lines[-1]["final/median_test"] == result.metrics["test"]["median"]


def test_a_monitored_ranking_metric_is_logged(dataset, tmp_path):
    result = train(config_for(tmp_path, monitor="ndcg@5"), dataset)
    curve = {line["epoch"]: line["ndcg@5/valid"] for line in read_lines(tmp_path / "run")[:-1]}
    assert list(curve) == list(range(EPOCHS + 1))
    assert result.progress.best_value == max(list(curve.values())[1:])


class Recording(Logger):
    """Remembers the names of its calls."""

    def __init__(self, wants_figures: bool) -> None:
        self.wants_figures = wants_figures
        self.calls: dict[str, tuple[Any, ...]] = {}

    def text(self, tag, text, epoch):
        self.calls[f"text {tag}"] = (text,)

    def figures(self, figures, epoch):
        self.calls["figures"] = (set(figures), epoch)

    def embedding(self, name, vectors, labels, epoch):
        self.calls["embedding"] = (name, vectors.shape, list(labels.columns)[:2], epoch)

    def hyperparameters(self, options, final, epoch):
        self.calls["hyperparameters"] = (options, final, epoch)


@pytest.mark.parametrize("wants_figures", [True, False])
def test_settings_come_first_and_figures_go_to_loggers_that_want_them(wants_figures, dataset):
    logger = Recording(wants_figures)
    config = ExperimentConfig.create("als", rank=2, epochs=2, run_dir=None)
    result = train(config, dataset, loggers=[logger], command="mfrec train als")
    drawn = ["figures", "embedding"] if wants_figures else []
    assert list(logger.calls) == ["text config", "text command", "text environment", *drawn, "hyperparameters"]
    assert logger.calls["text command"] == ("```\nmfrec train als\n```",)
    assert f"| torch | {torch.__version__} |" in logger.calls["text environment"][0]
    options, final, epoch = logger.calls["hyperparameters"]
    assert (options["solver"], options["rank"], epoch) == ("als", 2, 2)
    assert final["final/rmse_test"] == result.metrics["test"]["rmse"]
    if wants_figures:
        assert logger.calls["figures"] == (
            {"predicted_against_actual", "calibration", "error_by_popularity", "spectrum"},
            2,
        )
        assert logger.calls["embedding"] == ("item_factors", (30, 2), ["n_ratings", "id"], 2)


def test_the_embedding_s_labels_are_those_of_its_vectors(dataset):
    model = train(ExperimentConfig.create("als", rank=2, epochs=1, run_dir=None), dataset).posterior.mean_model()
    counts = dataset.ratings.item_counts
    vectors, labels = item_embedding(dataset, model, counts)
    assert labels["n_ratings"].tolist() == sorted(counts.tolist(), reverse=True)
    for vector, item_id in zip(vectors, labels["id"], strict=True):
        assert torch.equal(vector, model.item_factors.weight[dataset.item_index(item_id)])


def test_unknown_loggers_are_refused_with_a_suggestion(tmp_path):
    with pytest.raises(InputError, match="unknown logger 'tensorbord'; did you mean 'tensorboard'"):
        check_loggers(["jsonl", "tensorbord"])
    with pytest.raises(InputError, match="unknown logger"):
        open_loggers(["jsonl", "tensorbord"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_loggers_opened_before_one_that_fails_are_closed(tracker, tmp_path, monkeypatch):
    def broken(folder: Path, resumed_at: int | None) -> Logger:
        raise OSError("no connection")

    monkeypatch.setitem(LOGGERS, "broken", broken)
    with pytest.raises(OSError, match="no connection"):
        open_loggers(["tracker", "broken"], tmp_path)
    assert tracker.finished == 1


def test_the_table_of_loggers_imports_neither_torch_nor_tensorboard():
    check = "import sys, mfrec.experiments.loggers; print(*{'torch', 'tensorboard', 'pandas'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == ""
