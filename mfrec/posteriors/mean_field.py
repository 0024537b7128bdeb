"""A mean-field posterior: independent Gaussians with variances s and v around the means θ̃ and x̃, which are the model.

A prediction θ̃ · x̃ has the variance s · x̃² + θ̃² · v + s · v, three products of augmented factors.  A rating's variance
adds that of its noise, 1/(α τ_j τ_i).

With features, an entity's factors are its rows' own plus F W̃, and both have variances, which add: s + (F ∘ F) u.

For a new user, the items' τ_i are in the weights w, V = Σ w v and R = λ/α + τ V.  V penalizes the whole row and λ the
row less its base, hence R m = −τ V ∘ base.  The expected precision scale τ = A/B and the variances s take turns with θ,
as in `mfrec.solvers.variational`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mfrec.data.features import Features
from mfrec.draws import standard_normal
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.model.pair_products import pair_dots
from mfrec.model.partial_state import TableMap, map_pair
from mfrec.model.session_biases import SessionBiases
from mfrec.posteriors.base import PRECISION_SCALE_SHAPE, Posterior, without_features
from mfrec.posteriors.new_rows import Conditional, NewRows, RowStatistics, SolvedRows
from mfrec.posteriors.session_field import SessionField
from mfrec.sparse import sddmm, spmm

# Turns of τ and a new row, which bring them to their fixed point.
TURNS = 20


class MeanFieldPosterior(Posterior):
    """Independent Gaussians whose means are the model's parameters.

    Args:
        model: the means.
        own_variances: the variances of the rows' own part of Θ̃ and of X̃, shaped like them; 0 in the columns of the
            constant 1.
        precision: λ of every column of the rows' own part of Θ̃ and of X̃, (1, k) each.
        alpha: α, the precision of the noise.
        precision_scales: τ of every user and every item, (n, 1) each; a rating's noise has the variance 1/(α τ_j τ_i).
        feature_variances: u of each block of user features and of item features, (n_features, k) each, by its name.
        sessions: the mean field of the session biases, if the model has any.

    Attributes:
        variances: those of Θ̃ and of X̃, (n, k) each.
    """

    kind: ClassVar[str] = "mean-field"

    def __init__(
        self,
        model: MatrixFactorization,
        own_variances: Sequence[Tensor],
        precision: Sequence[Tensor],
        alpha: float,
        precision_scales: Sequence[Tensor],
        feature_variances: Sequence[Mapping[str, Tensor]] = ({}, {}),
        sessions: SessionField | None = None,
    ) -> None:
        self.model, self.alpha, self.sessions = model, alpha, sessions
        self.own_variances, self.precision = tuple(own_variances), tuple(precision)
        self.precision_scales, self.feature_variances = tuple(precision_scales), tuple(feature_variances)
        features = ({name: block.features for name, block in e.feature_blocks.items()} for e in model.entities)
        self.variances = tuple(
            variances + self.base_variances(entity, blocks)
            for entity, (variances, blocks) in enumerate(zip(self.own_variances, features, strict=True))
        )

    def base_variances(self, entity: int, features: Mapping[str, Features]) -> Tensor:
        """(n_rows, k) the variances of what an entity's features, by the names of their blocks, add to rows."""
        variances = self.feature_variances[entity]
        parts = [features[name].matmul_squared(u) for name, u in variances.items()]
        return sum(parts, self.precision[entity].new_zeros(1, 1))

    def mean_model(self) -> MatrixFactorization:
        """The model itself: for independent factors, the mean of a product is the product of the means."""
        return self.model

    @property
    def has_std(self) -> bool:
        """Always true."""
        return True

    @torch.no_grad()
    def std(
        self, users: Tensor, items: Tensor, *, timestamps: Tensor | None = None, include_noise: bool = True
    ) -> Tensor:
        """(n,) √(s · x̃² + θ̃² · v + s · v + 1/(α τ_j τ_i)), the last term only with the noise.

        The variances of session biases add to it; in no session, that of their prior.

        Args:
            timestamps: (n,) seconds since 1970; without them, the prior of session biases counts as noise.
            include_noise: False leaves out the noise.

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
        if self.sessions is not None and (include_noise or timestamps is not None):
            variance = variance + self.sessions.variances_at(users, timestamps).to(variance)
        return variance.sqrt()

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None) -> MatrixFactorization:
        """Every number drawn from its Gaussian, as a model without features.

        Rows that share features share the draws of their weights.
        """
        drawn = []
        for entity, means in enumerate(self.model.augmented_factors()):
            rows = means + standard_normal(means.shape, means, generator) * self.own_variances[entity].sqrt()
            blocks = self.model.entities[entity].feature_blocks
            for name, u in self.feature_variances[entity].items():
                rows = rows + blocks[name].features.matrix @ (standard_normal(u.shape, u, generator) * u.sqrt())
            drawn.append(rows)
        session_bias = None
        if self.sessions is not None:
            means, variances = self.sessions.biases.bias.weight, self.sessions.variances
            session_bias = means + standard_normal(means.shape, means, generator) * variances.sqrt()
        users, items = drawn
        return without_features(self.model, users, items, session_bias)

    def conditionals(self, new_rows: NewRows, generator: torch.Generator | None = None) -> Iterator[Conditional]:
        """The mean field of the new rows, given that of their partners."""
        yield MeanFieldRows(new_rows, self)

    def folded(self, new_rows: NewRows, solved: Iterable[SolvedRows]) -> MeanFieldPosterior:
        """The mean field of the new rows and their partners."""
        (rows,) = solved
        row_variances = rows.variances + self.base_variances(new_rows.entity, new_rows.features)
        variances = new_rows.users_first(row_variances, self.variances[1 - new_rows.entity])
        tau = new_rows.users_first(rows.precision_scales, self.precision_scales[1 - new_rows.entity])
        model = new_rows.model(rows.mean, rows.partners, rows.session_bias)
        sessions = None
        if self.sessions is not None and model.sessions is not None:
            state = self.sessions.state_dict() if rows.session_state is None else rows.session_state
            sessions = SessionField.from_state(model.sessions, state)
        return MeanFieldPosterior(model, variances, self.precision, self.alpha, tau, sessions=sessions)

    def state_dict(self) -> dict[str, Any]:
        """The variances, λ, α and τ; the means are the model's state."""
        return {
            "kind": self.kind,
            "variances": list(self.own_variances),
            "precision": list(self.precision),
            "alpha": self.alpha,
            "precision_scales": list(self.precision_scales),
            "feature_variances": [dict(blocks) for blocks in self.feature_variances],
            "sessions": None if self.sessions is None else self.sessions.state_dict(),
        }

    def map_tables(self, state: Mapping[str, Any], change: TableMap) -> dict[str, Any]:
        return {**state, **{name: map_pair(state[name], change) for name in ("variances", "precision_scales")}}

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], model: MatrixFactorization, objective: Objective
    ) -> MeanFieldPosterior:
        """The posterior around its means, on their device."""
        variances, precision, tau = (
            [tensor.to(model.device) for tensor in state[name]]
            for name in ("variances", "precision", "precision_scales")
        )
        features = [
            {name: tensor.to(model.device) for name, tensor in blocks.items()} for blocks in state["feature_variances"]
        ]
        sessions = None if model.sessions is None else SessionField.from_state(model.sessions, state["sessions"])
        return cls(model, variances, precision, state["alpha"], tau, features, sessions)


