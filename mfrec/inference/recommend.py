"""Recommendations and similarities as frames with ids and titles."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.data.ids import Id
from mfrec.errors import InputError, OptionError, unknown
from mfrec.inference.top_k import checked_candidates, checked_n, similar, top_k
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.posteriors.base import Posterior


def item_frame(dataset: Dataset, indices: Tensor, **values: Tensor) -> pd.DataFrame:
    """The items at these indices, (n,), in their order: a column for each value, id, title and the other columns.

    Places that `top_k` or `similar` could not fill, with index −1, are left out.
    """
    filled = (indices >= 0).cpu()
    kept = indices.cpu()[filled].numpy()
    frame = dataset.items.iloc[kept].reset_index(drop=True)
    if "genres" in frame:
        frame["genres"] = ["|".join(genres) for genres in frame["genres"]]
    columns = {name: value.cpu()[filled].numpy() for name, value in values.items()}
    return pd.concat([pd.DataFrame({**columns, "id": dataset.item_ids[kept]}), frame], axis=1)


def candidate_items(
    dataset: Dataset,
    min_ratings: int = 5,
    *,
    genres: Iterable[str] = (),
    years: tuple[int, int] | None = None,
    exclude: Iterable[Id] = (),
) -> Tensor:
    """(n_items,) bool, which items may be recommended.

    Args:
        min_ratings: leave out items with fewer ratings; one 5-star rating says little about an item.
        genres: only items of one of these genres.
        years: only items from the first year to the last, both included.
        exclude: leave out these items, by id or title.

    Raises:
        InputError: no item has one of the genres, an excluded item is unknown, or the data has no genres or years.
    """
    candidates = dataset.ratings.item_counts.cpu() >= min_ratings
    wanted = {genre.strip().casefold(): genre.strip() for genre in genres}
    if wanted:
        column = _item_column(dataset, "genres")
        names = {genre.casefold(): genre for genres in column for genre in genres}
        for folded, genre in wanted.items():
            if folded not in names:
                raise unknown("genre", genre, sorted(names.values()))
        candidates &= torch.tensor([any(genre.casefold() in wanted for genre in genres) for genres in column])
    if years is not None:
        first, last = years
        if first > last:
            raise OptionError("years", f"must be the first year, then the last (got {first} {last})")
        within = _item_column(dataset, "year").between(first, last).fillna(False)
        candidates &= torch.from_numpy(within.to_numpy(bool))
    for item in exclude:
        candidates[dataset.item_index(item)] = False
    return candidates


def _item_column(dataset: Dataset, name: str) -> pd.Series:
    if name not in dataset.items:
        raise InputError(f"{dataset.name} has no column {name!r} for its items; recommend without it")
    return dataset.items[name]


def recommended_items(
    dataset: Dataset,
    model: MatrixFactorization,
    user: int,
    n: int = 10,
    min_ratings: int = 5,
    posterior: Posterior | None = None,
    *,
    candidates: Tensor | None = None,
    rank_by: Tensor | None = None,
) -> pd.DataFrame:
    """The n items with the highest predicted ratings that the user has not rated in the data, best first.

    Args:
        user: a user index.
        min_ratings: leave out items with fewer ratings, unless candidates are given.
        posterior: the posterior whose mean the model is, for standard deviations.
        candidates: (n_items,) bool, which items may be recommended.
        rank_by: (n_items,) scores to rank by instead of the predictions.

    Returns:
        A frame as `item_frame` makes it, with "predicted" and, if the posterior has it, "std", both in stars.

    Raises:
        InputError: the user is not in the model, n is below 1, or candidates are not a bool for each item.
    """
    device = model.device
    seen = dataset.ratings.select(dataset.ratings.users == user).to(device)
    candidates = candidate_items(dataset, min_ratings) if candidates is None else candidates
    users = torch.tensor([user], device=device)
    if rank_by is None:
        indices, predictions = (rows[0] for rows in top_k(model, users, n, seen, candidates=candidates, clip=True))
    else:
        eligible = checked_candidates(candidates, model.n_items).to(device, copy=True)
        eligible[seen.items.long()] = False
        order = rank_by.where(eligible, -torch.inf).argsort(descending=True, stable=True)
        indices = order[: checked_n(n, len(eligible))]
        indices = indices[eligible[indices]]
        predictions = model.predict(users.expand(len(indices)), indices, clip=True)
    columns = {"predicted": predictions}
    if posterior is not None and posterior.has_std:
        items = indices.clamp_min(0)
        columns["std"] = posterior.std(torch.full_like(items, user), items)
    return item_frame(dataset, indices, **columns)


def similar_items(
    dataset: Dataset, model: MatrixFactorization, item: int, n: int = 10, min_ratings: int = 20
) -> pd.DataFrame:
    """The n items whose factors have the highest cosine with this item's, best first.

    Args:
        item: an item index.
        min_ratings: leave out items with fewer ratings, whose factors are uncertain.

    Raises:
        InputError: the item is not in the model, or n is below 1.
    """
    candidates = dataset.ratings.item_counts >= min_ratings
    indices, cosines = similar(model.factors(ITEM), torch.tensor([item]), n, candidates)
    return item_frame(dataset, indices[0], cosine=cosines[0])


def similar_users(
    dataset: Dataset, model: MatrixFactorization, user: int, n: int = 10, min_ratings: int = 20
) -> pd.DataFrame:
    """The n users whose factors have the highest cosine with this user's, best first: cosine, id, number of ratings.

    Args:
        user: a user index.
        min_ratings: leave out users with fewer ratings, whose factors are uncertain.

    Raises:
        InputError: the user is not in the model, or n is below 1.
    """
    counts = dataset.ratings.user_counts
    indices, cosines = similar(model.factors(USER), torch.tensor([user]), n, counts >= min_ratings, kind="user")
    filled = (indices[0] >= 0).cpu()
    kept = indices[0].cpu()[filled]
    columns = {"cosine": cosines[0].cpu()[filled].numpy(), "id": dataset.user_ids[kept.numpy()]}
    return pd.DataFrame({**columns, "ratings": counts[kept].numpy()})
