"""`mfrec evaluate`: a run's metrics, errors by group, ranking metrics, and probabilities of ratings."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from mfrec.cli.options import Device, Plugins, RunPath, Switch
from mfrec.errors import InputError, OptionError
from mfrec.experiments.config import Seed
from mfrec.options import INT_MAX, CountOrZero, Options, Range

if TYPE_CHECKING:
    import pandas as pd

    from mfrec.data.ratings import Ratings
    from mfrec.evaluation.probabilities import ProbabilityReport
    from mfrec.evaluation.ranking import RankingReport
    from mfrec.inference.trained_model import TrainedModel

# Rows to show of errors by user or by item.
SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Evaluate(Options):
    """Measure a run's model on its train, validation and test splits."""

    run: RunPath
    by: Literal["user", "item", "rating", "popularity", "cold_start"] | None = None
    """Show errors on the test split by user, item, rating, popularity of the item, or for new users and items."""
    ranking: Annotated[int | None, Range(1, INT_MAX), tyro.conf.arg(metavar="N")] = None
    """Measure lists of this many recommendations: precision, recall, NDCG, MAP, MRR, hit rate."""
    threshold: float | None = None
    """Lowest rating of a relevant item; by default three quarters up the rating range."""
    min_ratings: CountOrZero = 0
    """Leave items with fewer ratings out of the lists, as recommend does."""
    probabilities: Switch = False
    """Measure the probabilities of ratings and the intervals of a Bayesian solver: scores, calibration, coverage."""
    seed: Seed = 0
    """Seed of the bootstrap that gives the intervals."""
    device: Device = "auto"
    """Device to compute on; auto uses a GPU if there is one."""
    json: Switch = False
    """Print JSON instead of tables."""
    plugin: Plugins = ()

    def check(self) -> None:
        """Check every option.

        Raises:
            OptionError: an option is out of range, or of no effect.
        """
        super().check()
        for option in ("threshold", "min_ratings"):
            if self.ranking is None and getattr(self, option):
                raise OptionError(option, "needs --ranking")

    def __call__(self) -> int:
        self.check()

        from mfrec.cli import report
        from mfrec.cli.output import records
        from mfrec.data.splits import split_by_labels
        from mfrec.evaluation.metrics import evaluate_splits, with_coverage
        from mfrec.experiments.building import choose_device
        from mfrec.experiments.run import load_run

        device = choose_device(self.device)
        trained = load_run(self.run, device)
        splits = split_by_labels(trained.dataset.ratings.to(device), trained.split_labels)
        mean = trained.posterior.mean_model()
        measured = evaluate_splits(mean, trained.objective, splits, trained.model)
        measured = with_coverage(measured, splits, trained.predictive)
        held_out = "test" if "test" in splits else "valid"
        if (self.by or self.ranking is not None or self.probabilities) and held_out not in splits:
            raise InputError(f"{self.run} has no held-out ratings to measure on; train with --test-fraction above 0")
        errors = None if self.by is None else errors_of(trained, splits[held_out], self.by)
        lists = None if self.ranking is None else self._ranking(trained, splits[held_out], self.ranking)
        probabilities = probabilities_of(trained, splits[held_out]) if self.probabilities else None
        if self.json:
            result: dict[str, Any] = {"run": self.run, **measured}
            if errors is not None:
                result[f"{held_out}_by_{self.by}"] = records(errors)
            if lists is not None:
                result["ranking"] = ranking_to_dict(lists)
            if probabilities is not None:
                result["probabilities"] = probabilities_to_dict(*probabilities)
            print(json.dumps(_without_nan(result), indent=2))
            return 0
        report.print_metrics(f"{self.run}, {trained.solver} on {trained.dataset.name}", measured)
        if errors is not None:
            report.print_breakdown(f"{held_out} split by {self.by}", errors, SHOWN)
        if lists is not None:
            report.print_ranking(f"top {lists.n} of all items, {held_out} split", lists)
        if probabilities is not None:
            report.print_probabilities(f"probabilities of ratings, {held_out} split", trained.solver, *probabilities)
        return 0

    def _ranking(self, trained: TrainedModel, held_out: Ratings, n: int) -> RankingReport:
        import torch

        from mfrec.evaluation.ranking import evaluate_ranking
        from mfrec.inference.recommend import candidate_items

        low, high = trained.dataset.rating_range
        rated = trained.dataset.ratings.to(held_out.device)
        # Ratings of training and of validation are not recommended again.
        key = rated.users.long() * rated.n_items + rated.items
        is_held_out = torch.isin(key, held_out.users.long() * rated.n_items + held_out.items)
        candidates = candidate_items(trained.dataset, self.min_ratings)
        if not bool(candidates.any()):
            raise OptionError("min_ratings", f"leaves no items (got {self.min_ratings:,}); lower it")
        return evaluate_ranking(
            trained.model,
            trained.train,
            held_out,
            low + 0.75 * (high - low) if self.threshold is None else self.threshold,
            n,
            exclude=rated.select(~is_held_out),
            candidates=candidates,
            generator=torch.Generator().manual_seed(self.seed),
        )


