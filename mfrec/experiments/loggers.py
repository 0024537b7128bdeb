"""Loggers: where training sends its curves, texts and figures.

A logger for another tracker overrides what it needs, here or in a plugin:

    class TrackerLogger(Logger):
        def __init__(self, folder, resumed_at=None):
            self.run = tracker.start(folder.name)

        def scalars(self, values, epoch):
            self.run.log(values, step=epoch)

        def close(self):
            self.run.finish()

    LOGGERS["tracker"] = TrackerLogger

Nothing here imports torch or TensorBoard, so that a plugin which adds a logger is imported at once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfrec.errors import unknown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor

    from mfrec.model.factorization import MatrixFactorization

METRICS_FILE = "metrics.jsonl"
# The beginning of the tags of final values.
FINAL = "final/"


class Logger:
    """A destination of logs; every method does nothing until a subclass overrides it.

    Attributes:
        wants_figures: whether `figures` and `embedding` are called; their arguments take seconds to make.
    """

    wants_figures: bool = False

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Log the values of an epoch by tag, such as {"rmse/train": 0.81, "rmse/valid": 0.87, "lr": 0.02}."""

    def histograms(self, model: MatrixFactorization, epoch: int) -> None:
        """Log the distribution of each of the model's parameters."""

    def text(self, tag: str, text: str, epoch: int) -> None:
        """Log a text in Markdown, such as the configuration."""

    def figures(self, figures: Mapping[str, Figure], epoch: int) -> None:
        """Log figures by name; see `mfrec.evaluation.figures`."""

    def embedding(self, name: str, vectors: Tensor, labels: pd.DataFrame, epoch: int) -> None:
        """Log vectors, (n, k), and a row of labels for each, the most rated items first."""

    def hyperparameters(self, options: Mapping[str, Any], final: Mapping[str, float], epoch: int) -> None:
        """Log the options and the final values of a finished training; called last.

        Args:
            options: by name, such as {"solver": "sgd", "rank": 128, "bias_l2": None}.
            final: by tag, such as {"final/rmse_test": 0.89}.
        """

    def close(self) -> None:
        """Write buffered values, and close files and connections."""


class JSONLinesLogger(Logger):
    """Writes every scalar to `metrics.jsonl` in the run folder, one line per call: {"epoch": 3, "rmse/train": 0.81}.

    A resumed run continues the file: lines after the resumed epoch are dropped, and so are
    final values and a line that a kill cut short.  Values that are not finite are null.

    Args:
        folder: the run folder.
        resumed_at: the epoch of the checkpoint that a resumed run starts from; None for a new run.
    """

    def __init__(self, folder: Path, resumed_at: int | None = None) -> None:
        path = folder / METRICS_FILE
        if resumed_at is not None and path.exists():
            _drop_lines_after(path, resumed_at)
        # Line buffering: a killed process loses no line of a finished epoch.
        self._file = path.open("w" if resumed_at is None else "a", encoding="utf-8", buffering=1)

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Write a line, unless there are no values."""
        if values:
            finite = {tag: float(value) if math.isfinite(value) else None for tag, value in values.items()}
            self._file.write(json.dumps({"epoch": epoch, **finite}) + "\n")

    def hyperparameters(self, options: Mapping[str, Any], final: Mapping[str, float], epoch: int) -> None:
        """Write a line of the final values."""
        self.scalars(final, epoch)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _drop_lines_after(path: Path, epoch: int) -> None:
    """Keep the whole lines up to an epoch, without final values; none if the run starts again at epoch 0."""
    kept = [line for line in path.read_bytes().splitlines() if epoch > 0 and _is_line_until(line, epoch)]
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(b"".join(line + b"\n" for line in kept))
    os.replace(temporary, path)


def _is_line_until(line: bytes, epoch: int) -> bool:
    try:
        values = json.loads(line)
    except ValueError:
        return False
    if not isinstance(values, dict) or not isinstance(values.get("epoch"), int):
        return False
    return values["epoch"] <= epoch and not any(tag.startswith(FINAL) for tag in values)


def _tensorboard(folder: Path, resumed_at: int | None = None) -> Logger:
    from mfrec.experiments.tensorboard import TensorBoardLogger  # TensorBoard takes a second to import

    return TensorBoardLogger(folder, resumed_at)


# Makes a logger from (folder, resumed_at): the run folder, and the epoch that a resumed run starts from or None.
LoggerFactory = Callable[[Path, int | None], Logger]
LOGGERS: dict[str, LoggerFactory] = {"tensorboard": _tensorboard, "jsonl": JSONLinesLogger}


def check_loggers(names: Iterable[str]) -> None:
    """Check that every name is in `LOGGERS`.

    Raises:
        InputError: one is not.
    """
    for name in names:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)


def open_loggers(names: Iterable[str], folder: Path, resumed_at: int | None = None) -> list[Logger]:
    """The loggers of these names, to be closed by the caller.

    Args:
        names: names in `LOGGERS`; a repeated name counts once.
        folder: the run folder.
        resumed_at: the epoch of the checkpoint that a resumed run starts from; None for a new run.

    Raises:
        InputError: a name is unknown.
    """
    names = list(dict.fromkeys(names))
    check_loggers(names)
    with contextlib.ExitStack() as stack:
        loggers = [stack.enter_context(contextlib.closing(LOGGERS[name](folder, resumed_at))) for name in names]
        stack.pop_all()  # all could be opened: the caller closes them
    return loggers


def final_values(measured: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The metrics of each split by the tags of final values.

    Examples:
        >>> final_values({"test": {"rmse": 0.89, "mae": 0.68}})
        {'final/rmse_test': 0.89, 'final/mae_test': 0.68}
    """
    return {f"{FINAL}{metric}_{split}": value for split, values in measured.items() for metric, value in values.items()}
