"""Products of augmented factors at pairs of indices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mfrec.errors import InputError

# Pairs predicted at a time: bounds the gathered rows to 2 · 2^16 · rank numbers.
PAIR_BLOCK = 2**16


def check_indices(kind: str, indices: Tensor, size: int) -> None:
    """Check that all indices are in 0 … size-1.

    Raises:
        InputError: one is not; the message names the first.
    """
    wrong = indices[(indices < 0) | (indices >= size)]
    if len(wrong):
        raise InputError(f"{kind} index must be in 0 … {size - 1:,} (got {int(wrong[0])})")


def pair_dots(users: Tensor, items: Tensor, user_indices: Tensor, item_indices: Tensor) -> Tensor:
    """(n,) dot products of rows of two matrices at n pairs of indices, a block of pairs at a time.

    Args:
        users, items: (n_users, k) and (n_items, k).
        user_indices, item_indices: (n,) each.

    Raises:
        InputError: an index is out of range.
    """
    check_indices("user", user_indices, len(users))
    check_indices("item", item_indices, len(items))
    user_indices, item_indices = user_indices.to(users.device), item_indices.to(users.device)
    blocks = zip(user_indices.split(PAIR_BLOCK), item_indices.split(PAIR_BLOCK), strict=True)
    return torch.cat([dots(users, items, u, i) for u, i in blocks]) if len(user_indices) else users.new_zeros(0)


def dots(users: Tensor, items: Tensor, user_indices: Tensor, item_indices: Tensor) -> Tensor:
    """(n,) dot products of rows of two matrices at n pairs of indices; differentiable."""
    embedding = nn.functional.embedding
    return (embedding(user_indices, users) * embedding(item_indices, items)).sum(-1)
