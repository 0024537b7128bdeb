"""Losses: what an error at an observed entry costs, with its derivative.

A loss is an elementwise function (predictions, targets) → (ℓ, ℓ′): its values and its derivatives with respect to the
predictions.  A new loss is one function and one row in `LOSSES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def squared_error(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(½e², e) with e = prediction − target, in stars² and stars.

    Examples:
        >>> losses, errors = squared_error(torch.tensor([4.0]), torch.tensor([1.0]))
        >>> losses.tolist(), errors.tolist()
        ([4.5], [3.0])
    """
    errors = predictions - targets
    return errors.square().mul_(0.5), errors


def log_cosh(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(log cosh e, tanh e): about ½e² for small errors and |e| for large ones, so that it is robust to outliers."""
    errors = predictions - targets
    sizes = errors.abs()
    # log cosh e = |e| + log(1 + exp(−2|e|)) − log 2 does not overflow.
    return sizes + torch.nn.functional.softplus(-2 * sizes) - math.log(2), errors.tanh()


LOSSES: dict[str, Loss] = {"squared": squared_error, "log-cosh": log_cosh}
