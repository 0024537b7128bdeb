"""The largest of many scores, exactly, in one pass over them.

The maxima of groups of scores come first: the n largest scores are in the n groups with the largest maxima, since no
score of another group exceeds these n maxima.  After one pass over all scores only few of them are left to compare.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

# About how many rows are multiplied at a time: few enough for BLAS's intermediate results to stay in cache.
TILE = 1024
# Neighbouring scores that are compared by their maximum first.
GROUP = 32


def tiled(factors: Tensor, n: int) -> Tensor:
    """The factors, (size, k), as (n_tiles, width, k) with zeros at the end, so that `largest` can choose n of them.

    The product of a batch of tiles takes a sixth less time than the product with all factors at once.
    """
    size = len(factors)
    if size < 4 * GROUP * (n + 1):
        n_tiles, width = 1, max(size, n + 1)
    else:
        # All of one width of at most about TILE, in whole groups of groups.
        width = -(-size // (-(-size // TILE) * 4 * GROUP)) * 4 * GROUP
        n_tiles = -(-size // width)
    return pad(factors, (0, 0, 0, n_tiles * width - size)).view(n_tiles, width, -1)


def largest(scores: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(rows, n) the n largest scores of each row, largest first, and their columns; ties go to the lower column.

    Args:
        scores: (n_tiles, rows, width); column c is in tile c // width.
    """
    # One more than asked for shows whether the last score is tied with scores that were not selected.
    values, columns = _largest_in_tiles(scores, n + 1)
    equal = (values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -torch.inf)
    values, columns = values[:, :n], columns[:, :n]
    for rows in equal[:, -1].nonzero()[:, 0].split(max(1, len(values) // 16)):
        values[rows], columns[rows] = _lowest_columns(_flat(scores[:, rows]), values[rows, -1:], n)
    rows = equal.any(1).nonzero()[:, 0]
    by_column, order = columns[rows].sort(dim=1)
    values[rows], order = values[rows].gather(1, order).sort(dim=1, descending=True, stable=True)
    columns[rows] = by_column.gather(1, order)
    return values, columns


def _largest_in_tiles(scores: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n largest scores of each row, largest first, and their columns; ties go to any of them."""
    n_tiles, rows, width = scores.shape
    if n_tiles * width < 4 * GROUP * n:
        return _largest_in_rows(_flat(scores), n)
    groups = scores.view(n_tiles, rows, width // GROUP, GROUP)
    best = _largest_in_rows(_flat(groups.amax(3)), n, ordered=False)[1]
    tile, group = best // groups.shape[2], best % groups.shape[2]
    row = torch.arange(rows, device=scores.device)[:, None]
    # embedding() is index_select(), and on a CPU twice as fast.
    inside = embedding((tile * rows + row) * groups.shape[2] + group, groups.view(-1, GROUP))
    values, positions = _largest_in_rows(inside.flatten(1), n)
    return values, best.gather(1, positions // GROUP) * GROUP + positions % GROUP


def _largest_in_rows(scores: Tensor, n: int, ordered: bool = True) -> tuple[Tensor, Tensor]:
    """The same for scores of shape (rows, width), with groups of four columns that are width/4 apart."""
    width = scores.shape[1]
    if width < 16 * n or width % 4:
        return scores.topk(n, dim=1, sorted=ordered)
    best = _largest_in_rows(scores.unflatten(1, (4, -1)).amax(1), n, ordered=False)[1]
    in_group = torch.arange(0, width, width // 4, device=scores.device)[:, None]
    columns = (best[:, None] + in_group).flatten(1)
    values, positions = scores.gather(1, columns).topk(n, dim=1, sorted=ordered)
    return values, columns.gather(1, positions)


def _lowest_columns(scores: Tensor, least: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n largest scores of each row with the lowest columns, given the least of them, (rows, 1)."""
    above, level = ~(scores <= least), scores == least
    chosen = above | (level & (level.cumsum(1) <= n - above.sum(1, keepdim=True)))
    columns = chosen.nonzero()[:, 1].view(-1, n)
    return scores.gather(1, columns), columns


def _flat(tiles: Tensor) -> Tensor:
    """(n_tiles, rows, width) as (rows, n_tiles · width)."""
    return tiles.movedim(1, 0).flatten(1)
