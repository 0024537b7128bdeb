"""Sparse products for a GPU, as programs in Triton.

A program takes a segment: up to SEGMENT entries of one row, so that long rows are shared.  It gathers the columns'
factors a tile at a time, and each number of B[col] once.  `spmm` and `row_products` write a row for each segment, and a
second program adds the segments of each row.  Nothing is added atomically: results are the same bits from run to run.

`mfrec.sparse` has their definitions.  With TRITON_INTERPRET=1 they run on the CPU, slowly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with torch's builds for GPUs only
    triton = tl = None

# Entries of a segment, and of a tile: at rank 64 in float32, the tile's factors are 16 KiB.
SEGMENT, TILE = 1024, 32


class Segments(NamedTuple):
    """The rows of a pattern in segments.

    col: (n_entries,) of the pattern.
    row, begin, end: (n_segments,) each segment's row, and where its entries begin and end.
    first: (n_rows + 1,) where each row's segments begin.
    """

    col: Tensor
    row: Tensor
    begin: Tensor
    end: Tensor
    first: Tensor


def segments(crow: Tensor, col: Tensor) -> Segments:
    """The segments of a pattern with these crow, (n_rows + 1,), and col, (n_entries,); waits for the device once."""
    n_segments = (crow.diff() + (SEGMENT - 1)) // SEGMENT
    first = torch.nn.functional.pad(n_segments.cumsum(0), (1, 0))
    row = torch.repeat_interleave(torch.arange(len(n_segments), device=crow.device), n_segments)
    begin = crow[row] + (torch.arange(len(row), device=crow.device) - first[row]) * SEGMENT
    return Segments(col, row, begin, torch.minimum(begin + SEGMENT, crow[row + 1]), first)


def _program(function: Callable[..., Any]) -> Any:
    """A Triton program, which has no types; without Triton, the function itself."""
    return function if triton is None else triton.jit(function)


@_program
def _gathered(B, col, entry, end, k, c):  # type: ignore[no-untyped-def]
    """(TILE, K) the factors of the columns of some entries, 0 where there are none."""
    column = tl.load(col + entry, mask=entry < end, other=0).to(tl.int64)
    return tl.load(B + column[:, None] * k + c[None, :], mask=(entry < end)[:, None] & (c < k)[None, :], other=0)


@_program
def _sddmm_segment(col, row, begin, end, A, B, out, k, TILE: tl.constexpr, K: tl.constexpr):  # type: ignore[no-untyped-def]
    segment, c = tl.program_id(0), tl.arange(0, K)
    first, last = tl.load(begin + segment), tl.load(end + segment)
    a = tl.load(A + tl.load(row + segment).to(tl.int64) * k + c, mask=c < k, other=0)
    for start in range(first, last, TILE):
        entry = start + tl.arange(0, TILE)
        x = _gathered(B, col, entry, last, k, c)
        tl.store(out + entry, tl.sum(x * a[None, :], 1), mask=entry < last)


@_program
def _spmm_segment(col, begin, end, values, B, out, k, TILE: tl.constexpr, K: tl.constexpr):  # type: ignore[no-untyped-def]
    segment, c = tl.program_id(0).to(tl.int64), tl.arange(0, K)
    first, last = tl.load(begin + segment), tl.load(end + segment)
    total = tl.zeros((K,), out.dtype.element_ty)
    for start in range(first, last, TILE):
        entry = start + tl.arange(0, TILE)
        v = tl.load(values + entry, mask=entry < last, other=0)
        total += tl.sum(v[:, None] * _gathered(B, col, entry, last, k, c), 0)
    tl.store(out + segment * k + c, total, mask=c < k)


@_program
def _row_products_segment(  # type: ignore[no-untyped-def]
    col, row, begin, end, values, A, B, out, k, WEIGHTED: tl.constexpr, TILE: tl.constexpr, K: tl.constexpr
):
    segment, c = tl.program_id(0).to(tl.int64), tl.arange(0, K)
    first, last = tl.load(begin + segment), tl.load(end + segment)
    a = tl.load(A + tl.load(row + segment).to(tl.int64) * k + c, mask=c < k, other=0)
    total = tl.zeros((K,), out.dtype.element_ty)
    for start in range(first, last, TILE):
        entry = start + tl.arange(0, TILE)
        x = _gathered(B, col, entry, last, k, c)
        product = tl.sum(x * a[None, :], 1)
        if WEIGHTED:
            product = product * tl.load(values + entry, mask=entry < last, other=0)
        total += tl.sum(product[:, None] * x, 0)
    tl.store(out + segment * k + c, total, mask=c < k)


@_program
def _sum_segments(first, parts, out, k, K: tl.constexpr):  # type: ignore[no-untyped-def]
    row, c = tl.program_id(0).to(tl.int64), tl.arange(0, K)
    begin, end = tl.load(first + row), tl.load(first + row + 1)
    total = tl.zeros((K,), out.dtype.element_ty)
    for segment in range(begin, end):
        total += tl.load(parts + segment * k + c, mask=c < k, other=0)
    tl.store(out + row * k + c, total, mask=c < k)


def sddmm(pieces: Segments, A: Tensor, B: Tensor) -> Tensor:
    """(n_entries,) A[row] · B[col]."""
    A, B, k = A.contiguous(), B.contiguous(), A.shape[1]
    out = A.new_empty(len(pieces.col))
    if len(pieces.row):
        bounds = pieces.col, pieces.row, pieces.begin, pieces.end
        _sddmm_segment[(len(pieces.row),)](*bounds, A, B, out, k, TILE=TILE, K=_padded(k))
    return out


def spmm(pieces: Segments, values: Tensor, B: Tensor) -> Tensor:
    """(n_rows, k) Σ value B[col] over each row."""
    B, k = B.contiguous(), B.shape[1]
    parts = B.new_empty(len(pieces.row), k)
    if len(parts):
        bounds = pieces.col, pieces.begin, pieces.end
        _spmm_segment[(len(parts),)](*bounds, values.contiguous(), B, parts, k, TILE=TILE, K=_padded(k))
    return _summed(pieces, parts)


def row_products(pieces: Segments, weights: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
    """(n_rows, k) Σ weight (A[row] · B[col]) B[col] over each row: both products from one gather."""
    A, B, k = A.contiguous(), B.contiguous(), A.shape[1]
    parts = B.new_empty(len(pieces.row), k)
    if len(parts):
        bounds, values = pieces[:4], B if weights is None else weights.contiguous()
        _row_products_segment[(len(parts),)](
            *bounds, values, A, B, parts, k, WEIGHTED=weights is not None, TILE=TILE, K=_padded(k)
        )
    return _summed(pieces, parts)


def _summed(pieces: Segments, parts: Tensor) -> Tensor:
    """(n_rows, k) the sums of the rows' segments."""
    out = parts.new_empty(len(pieces.first) - 1, parts.shape[1])
    if out.numel():
        _sum_segments[(len(out),)](pieces.first, parts, out, out.shape[1], K=_padded(out.shape[1]))
    return out


def _padded(k: int) -> int:
    """The width of a program's rows: a power of two."""
    width: int = max(triton.next_power_of_2(k), 1)
    return width