class MeanFieldRows(Conditional):
    """The mean field of new rows."""

    def __init__(self, new_rows: NewRows, posterior: MeanFieldPosterior) -> None:
        partner = 1 - new_rows.entity
        self.field: SessionField | None = None
        if new_rows.sessions is not None and posterior.sessions is not None:
            trained = posterior.sessions
            biases = SessionBiases(new_rows.sessions, new_rows.trained.dtype).to(new_rows.trained.device)
            self.field = SessionField(biases, trained.freedom, trained.precision)
        tau_of_partners = posterior.precision_scales[partner]
        sessions = None if self.field is None else self.field.biases
        super().__init__(new_rows, precision_scales=tau_of_partners, sessions=sessions)
        # Σ w s over each row's ratings, s the variances of session biases.
        self.session_spread = torch.zeros_like(self.base[:, :1])
        self.alpha = posterior.alpha
        self.precision = posterior.precision[new_rows.entity][:, new_rows.columns]
        weights = self.view.weights
        assert weights is not None
        # V, (n_rows, k), in all columns.
        self.spreads = spmm(self.view.pattern, weights, posterior.variances[partner])
        self.base_variances = posterior.base_variances(new_rows.entity, new_rows.features).expand_as(self.base)

    def solve(self) -> SolvedRows:
        """All new rows, and the mean field of their sessions."""
        solved = super().solve()
        return solved if self.field is None else solved._replace(session_state=self.field.state_dict())

    def solve_sessions(self, errors: Tensor, tau: Tensor) -> None:
        """Update the mean field of the session biases."""
        assert self.field is not None
        ratings, ones = self.new_rows.ratings, torch.ones_like(self.partners[:, :1])
        weights = self.view.weighted(sddmm(self.view.pattern, tau, ones))
        self.field.update(ratings, errors, weights, self.alpha)
        spreads = self.view.weighted(self.field.effect_variances(ratings))
        self.session_spread = spmm(self.view.pattern, spreads, ones)

    def ridge(self, rows: slice, tau: Tensor) -> Tensor:
        """λ/α + τ V."""
        return self.precision / self.alpha + tau * self.spreads[rows, self.new_rows.columns]

    def solve_block(self, statistics: RowStatistics) -> SolvedRows:
        """θ, its variances s and τ at their fixed point."""
        spread, base = self.spreads[statistics.rows], self.base[statistics.rows]
        columns, alpha = self.new_rows.columns, self.alpha
        base_variances = self.base_variances[statistics.rows][:, columns]
        diagonal = statistics.normal.diagonal(dim1=1, dim2=2) + spread[:, columns]
        next_tau = torch.ones_like(statistics.squares)
        for _ in range(TURNS):
            tau = next_tau
            ridge = self.ridge(statistics.rows, tau)
            theta, _ = statistics.minimum(tau, ridge, -tau * (spread * base)[:, columns] / ridge)
            variances = 1 / (self.precision + alpha * tau * diagonal)
            rows = base.index_add(1, columns, theta)
            expected = (rows.square() * spread).sum(1, keepdim=True) + ((variances + base_variances) * diagonal).sum(
                1, keepdim=True
            )
            expected = expected + self.session_spread[statistics.rows]
            rate = PRECISION_SCALE_SHAPE + 0.5 * alpha * (statistics.errors(theta) + expected)
            next_tau = (PRECISION_SCALE_SHAPE + 0.5 * statistics.counts) / rate
        return SolvedRows(theta, theta, variances, tau, self.partners)
