"""Beyond accuracy: how much of the catalogue recommendations reach, and how little known the recommended items are."""

from __future__ import annotations

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings


def catalogue_coverage(recommended: Tensor, candidates: Tensor) -> float:
    """The share of candidate items that are in at least one list; NaN without candidates.

    Args:
        recommended: (n_lists, n_columns) item indices, −1 after the end of a list.
        candidates: (n_items,) bool, which items may be recommended.

    Examples:
        >>> catalogue_coverage(torch.tensor([[0, 2], [2, -1]]), torch.tensor([True, True, True, True]))
        0.5
    """
    listed = torch.zeros_like(candidates, dtype=torch.bool)
    listed[recommended[recommended >= 0].long()] = True
    return float(listed[candidates].double().mean())


def novelty(recommended: Tensor, train: Ratings) -> Tensor:
    """The mean self-information of each list's items in bits: the mean over the list of −log₂(n_i / n_users).

    n_i is the item's number of training ratings; an item without any counts as if it had one.  (Zhou et al. 2010,
    "Solving the apparent diversity-accuracy dilemma of recommender systems", PNAS 107(10).)

    Args:
        recommended: (n_lists, n_columns) item indices, −1 after the end of a list.

    Returns:
        (n_lists,) float64 on the CPU, NaN for empty lists.
    """
    bits = (train.n_users / train.item_counts.cpu().clamp_min(1).double()).log2()
    recommended = recommended.cpu().long()
    filled = recommended >= 0
    return (bits[recommended.clamp_min(0)] * filled).sum(1) / filled.sum(1)
