"""A mean-field posterior: independent Gaussians with variances s and v around the means θ̃ and x̃, which are the model.

A prediction θ̃ · x̃ has the variance s · x̃² + θ̃² · v + s · v, three products of augmented factors.  A rating's variance
adds that of its noise, 1/(α τ_j τ_i).

For a new user, the items' τ_i are in the weights w, V = Σ w v, R = λ/α + τ V and m = 0; the expected precision scale
τ = A/B and the variances s take turns with θ, as in `mfrec.solvers.variational`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mfrec.model.factorization import MatrixFactorization, pair_dots
from mfrec.model.objective import Objective
from mfrec.posteriors.base import PRECISION_SCALE_SHAPE, Posterior, without_features
from mfrec.posteriors.draws import standard_normal
from mfrec.posteriors.new_rows import Conditional, NewRows, RowStatistics, SolvedRows
from mfrec.sparse import spmm

# Turns of τ and a new row, which bring them to their fixed point.
TURNS = 20


class MeanFieldPosterior(Posterior):
    """Independent Gaussians whose means are the model's parameters.

    Args:
        model: the means.
        variances: the variances of all numbers of Θ̃ and of X̃, shaped like them; 0 in the columns of the constant 1.
        precision: λ of every column of Θ̃ and of X̃, (1, k) each.
        alpha: α, the precision of the noise.
        precision_scales: τ of every user and every item, (n, 1) each; a rating's noise has the variance 1/(α τ_j τ_i).
    """

    kind: ClassVar[str] = "mean-field"

    def __init__(
        self,
        model: MatrixFactorization,
        variances: Sequence[Tensor],
        precision: Sequence[Tensor],
        alpha: float,
        precision_scales: Sequence[Tensor],
    ) -> None:
        self.model, self.alpha = model, alpha
        self.variances, self.precision = tuple(variances), tuple(precision)
        self.precision_scales = tuple(precision_scales)

    def mean_model(self) -> MatrixFactorization:
        """The model itself: for independent factors, the mean of a product is the product of the means."""
        return self.model

    @property
    def has_std(self) -> bool:
        """Always true."""
        return True

    @torch.no_grad()
    def std(self, users: Tensor, items: Tensor, *, include_noise: bool = True) -> Tensor:
        """(n,) √(s · x̃² + θ̃² · v + s · v + 1/(α τ_j τ_i)), the last term only with the noise.

        Raises:
            InputError: an index is not in the model.
        """
        theta, x = self.model.augmented_factors()
        s, v = self.variances
        left, right = torch.cat([s, theta.square(), s], 1), torch.cat([x.square(), v, v], 1)
        variance = pair_dots(left, right, users, items)
        if include_noise:
            user_tau, item_tau = self.precision_scales
            variance = variance + 1 / (self.alpha * pair_dots(user_tau, item_tau, users, items))
        return variance.sqrt()

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None) -> MatrixFactorization:
        """Every number drawn from its Gaussian, as a model without features."""
        drawn = []
        for means, variances in zip(self.model.augmented_factors(), self.variances, strict=True):
            drawn.append(means + standard_normal(means.shape, means, generator) * variances.sqrt())
        return without_features(self.model, *drawn)

    def conditionals(self, new_rows: NewRows, generator: torch.Generator | None = None) -> Iterator[Conditional]:
        """The mean field of the new rows, given that of their partners."""
        yield MeanFieldRows(new_rows, self)

    def folded(self, new_rows: NewRows, solved: Iterable[SolvedRows]) -> MeanFieldPosterior:
        """The mean field of the new rows and their partners."""
        (rows,) = solved
        variances = new_rows.users_first(rows.variances, self.variances[1 - new_rows.entity])
        tau = new_rows.users_first(rows.precision_scales, self.precision_scales[1 - new_rows.entity])
        model = new_rows.model(rows.mean, rows.partners)
        return MeanFieldPosterior(model, variances, self.precision, self.alpha, tau)

    def state_dict(self) -> dict[str, Any]:
        """The variances, λ, α and τ; the means are the model's state."""
        return {
            "kind": self.kind,
            "variances": list(self.variances),
            "precision": list(self.precision),
            "alpha": self.alpha,
            "precision_scales": list(self.precision_scales),
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], model: MatrixFactorization, objective: Objective
    ) -> MeanFieldPosterior:
        """The posterior around its means, on their device."""
        variances, precision, tau = (
            [tensor.to(model.device) for tensor in state[name]]
            for name in ("variances", "precision", "precision_scales")
        )
        return cls(model, variances, precision, state["alpha"], tau)


class MeanFieldRows(Conditional):
    """The mean field of new rows."""

    def __init__(self, new_rows: NewRows, posterior: MeanFieldPosterior) -> None:
        partner = 1 - new_rows.entity
        super().__init__(new_rows, precision_scales=posterior.precision_scales[partner])
        self.alpha = posterior.alpha
        self.precision = posterior.precision[new_rows.entity][:, new_rows.columns]
        weights = self.view.weights
        assert weights is not None
        # V, (n_rows, k), in all columns.
        self.spreads = spmm(self.view.pattern, weights, posterior.variances[partner])

    def ridge(self, rows: slice, tau: Tensor) -> Tensor:
        """λ/α + τ V."""
        return self.precision / self.alpha + tau * self.spreads[rows, self.new_rows.columns]

    def solve_block(self, statistics: RowStatistics) -> SolvedRows:
        """θ, its variances s and τ at their fixed point."""
        spread, base = self.spreads[statistics.rows], self.base[statistics.rows]
        columns, alpha = self.new_rows.columns, self.alpha
        diagonal = statistics.normal.diagonal(dim1=1, dim2=2) + spread[:, columns]
        next_tau = torch.ones_like(statistics.squares)
        for _ in range(TURNS):
            tau = next_tau
            theta, _ = statistics.minimum(tau, self.ridge(statistics.rows, tau))
            variances = 1 / (self.precision + alpha * tau * diagonal)
            rows = base.index_add(1, columns, theta)
            expected = (rows.square() * spread).sum(1, keepdim=True) + (variances * diagonal).sum(1, keepdim=True)
            rate = PRECISION_SCALE_SHAPE + 0.5 * alpha * (statistics.errors(theta) + expected)
            next_tau = (PRECISION_SCALE_SHAPE + 0.5 * statistics.counts) / rate
        return SolvedRows(theta, theta, variances, tau, self.partners)
