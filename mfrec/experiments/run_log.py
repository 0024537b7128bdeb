"""What a run logs besides its curves: its settings at the start; figures, an embedding and final values at the end."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.data.ratings import Ratings
from mfrec.experiments.loggers import Logger, final_values
from mfrec.inference.recommend import item_frame
from mfrec.model.entity import ITEM
from mfrec.model.factorization import MatrixFactorization
from mfrec.posteriors.base import Posterior

PACKAGES = ("torch", "numpy", "scipy", "pandas", "tensorboard")


def log_settings(
    loggers: Sequence[Logger], config: Mapping[str, Any], command: str, device: torch.device, epoch: int
) -> None:
    """Log the texts "config", "command" and "environment".

    Args:
        config: what `config.json` holds.
        command: the command line as typed.
        device: where the training runs.
        epoch: the epoch that it starts from.
    """
    texts = {
        "config": _code_block(json.dumps(config, indent=2), "json"),
        "command": _code_block(command),
        "environment": environment(device),
    }
    for logger in loggers:
        for tag, text in texts.items():
            logger.text(tag, text, epoch)


def log_results(
    loggers: Sequence[Logger],
    options: Mapping[str, Any],
    dataset: Dataset,
    posterior: Posterior,
    splits: Mapping[str, Ratings],
    measured: Mapping[str, Mapping[str, float]],
    epoch: int,
) -> None:
    """Log figures and the items' factors, to loggers that want them, then the options with the final values.

    Args:
        options: the hyperparameters by name.
        splits: the ratings of each split by name; figures are of the test set, or else of the validation set.
        measured: the final metrics of each split.
        epoch: the number of epochs done.
    """
    drawing = [logger for logger in loggers if logger.wants_figures]
    if drawing:
        from mfrec.evaluation.figures import draw_figures  # half a second of imports, which only figures need

        split = next(name for name in ("test", "valid", "train") if name in splits)
        model = posterior.mean_model()
        figures = draw_figures(posterior, splits["train"], splits[split], split)
        vectors, labels = item_embedding(dataset, model, splits["train"].item_counts)
        for logger in drawing:
            logger.figures(figures, epoch)
            logger.embedding("item_factors", vectors, labels, epoch)
    for logger in loggers:
        logger.hyperparameters(options, final_values(measured), epoch)


def environment(device: torch.device) -> str:
    """A Markdown table of device, threads, system, and versions of the imported packages."""
    # Imported packages give their versions at once; metadata of six of them takes longer than an epoch may.
    modules = {name: sys.modules[name] for name in PACKAGES if name in sys.modules}
    facts: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "mfrec": importlib.metadata.version("mfrec"),
        **{name: module.__version__ for name, module in modules.items()},
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def item_embedding(dataset: Dataset, model: MatrixFactorization, counts: Tensor) -> tuple[Tensor, pd.DataFrame]:
    """The items' factors, (n_items, rank), and a row for each with its count, id and columns; most rated items first.

    Args:
        counts: (n_items,) the number of training ratings of each item.
    """
    order = counts.argsort(descending=True, stable=True)
    labels = item_frame(dataset, order.cpu(), n_ratings=counts[order].cpu())
    return model.factors(ITEM)[order.to(model.device)], labels


def _code_block(text: str, language: str = "") -> str:
    return f"```{language}\n{text}\n```"
