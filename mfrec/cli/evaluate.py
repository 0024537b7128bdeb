"""The verbs that measure and predict: evaluate, predict."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
import tyro

from mfrec.cli import report
from mfrec.cli.options import Device, RunPath, Switch, pick_device, seeded
from mfrec.cli.output import TableWriter, print_json, write_blocks
from mfrec.data.pairs import read_table
from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.evaluation.metrics import errors_by, evaluate_parts, with_coverage
from mfrec.evaluation.ranking import RankingReport, evaluate_ranking
from mfrec.experiments.run import Run
from mfrec.experiments.training import split_parts
from mfrec.inference.recommend import candidate_items
from mfrec.inference.trained_model import Trained

# Rows shown of errors by user or by item.
SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure a run's model on its train, valid and test parts."""

    run: RunPath
    """Run folder."""
    by: Literal["user", "item", "rating", "popularity", "warmth"] | None = None
    """Errors on the test part by user, item, rating, popularity of the item, or for cold and warm users and items."""
    ranking: int | None = None
    """Measure lists of so many recommendations too: precision, recall, NDCG, MAP, MRR, hit rate."""
    threshold: float | None = None
    """Lowest rating of an item that is relevant; by default three quarters up the rating scale."""
    min_ratings: int = 0
    """Leave items with fewer ratings out of the lists, as recommend does."""
    seed: int = 0
    """Seeds the resampling of the users for the intervals."""
    device: Device = "auto"
    """Where to compute."""
    json: Switch = False
    """Print JSON instead of tables."""

    def __call__(self) -> int:
        for option in ("threshold", "min_ratings"):
            if self.ranking is None and getattr(self, option):
                raise InputError(
                    f"--{option.replace('_', '-')} is of lists; give --ranking 10 with it, or leave it out"
                )
        seeded(self.seed)  # refused before anything is read
        run, device = Run.open(self.run), pick_device(self.device)
        trained = run.trained(device)
        parts = split_parts(trained.dataset.ratings.to(device), trained.part)
        measured = evaluate_parts(trained.model, trained.objective, parts)
        measured = with_coverage(measured, parts, trained.model, trained.posterior)
        held_out = "test" if "test" in parts else "valid"
        if (self.by or self.ranking is not None) and held_out not in parts:
            raise InputError(f"{run.path} holds nothing out to measure by; train with --test-fraction above 0")
        errors = None if self.by is None else self._errors(trained, parts[held_out])
        lists = None if self.ranking is None else self._ranking(trained, parts[held_out])
        if self.json:
            found: dict[str, Any] = {"run": str(run.path), **measured}
            if errors is not None:
                found[f"{held_out}_by_{self.by}"] = json.loads(errors.to_json(orient="records"))
            if lists is not None:
                found["ranking"] = _plain(lists)
            print(json.dumps(_finite(found), indent=2))
            return 0
        report.print_errors(f"{run.path}, {trained.solver} on {trained.dataset.name}", measured)
        if errors is not None:
            report.print_breakdown(f"{held_out} part by {self.by}", errors, SHOWN)
        if lists is not None:
            report.print_ranking(f"top {lists.n} of all items, {held_out} part", lists)
        return 0

    def _errors(self, trained: Trained, part: Ratings) -> pd.DataFrame:
        assert self.by is not None
        found = errors_by(trained.model.predict_observed(part, clip=True), part, trained.train, self.by)
        if self.by == "user":
            found["user"] = trained.dataset.user_ids[found["user"]]
        elif self.by == "item":
            indices = found["item"].tolist()
            found["item"] = trained.dataset.item_ids[indices]
            found["title"] = [trained.dataset.title(index) for index in indices]
        return found if self.by not in ("user", "item") else found.sort_values("rmse", ascending=False)

    def _ranking(self, trained: Trained, part: Ratings) -> RankingReport:
        assert self.ranking is not None
        low, high = trained.dataset.scale
        known = trained.dataset.ratings.to(part.device)
        # Neither what was trained on nor what was validated on is news to a user.
        mask = torch.ones(len(known), dtype=torch.bool, device=part.device)
        key = known.users.long() * known.n_items + known.items
        mask[torch.isin(key, part.users.long() * known.n_items + part.items)] = False
        candidates = candidate_items(trained.dataset, self.min_ratings)
        if not bool(candidates.any()):
            raise InputError(f"no item has {self.min_ratings:,} ratings; ask for fewer --min-ratings")
        return evaluate_ranking(
            trained.model,
            trained.train,
            part,
            low + 0.75 * (high - low) if self.threshold is None else self.threshold,
            self.ranking,
            exclude=known.select(mask),
            candidates=candidates,
            generator=seeded(self.seed),
        )


def _plain(lists: RankingReport) -> dict[str, Any]:
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


def _finite(value: Any) -> Any:
    """With null for NaN, which is not JSON."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclasses.dataclass(frozen=True)
class Predict:
    """Add predicted ratings to a table of (user, item) pairs."""

    run: RunPath
    """Run folder."""
    pairs: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PAIRS")]
    """A CSV, TSV or parquet table with columns user and item (or userId and movieId); others are kept."""
    output: str | None = None
    """A .csv or .parquet file to write; by default CSV is printed."""
    unknown: Literal["mean", "error"] = "mean"
    """Pairs with ids that the run does not know: predict by the other side's bias, or refuse."""
    device: Device = "auto"
    """Where to compute."""
    json: Switch = False
    """Print JSON instead of CSV."""

    def __call__(self) -> int:
        if self.json and self.output is not None:
            raise InputError("--json is for the terminal, and --output for a file; give one of them")
        run, writer = Run.open(self.run), None if self.output is None else TableWriter(Path(self.output))
        pairs = read_table(self.pairs, ("user", "item"))
        found = run.trained(pick_device(self.device)).predict_frame(pairs, unknown=self.unknown)
        if writer is not None:
            write_blocks(writer, [(len(found), found)], len(found), "predictions", "pairs")
        elif self.json:
            print_json(found)
        else:
            found.to_csv(sys.stdout, index=False)
        return 0
