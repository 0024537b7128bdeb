"""Predictions for frames of ids, including ids that were not in training.

An unknown id is a row without ratings, folded in: the prediction is left to the partner's bias and the prior.  If
neither id of a pair is known, the prediction is the mean rating.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from mfrec.data.frames import require_columns
from mfrec.data.ids import indices_of
from mfrec.errors import InputError, OptionError
from mfrec.inference.cold_start import unknown_row
from mfrec.model.entity import ENTITY_NAMES, ITEM, USER

if TYPE_CHECKING:
    from mfrec.inference.trained_model import TrainedModel

logger = logging.getLogger("mfrec")


def predict_frame(
    trained: TrainedModel, pairs: pd.DataFrame, *, user: str = "user", item: str = "item", unknown: str = "mean"
) -> pd.DataFrame:
    """The frame with columns "prediction" and, if the posterior has it, "std", both in stars.

    Args:
        pairs: a row for each pair of ids; items may be given by title.
        user, item: the names of the columns of ids.
        unknown: "mean" predicts pairs with ids that were not in training, as `mfrec.inference.predict` describes, and
            logs their number; "error" refuses them.

    Raises:
        InputError: a column is missing or exists already, an id is missing, or an id is unknown and may not be.
    """
    if unknown not in ("mean", "error"):
        raise OptionError("unknown", f"must be 'mean' or 'error' (got {unknown!r})")
    if not isinstance(pairs, pd.DataFrame):
        raise InputError(f"pairs must be a DataFrame with columns {user} and {item} (got {type(pairs).__name__})")
    require_columns("pairs", pairs, ids=(user, item))
    for column in ("prediction", "std"):
        if column in pairs.columns:
            raise InputError(f"pairs must not have a column {column!r}, which is added; rename it")
    users, items = indices_of(trained.dataset.user_ids, pairs[user]), trained.dataset.item_indices(pairs[item])
    _report_unknown(trained, (users, items), (pairs[user], pairs[item]), refuse=unknown == "error")
    columns = _predictions(trained, torch.from_numpy(users), torch.from_numpy(items))
    return pairs.assign(**{name: values.cpu().numpy() for name, values in columns.items()})


@torch.no_grad()
def _predictions(trained: TrainedModel, users: Tensor, items: Tensor) -> dict[str, Tensor]:
    """Predictions, and standard deviations if there are any, for pairs of indices; index -1 is an unknown id."""
    prediction = torch.full((len(users),), trained.mean_rating)
    std = torch.full((len(users),), float(trained.origin.train.values.double().std(correction=0)))
    for is_user, is_item in ((True, True), (False, True), (True, False)):
        pairs = ((users >= 0) == is_user) & ((items >= 0) == is_item)
        if not bool(pairs.any()):
            continue
        model, posterior = trained.model, trained.posterior
        if not (is_user and is_item):
            posterior = unknown_row(trained, ITEM if is_user else USER)
            model = posterior.mean_model()
        indices = users[pairs].clamp_min(0), items[pairs].clamp_min(0)
        prediction[pairs] = model.predict(*indices, clip=True).to(prediction)
        if posterior.has_std:
            std[pairs] = posterior.std(*indices).to(std)
    return {"prediction": prediction} | ({"std": std} if trained.posterior.has_std else {})


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
        "item's bias": (users < 0) & (items >= 0),
        "user's bias": (users >= 0) & (items < 0),
        "mean rating": (users < 0) & (items < 0),
    }
    counts = [f"{int(case.sum()):,} by the {rule}" for rule, case in cases.items() if case.any()]
    logger.warning("%s; their pairs are predicted %s", report, ", ".join(counts))
