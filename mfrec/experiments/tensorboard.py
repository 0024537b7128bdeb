"""The TensorBoard logger, and where TensorBoard shows its logs:

    Scalars         cost and metrics of each split; the solver's values, such as lr; gradient norms; final values
    Custom scalars  the training and validation curves of each metric in one chart
    Histograms      every parameter
    Text            configuration, command, versions and device
    HParams         one row per run: its options and final values
    Images          the figures of `mfrec.evaluation.figures`
    Projector       the factors of the most rated items, with title, year and genres

TensorBoard is imported when a logger is made.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mfrec.evaluation.metrics import METRICS
from mfrec.experiments.loggers import Logger
from mfrec.model.factorization import MatrixFactorization

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Larger parameters are sampled down to this many numbers, evenly spread: the same shape in a tenth of the time.
HISTOGRAM_BINS, HISTOGRAM_NUMBERS = 64, 100_000
# The projector becomes slow above this many points, and the factors of rarely rated items are all near the origin.
PROJECTED_ROWS = 5000


class TensorBoardLogger(Logger):
    """Writes event files and the projector's files into the run folder.

    Args:
        folder: the run folder.
        resumed_at: the epoch of the checkpoint that a resumed run starts from; None for a new run.  Points after it
            are dropped.
        figures: whether to log figures and the projection of the items, which take seconds to make.
    """

    def __init__(self, folder: Path, resumed_at: int | None = None, *, figures: bool = True) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, which only training needs

        self.folder, self.wants_figures = folder, figures
        # A run that starts again at epoch 0 logs that epoch again.
        purged_from = None if resumed_at is None else resumed_at + 1 if resumed_at else 0
        self._writer = SummaryWriter(str(folder), purge_step=purged_from, flush_secs=5)
        self._writer.add_custom_scalars(layout())

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """A point for each value."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, epoch)

    def histograms(self, model: MatrixFactorization, epoch: int) -> None:
        """A histogram of each parameter; large parameters are sampled."""
        for name, parameter in model.named_parameters():
            if parameter.numel():
                histogram = _histogram(parameter.detach().flatten())
                self._writer.add_histogram_raw(
                    f"parameters/{name.removesuffix('.weight')}", **histogram, global_step=epoch
                )

    def text(self, tag: str, text: str, epoch: int) -> None:
        """A text in Markdown."""
        self._writer.add_text(tag, text, epoch)

    def figures(self, figures: Mapping[str, Figure], epoch: int) -> None:
        """Each figure as an image, "figures/NAME"."""
        for name, figure in figures.items():
            pixels = io.BytesIO()
            figure.savefig(pixels, format="rgba")
            width, height = (round(figure.dpi * inches) for inches in figure.get_size_inches())
            image = np.frombuffer(pixels.getbuffer(), np.uint8).reshape(height, width, 4)
            self._writer.add_image(f"figures/{name}", image, epoch, dataformats="HWC")

    def embedding(self, name: str, vectors: Tensor, labels: pd.DataFrame, epoch: int) -> None:
        """The first vectors and their labels, for the Embedding Projector."""
        factors_file, labels_file = f"{name}.tsv", f"{name}_labels.tsv"
        # The projector labels points by the first column, and does not understand quotes.
        columns = sorted(labels.columns, key=lambda column: column != "title")
        shown = labels[columns][:PROJECTED_ROWS].replace(r"[\t\r\n]", " ", regex=True)
        shown.to_csv(self.folder / labels_file, sep="\t", index=False, quoting=csv.QUOTE_NONE)
        np.savetxt(self.folder / factors_file, vectors[:PROJECTED_ROWS].cpu().numpy(), "%.4g", "\t")
        (self.folder / "projector_config.pbtxt").write_text(
            f'embeddings {{\n  tensor_name: "{name}"\n  tensor_path: "{factors_file}"\n'
            f'  metadata_path: "{labels_file}"\n}}\n',
            encoding="utf-8",
        )

    def hyperparameters(self, options: Mapping[str, Any], final: Mapping[str, float], epoch: int) -> None:
        """The run's row in the HParams table, and a point for each final value."""
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in options.items()
            if value is not None
        }
        self._writer.flush()
        # By default the row would be a run of its own, in a folder named by the time.
        self._writer.add_hparams(plain, dict(final), run_name=".", global_step=epoch)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def layout() -> dict[str, dict[str, list[Any]]]:
    """The charts of the custom scalars: the curves of each metric and of the cost, and the solver's values."""
    labels = {name: metric.label for name, metric in METRICS.items()} | {"cost": "cost"}
    return {
        "training and validation": {
            label: ["Multiline", [f"{name}/train", f"{name}/valid"]] for name, label in labels.items()
        },
        "solver": {
            "gradient norms": ["Multiline", ["gradient_norm/.*"]],
            "learning rate and noise": ["Multiline", ["lr", "noise_std"]],
        },
    }


def _histogram(numbers: Tensor) -> dict[str, Any]:
    """The arguments of `add_histogram_raw` for a flat tensor."""
    # An odd stride visits every column of factors whose rank is a power of two.
    values = numbers[:: (numbers.numel() // HISTOGRAM_NUMBERS) | 1]
    low, high = (float(end) for end in values.aminmax())
    # The single bin of equal values, such as initial biases, needs some width.
    edges = np.linspace(low, high if high > low else low + 1e-6, HISTOGRAM_BINS + 1)
    counts = torch.histc(values.cpu(), HISTOGRAM_BINS, float(edges[0]), float(edges[-1]))
    return {
        "min": low,
        "max": high,
        "num": values.numel(),
        "sum": float(values.sum()),
        "sum_squares": float(values.square().sum()),
        "bucket_limits": edges[1:].tolist(),
        "bucket_counts": counts.tolist(),
    }
