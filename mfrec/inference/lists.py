"""Ranked lists from a trained model: items for one user, and, block by block, items for all users or all items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from mfrec.data.ids import Id, indices_of
from mfrec.errors import InputError, OptionError
from mfrec.inference import top_k
from mfrec.inference.cold_start import popularity_model
from mfrec.inference.explain import reasons as reasons_for
from mfrec.inference.explore import EXPLORE, Explore, check_explore, ranking_scores
from mfrec.inference.recommend import recommended_items
from mfrec.model.entity import ITEM

if TYPE_CHECKING:
    from mfrec.inference.trained_model import TrainedModel

# The ratings that an item needs to be recommended, by default.
MIN_RATINGS = 5


@torch.no_grad()
def recommend(
    trained: TrainedModel,
    user: Id | None = None,
    n: int = 10,
    *,
    candidates: Tensor | None = None,
    explore: Explore = "none",
    reasons: int = 0,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """The n best items that the user has not rated, best first; the frame's attrs["ranked by"] names the score.

    Users without ratings or features get the items with the highest damped mean.

    Args:
        user: the user's id; not needed if there is only one user, such as one folded in.
        candidates: (n_items,) bool, as `candidate_items` returns it; by default items with at least
            `MIN_RATINGS` ratings, of any split.
        explore: "none" ranks by prediction, "upper" by the 95 % quantile of the expected rating, and "thompson" by one
            draw of it.
        reasons: add a column "because", a list of at most this many `Reason`s for each item: the user's own ratings
            that add most to the prediction.
        generator: the source of samples, on the CPU.

    Raises:
        InputError: the user is unknown, or the model does not have what explore or reasons need.
    """
    check_explore(trained, explore)
    if reasons < 0:
        raise OptionError("reasons", f"must be at least 0 (got {reasons})")
    if reasons and trained.folded == ITEM:
        raise InputError("reasons exist only for items that were in training, not for items that were folded in")
    index = trained.user_index(user)
    candidates = trained.item_counts >= MIN_RATINGS if candidates is None else candidates
    if not bool(trained.users_with_evidence[index]):
        frame = recommended_items(trained.dataset, popularity_model(trained), index, n, candidates=candidates)
        reason = "user has no training ratings and no features"
        frame.attrs["ranked by"] = f"mean rating, damped by {trained.damping:g} ratings ({reason})"
        if reasons:
            frame["because"] = pd.Series([[] for _ in range(len(frame))], dtype=object)
        return frame
    frame = recommended_items(
        trained.dataset,
        trained.model,
        index,
        n,
        posterior=trained.predictive,
        candidates=candidates,
        rank_by=ranking_scores(trained, index, explore, generator),
    )
    frame.attrs["ranked by"] = EXPLORE[explore]
    if reasons:
        items = torch.from_numpy(indices_of(trained.dataset.item_ids, frame["id"]))
        frame["because"] = pd.Series(reasons_for(trained, index, items, reasons, generator), dtype=object)
    return frame


def recommend_blocks(
    trained: TrainedModel,
    n: int = 10,
    *,
    candidates: Tensor | None = None,
    explore: Explore = "none",
    scores_held: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[int, pd.DataFrame]]:
    """`recommend` for all users, block by block.

    Args:
        explore: "none", or "thompson" with one draw for all users.
        scores_held: how many scores to hold at a time, which decides the memory needed.

    Yields:
        The number of users in the block, and a frame with columns user, rank, item and predicted.

    Raises:
        InputError: explore needs one user, or standard deviations that the model does not have; n is below 1, or
            candidates are not a bool for each item.
    """
    if explore == "upper":
        raise OptionError("explore", "must be none or thompson for many users (got upper)")
    check_explore(trained, explore)
    ranking = trained.model if explore == "none" else trained.posterior.sample(generator)
    candidates = trained.item_counts >= MIN_RATINGS if candidates is None else candidates
    evidence = trained.users_with_evidence
    groups = [(ranking, evidence)]
    if not bool(evidence.all()):
        groups.append((popularity_model(trained), ~evidence))
    for model, users in groups:
        blocks = top_k.top_k_blocks(
            model,
            users.nonzero()[:, 0],
            n,
            trained.dataset.ratings,
            candidates=candidates,
            clip=True,
            scores_held=scores_held,
        )
        for rows, items, predictions in blocks:
            if explore == "thompson" and model is ranking:
                pairs = rows[:, None].expand_as(items).flatten(), items.clamp_min(0).flatten()
                predictions = trained.model.predict(*pairs, clip=True).view_as(predictions)
            ids = trained.dataset.user_ids, trained.dataset.item_ids
            yield len(rows), _long_frame(ids, ("user", "item"), rows, items, predicted=predictions)


def similar_blocks(
    trained: TrainedModel, n: int = 10, *, min_ratings: int = 20, scores_held: int | None = None
) -> Iterator[tuple[int, pd.DataFrame]]:
    """`similar_items` for all items, block by block.

    Yields:
        The number of items in the block, and a frame with columns item, rank, similar and cosine.

    Raises:
        InputError: n is below 1.
    """
    rows, candidates = torch.arange(trained.model.n_items), trained.item_counts >= min_ratings
    ids = trained.dataset.item_ids, trained.dataset.item_ids
    blocks = top_k.similar_blocks(trained.model.factors(ITEM), rows, n, candidates, scores_held=scores_held)
    for block, items, cosines in blocks:
        yield len(block), _long_frame(ids, ("item", "similar"), block, items, cosine=cosines)


def _long_frame(
    ids: tuple[pd.Index, pd.Index], names: tuple[str, str], rows: Tensor, listed: Tensor, **values: Tensor
) -> pd.DataFrame:
    """A row for each place of a list that could be filled: the list's id, rank from 1, the id listed, and values."""
    filled = (listed >= 0).cpu()
    position, rank = filled.nonzero(as_tuple=True)
    columns = {
        names[0]: ids[0][rows.cpu()[position].numpy()],
        "rank": rank.numpy() + 1,
        names[1]: ids[1][listed.cpu()[filled].numpy()],
    }
    return pd.DataFrame(columns | {key: value.cpu()[filled].numpy() for key, value in values.items()})
