"""Stochastic gradient descent on one rating after another.

A block is a set of ratings in a fixed order.  For each, both rows are stepped from their old values, in place.  With
e = θ · x + b_j + b_i − y, the loss's derivative ℓ′ at e, and the weight w of the rating, a plain step is

    s = α w ℓ′      θ ← (1 − α λ_j) θ − s x      x ← (1 − α λ_i) x − s θ

and biases step like factors whose partner is 1.  A proximal step is

    s = α w ℓ′ / (1 + α w (‖θ‖² + ‖x‖² + 2))      θ ← (θ − s x) / (1 + α λ_j)      x ← (x − s θ) / (1 + α λ_i)

without the 2 if there are no biases.  For the squared error its changes Δ = −s x, −s θ, −s, −s minimize

    ½ w (e + x · Δθ + θ · Δx + Δb_j + Δb_i)² + (‖Δθ‖² + ‖Δx‖² + Δb_j² + Δb_i²) / 2α

which is the rating's cost with the prediction linearized at the old values.  The division is the proximal step of the
penalty.  No change exceeds the error, so no α diverges.  (Toulis & Airoldi 2017, "Asymptotic and finite-sample
properties of estimators based on stochastic gradients", eq. 5.)

Blocks that share neither users nor items can run at the same time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy.typing as npt

from mfrec.kernels.compiled import kernel, prefetch

Floats = npt.NDArray[Any]
Ints = npt.NDArray[Any]

# The codes of the losses.
SQUARED, LOG_COSH = 0, 1


class Entries(NamedTuple):
    """Ratings in the order of the blocks, (n_ratings,) each; weights are empty if all are 1."""

    users: Ints
    items: Ints
    targets: Floats
    weights: Floats


class Rows(NamedTuple):
    """The parameters of an entity, which a block changes in place.

    factors: (n_rows, rank).
    bias: (n_rows,), or empty without biases.
    l2: (n_rows, 2) λ of a row's factors and of its bias for each of its ratings: its λ in J over its number of ratings.
    """

    factors: Floats
    bias: Floats
    l2: Floats


class Step(NamedTuple):
    """How a block steps.

    lr: α.
    proximal: whether steps are damped.
    loss: the code of the loss.
    nonnegative: whether factors below 0 become 0 after a step.
    ahead: how many ratings ahead rows are loaded into the cache; 0 if they stay there anyway.
    """

    lr: float
    proximal: bool
    loss: int
    nonnegative: bool
    ahead: int = 0


@kernel
def shrunk(unit: Any, shrinkage: Any, s: Any, proximal: bool) -> tuple[Any, Any]:
    """What multiplies a row's old value and its partner's, given 1, α λ and s."""
    if proximal:
        keep = unit / (unit + shrinkage)
        return keep, keep * s
    return unit - shrinkage, s


@kernel
def step_block(entries: Entries, users: Rows, items: Rows, step: Step, first: int, end: int) -> None:
    """Step once for each of the entries first … end − 1, in this order."""
    real = users.factors.dtype.type
    zero, unit = real(0), real(1)
    lr, rank, has_biases = real(step.lr), users.factors.shape[1], len(users.bias) > 0
    for n in range(first, end):
        if step.ahead:
            later = min(n + step.ahead, end - 1)
            prefetch(users.factors, entries.users[later])
            prefetch(items.factors, entries.items[later])
        j, i = entries.users[n], entries.items[n]
        prediction, curvature = zero, zero
        for c in range(rank):
            theta, x = users.factors[j, c], items.factors[i, c]
            prediction += theta * x
            curvature += theta * theta + x * x
        if has_biases:
            prediction += users.bias[j] + items.bias[i]
            curvature += unit + unit
        slope = prediction - entries.targets[n]
        if step.loss == LOG_COSH:
            slope = math.tanh(slope)
        weight = entries.weights[n] if len(entries.weights) > 0 else unit
        s = lr * weight * slope
        if step.proximal:
            s /= unit + lr * weight * curvature
        keep_user, s_user = shrunk(unit, lr * users.l2[j, 0], s, step.proximal)
        keep_item, s_item = shrunk(unit, lr * items.l2[i, 0], s, step.proximal)
        for c in range(rank):
            theta, x = users.factors[j, c], items.factors[i, c]
            users.factors[j, c] = keep_user * theta - s_user * x
            items.factors[i, c] = keep_item * x - s_item * theta
        if step.nonnegative:
            for c in range(rank):
                users.factors[j, c] = max(users.factors[j, c], zero)
                items.factors[i, c] = max(items.factors[i, c], zero)
        if has_biases:
            keep_user, s_user = shrunk(unit, lr * users.l2[j, 1], s, step.proximal)
            keep_item, s_item = shrunk(unit, lr * items.l2[i, 1], s, step.proximal)
            users.bias[j] = keep_user * users.bias[j] - s_user
            items.bias[i] = keep_item * items.bias[i] - s_item
