"""Small random ratings for hypothesis."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from mfrec.data.ratings import Ratings

N_USERS, N_ITEMS = 7, 9


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def some_ratings(draw: st.DrawFn) -> Ratings:
    """4 to 60 whole-star ratings with timestamps, many of them equal."""
    pairs = draw(st.lists(st.integers(0, N_USERS * N_ITEMS - 1), min_size=4, max_size=60, unique=True))
    keys = torch.tensor(pairs)
    stamps = draw(st.lists(st.integers(0, 9), min_size=len(pairs), max_size=len(pairs)))
    values = keys.remainder(5) + 1.0
    return Ratings(keys // N_ITEMS, keys % N_ITEMS, values, N_USERS, N_ITEMS, torch.tensor(stamps))


def as_set(ratings: Ratings) -> set[tuple[int, int, float]]:
    return set(zip(ratings.users.tolist(), ratings.items.tolist(), ratings.values.tolist(), strict=True))
