"""Squared errors of the ratings, and their sums over the rows and columns of the ratings matrix.

Solvers that learn how noisy the ratings are need the sums of each user and of each item.  The squares, in the order of
the users, are made once; sums over the columns need no order of the items.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mfrec.model.ratings_view import RatingsView
from mfrec.model.ridge import array_of
from mfrec.sparse import CSRPattern, has_kernel, sddmm, spmm


def squared_errors(
    view: RatingsView, rows: Tensor, partners: Tensor, variances: Sequence[Tensor] | None = None
) -> Tensor:
    """(n_entries,) w e², or w E[e²] = w (e² + Σ_c (θ_c² v_c + s_c x_c² + s_c v_c)) if the factors have variances.

    Args:
        view: the ratings; their precision scales are left out.
        rows, partners: θ, (n_rows, k), and x, (n_cols, k).
        variances: s and v, shaped like them.
    """
    weights = view.rating_weights
    if has_kernel(rows):
        from mfrec.kernels import squares  # numba is imported where a kernel runs

        nothing = [rows.new_empty(0, rows.shape[1])] * 2
        tensors = (view.targets, rows.new_empty(0) if weights is None else weights, rows, partners)
        arrays = [array_of(tensor) for tensor in (*tensors, *(variances or nothing))]
        crow, col = view.pattern.crow.long().numpy(), view.pattern.col.numpy()
        return torch.from_numpy(squares.squared_errors(crow, col, *arrays))
    errors = (view.targets - sddmm(view.pattern, rows, partners)).square()
    if variances is not None:
        s, v = variances
        left, right = torch.cat([rows.square() + s, s], 1), torch.cat([v, partners.square()], 1)
        errors = errors + sddmm(view.pattern, left, right)
    return errors if weights is None else errors * weights


def row_sums(pattern: CSRPattern, values: Tensor, scales: Tensor) -> Tensor:
    """(n_rows, 1) Σ scale · value over each row's entries, in float64; scales are of the columns, (n_cols, 1)."""
    if has_kernel(values):
        from mfrec.kernels import squares  # numba is imported where a kernel runs

        tensors = (pattern.crow.long(), pattern.col, values, scales[:, 0])
        return torch.from_numpy(squares.row_sums(*map(array_of, tensors)))[:, None]
    return spmm(pattern, values, scales).double()


def column_sums(pattern: CSRPattern, values: Tensor, scales: Tensor) -> Tensor:
    """(n_cols, 1) Σ scale · value over each column's entries, in float64; scales are of the rows, (n_rows, 1)."""
    if has_kernel(values):
        from mfrec.kernels import squares  # numba is imported where a kernel runs

        crow, col = array_of(pattern.crow.long()), array_of(pattern.col)
        sums = squares.column_sums(crow, col, array_of(values), array_of(scales[:, 0]), pattern.shape[1])
        return torch.from_numpy(sums)[:, None]
    return spmm(pattern.T, values.index_select(0, pattern.transpose_order), scales).double()
