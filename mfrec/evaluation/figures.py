"""Figures of a model's predictions on a split, of its factors, and of its posterior."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.evaluation.error_groups import errors_by
from mfrec.evaluation.metrics import METRICS, rmse
from mfrec.evaluation.probabilities import ProbabilityReport, evaluate_probabilities
from mfrec.model.entity import ENTITY_NAMES, ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.levels import rating_levels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The heat map has one column for each rating value, or this many bins if there are more values; and this many rows.
MAX_COLUMNS, ROWS = 20, 40
# The calibration figure has at most this many groups, each of at least this many predictions.
MAX_GROUPS, MIN_GROUP_SIZE = 20, 20
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
SPLIT_TITLES = {"train": "training set", "valid": "validation set", "test": "test set"}


@torch.no_grad()
def draw_figures(posterior: Posterior, train: Ratings, ratings: Ratings, split: str) -> dict[str, Figure]:
    """All figures of a trained model, by name.

    Args:
        posterior: what the solver inferred; one without standard deviations or samples has fewer figures.
        train: the training ratings.
        ratings: the ratings to predict.
        split: the name of their split, such as "test".
    """
    model, title = posterior.mean_model(), SPLIT_TITLES.get(split, split)
    predictions = model.predict_observed(ratings, clip=True)
    figures = {
        "predicted_against_actual": predicted_against_actual(predictions, ratings, title),
        "calibration": calibration(predictions, ratings, title),
        "error_by_popularity": error_by_popularity(predictions, ratings, train, title),
        "spectrum": spectrum(model),
    }
    if posterior.has_std:
        std = posterior.std(ratings.users, ratings.items, timestamps=ratings.timestamps)
        figures["coverage"] = coverage_by_level(predictions, std, ratings, title)
        levels = rating_levels(train)
        if levels is not None:
            figures["reliability"] = reliability(evaluate_probabilities(posterior, ratings, levels), title)
    samples = list(posterior.trace())
    if samples:
        figures["trace"] = trace(samples, ratings, title)
    return figures


def predicted_against_actual(predictions: Tensor, ratings: Ratings, title: str) -> Figure:
    """A heat map of the predictions for each rating value, every column adding up to 1, with the mean prediction."""
    figure, axes = _figure(f"predicted against actual: {title}")
    actual, predicted = ratings.values.cpu().double().numpy(), predictions.cpu().double().numpy()
    values = np.unique(actual)
    if 1 < len(values) <= MAX_COLUMNS:
        middles = (values[1:] + values[:-1]) / 2
        edges = np.concatenate([[2 * values[0] - middles[0]], middles, [2 * values[-1] - middles[-1]]])
    else:
        edges = np.linspace(values[0] - 0.5, values[-1] + 0.5, MAX_COLUMNS + 1)
    low, high = min(predicted.min(), edges[0]), max(predicted.max(), edges[-1])
    counts, _, rows = np.histogram2d(actual, predicted, [edges, np.linspace(low, high, ROWS + 1)])
    totals = counts.sum(1)
    axes.pcolormesh(edges, rows, (counts / totals.clip(1)[:, None]).T, cmap="Blues")
    sums, _ = np.histogram(actual, edges, weights=predicted)
    filled = totals > 0
    centers = (edges[1:] + edges[:-1]) / 2
    axes.plot(centers[filled], sums[filled] / totals[filled], "ko", markersize=4, label="mean")
    axes.plot([low, high], [low, high], "k:", linewidth=0.8, label="predicted = actual")
    axes.set(xlabel="actual rating", ylabel="predicted rating", xlim=(edges[0], edges[-1]), ylim=(low, high))
    axes.legend(frameon=False, loc="upper left")
    return figure


def calibration(predictions: Tensor, ratings: Ratings, title: str) -> Figure:
    """The mean rating of groups with similar predictions, ± two standard errors; ideally on the diagonal."""
    figure, axes = _figure(f"calibration: {title}")
    order = predictions.argsort().cpu()
    predicted, actual = (values.cpu().double()[order] for values in (predictions, ratings.values))
    n_groups = max(1, min(MAX_GROUPS, len(order) // MIN_GROUP_SIZE))
    means = [[float(group.mean()) for group in values.tensor_split(n_groups)] for values in (predicted, actual)]
    errors = [2 * float(group.std(correction=0)) / len(group) ** 0.5 for group in actual.tensor_split(n_groups)]
    axes.errorbar(means[0], means[1], yerr=errors, fmt="o", markersize=4, linewidth=1)
    _diagonal(axes, min(map(min, means)), max(map(max, means)))
    axes.set(xlabel=f"mean prediction ({n_groups} groups of equal size)", ylabel="mean rating ± 2 standard errors")
    return figure


def error_by_popularity(predictions: Tensor, ratings: Ratings, train: Ratings, title: str) -> Figure:
    """RMSE by the item's number of training ratings."""
    figure, axes = _figure(f"error by popularity of the item: {title}")
    groups = errors_by(predictions, ratings, train, "popularity")
    labels = [f"{label}\n({count:,})" for label, count in zip(groups["popularity"], groups["n_ratings"], strict=True)]
    bars = axes.bar(labels, groups["rmse"].fillna(0))
    axes.bar_label(bars, [f"{error:.3f}" if error == error else "" for error in groups["rmse"]])
    overall = rmse(predictions, ratings.values)
    axes.axhline(overall, color="black", linewidth=0.8, linestyle=":", label=f"all ratings: {overall:.3f}")
    axes.margins(y=0.15)
    axes.legend(frameon=False, loc="upper right")
    axes.set(xlabel="training ratings of the item (number of ratings measured)", ylabel=METRICS["rmse"].label)
    return figure


