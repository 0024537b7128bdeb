"""Offsets: what centring subtracts from the ratings before training."""

from __future__ import annotations

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import OptionError, unknown
from mfrec.model.entity import ITEM
from mfrec.sparse import spmm

OFFSETS = ("none", "global", "item")


def centring_offset(ratings: Ratings, kind: str, damping: float = 5.0, mean: float | None = None) -> Tensor | None:
    """The offset that centres the ratings, in stars.

    "none" → None; "global" → () the mean rating μ; "item" → (n_items,) each item's damped mean
    μ_i = (Σ_j y_ij + damping · μ) / (n_i + damping).  Damping 0 gives the plain mean; items without ratings get μ.

    Args:
        kind: a name in `OFFSETS`.
        damping: the number of ratings at μ that each item's mean is damped by.
        mean: μ, if it is not the mean of these ratings.

    Raises:
        InputError: the kind is unknown, or damping is negative.

    Examples:
        >>> ratings = Ratings(torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]), torch.tensor([5.0, 6.0, 1.0]))
        >>> centring_offset(ratings, "item", damping=2).tolist()  # (5 + 6 + 2·4)/(2 + 2) and (1 + 2·4)/(1 + 2)
        [4.75, 3.0]
    """
    if kind not in OFFSETS:
        raise unknown("offset", kind, OFFSETS)
    if kind == "none":
        return None
    if damping < 0:
        raise OptionError("damping", f"must be at least 0 (got {damping:g})")
    is_measured = mean is None and ratings.n_ratings > 0
    mu = ratings.mean(ratings.values) if is_measured else ratings.values.new_tensor(mean or 0.0, dtype=torch.float64)
    if kind == "global":
        return mu.to(ratings.values.dtype)
    # A product rather than an index_add, whose order of summation is not fixed on a GPU.
    ones = torch.ones(ratings.n_users, 1, dtype=torch.float64, device=ratings.device)
    sums = ratings.share(ITEM, spmm(ratings.pattern.T, ratings.values_by_item.double(), ones))[:, 0]
    counts = ratings.item_counts
    means = (sums + damping * mu) / (counts + damping)
    return torch.where(counts > 0, means, mu).to(ratings.values.dtype)


def offset_at(offset: Tensor, items: Tensor) -> Tensor:
    """An offset, () or (n_items,), of the items with these indices."""
    return offset if offset.ndim == 0 else offset.index_select(0, items)
