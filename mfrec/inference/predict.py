"""Predictions for frames of ids, including ids that were not in training.

An unknown user is predicted as the average user, see `mfrec.posteriors.predictive`.  An unknown item is a row without
ratings, folded in: the prediction is left to the user's bias and the prior.  If neither id of a pair is known, the
prediction is the mean rating.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from mfrec.data.frames import checked_timestamps, require_columns
from mfrec.data.ids import indices_of
from mfrec.errors import InputError, OptionError
from mfrec.inference.cold_start import average_user, unknown_row
from mfrec.model.entity import ENTITY_NAMES, ITEM
from mfrec.posteriors.levels import MAX_LEVELS, level_names, level_shares, rating_levels

if TYPE_CHECKING:
    from mfrec.inference.trained_model import TrainedModel

logger = logging.getLogger("mfrec")


def predict_frame(
    trained: TrainedModel,
    pairs: pd.DataFrame,
    *,
    user: str = "user",
    item: str = "item",
    timestamp: str = "timestamp",
    unknown: str = "mean",
    probabilities: bool = False,
) -> pd.DataFrame:
    """The frame with columns "prediction" and, if the posterior has it, "std", both in stars.

    Args:
        pairs: a row for each pair of ids; items may be given by title.
        user, item: the names of the columns of ids.
        timestamp: the name of a column of whole seconds since 1970, which is read if the model has session biases.
        unknown: "mean" predicts pairs with ids that were not in training, as `mfrec.inference.predict` describes, and
            logs their number; "error" refuses them.
        probabilities: add a column such as "p_4" or "p_0.5" for each level, the probability that the rating is it.

    Raises:
        InputError: a column is missing or exists already, an id or a timestamp is missing, an id is unknown and may not
            be, or there are no probabilities.
    """
    if unknown not in ("mean", "error"):
        raise OptionError("unknown", f"must be 'mean' or 'error' (got {unknown!r})")
    if not isinstance(pairs, pd.DataFrame):
        raise InputError(f"pairs must be a DataFrame with columns {user} and {item} (got {type(pairs).__name__})")
    require_columns("pairs", pairs, ids=(user, item))
    levels = _levels(trained) if probabilities else torch.zeros(0)
    names = [f"p_{name}" for name in level_names(levels)]
    for column in ("prediction", "std", *names):
        if column in pairs.columns:
            raise InputError(f"pairs must not have a column {column!r}, which is added; rename it")
    timestamps = None
    if trained.model.sessions is not None and timestamp in pairs.columns:
        timestamps = torch.tensor(checked_timestamps(pairs[timestamp]))
    users, items = indices_of(trained.dataset.user_ids, pairs[user]), trained.dataset.item_indices(pairs[item])
    _report_unknown(trained, (users, items), (pairs[user], pairs[item]), refuse=unknown == "error")
    columns = _predictions(trained, torch.from_numpy(users), torch.from_numpy(items), timestamps, levels)
    shares = columns.pop("probabilities", torch.zeros(len(pairs), 0)).unbind(1)
    columns |= dict(zip(names, shares, strict=True))
    return pairs.assign(**{name: values.cpu().numpy() for name, values in columns.items()})


def require_probabilities(trained: TrainedModel) -> None:
    """Check that the posterior has standard deviations, and so probabilities.

    Raises:
        InputError: it has none; the message says why.
    """
    try:
        trained.posterior.require_std()
    except InputError as error:
        raise OptionError("probabilities", f"needs standard deviations; {error}") from error


def _levels(trained: TrainedModel) -> Tensor:
    """(K,) the levels of the ratings that the model was trained with."""
    require_probabilities(trained)
    levels = rating_levels(trained.origin.train)
    if levels is None:
        raise OptionError(
            "probabilities",
            f"needs ratings with at most {MAX_LEVELS} distinct values; the training ratings have more, so use std",
        )
    return levels


@torch.no_grad()
def _predictions(
    trained: TrainedModel, users: Tensor, items: Tensor, timestamps: Tensor | None, levels: Tensor
) -> dict[str, Tensor]:
    """Predictions for pairs of indices; if they exist, standard deviations and, (n, K), probabilities of levels.

    Index −1 is an unknown id.
    """
    train, has_std = trained.origin.train, trained.posterior.has_std
    columns = {"prediction": torch.full((len(users),), trained.mean_rating)}
    if has_std:
        columns["std"] = torch.full((len(users),), float(train.values.double().std(correction=0)))
    if len(levels):
        columns["probabilities"] = level_shares(train, levels).cpu().repeat(len(users), 1)
    for is_user, is_item in ((True, True), (False, True), (True, False)):
        pairs = ((users >= 0) == is_user) & ((items >= 0) == is_item)
        if not bool(pairs.any()):
            continue
        posterior = trained.predictive
        if not is_item:
            posterior = unknown_row(trained, ITEM)
            posterior = posterior.predicting_by(trained.predicting(posterior))
        elif not is_user:
            posterior = average_user(trained)
        model = posterior.mean_model()
        indices = users[pairs].clamp_min(0), items[pairs].clamp_min(0)
        # An unknown user has no sessions.
        times = timestamps[pairs] if timestamps is not None and is_user else None
        columns["prediction"][pairs] = model.predict(*indices, clip=True, timestamps=times).to(columns["prediction"])
        if has_std:
            columns["std"][pairs] = posterior.std(*indices, timestamps=times).to(columns["std"])
        if len(levels):
            probabilities = posterior.level_probabilities(*indices, levels, times)
            columns["probabilities"][pairs] = probabilities.to(columns["probabilities"])
    return columns


def _report_unknown(
    trained: TrainedModel,
    indices: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    ids: tuple[pd.Series, pd.Series],
    refuse: bool,
) -> None:
    """Log how many ids are unknown and how their pairs are predicted, or refuse them."""
    reports = []
    for name, size, numbers, column in zip(
        ENTITY_NAMES, (len(trained.dataset.user_ids), len(trained.dataset.item_ids)), indices, ids, strict=True
    ):
        unknown = column[numbers < 0]
        if len(unknown):
            n, first = unknown.nunique(), unknown.iloc[0]
            count = f"1 {name} id ({first}) is" if n == 1 else f"{n:,} {name} ids (e.g. {first}) are"
            reports.append(f"{count} not among the model's {size:,} {name}s")
    if not reports:
        return
    report, (users, items) = " and ".join(reports), indices
    if refuse:
        n_pairs = int(((users < 0) | (items < 0)).sum())
        raise InputError(f"{report}; remove their {n_pairs:,} pairs, or predict them with unknown 'mean'")
    cases = {
        "average user": (users < 0) & (items >= 0),
        "user's bias": (users >= 0) & (items < 0),
        "mean rating": (users < 0) & (items < 0),
    }
    counts = [f"{int(case.sum()):,} by the {rule}" for rule, case in cases.items() if case.any()]
    logger.warning("%s; their pairs are predicted %s", report, ", ".join(counts))
