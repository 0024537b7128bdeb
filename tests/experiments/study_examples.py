"""Studies for the tests, and processes that work on one until they are killed."""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from mfrec.experiments import loop
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.study import Study, StudyResult


def without_seconds(study: Study, result: StudyResult) -> dict[str, Any]:
    """What a study found, by trial, except how long it took and where it lies."""
    assert result.state == "done"
    assert result.metrics is not None
    trials = json.loads(result.trials.drop(columns="seconds").to_json(orient="records", double_precision=15))
    return {
        "trials": sorted(trials, key=lambda trial: trial["trial"]),
        "best": result.best_options,
        "value": result.best_value,
        "test": result.metrics["test"],
    }


def work(
    config: ExperimentConfig | None, folder: Path, fixed: set[str], trials: int, calls: tuple[str, ...] = ()
) -> None:
    """Create a study and work on it, or without a configuration resume it, saving every epoch.

    Args:
        calls: the process is killed when these were made, in this order.
    """
    loop.SAVE_SECONDS = loop.SAVE_SHARE = 0.0
    os.fsync = lambda descriptor: None  # as in `conftest.py`
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    awaited = list(calls)
    for call in set(calls):
        kill_after(call, awaited)
    from mfrec.experiments.interrupts import Interrupts

    study = Study.open(folder) if config is None else Study.create(config, fixed, trials)
    result = study.run(stop=Interrupts())
    sys.exit(130 if result.state == "interrupted" else 0)


def kill_after(call: str, awaited: list[str]) -> None:
    """Strike `call` from the head of `awaited` when it was made; kill this process when none is left.

    Args:
        call: such as "optuna:Study.ask", or "optuna:Trial.set_user_attr pruned" if "pruned" must be an argument.
    """
    path, _, argument = call.partition(" ")
    module, _, attributes = path.partition(":")
    *owners, name = attributes.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function = getattr(owner, name)

    def watched(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        if awaited[0] == call and (not argument or argument in arguments):
            awaited.pop(0)
            if not awaited:
                os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, watched)
