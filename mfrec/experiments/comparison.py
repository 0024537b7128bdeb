"""The runs of a folder side by side: all of them in one frame, and what two of them differ in."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from mfrec.data.splits import SPLIT_NAMES
from mfrec.errors import InputError
from mfrec.evaluation.metrics import METRICS
from mfrec.experiments.run import CONFIG, DATASET, Run
from mfrec.solvers.base import SOLVERS

logger = logging.getLogger("mfrec")


def find_runs(folder: str | Path) -> list[Run]:
    """Find the runs in a folder, however deep: those of studies and of cross-validations too.

    Runs that cannot be used are left out, with a warning: damaged ones, those of another version, and those whose
    plugin is missing.

    Raises:
        InputError: the folder does not exist or holds no runs.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give a folder of runs")
    candidates = [_usable_run(path) for path in _run_folders(folder)]
    runs = [run for run in candidates if run is not None]
    n_unusable = len(candidates) - len(runs)
    unusable = f"{n_unusable} of {len(candidates)} runs in {folder} are damaged, of another version, or lack a plugin"
    if not runs:
        raise InputError(
            f"{unusable}; train again" if n_unusable else f"{folder} holds no runs; train one with mfrec train"
        )
    if n_unusable:
        logger.warning("%s; they are left out", unusable)
    return runs


def overview(folder: str | Path) -> pd.DataFrame:
    """The runs of a folder, one row each: lowest validation RMSE first, then those without one by test RMSE.

    Returns:
        a frame with the columns run (the folder's name), folder (where it lies, relative to the one given: the name
        of a study, say; "" for a run that lies right in it), solver, data, split, seed, rank, l2, epochs, seconds,
        and "valid RMSE", "test RMSE", … for each metric in `METRICS`.  What a run does not have is None or NaN.

    Raises:
        InputError: the folder does not exist or holds no runs.
    """
    rows = [_row(run, Path(folder)) for run in find_runs(folder)]
    metric = next(iter(METRICS.values()))
    order = [f"{split} {metric.label}" for split in ("valid", "test")]
    return pd.DataFrame(rows).sort_values(
        order, ascending=not metric.higher_is_better, na_position="last", kind="stable", ignore_index=True
    )


def difference(first: Run, second: Run) -> pd.DataFrame:
    """The options and final figures that differ between two runs, one row each.

    Returns:
        a frame with the columns "what" and the two runs' names, or their paths if the names are equal.

    Raises:
        InputError: a file of a run is damaged.
    """
    entries = [_options_and_figures(run) for run in (first, second)]
    names = [name for name in entries[0] | entries[1] if entries[0].get(name) != entries[1].get(name)]
    titles = [run.path.name if first.path.name != second.path.name else str(run.path) for run in (first, second)]
    values = {title: [run.get(name) for name in names] for title, run in zip(titles, entries, strict=True)}
    return pd.DataFrame({"what": names} | values, dtype=object)


def _usable_run(path: Path) -> Run | None:
    try:
        run = Run.open(path)
        run.config()
        if run.has_metrics():
            run.metrics()
    except InputError:
        return None
    return run


def _row(run: Run, folder: Path) -> dict[str, Any]:
    config, metrics = run.config(), run.metrics() if run.has_metrics() else {}
    parent = run.path.parent.relative_to(folder) if run.path != folder else Path()
    return {
        "run": run.path.name,
        "folder": "" if parent == Path() else str(parent),
        "solver": config.solver,
        "data": metrics.get("dataset", config.data.data),
        "split": config.data.split,
        "seed": config.fit.seed,
        "rank": config.model.rank,
        "l2": None if "l2" in SOLVERS[config.solver].learns else config.objective.l2,
        "epochs": metrics.get("epochs"),
        "seconds": metrics.get("fit_seconds"),
        **{
            f"{split} {metric.label}": (metrics.get(split) or {}).get(name)
            for name, metric in METRICS.items()
            for split in ("valid", "test")
        },
    }


def _options_and_figures(run: Run) -> dict[str, Any]:
    config, metrics = run.config(), run.metrics() if run.has_metrics() else {}
    figures = {f"{split} {name}": value for split in SPLIT_NAMES for name, value in (metrics.get(split) or {}).items()}
    done = {"epochs done": metrics.get("epochs"), "seconds": metrics.get("fit_seconds")}
    return config.hyperparameters() | done | figures


def _run_folders(folder: Path) -> Iterator[Path]:
    """The folders that look like runs, ordered by path; nothing below a run is one."""
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if CONFIG in files and (DATASET in folders or _looks_like_config(Path(path, CONFIG))):
            folders.clear()
            yield Path(path)


def _looks_like_config(path: Path) -> bool:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and {"solver", "format"} <= value.keys()
