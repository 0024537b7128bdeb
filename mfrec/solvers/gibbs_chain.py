"""A Markov chain of the Gibbs sampler: a sweep draws every variable once, given all others.

The model and its conditionals are those of `mfrec.solvers.gibbs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.draws import counter_gammas, counter_normals, on_device, standard_gamma, standard_normal
from mfrec.model.entity import ITEM, USER, Term
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.offsets import offset_at
from mfrec.model.partial_state import TableMap, map_pair
from mfrec.model.ratings_view import RatingsView, ratings_views, retargeted, reweighted, solve_term
from mfrec.model.ridge import minimize
from mfrec.model.squared_errors import column_sums, row_sums, squared_errors
from mfrec.posteriors.base import PRECISION_SCALE_SHAPE, PRIOR_RATE, PRIOR_SHAPE
from mfrec.posteriors.session_draws import SessionDraws
from mfrec.solvers.registry import GibbsOptions
from mfrec.sparse import sddmm
from mfrec.sums import column_totals


class Chain:
    """A Markov chain over the parameters of a model, which hold its last draw.

    Args:
        model: changed in place.
        ratings: the training ratings.
        generator: the source of randomness, on the CPU.

    Attributes:
        alpha: α, the precision of the noise.
        precision_scales: τ of users and of items, (n, 1) each.
        priors: λ and m of each term, (k,) each.
        sessions: the session biases and their prior, or None.
    """

    def __init__(
        self, model: MatrixFactorization, ratings: Ratings, options: GibbsOptions, generator: torch.Generator
    ) -> None:
        self.model, self.ratings, self.options, self.generator = model, ratings, options, generator
        self.views = ratings_views(model, ratings)
        self.terms = model.all_terms
        # If ratings have standard deviation d, factors have √d.  The first prior is wide enough for them, since a chain
        # that starts near zero under a narrow prior takes long to leave it.
        std = self._starting_std()
        self.alpha = 1 / std**2
        self.precision_scales = [
            torch.ones(n, 1, dtype=ratings.values.dtype, device=ratings.device)
            for n in (ratings.n_users, ratings.n_items)
        ]
        self.priors = [
            (torch.full_like(free[0], 50 / std), torch.zeros_like(free[0]))
            for free in (self.views[term.entity].free for term in self.terms)
        ]
        # Draws of rows belong to their indices among all rows.  Gammas are drawn on the CPU, where their shapes stay.
        self.indices = [ratings.row_indices(entity) for entity in (USER, ITEM)]
        counts = ratings.user_counts, ratings.item_counts
        self.shapes = [PRECISION_SCALE_SHAPE + 0.5 * n.cpu().double() for n in counts]
        self.sessions: SessionDraws | None = None
        if model.sessions is not None:
            self.sessions = SessionDraws(model.sessions, ratings, options.freedom(), std)

    def _starting_std(self) -> float:
        """The standard deviation of the targets."""
        return self.ratings.std(self.views[USER].targets.detach()) or 1.0

    def _observed(self) -> Tensor:
        """(n_ratings,) the targets of the scores: the ratings less the offset."""
        offset, ratings = self.model.offset, self.ratings
        return ratings.values if offset is None else ratings.values - offset_at(offset, ratings.items)

    @torch.no_grad()
    def sweep(self) -> None:
        """Draw the noise, then for each term its weights and their prior, and then the session biases and theirs."""
        self._draw_noise()
        for n, term in enumerate(self.terms):
            self._draw_weights(term, *self.priors[n])
            weights = self.model.weights(term)
            if term.features is None:
                self.priors[n] = self._draw_prior(term.entity, weights)
            else:
                self.priors[n] = self._draw_precision(weights)
        if self.sessions is not None:
            self._draw_sessions(self.sessions)

    def _draw_sessions(self, sessions: SessionDraws) -> None:
        view = self.views[USER]
        errors = view.targets - sddmm(view.pattern, *self.model.augmented_factors())
        sessions.draw(errors, self._weights(), self.alpha, self.generator)
        self._retarget()

    def _retarget(self) -> None:
        """Let the views have the targets of the products, which are less the session biases."""
        observed, sessions = self._observed(), self.model.sessions
        targets = observed if sessions is None else observed - sessions.effect(self.ratings).detach()
        self.views = retargeted(self.views, targets)

    def _weights(self) -> Tensor:
        """(n_ratings,) v = τ_j τ_i w."""
        view = self.views[USER]
        return view.weighted(torch.ones_like(view.targets))

    def traced(self, users: Tensor, items: Tensor) -> Tensor:
        """(n,) the numbers by which chains are compared: the products of pairs of users and items, (n,) indices each.

        Indices are those among all users and items.
        """
        pairs = zip((USER, ITEM), self.model.augmented_factors(), (users, items), strict=True)
        rows, partners = (self.ratings.rows_at(*pair) for pair in pairs)
        products: Tensor = (rows * partners).sum(1)
        return products

    def _draw_weights(self, term: Term, precision: Tensor, mean: Tensor) -> None:
        ridge = precision / self.alpha
        steps = self.options.cg_steps if term.features is None else self.options.feature_steps
        prior_seed, noise_seed = self._seed(), self._seed()

        def solve(view: RatingsView) -> tuple[Tensor, ...]:
            start = view.of_rows(self.model.weights(term))
            first = 0 if view.rows is None else self._first_index(term.entity, view.rows)
            normals = counter_normals(prior_seed, first * start.shape[1], start.numel(), start).view_as(start)
            # Λ/α (m + η), with η = z / √λ.
            rhs_shift = torch.addcmul(ridge * mean, normals, ridge * precision.rsqrt())
            regression = self.model, term, view, ridge[None], steps
            # Without the diagonal, so that it does not travel between processes.
            return minimize(*regression, rhs_shift=rhs_shift, noise_std=self.alpha**-0.5, seed=noise_seed)[:1]

        (weights,) = solve_term(self.ratings, term, self.views[term.entity], solve)
        self.model.assign(term, weights)

    def _first_index(self, entity: int, rows: slice) -> int:
        """The index, among all rows, of the first of the rows of a range that this process owns."""
        indices = self.indices[entity][rows]
        return int(indices[0]) if len(indices) else 0

    def _draw_noise(self) -> None:
        """Draw α and, unless homoscedastic, τ of each user and item; they change the weights of the ratings."""
        ratings, tau = self.ratings, self.precision_scales
        squares = squared_errors(self.views[USER], *self.model.augmented_factors())
        sums = ratings.share(USER, row_sums(ratings.pattern, squares, tau[ITEM]))
        self.alpha = self._draw_alpha(ratings.row_sum(USER, sums * tau[USER].double()))
        if self.options.homoscedastic:
            return
        for entity, shape in enumerate(self.shapes):
            if entity == ITEM:
                sums = ratings.sum_tables(ITEM, column_sums(ratings.local_pattern, squares, tau[USER]))
            drawn = on_device(counter_gammas(self._seed(), self.indices[entity], shape), sums.device)
            rate = PRECISION_SCALE_SHAPE + 0.5 * self.alpha * sums
            tau[entity] = (drawn[:, None] / rate).to(squares.dtype)
        self.views = reweighted(self.views, tau)

    def _draw_alpha(self, squares: Tensor) -> float:
        """α given Σ v e², ()."""
        shape = torch.tensor(PRIOR_SHAPE + 0.5 * self.ratings.n_ratings)
        # The only time in a sweep that a GPU is waited for.
        return float(self._gamma(shape, PRIOR_RATE + 0.5 * squares.cpu()))

    def _draw_prior(self, entity: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(λ, m), each (k,), of an entity's own rows."""
        rows, n = rows.double(), self.ratings.n_all[entity]
        mean = self.ratings.row_sum(entity, rows, column_totals) / n
        squares = self.ratings.row_sum(entity, (rows - mean).square(), column_totals) + n / (n + 1) * mean.square()
        shape = torch.full(mean.shape, PRIOR_SHAPE + 0.5 * n, dtype=torch.float64)
        precision = self._gamma(shape, PRIOR_RATE + 0.5 * squares)
        drawn = n / (n + 1) * mean + self._normal(mean.shape).double() / ((n + 1) * precision).sqrt()
        return precision.to(self.ratings.values.dtype), drawn.to(self.ratings.values.dtype)

    def _draw_precision(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(λ′, 0), each (k,), of a block of feature weights."""
        squares = column_totals(weights.double().square())
        shape = torch.full(squares.shape, PRIOR_SHAPE + 0.5 * len(weights), dtype=torch.float64)
        return self._gamma(shape, PRIOR_RATE + 0.5 * squares).to(weights.dtype), torch.zeros_like(weights[0])

    def _seed(self) -> int:
        return int(torch.randint(2**62, (), generator=self.generator))

    def _gamma(self, shape: Tensor, rate: Tensor) -> Tensor:
        """A draw from Gamma(shape, rate) for each rate; shapes are on the CPU."""
        return standard_gamma(shape, self.generator, rate.device) / rate

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return standard_normal(shape, self.ratings.values, self.generator)

    def state_dict(self) -> dict[str, Any]:
        """The state besides the model's parameters."""
        return {
            "alpha": self.alpha,
            "precision_scales": list(self.precision_scales),
            "priors": [list(prior) for prior in self.priors],
            "sessions": None if self.sessions is None else self.sessions.state_dict(),
            "generator": self.generator.get_state(),
        }

    def map_tables(self, state: Mapping[str, Any], change: TableMap) -> dict[str, Any]:
        """A `state_dict()` with each table of users' or items' rows changed."""
        return {**state, "precision_scales": map_pair(state["precision_scales"], change)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()`, to the same bits; the model's parameters are those of that state."""
        self.alpha, device = state["alpha"], self.ratings.device
        self.precision_scales = [tensor.to(device) for tensor in state["precision_scales"]]
        self.priors = [(precision.to(device), mean.to(device)) for precision, mean in state["priors"]]
        if not self.options.homoscedastic:
            self.views = reweighted(self.views, self.precision_scales)
        if self.sessions is not None:
            self.sessions.load_state_dict(state["sessions"])
            self._retarget()
        self.generator.set_state(state["generator"].cpu())
