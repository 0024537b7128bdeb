"""Recommendations and similarities, in blocks of rows: never users × items at once."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor

from mfrec.datasets import Dataset
from mfrec.errors import InputError
from mfrec.model import ITEM, USER, MatrixFactorization, check_indices
from mfrec.posterior import Posterior
from mfrec.ratings import Ratings

# Scores held at a time: 2^24 in float32 are 64 MiB.
SCORES = 2**24


@torch.no_grad()
def top_n(
    model: MatrixFactorization,
    users: Tensor,
    n: int = 10,
    exclude: Ratings | None = None,
    *,
    candidates: Tensor | None = None,
    clip: bool = False,
) -> tuple[Tensor, Tensor]:
    """The n items with the highest predictions for each user, best first; ties go to the lower index.

    Args:
        users: (n_rows,) user indices.
        exclude: ratings whose items are not recommended to their users again.
        candidates: (n_items,) bool, which items may be recommended; all of them by default.
        clip: keep the predictions on the rating scale after ranking by what they were.

    Returns:
        (n_rows, min(n, n_items)) item indices and their predicted ratings.  A row with fewer items left ends in index
        −1 and prediction −∞.
    """
    check_indices("user", users, model.n_users)
    columns = _checked_n(n, model.n_items)
    user_table, item_table = model.tables()
    every_item = torch.arange(model.n_items, device=item_table.device)

    def scores() -> Iterator[Tensor]:
        for block in _blocks(users.to(item_table.device).long(), model.n_items):
            block_scores = model.add_offset(user_table[block] @ item_table.mT, every_item)
            if candidates is not None:
                block_scores[:, ~candidates.to(block_scores.device)] = -torch.inf
            if exclude is not None:
                row, item = _entries(exclude, block)
                block_scores[row, item] = -torch.inf
            yield block_scores

    indices, predictions = _best(scores(), columns, item_table)
    indices[predictions == -torch.inf] = -1
    return indices, model.clip(predictions).where(indices >= 0, predictions) if clip else predictions


@torch.no_grad()
def similar(
    table: Tensor, rows: Tensor, n: int = 10, candidates: Tensor | None = None, kind: str = "item"
) -> tuple[Tensor, Tensor]:
    """The n rows of a factor table most similar to each given row by cosine, itself left out, most similar first.

        cos(a, b) = a · b / (‖a‖ ‖b‖)

    Args:
        table: (n_rows, rank), e.g. `model.factors(ITEM)`; rows of zeros are similar to nothing (cosine 0).
        rows: (m,) indices into the table.
        candidates: (n_rows,) bool, which rows may be answers; all of them by default.

    Returns:
        (m, n) indices and cosines; a row with fewer than n candidates ends in index −1 and cosine −∞.
    """
    check_indices(kind, rows, len(table))
    columns = _checked_n(n, len(table))
    unit = torch.nn.functional.normalize(table, dim=1)

    def scores() -> Iterator[Tensor]:
        for block in _blocks(rows.to(table.device).long(), len(table)):
            cosines = unit[block] @ unit.mT
            if candidates is not None:
                cosines[:, ~candidates.to(cosines.device)] = -torch.inf
            cosines[torch.arange(len(block), device=block.device), block] = -torch.inf
            yield cosines

    indices, cosines = _best(scores(), columns, table)
    indices[cosines == -torch.inf] = -1
    return indices, cosines


def _checked_n(n: int, size: int) -> int:
    if n < 1:
        raise InputError(f"n {n} asks for nothing; give 1 or more")
    return min(n, size)


def _blocks(rows: Tensor, width: int) -> Iterator[Tensor]:
    return iter(rows.split(max(1, SCORES // width)))


def _best(blocks: Iterator[Tensor], n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    found = []
    for scores in blocks:
        values, indices = scores.topk(n, dim=1)
        # topk takes any of equal scores at the cut, and in any order; where that matters, sort the row in full.
        tied = (scores >= values[:, -1:]).sum(1) > n
        values[tied], indices[tied] = (part[:, :n] for part in scores[tied].sort(dim=1, descending=True, stable=True))
        by_index = indices.argsort(dim=1)
        values, indices = values.gather(1, by_index), indices.gather(1, by_index)
        by_value = values.argsort(dim=1, descending=True, stable=True)
        found.append((indices.gather(1, by_value), values.gather(1, by_value)))
    if not found:
        return torch.empty(0, n, dtype=torch.long, device=like.device), like.new_empty(0, n)
    return torch.cat([indices for indices, _ in found]), torch.cat([values for _, values in found])


def _entries(ratings: Ratings, users: Tensor) -> tuple[Tensor, Tensor]:
    """(position in `users`, item) of every rating by these users, on their device."""
    pattern, device = ratings.by_user, users.device
    users = users.to(ratings.device)
    starts, counts = pattern.crow[users].long(), pattern.counts[users].long()
    row = torch.repeat_interleave(torch.arange(len(users), device=users.device), counts)
    within = torch.arange(len(row), device=users.device) - (counts.cumsum(0) - counts)[row]
    return row.to(device), pattern.col[starts[row] + within].long().to(device)


def item_frame(dataset: Dataset, indices: Tensor, **values: Tensor) -> pd.DataFrame:
    """The items at these indices, (n,), best first: id, title and what else is known, with a column for each value.

    Positions that `top_n` or `similar` could not fill, index −1, are left out.
    """
    found = (indices >= 0).cpu()
    kept = indices.cpu()[found].numpy()
    frame = dataset.items.iloc[kept].reset_index(drop=True)
    if "genres" in frame:
        frame["genres"] = ["|".join(genres) for genres in frame["genres"]]
    columns = {name: value.cpu()[found].numpy() for name, value in values.items()}
    return pd.concat([pd.DataFrame({**columns, "id": dataset.item_ids[kept]}), frame], axis=1)


def recommended_items(
    dataset: Dataset,
    model: MatrixFactorization,
    user: int,
    n: int = 10,
    min_ratings: int = 5,
    posterior: Posterior | None = None,
) -> pd.DataFrame:
    """The n items the user has not rated in the data with the highest predicted ratings, best first.

    With the posterior that the model is the mean of, each with the deviation of its rating.

    Items with fewer than min_ratings ratings are left out: a film with a single 5-star rating has nothing else to be
    judged by.
    """
    device = model.scale.device
    seen = dataset.ratings.select(dataset.ratings.users == user).to(device)
    known = dataset.ratings.item_counts >= min_ratings
    indices, predictions = top_n(model, torch.tensor([user], device=device), n, seen, candidates=known, clip=True)
    columns = {"predicted": predictions[0]}
    if posterior is not None:
        found = indices[0].clamp_min(0)
        columns["deviation"] = posterior.deviation(torch.full_like(found, user), found)
    return item_frame(dataset, indices[0], **columns)


def similar_items(
    dataset: Dataset, model: MatrixFactorization, item: int, n: int = 10, min_ratings: int = 20
) -> pd.DataFrame:
    """The n items whose factors point most nearly where this item's do, best first.

    Items with fewer than min_ratings ratings are left out: little is known of where their factors point.
    """
    known = dataset.ratings.item_counts >= min_ratings
    indices, cosines = similar(model.factors(ITEM), torch.tensor([item]), n, known)
    return item_frame(dataset, indices[0], cosine=cosines[0])


def similar_users(
    dataset: Dataset, model: MatrixFactorization, user: int, n: int = 10, min_ratings: int = 20
) -> pd.DataFrame:
    """The n users whose factors point most nearly where this user's do, best first: cosine, id, number of ratings.

    Users with fewer than min_ratings ratings are left out, as items are by `similar_items`.
    """
    counts = dataset.ratings.user_counts
    indices, cosines = similar(model.factors(USER), torch.tensor([user]), n, counts >= min_ratings, kind="user")
    found = (indices[0] >= 0).cpu()
    kept = indices[0].cpu()[found]
    columns = {"cosine": cosines[0].cpu()[found].numpy(), "id": dataset.user_ids[kept.numpy()]}
    return pd.DataFrame({**columns, "ratings": counts[kept].numpy()})
