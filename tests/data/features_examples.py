"""Features as dense matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from mfrec.data.features import Features


def dense_of(features: Features) -> Tensor:
    """F as a dense matrix, after a check that its transpose is one."""
    matrix = features.matrix
    F = torch.zeros(matrix.shape, dtype=matrix.values.dtype)
    F[matrix.pattern.row.long(), matrix.pattern.col.long()] = matrix.values
    transposed = torch.zeros(F.shape[::-1], dtype=F.dtype)
    transposed[matrix.T.pattern.row.long(), matrix.T.pattern.col.long()] = matrix.T.values
    assert torch.equal(F, transposed.T)
    return F


def lengths(features: Features) -> list[float]:
    """The length of each row of F."""
    return dense_of(features).norm(dim=1).tolist()