def errors_of(trained: TrainedModel, held_out: Ratings, by: str) -> pd.DataFrame:
    """The metrics of each group of held-out ratings, by user or item with their ids and the largest RMSE first."""
    from mfrec.evaluation.error_groups import errors_by

    errors = errors_by(trained.model.predict_observed(held_out, clip=True), held_out, trained.train, by)
    if by not in ("user", "item"):
        return errors
    indices = errors[by].tolist()
    if by == "user":
        errors["user"] = trained.dataset.user_ids[indices]
    else:
        errors["item"] = trained.dataset.item_ids[indices]
        errors["title"] = [trained.dataset.title(index) for index in indices]
    return errors.sort_values("rmse", ascending=False)


def ranking_to_dict(lists: RankingReport) -> dict[str, Any]:
    """A report as JSON has it, without the values of single users."""
    return {
        "n": lists.n,
        "threshold": lists.threshold,
        "n_users": lists.n_users,
        "n_left_out": lists.n_left_out,
        "means": lists.means,
        "intervals_95": {name: list(interval) for name, interval in lists.intervals.items()},
        "catalogue_coverage": lists.catalogue_coverage,
        "novelty": lists.novelty,
    }


def probabilities_of(trained: TrainedModel, held_out: Ratings) -> tuple[ProbabilityReport, ProbabilityReport | None]:
    """The report on a model's probabilities of held-out ratings, and on the training ratings' shares of the levels.

    Continuous ratings have no levels, and no report on shares.

    Raises:
        InputError: the posterior has no standard deviations.
    """
    from mfrec.evaluation.probabilities import evaluate_probabilities, report_of_levels
    from mfrec.inference.predict import require_probabilities
    from mfrec.posteriors.levels import level_shares, rating_levels

    require_probabilities(trained)
    levels = rating_levels(trained.train)
    report = evaluate_probabilities(trained.predictive, held_out, levels)
    if levels is None:
        return report, None
    shares = level_shares(trained.train, levels).expand(len(held_out), -1)
    return report, report_of_levels(shares, held_out.values, levels)


def probabilities_to_dict(report: ProbabilityReport, shares: ProbabilityReport | None) -> dict[str, Any]:
    """The result of `probabilities_of` as JSON has it; continuous ratings have no scores and no levels."""
    result: dict[str, Any] = {"n_ratings": report.n_ratings}
    if shares is not None:
        result |= {
            "n_between_levels": report.n_between,
            **_scores(report),
            "training_shares": _scores(shares),
            "levels": [
                {
                    "level": level.level,
                    "predicted": level.predicted,
                    "observed": level.observed,
                    "difference": level.predicted - level.observed,
                    "calibration_error": level.error,
                    "calibration_error_by_chance": level.chance,
                }
                for level in report.levels
            ],
        }
    coverage = [{"interval": c, "inside": inside} for c, inside in report.coverage.items()]
    return {**result, "coverage": coverage, "pit_histogram": report.pit}


def _scores(report: ProbabilityReport) -> dict[str, float | None]:
    return {
        "log_likelihood": report.log_likelihood,
        "ranked_probability_score": report.ranked_probability_score,
    }


def _without_nan(value: Any) -> Any:
    """The same value with None for NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
