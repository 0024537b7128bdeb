"""New rows: users or items that were not in training, and their distribution given their ratings.

With the items fixed, a new user's augmented row is θ̃ = base + θ, where base holds the constant 1 and what features
add.  In the free columns, the ratings enter only through

    A = Σ_i w x̃_i x̃_iᵀ        b = Σ_i w r_i x̃_i        c = Σ_i w r_i²        r_i = y_i − μ_i − base · x̃_i

and, given the precision scale τ, the ridge R and the prior's mean m, the row is that of every solver's training step:

    θ ~ N(H⁻¹ (τ b + R m), H⁻¹/α)        H = τ A + R

The kinds of posteriors differ in R, m and τ, which their modules define.  New items are the mirror image.  A row
without ratings is its base plus the prior's mean, as in training.

In a model with session biases, r_i is also less the rating's session biases.  New users have sessions of their own,
whose biases take turns with their rows.  New items are rated in sessions of the trained users, which stay as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfrec.data.features import Features
from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.errors import InputError
from mfrec.model.entity import ENTITY_NAMES, ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.ratings_view import RatingsView, ratings_views
from mfrec.model.ridge import RidgeProblem, cholesky, normal_matrices
from mfrec.model.session_biases import SESSION_BIAS, SessionBiases
from mfrec.sparse import CSRPattern, sddmm, spmm

# Turns of new users' rows and their session biases, which bring both to their minimum.
SESSION_TURNS = 30


class NewRows:
    """Ratings and features of new users or new items, and the trained model that they join.

    Args:
        entity: USER or ITEM.
        model: the trained model; its rows of the other entity are the partners of the new rows.
        ratings: new users × the model's items, or the model's users × new items.
        features: the new rows' feature blocks, by the names of the blocks that the model was trained with.
        offset: (n_rows,) the new items' offsets, if the model has an offset for each item.

    Attributes:
        free: (1, k) 1 in the columns of parameters, 0 in the column of the constant 1.
        columns: the indices of the free columns.
        view: the ratings in the order of the new rows.
        sessions: those of new users, if the model has session biases and the ratings have timestamps.
        empty_model: a model of the new rows and their partners with all parameters 0, without sessions.

    Raises:
        InputError: ratings, features or offset do not fit the model.
    """

    def __init__(
        self,
        entity: int,
        model: MatrixFactorization,
        ratings: Ratings,
        features: Mapping[str, Features] | None = None,
        offset: Tensor | None = None,
    ) -> None:
        self.entity, self.trained = entity, model
        self.n_rows = (ratings.n_users, ratings.n_items)[entity]
        n_partners, n_trained = (ratings.n_users, ratings.n_items)[1 - entity], model.entities[1 - entity].n_rows
        if n_partners != n_trained:
            partner = ENTITY_NAMES[1 - entity]
            raise InputError(
                f"ratings must be of the model's {n_trained:,} {partner}s (got {n_partners:,} {partner}s); "
                "give them by the model's indices"
            )
        self.ratings = ratings.to(model.device, model.dtype)
        self.features = self._checked_features(features or {})
        self.offset = self._checked_offset(offset)
        self.free = model.free_columns()[entity]
        self.columns = self.free[0].nonzero()[:, 0]
        empty = [self.free.new_zeros(n, self.free.shape[1]) for n in (self.n_rows, n_partners)]
        self.empty_model = self.model(*empty)
        # Each conditional subtracts the sessions' effect under its own parameters.
        self.empty_model.sessions = None
        self.view = ratings_views(self.empty_model, self.ratings)[entity]
        self.sessions: Sessions | None = None
        if entity == USER and self.has_sessions:
            assert model.sessions is not None
            self.sessions = Sessions(self.ratings, model.sessions.sessions.gaps)

    @property
    def has_sessions(self) -> bool:
        """Whether the new rows' ratings are in sessions."""
        return self.trained.sessions is not None and self.ratings.timestamps is not None

    def trained_effect(self, parameters: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """(n_entries,) the effect of trained sessions on the ratings of new items, in the view's order, or None."""
        sessions, timestamps = self.trained.sessions, self.ratings.timestamps
        if self.entity == USER or sessions is None or timestamps is None:
            return None
        bias = None if parameters is None else parameters[SESSION_BIAS]
        effect = sessions.at(self.ratings.users, timestamps, bias)
        return effect.index_select(0, self.ratings.pattern.transpose_order)

    def _checked_features(self, features: Mapping[str, Features]) -> dict[str, Features]:
        name = ENTITY_NAMES[self.entity]
        trained = {key: block.features for key, block in self.trained.entities[self.entity].feature_blocks.items()}
        for key in trained.keys() ^ features.keys():
            needed = "needs" if key in trained else "has no"
            raise InputError(f"this model {needed} {name} features {key!r}; give those it was trained with")
        for key, block in features.items():
            expected = self.n_rows, trained[key].n_features
            if (block.n_rows, block.n_features) != expected:
                raise InputError(
                    f"the {name} features {key!r} must be {expected[0]:,} rows × {expected[1]:,} features "
                    f"(got {block.n_rows:,} × {block.n_features:,}); give the features that the model was trained with"
                )
        return {key: features[key].to(self.trained.device, self.trained.dtype) for key in trained}

    def _checked_offset(self, offset: Tensor | None) -> Tensor | None:
        trained = self.trained.offset
        if trained is None or not trained.ndim or self.entity == USER:
            return trained
        if offset is None or offset.shape != (self.n_rows,):
            got = "none" if offset is None else f"{offset.numel():,}"
            raise InputError(
                f"offset must be one number for each of the {self.n_rows:,} new items (got {got}), since this model "
                "has an offset for each item"
            )
        return offset.to(trained)

    @property
    def has_own_rows(self) -> bool:
        """Whether the entity's rows have factors of their own, besides those of their features."""
        return self.entity == USER or self.trained.item_ids

    def feature_weights(self, parameters: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """W̃ of each block of features, (n_features, k), by name; of the model's parameters or of others."""
        terms = [term for term in self.trained.terms(self.entity) if term.features is not None]
        return {key: self.trained.weights(term, parameters) for key, term in zip(self.features, terms, strict=True)}

    def base(self, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """(n_rows, k) the part of the new rows that their features and the constant 1 make."""
        base = (1 - self.free).expand(self.n_rows, -1)
        for key, weights in self.feature_weights(parameters).items():
            base = base + self.features[key].matrix @ weights
        return base

    def partners(self, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """(n_partners, k) the augmented factors of the trained rows that the new ones meet."""
        return self.trained.entity_factors(1 - self.entity, parameters)

    def model(self, rows: Tensor, partners: Tensor, session_bias: Tensor | None = None) -> MatrixFactorization:
        """The model without features of these new rows, (n_rows, k), and their partners, (n_partners, k).

        Args:
            session_bias: (n_sessions, 1) of the new users' sessions, or other biases of the trained sessions.
        """
        users, items = self.users_first(rows, partners)
        trained, sessions = self.trained, None
        if self.entity == ITEM and trained.sessions is not None:
            sessions = trained.sessions if session_bias is None else trained.sessions.with_bias(session_bias)
        elif session_bias is not None:
            assert self.sessions is not None
            sessions = SessionBiases(self.sessions, session_bias.dtype).with_bias(session_bias)
        return MatrixFactorization.from_augmented_factors(
            users,
            items,
            biases=trained.biases,
            offset=self.offset,
            rating_range=trained.rating_range,
            nonnegative=trained.nonnegative,
            sessions=sessions,
        )

    def users_first(self, rows: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
        """A tensor of the new rows and one of their partners, the users' first."""
        return (rows, partners) if self.entity == USER else (partners, rows)


class RowStatistics(NamedTuple):
    """The statistics of a block of n new rows that their distribution depends on.

    rows: which of the new rows; normal: A, (n, k, k); rhs: b, (n, k); squares: c, (n, 1); counts: (n, 1) the numbers
    of ratings.  k counts the free columns.
    """

    rows: slice
    normal: Tensor
    rhs: Tensor
    squares: Tensor
    counts: Tensor

    def errors(self, theta: Tensor) -> Tensor:
        """(n, 1) Σ w (r − θ · x̃)² = c − 2 bᵀθ + θᵀAθ."""
        bent = (self.normal @ theta[..., None])[..., 0] - 2 * self.rhs
        return (self.squares + (bent * theta).sum(1, keepdim=True)).clamp_min(0)

    def minimum(self, tau: Tensor, ridge: Tensor, prior_mean: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """(θ, L): θ = H⁻¹ (τ b + R m), (n, k), and the Cholesky factors L of H, (n, k, k)."""
        factor = cholesky(tau[..., None] * self.normal, ridge)
        rhs = tau * self.rhs + ridge * prior_mean
        return torch.cholesky_solve(rhs[..., None], factor)[..., 0], factor


class SolvedRows(NamedTuple):
    """Solved new rows: their mean, a sample and variances, (n, k) each, τ, (n, 1), and the partners, (n_partners, k).

    session_bias is that of the new users' sessions, (n_sessions, 1), and session_state what else a kind needs of them.
    From `Conditional.solve_block` the rows are a block's θ, in the free columns; from `Conditional.solve` they are all
    new rows, in all columns.
    """

    mean: Tensor
    sample: Tensor
    variances: Tensor
    precision_scales: Tensor
    partners: Tensor
    session_bias: Tensor | None = None
    session_state: dict[str, Any] | None = None


class Conditional(ABC):
    """The distribution of new rows given their ratings and one set of trained parameters.

    Args:
        parameters: the trained parameters by name; by default those of the trained model.
        precision_scales: (n_partners, 1) τ of the partners, as weights of the ratings.

    Attributes:
        base, partners: the fixed part of the new rows, and the rows that they meet.
        view: the ratings, with τ of the partners in the weights.
        residuals: (n_entries,) r of each rating.
        sessions: the biases of the new users' sessions, or None.
        session_turns: how often rows and session biases are solved in turn.
        has_own_rows: False where the new rows are their base.
    """

    session_turns = SESSION_TURNS

    def __init__(
        self,
        new_rows: NewRows,
        parameters: Mapping[str, Tensor] | None = None,
        precision_scales: Tensor | None = None,
        sessions: SessionBiases | None = None,
    ) -> None:
        self.new_rows, self.parameters = new_rows, parameters
        self.has_own_rows = new_rows.has_own_rows
        self.base, self.partners = new_rows.base(parameters), new_rows.partners(parameters)
        view = new_rows.view
        if precision_scales is not None:
            view = replace(view, scales=(precision_scales.new_ones(new_rows.n_rows, 1), precision_scales))
        self.view: RatingsView = view
        effect = new_rows.trained_effect(parameters)
        self.targets = view.targets if effect is None else view.targets - effect
        self.sessions = sessions
        self.residuals = self.errors(self.base)

    def errors(self, rows: Tensor) -> Tensor:
        """(n_entries,) the ratings less their effects and their products with these rows, (n_rows, k)."""
        errors = self.targets - sddmm(self.view.pattern, rows, self.partners)
        return errors if self.sessions is None else errors - self.sessions.effect(self.new_rows.ratings).detach()

    @abstractmethod
    def ridge(self, rows: slice, tau: Tensor) -> Tensor:
        """R of these rows in the free columns, (n, k) or (k,), given their τ, (n, 1)."""

    @abstractmethod
    def solve_block(self, statistics: RowStatistics) -> SolvedRows:
        """The rows of a block."""

    def solve_sessions(self, errors: Tensor, tau: Tensor) -> None:
        """Move the biases of the new users' sessions, given errors, (n_entries,), and the rows' τ, (n_rows, 1)."""
        raise NotImplementedError

    def statistics(self) -> Iterator[RowStatistics]:
        """The statistics of all rows, in blocks, so that only one block's normal matrices are held at a time."""
        pattern, columns = self.view.pattern, self.new_rows.columns
        # A few users rate few of the items: products over those alone take a hundredth of the time.
        rated, col = torch.unique(pattern.col, return_inverse=True)
        pattern = CSRPattern(pattern.crow, col.to(pattern.col.dtype), (self.new_rows.n_rows, len(rated)))
        view = RatingsView(pattern, self.view.targets, self.view.weights, self.view.free)
        partners = self.partners[rated.long()]
        zeros = torch.zeros_like(self.base)
        problem = RidgeProblem(view, self.residuals, zeros, partners, zeros)
        squares = spmm(pattern, view.weighted(self.residuals.square()), torch.ones_like(partners[:, :1]))
        for rows, normal in normal_matrices(view, partners):
            counts = pattern.counts[rows, None].to(self.base.dtype)
            yield RowStatistics(rows, normal, problem.rhs[rows][:, columns], squares[rows], counts)

    def solve(self) -> SolvedRows:
        """All new rows, and the biases of their sessions."""
        solved = self.solve_rows()
        if self.sessions is None:
            return solved
        for _ in range(self.session_turns):
            self.solve_sessions(self.errors(solved.sample), solved.precision_scales)
            self.residuals = self.errors(self.base)
            solved = self.solve_rows()
        return solved._replace(session_bias=self.sessions.bias.weight.detach().clone())

    def solve_rows(self) -> SolvedRows:
        """All new rows, given the biases of their sessions."""
        blocks = [self.solve_block(statistics) for statistics in self.statistics()] if self.has_own_rows else []
        zeros = torch.zeros_like(self.base)
        if not blocks:
            return SolvedRows(self.base, self.base, zeros, zeros[:, :1] + 1, self.partners)
        mean, sample, variances, tau = (torch.cat(parts) for parts in list(zip(*blocks, strict=True))[:4])
        columns = self.new_rows.columns
        return SolvedRows(
            self.base.index_add(1, columns, mean),
            self.base.index_add(1, columns, sample),
            zeros.index_add(1, columns, variances),
            tau,
            self.partners,
        )
