"""Recommendations and similarities as frames of titles."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.data.ids import Id
from mfrec.errors import InputError, unknown
from mfrec.inference.top_k import checked_candidates, checked_n, similar, top_n
from mfrec.model.factorization import ITEM, USER, MatrixFactorization
from mfrec.posteriors.posterior import Posterior


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
        min_ratings: those with so many ratings: a film with a single 5-star rating has nothing else to be judged by.
        genres: those of any of these.
        years: those from the first year to the last, both included.
        exclude: but not these, by id or title.

    Raises:
        InputError: no item has such a genre, an excluded one is unknown, or the items' genres or years are.
    """
    chosen = dataset.ratings.item_counts.cpu() >= min_ratings
    wanted = {genre.strip().casefold(): genre.strip() for genre in genres}
    if wanted:
        column = _known_column(dataset, "genres")
        known = {genre.casefold(): genre for found in column for genre in found}
        for folded, genre in wanted.items():
            if folded not in known:
                raise unknown("genre", genre, sorted(known.values()))
        chosen &= torch.tensor([any(genre.casefold() in wanted for genre in found) for found in column])
    if years is not None:
        first, last = years
        if first > last:
            raise InputError(f"years {first} to {last} run backwards; give the first before the last")
        within = _known_column(dataset, "year").between(first, last).fillna(False)
        chosen &= torch.from_numpy(within.to_numpy(bool))
    for one in exclude:
        chosen[dataset.item_index(one)] = False
    return chosen


def _known_column(dataset: Dataset, name: str) -> pd.Series:
    if name not in dataset.items:
        raise InputError(f"{dataset.name} does not know the {name} of its items; ask for any")
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
    """The n items the user has not rated in the data with the highest predicted ratings, best first.

    With the posterior that the model is the mean of, each with the deviation of its rating.

    Args:
        min_ratings: items with fewer ratings are left out, where no candidates are given.
        candidates: (n_items,) bool, which items may be recommended.
        rank_by: (n_items,) what to rank them by in place of predictions.

    Returns:
        a frame as of `item_frame`, with "predicted" and, of a posterior, "deviation", both in stars.

    Raises:
        InputError: the user is not in the model, n is below 1, or candidates are not a bool for each item.
    """
    device = model.scale.device
    seen = dataset.ratings.select(dataset.ratings.users == user).to(device)
    candidates = candidate_items(dataset, min_ratings) if candidates is None else candidates
    users = torch.tensor([user], device=device)
    if rank_by is None:
        indices, predictions = (found[0] for found in top_n(model, users, n, seen, candidates=candidates, clip=True))
    else:
        chosen = checked_candidates(candidates, model.n_items).to(device, copy=True)
        chosen[seen.items.long()] = False
        indices = rank_by.where(chosen, -torch.inf).argsort(descending=True, stable=True)[: checked_n(n, len(chosen))]
        indices = indices[chosen[indices]]
        predictions = model.predict(users.expand(len(indices)), indices, clip=True)
    columns = {"predicted": predictions}
    if posterior is not None:
        found = indices.clamp_min(0)
        columns["deviation"] = posterior.deviation(torch.full_like(found, user), found)
    return item_frame(dataset, indices, **columns)


def similar_items(
    dataset: Dataset, model: MatrixFactorization, item: int, n: int = 10, min_ratings: int = 20
) -> pd.DataFrame:
    """The n items whose factors point most nearly where this item's do, best first.

    Items with fewer than min_ratings ratings are left out: little is known of where their factors point.

    Raises:
        InputError: the item is not in the model, or n is below 1.
    """
    known = dataset.ratings.item_counts >= min_ratings
    indices, cosines = similar(model.factors(ITEM), torch.tensor([item]), n, known)
    return item_frame(dataset, indices[0], cosine=cosines[0])


def similar_users(
    dataset: Dataset, model: MatrixFactorization, user: int, n: int = 10, min_ratings: int = 20
) -> pd.DataFrame:
    """The n users whose factors point most nearly where this user's do, best first: cosine, id, number of ratings.

    Users with fewer than min_ratings ratings are left out, as items are by `similar_items`.

    Raises:
        InputError: the user is not in the model, or n is below 1.
    """
    counts = dataset.ratings.user_counts
    indices, cosines = similar(model.factors(USER), torch.tensor([user]), n, counts >= min_ratings, kind="user")
    found = (indices[0] >= 0).cpu()
    kept = indices[0].cpu()[found]
    columns = {"cosine": cosines[0].cpu()[found].numpy(), "id": dataset.user_ids[kept.numpy()]}
    return pd.DataFrame({**columns, "ratings": counts[kept].numpy()})
