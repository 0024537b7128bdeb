"""Small configurations, and comparisons of runs, for the tests of experiments."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.run import Run
from mfrec.experiments.training import TrainingResult, train

WAIT_SECONDS = 60.0


def small_config(folder: Path, run_dir: Path | None, solver: str = "sgd", **options: Any) -> ExperimentConfig:
    """A small training on the data of a folder that never runs out of patience and logs nothing."""
    # Step sizes that do not depend on the number of epochs.
    schedule = {"lr_epochs": 8} if solver == "sgd" else {}
    size = {"rank": 3, "epochs": 4, "patience": 100} | schedule
    place = {"data": str(folder), "run_dir": None if run_dir is None else str(run_dir), "log_every": 0, "loggers": ()}
    return ExperimentConfig.create(solver, **size, **place).updated(**options)


def train_small(folder: Path, run_dir: Path, name: str, solver: str = "sgd", **options: Any) -> Path:
    """The folder of a small run."""
    train(small_config(folder, run_dir, solver, name=name, **options))
    return run_dir / name


def resume(path: Path, **changes: Any) -> TrainingResult:
    """Resume a run with changed options."""
    run = Run.open(path)
    return train(run.config().updated(**changes), run=run)


def epochs_done(path: Path) -> int:
    return Run.open(path).checkpoint()["progress"]["epoch"]


def assert_same_bits(a: Any, b: Any, where: str) -> None:
    """Two states hold the same tensors, numbers and strings, except the seconds they took."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds", "fit_seconds"}:
            assert_same_bits(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_bits(x, y, f"{where}[{index}]")
    else:
        assert a == b, where


def assert_same_runs(a: Path, b: Path) -> None:
    """Two runs have the same checkpoint and the same final figures."""
    assert_same_bits(*(torch.load(run / "checkpoint.pt", weights_only=True) for run in (a, b)), "checkpoint")
    assert_same_bits(*(json.loads((run / "metrics.json").read_text()) | {"checksum": ""} for run in (a, b)), "metrics")


def assert_no_temporary_files(folder: Path) -> None:
    assert [path.name for path in folder.iterdir() if path.name.startswith(".") or "tmp" in path.name] == []


def wait_until(happened: Callable[[], bool], alive: Callable[[], bool], event: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert alive(), f"the training ended before: {event}"
        assert time.monotonic() < deadline, f"did not happen within {WAIT_SECONDS:g} s: {event}"
        time.sleep(0.01)
