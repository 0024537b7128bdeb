"""What TensorBoard shows of a run: curves, histograms, settings, a row of HParams, pictures, and the items' projection.

Scalars        cost, rmse and mae of each part; lr, noise_deviation and whatever else the solver tells of an epoch;
               gradient norms; the final figures of each part
Custom scalars train and valid in one chart
Histograms     of every parameter
Text           config, the command as it was typed, versions and device
HParams        a row a run: its options and its final figures, so that a sweep is one table
Images         `pictures.pictures_of` the test part
Projector      the factors of the most rated items, with title, year and genres
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.experiments.run import PLUMBING
from mfrec.inference.recommend import item_frame
from mfrec.model.factorization import ITEM, MatrixFactorization

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

# Of a table with many more numbers so many, evenly spread, show the same shape in a tenth of the time.
HISTOGRAM_BINS, HISTOGRAM_NUMBERS = 64, 100_000
# The projector draws no more points than this at a good pace, and films that few have rated are all near the origin.
PROJECTED_ITEMS = 5000
LAYOUT = {
    "training and validation": {
        "RMSE, stars": ["Multiline", ["rmse/train", "rmse/valid"]],
        "MAE, stars": ["Multiline", ["mae/train", "mae/valid"]],
        "cost": ["Multiline", ["cost/train", "cost/valid"]],
    },
    "solver": {
        "gradient norms": ["Multiline", ["gradient_norm/.*"]],
        "step and noise": ["Multiline", ["lr", "noise_deviation"]],
    },
}
ITEM_FACTORS, ITEM_METADATA = "item_factors.tsv", "item_metadata.tsv"
PROJECTOR = f"""embeddings {{
  tensor_name: "item_factors"
  tensor_path: "{ITEM_FACTORS}"
  metadata_path: "{ITEM_METADATA}"
}}
"""
PACKAGES = ("torch", "numpy", "scipy", "pandas", "tensorboard")


def open_writer(folder: Path, first_epoch: int | None = None) -> SummaryWriter:
    """A writer into a run's folder.

    Args:
        first_epoch: of a run that goes on, where its curves do: points from there on are dropped.
    """
    from torch.utils.tensorboard import SummaryWriter  # a second of imports that only training needs

    return SummaryWriter(str(folder), purge_step=first_epoch, flush_secs=5)


def log_settings(
    writer: SummaryWriter, config: Mapping[str, Any], command: str, device: torch.device, epoch: int
) -> None:
    """Texts that say what was run, with what and where, and the charts of the custom scalars."""
    # Those that are imported tell their versions at once; to look six of them up takes longer than an epoch may.
    packages = {"mfrec": importlib.metadata.version("mfrec")}
    packages |= {name: str(sys.modules[name].__version__) for name in PACKAGES}
    place = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    rows = [f"| {name} | {value} |" for name, value in {**place, **packages}.items()]
    writer.add_text("config", _fenced(json.dumps(config, indent=2), "json"), epoch)
    writer.add_text("command", _fenced(command), epoch)
    writer.add_text("environment", "\n".join(["| | |", "|---|---|", *rows]), epoch)
    writer.add_custom_scalars(LAYOUT)


def _fenced(text: str, language: str = "") -> str:
    return f"```{language}\n{text}\n```"


def log_histograms(writer: SummaryWriter, model: MatrixFactorization, epoch: int) -> None:
    """Histograms of the model's parameters, of large ones a sample."""
    for name, parameter in model.named_parameters():
        if not parameter.numel():
            continue
        # An odd stride, which is at home in every column of tables whose rank is a power of two.
        values = parameter.detach().flatten()[:: (parameter.numel() // HISTOGRAM_NUMBERS) | 1]
        low, high = (float(end) for end in values.aminmax())
        # Of values that are all the same, as those at the start may be, the one bin needs some width.
        edges = np.linspace(low, high if high > low else low + 1e-6, HISTOGRAM_BINS + 1)
        counts = torch.histc(values.cpu(), HISTOGRAM_BINS, float(edges[0]), float(edges[-1]))
        writer.add_histogram_raw(
            f"parameters/{name.removesuffix('.weight')}",
            min=low,
            max=high,
            num=values.numel(),
            sum=float(values.sum()),
            sum_squares=float(values.square().sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=epoch,
        )


def log_hparams(
    writer: SummaryWriter, config: Mapping[str, Any], measured: Mapping[str, Mapping[str, float]], epoch: int
) -> None:
    """The run's row in the HParams table: its options, and the final figures of each part."""
    from torch.utils.tensorboard.summary import hparams

    shown = {k: v for k, v in config.items() if k not in PLUMBING and v is not None}
    options = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in shown.items()}
    final = {f"final/{metric}_{part}": value for part, values in measured.items() for metric, value in values.items()}
    for summary in hparams(options, final):
        writer._get_file_writer().add_summary(summary)
    for tag, value in final.items():
        writer.add_scalar(tag, value, epoch)


def log_pictures(writer: SummaryWriter, figures: Mapping[str, Figure], epoch: int) -> None:
    """Figures as images."""
    for name, figure in figures.items():
        drawn = io.BytesIO()
        figure.savefig(drawn, format="rgba")
        width, height = (round(figure.dpi * inches) for inches in figure.get_size_inches())
        pixels = np.frombuffer(drawn.getbuffer(), np.uint8).reshape(height, width, 4)
        writer.add_image(f"pictures/{name}", pixels, epoch, dataformats="HWC")


def write_projection(folder: Path, dataset: Dataset, model: MatrixFactorization, counts: Tensor) -> None:
    """The items' factors for the Embedding Projector, with what is known of each item.

    Args:
        counts: (n_items,) the training ratings of each item.
    """
    indices = counts.argsort(descending=True, stable=True)[:PROJECTED_ITEMS].cpu()
    frame = item_frame(dataset, indices, n_ratings=counts.cpu()[indices])
    # The projector labels points with the first column, and knows no quoting.
    frame = frame[sorted(frame.columns, key=lambda column: column != "title")].replace(r"[\t\r\n]", " ", regex=True)
    frame.to_csv(folder / ITEM_METADATA, sep="\t", index=False, quoting=csv.QUOTE_NONE)
    np.savetxt(folder / ITEM_FACTORS, model.factors(ITEM).cpu()[indices].numpy(), "%.4g", "\t")
    (folder / "projector_config.pbtxt").write_text(PROJECTOR)
