"""Pictures of a model on a part of the ratings: what RMSE, one number, does not tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.evaluation.metrics import errors_by, rmse
from mfrec.model.factorization import ITEM, SIDES, USER, MatrixFactorization
from mfrec.posteriors.posterior import Posterior, Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Columns of ratings: one a value, or of a scale with more values than this so many ranges.
MOST_COLUMNS, ROWS = 20, 40
# Groups of ratings whose predictions are alike, and the least of them that a mean is shown of.
GROUPS, LEAST = 20, 20
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@torch.no_grad()
def pictures_of(
    model: MatrixFactorization, posterior: Posterior | None, train: Ratings, part: Ratings, name: str
) -> dict[str, Figure]:
    """All that there are of a model, by name.

    Args:
        model: what predicts, such as `fit.answer(solver)`.
        posterior: what tells deviations, where there is one.
        train: the ratings trained on.
        part: the ratings to predict, in stars.
        name: what the titles call them.
    """
    predictions = model.predict_observed(part, clip=True)
    found = {
        "predicted_against_actual": predicted_against_actual(predictions, part, name),
        "calibration": calibration(predictions, part, name),
        "error_by_popularity": error_by_popularity(predictions, part, train, name),
        "spectrum": spectrum(model),
    }
    if posterior is not None:
        found["coverage"] = coverage_by_level(predictions, part, posterior, name)
    if isinstance(posterior, Samples):
        found["trace"] = trace(posterior, part, name)
    return found


def predicted_against_actual(predictions: Tensor, part: Ratings, name: str) -> Figure:
    """A heat map: how the predictions for each actual rating are spread, each column adding up to 1, and their mean."""
    figure, axes = _figure(f"predicted against actual: {name} part")
    actual, predicted = part.values.cpu().double().numpy(), predictions.cpu().double().numpy()
    values = np.unique(actual)
    if 1 < len(values) <= MOST_COLUMNS:
        halfway = (values[1:] + values[:-1]) / 2
        edges = np.concatenate([[2 * values[0] - halfway[0]], halfway, [2 * values[-1] - halfway[-1]]])
    else:
        edges = np.linspace(values[0] - 0.5, values[-1] + 0.5, MOST_COLUMNS + 1)
    low, high = min(predicted.min(), edges[0]), max(predicted.max(), edges[-1])
    counts, _, rows = np.histogram2d(actual, predicted, [edges, np.linspace(low, high, ROWS + 1)])
    totals = counts.sum(1)
    axes.pcolormesh(edges, rows, (counts / totals.clip(1)[:, None]).T, cmap="Blues")
    sums, _ = np.histogram(actual, edges, weights=predicted)
    some = totals > 0
    axes.plot(((edges[1:] + edges[:-1]) / 2)[some], sums[some] / totals[some], "ko", markersize=4, label="mean")
    axes.plot([low, high], [low, high], "k:", linewidth=0.8, label="predicted = actual")
    axes.set(xlabel="actual rating", ylabel="predicted rating", xlim=(edges[0], edges[-1]), ylim=(low, high))
    axes.legend(frameon=False, loc="upper left")
    return figure


def calibration(predictions: Tensor, part: Ratings, name: str) -> Figure:
    """The mean rating of those predicted about alike, with two standard errors either side: on the diagonal it should
    be."""
    figure, axes = _figure(f"calibration: {name} part")
    order = predictions.argsort().cpu()
    predicted, actual = (values.cpu().double()[order] for values in (predictions, part.values))
    groups = max(1, min(GROUPS, len(order) // LEAST))
    means = [[float(group.mean()) for group in values.tensor_split(groups)] for values in (predicted, actual)]
    errors = [2 * float(group.std(correction=0)) / len(group) ** 0.5 for group in actual.tensor_split(groups)]
    axes.errorbar(means[0], means[1], yerr=errors, fmt="o", markersize=4, linewidth=1)
    _diagonal(axes, min(map(min, means)), max(map(max, means)))
    axes.set(xlabel=f"mean prediction, of {groups} groups of equal size", ylabel="mean rating")
    return figure


def error_by_popularity(predictions: Tensor, part: Ratings, train: Ratings, name: str) -> Figure:
    """RMSE by how many training ratings the item has."""
    figure, axes = _figure(f"error by popularity of the item: {name} part")
    groups = errors_by(predictions, part, train, "popularity")
    labels = [f"{label}\n({count:,})" for label, count in zip(groups["popularity"], groups["n_ratings"], strict=True)]
    bars = axes.bar(labels, groups["rmse"].fillna(0))
    axes.bar_label(bars, [f"{error:.3f}" if error == error else "" for error in groups["rmse"]])
    axes.axhline(rmse(predictions, part.values), color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel=f"training ratings of the item ({name} ratings of such items)", ylabel="RMSE, stars")
    return figure


def spectrum(model: MatrixFactorization) -> Figure:
    """Singular values of the factor tables, and of their product, which turning the factors does not change."""
    figure, axes = _figure("spectrum of the factors")
    tables = [model.factors(side).double() for side in (USER, ITEM)]
    # Those of a tall table are the roots of the eigenvalues of its small Gram matrix.
    grams = [table.mT @ table for table in tables]
    roots = torch.linalg.svdvals(_root(grams[USER]) @ _root(grams[ITEM]))
    axes.semilogy(*_ranked(roots), "k.-", markersize=3, label="predictions Θ Xᵀ")
    for side, gram in enumerate(grams):
        values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)
        axes.semilogy(*_ranked(values), ".-", markersize=3, label=f"{SIDES[side]} factors")
    axes.set(xlabel="component", ylabel="singular value")
    axes.legend(frameon=False)
    return figure


def coverage_by_level(predictions: Tensor, part: Ratings, posterior: Posterior, name: str) -> Figure:
    """The share of ratings within intervals of each nominal level."""
    figure, axes = _figure(f"coverage of intervals: {name} part")
    distances = (predictions - part.values).abs() / posterior.deviation(part.users, part.items)
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    half_widths = torch.special.ndtri((1 + levels) / 2).tolist()
    axes.plot(LEVELS, [float((distances <= width).double().mean()) for width in half_widths], "o-", markersize=4)
    _diagonal(axes, LEVELS[0], 1.0)
    axes.set(xlabel="nominal level", ylabel="ratings inside")
    return figure


def trace(posterior: Samples, part: Ratings, name: str) -> Figure:
    """The kept draws in their order: what each predicts alone, what they predict together, and the noise of each."""
    figure, axes = _figure(f"trace of the kept draws: {name} part")
    total, alone, together = torch.zeros_like(part.values), [], []
    for number, model in enumerate(posterior.models(), 1):
        predictions = model.predict_observed(part)
        total += predictions
        alone.append(rmse(model.clip(predictions), part.values))
        together.append(rmse(model.clip(total / number), part.values))
    draws = range(1, len(alone) + 1)
    axes.plot(draws, alone, ".-", label="RMSE of a draw")
    axes.plot(draws, together, ".-", label="RMSE of the mean so far")
    axes.plot(draws, [draw["alpha"] ** -0.5 for draw in posterior.draws], "k.:", label="noise deviation α^−½")
    axes.set(xlabel="draw", ylabel="stars")
    axes.legend(frameon=False)
    return figure


def _figure(title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # half a second of imports that only pictures need

    figure = Figure(figsize=(5.6, 4.0), dpi=80, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _diagonal(axes: Axes, low: float, high: float) -> None:
    axes.plot([low, high], [low, high], "k:", linewidth=0.8)


def _ranked(values: Tensor) -> tuple[list[int], list[float]]:
    """Component numbers and values, as far as there is more than rounding in them."""
    kept = values[values > 1e-6 * values.max()].tolist()
    return list(range(1, len(kept) + 1)), kept


def _root(gram: Tensor) -> Tensor:
    """The symmetric square root of a matrix that is positive semi-definite, up to rounding."""
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    return root