def spectrum(model: MatrixFactorization) -> Figure:
    """Singular values of users' and items' factors, and of their product, which rotating the factors cannot change."""
    figure, axes = _figure("spectrum of the factors")
    factors = [model.factors(entity).double() for entity in (USER, ITEM)]
    # The singular values of a tall matrix are the roots of the eigenvalues of its small Gram matrix.
    grams = [matrix.mT @ matrix for matrix in factors]
    product = torch.linalg.svdvals(_square_root(grams[USER]) @ _square_root(grams[ITEM]))
    axes.semilogy(*_ranked(product), "k.-", markersize=3, label="predictions Θ Xᵀ")
    for entity, gram in enumerate(grams):
        values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)
        axes.semilogy(*_ranked(values), ".-", markersize=3, label=f"{ENTITY_NAMES[entity]} factors")
    axes.set(xlabel="component", ylabel="singular value")
    axes.legend(frameon=False)
    return figure


def coverage_by_level(predictions: Tensor, std: Tensor, ratings: Ratings, title: str) -> Figure:
    """The share of ratings inside intervals of each nominal level; ideally on the diagonal.

    Args:
        std: (n_ratings,) the standard deviation of each rating.
    """
    figure, axes = _figure(f"coverage of intervals: {title}")
    distances = (predictions - ratings.values).abs() / std
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    half_widths = torch.special.ndtri((1 + levels) / 2).tolist()
    axes.plot(LEVELS, [float((distances <= width).double().mean()) for width in half_widths], "o-", markersize=4)
    _diagonal(axes, LEVELS[0], 1.0)
    axes.set(xlabel="nominal level", ylabel="share of ratings inside")
    return figure


def reliability(report: ProbabilityReport, title: str) -> Figure:
    """The observed share of each level in groups of similar probabilities, and the histogram of PIT values.

    Ideally, points are on the diagonal, and all bars have the height 1.  High bars at both ends mean distributions that
    are too narrow; a hump in the middle, too wide.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.0), dpi=80)
    left, right = figure.add_axes((0.07, 0.12, 0.42, 0.8)), figure.add_axes((0.57, 0.12, 0.41, 0.8))
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(report.levels)))
    for level, colour in zip(report.levels, colours, strict=True):
        predicted, observed = zip(*level.groups, strict=True)
        left.plot(predicted, observed, "o-", markersize=3, linewidth=1, color=colour, label=f"{level.level:g}")
    _diagonal(left, 0.0, max(max(share) for level in report.levels for share in level.groups))
    left.set(xlabel="mean probability of the rating", ylabel="share of the rating")
    left.legend(frameon=False, loc="upper left", fontsize=8)
    edges = np.linspace(0, 1, len(report.pit) + 1)
    right.stairs(np.array(report.pit) * len(report.pit), edges, fill=True, alpha=0.6)
    right.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    right.set(xlabel="probability integral transform of the rating", ylabel="density", xlim=(0, 1), ylim=(0, None))
    for axes, name in ((left, "reliability"), (right, "PIT histogram")):
        axes.set_title(f"{name}: {title}", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def trace(samples: list[tuple[MatrixFactorization, float]], ratings: Ratings, title: str) -> Figure:
    """RMSE of each sample and of the mean of the samples so far, and the standard deviation of the noise.

    Args:
        samples: models in the order of their sampling, and the noise's standard deviation in each.
    """
    figure, axes = _figure(f"trace of the samples: {title}")
    total, single, mean = torch.zeros_like(ratings.values), [], []
    for number, (model, _) in enumerate(samples, 1):
        predictions = model.predict_observed(ratings)
        total += predictions
        single.append(rmse(model.clip(predictions), ratings.values))
        mean.append(rmse(model.clip(total / number), ratings.values))
    numbers = range(1, len(samples) + 1)
    axes.plot(numbers, single, ".-", label="RMSE of each sample")
    axes.plot(numbers, mean, ".-", label="RMSE of the mean so far")
    axes.plot(numbers, [noise_std for _, noise_std in samples], "k.:", label="noise std $\\alpha^{-1/2}$")
    axes.set(xlabel="sample", ylabel="RMSE, std")
    axes.legend(frameon=False)
    return figure


def _figure(title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # half a second of imports, which only figures need

    figure = Figure(figsize=(5.6, 4.0), dpi=80)
    # Margins for the labels: a layout engine finds them by drawing everything twice.
    axes = figure.add_axes((0.12, 0.12, 0.85, 0.8))
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _diagonal(axes: Axes, low: float, high: float) -> None:
    axes.plot([low, high], [low, high], "k:", linewidth=0.8)


def _ranked(values: Tensor) -> tuple[list[int], list[float]]:
    """Component numbers and values, up to the last that is more than rounding."""
    kept = values[values > 1e-6 * values.max()].tolist()
    return list(range(1, len(kept) + 1)), kept


def _square_root(gram: Tensor) -> Tensor:
    """The symmetric square root of a matrix that is positive semi-definite up to rounding."""
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    return root
