"""Variational Bayes: alternating least squares with a ridge and weights that adapt, and nothing to tune.

    y(i, j) − μ ~ N(θ̃_j · x̃_i, 1/(α τ_j τ_i w)),    θ_jc ~ N(0, 1/λ_c),    x_ic ~ N(0, 1/λ′_c),    τ ~ Gamma(c, c)

with w the weights of the ratings.  The precision scales τ_j and τ_i let some users' and items' ratings be noisier than
others'.  Independent Gaussians θ_jc ~ N(θ̃_jc, s_jc), x_ic ~ N(x̃_ic, v_ic) and Gammas τ ~ Gamma(A, B) approximate the
posterior.  With α and λ, they maximize the bound L on the log evidence:

    Raiko, Ilin & Karhunen 2007, "Principal component analysis for large scale problems with lots of missing values"
    Lim & Teh 2007, "Variational Bayesian approach to movie rating prediction"

    L = ½ Σ (log(α w / 2π) + E log τ_j + E log τ_i − α t_j t_i w E[e²])                    over the observed entries
        + ½ Σ_jc (log λ_c − λ_c (θ_jc² + s_jc) + log s_jc + 1) − Σ_j KL(Gamma(A_j, B_j) ‖ Gamma(c, c))    and of x, τ_i

    E[e²] = e² + Σ_c (θ_jc² v_ic + s_jc x_ic² + s_jc v_ic)        t = E τ = A/B,    E log τ = ψ(A) − log B

Each update below maximizes L in some variables while all others are fixed, so that L never falls.  With ω = t_j t_i w,

    θ_j   the ridge regression with weights ω and λ_jc = λ_c/α + Σ_i ω v_ic   (a few conjugate-gradient steps to its
          minimum)
    s_jc = 1 / (λ_c + α Σ_i ω (x_ic² + v_ic)), which is 1/α over the diagonal of that regression's Hessian
    λ_c = n / Σ_j (θ_jc² + s_jc),    A_j = c + n_j/2,    B_j = c + ½ α Σ_i t_i w E[e²],    α = n / Σ ω E[e²]

The biases b of rows with ratings may lose a constant c that the offset μ gains: no error changes.  L then depends on c
through −½ λ_b Σ_j (b_j − c)² alone, which is largest at the mean of the b_j:

    Σ_j (b_j − c)² = Σ_j b_j² − n c²  ≤  Σ_j b_j²    at c = Σ_j b_j / n,    for users and for items

Rows without ratings keep the bias 0, their optimum: the mean of the others.  (An offset for each item stays as it is.)

With features, a row is the sum of its own θ_j and F_j W.  The weights W_fc ~ N(0, 1/λ″_c) are approximated by
N(W̃_fc, u_fc).  Independent summands add their means and their variances.  E[e²] is the formula above with those of
the sum, θ_j + F_j W̃ and s_j + (F ∘ F)_j u.  L gains, for each block of n″ features,

    ½ Σ_fc (log λ″_c − λ″_c (W̃_fc² + u_fc) + log u_fc + 1)

W̃_f enters E[e²] through the sum's mean.  With V_jc = Σ_i ω v_ic, the part of −2L/α that depends on the means is

    Σ ω e² + Σ_jc V_jc (θ_j + F_j W̃)_c² + Σ_jc λ_c θ_jc² / α + Σ_fc λ″_c W̃_fc² / α

so that V penalizes the sum, and each λ its own summand.  In the regressions of W̃, Fᵀ (V ∘ F D) joins H(D), and
−Fᵀ (V ∘ (θ + F W̃)) the right-hand side; that of θ_j has −V_j ∘ (θ_j + F_j W̃).  u_fc enters linearly, with the weight
−½ α times the sum of F_jf² Σ_i ω (x_ic² + v_ic) over the rows j, hence

    u_fc = 1 / (λ″_c + α Σ_j F_jf² Σ_i ω (x_ic² + v_ic)),    λ″_c = n″ / Σ_f (W̃_fc² + u_fc)

All terms of an entity are solved from one pass over the ratings (`mfrec.model.normal_sums`), feature weights first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mfrec.model.entity import ITEM, USER
from mfrec.model.normal_sums import NormalSums, normal_sums
from mfrec.model.partial_state import TableMap
from mfrec.model.ratings_view import RatingsView, ratings_views, retargeted, reweighted, solve_term, targets
from mfrec.model.ridge import minimize
from mfrec.model.squared_errors import column_sums, row_sums, squared_errors
from mfrec.posteriors.base import PRECISION_SCALE_SHAPE
from mfrec.posteriors.mean_field import MeanFieldPosterior
from mfrec.posteriors.session_field import SessionField
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import VariationalBayesOptions
from mfrec.sparse import sddmm
from mfrec.sums import column_totals, ordered_sum

# Sweeps before λ, τ and α are learned: a λ learned from factors that are still near zero would keep them there.
FIXED_SWEEPS = 5


class VariationalBayes(Solver):
    """Mean-field variational Bayes.

    Attributes:
        terms: the terms of users, then of items, in the order of their updates.
        precision, term_variances: λ, (1, k), and the variances, shaped like the weights, of each term.
        variances: the variances of the users' and the items' augmented factors, sums over the terms.
    """

    options: VariationalBayesOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        ratings = self.ratings
        self.views = ratings_views(self.model, ratings)
        # The rows' own factors last, as in ALS.
        self.terms = [term for entity in (USER, ITEM) for term in reversed(self.model.terms(entity))]
        # If ratings have standard deviation d, factors have √d: the start is in the ratings' own unit.
        std = ratings.std(self.views[USER].targets) or 1.0
        self.alpha = 1 / std**2
        frees = [self.views[term.entity].free for term in self.terms]
        self.precision = [torch.full_like(free, 3 / std) for free in frees]
        self.term_variances = [
            (0.02 * std * free).expand(len(self.model.weights(term)), -1).clone()
            for free, term in zip(frees, self.terms, strict=True)
        ]
        self.variances = [self._row_variances(entity) for entity in (USER, ITEM)]
        # A and B of the users and of the items, (2, n, 1): initially those of the prior.
        self.gammas = [
            torch.full((2, n, 1), PRECISION_SCALE_SHAPE, dtype=torch.float64, device=ratings.device)
            for n in (ratings.n_users, ratings.n_items)
        ]
        self.views = reweighted(self.views, self._precision_scales())
        self.sessions: SessionField | None = None
        if self.model.sessions is not None:
            precision = torch.full((len(self.model.sessions.sessions.gaps),), 20 / std**2).to(ratings.values)
            self.sessions = SessionField(self.model.sessions, self.options.freedom(), precision)
        self.rated = [counts > 0 for counts in (ratings.user_counts, ratings.item_counts)]
        self.columns = [view.columns for view in self.views]
        self.epochs = 0

    def inference(self) -> MeanFieldPosterior:
        """The mean field of the rows' own factors and of the feature weights."""
        variances: list[Tensor] = []
        precision: list[Tensor] = []
        features: list[dict[str, Tensor]] = []
        for entity in (USER, ITEM):
            numbers = [n for n, term in enumerate(self.terms) if term.entity == entity]
            blocks = [n for n in reversed(numbers) if self.terms[n].features is not None]
            names = self.model.entities[entity].feature_blocks
            features.append({name: self.term_variances[n] for name, n in zip(names, blocks, strict=True)})
            has_own = len(blocks) < len(numbers)
            zeros = torch.zeros_like(self.variances[entity])
            variances.append(self.term_variances[numbers[-1]] if has_own else zeros)
            precision.append(self.precision[numbers[-1]])
        scales = self._precision_scales()
        return MeanFieldPosterior(self.model, variances, precision, self.alpha, scales, features, self.sessions)

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        for entity in (USER, ITEM):
            self._update_terms(entity)
        if self.sessions is not None:
            self._update_sessions(self.sessions)
        self._centre_biases()
        squares = self._rating_squares()
        alpha = self._learn(squares) if self.epochs >= FIXED_SWEEPS else self.alpha
        bound, self.alpha = self._bound(squares, alpha)
        self.epochs += 1
        return {"bound": bound, "noise_std": self.alpha**-0.5}

    def _update_terms(self, entity: int) -> None:
        """Update all terms of an entity, with its partners fixed."""
        view, partner_variances = self.views[entity], self.variances[1 - entity]
        numbers = [n for n, term in enumerate(self.terms) if term.entity == entity]
        # A row's own regression alone is solved from one gather of its partners; processes solve blocks of rows.
        has_sums = len(numbers) > 1 and not self.ratings.is_partitioned
        sums = normal_sums(view, self.model.entity_factors(1 - entity), partner_variances) if has_sums else None
        for n in numbers:
            self._update_term(n, sums)
        self.variances[entity] = self._row_variances(entity)

    def _update_term(self, n: int, sums: NormalSums | None) -> None:
        """Update the mean and the variances of term n; sums are those of its entity, if there are any."""
        term, view = self.terms[n], self.views[self.terms[n].entity]
        ridge, steps = self.precision[n] / self.alpha * view.free, self.options.cg_steps
        steps = steps if term.features is None else self.options.feature_steps
        variances = self.variances[1 - term.entity]

        def solve(view: RatingsView) -> tuple[Tensor, ...]:
            return minimize(self.model, term, view, ridge, steps, variances=variances, sums=sums)

        weights, diagonal = solve_term(self.ratings, term, view, solve)
        self.term_variances[n] = view.free / (self.alpha * diagonal)
        self.model.assign(term, weights)

    def _update_sessions(self, sessions: SessionField) -> None:
        """Update the session biases, and subtract their means from the targets."""
        view = self.views[USER]
        errors = view.targets - sddmm(view.pattern, *self.model.augmented_factors())
        sessions.update(self.ratings, errors, view.weighted(torch.ones_like(errors)), self.alpha)
        self.views = retargeted(self.views, *targets(self.model, self.ratings))

    def _centre_biases(self) -> None:
        """Move the means of the rated users' and items' own biases to the offset, if there is one for all."""
        if self.model.offset is None or self.model.offset.ndim or not self.model.biases:
            return
        for entity, rated in enumerate(self.rated):
            bias = self.model.entities[entity].bias
            if bias is not None:
                mean = self.ratings.row_mean(entity, bias.weight, rated)[0]
                bias.weight -= mean * rated[:, None]
                self.model.offset = self.model.offset + mean
        self.views = retargeted(self.views, *targets(self.model, self.ratings))

    def _row_variances(self, entity: int) -> Tensor:
        """(n_rows, k) the variances of an entity's augmented factors."""
        parts = [
            variances if term.features is None else term.features.matmul_squared(variances)
            for term, variances in zip(self.terms, self.term_variances, strict=True)
            if term.entity == entity
        ]
        return sum(parts[1:], parts[0])

    def _learn(self, squares: Tensor) -> Tensor:
        """Update λ and τ, with factors and session biases fixed; squares are w E[e²], (n_ratings,).  Returns α, ()."""
        if self.sessions is not None:
            self.sessions.learn()
        for n, (term, variances) in enumerate(zip(self.terms, self.term_variances, strict=True)):
            expected = self.model.weights(term).square() + variances
            n_rows = len(variances) if term.row_entity is None else self.ratings.n_all[term.row_entity]
            total = self.ratings.row_sum(term.row_entity, expected, column_totals)
            self.precision[n] = n_rows / total.clamp_min(1e-6)[None]
        for entity, counts in ((USER, self.ratings.user_counts), (ITEM, self.ratings.item_counts)):
            # Σ t_i w E[e²] over a user's ratings is Σ ω E[e²] without the user's own t_j.
            sums = self._expected_squares(entity, squares)
            alpha = self.ratings.n_ratings / self.ratings.row_sum(entity, sums)
            sums = sums / self._precision_scales()[entity].double()
            self.gammas[entity] = PRECISION_SCALE_SHAPE + 0.5 * torch.stack([counts.double()[:, None], alpha * sums])
        self.views = reweighted(self.views, self._precision_scales())
        return alpha

    def _precision_scales(self) -> list[Tensor]:
        """t of users and of items, each (n, 1)."""
        return [(shape / rate).to(self.model.dtype) for shape, rate in self.gammas]

    def _rating_squares(self) -> Tensor:
        """w E[e²] of each rating, (n_ratings,)."""
        squares = squared_errors(self.views[USER], *self.model.augmented_factors(), self.variances)
        if self.sessions is not None:
            squares += self.ratings.weighted(self.sessions.effect_variances(self.ratings))
        return squares

    def _expected_squares(self, entity: int, squares: Tensor | None = None) -> Tensor:
        """Σ ω E[e²] over the ratings of each row of an entity, (n, 1); squares are w E[e²], (n_ratings,)."""
        squares, t = self._rating_squares() if squares is None else squares, self._precision_scales()
        if entity == USER:
            sums = self.ratings.share(USER, row_sums(self.ratings.pattern, squares, t[ITEM]))
        else:
            sums = self.ratings.sum_tables(ITEM, column_sums(self.ratings.local_pattern, squares, t[USER]))
        return t[entity].double() * sums

    @torch.no_grad()
    def bound(self) -> float:
        """L, in nats."""
        return self._bound(self._rating_squares(), self.alpha)[0]

    def _bound(self, squares: Tensor, alpha: Tensor | float) -> tuple[float, float]:
        """L and α; a GPU is waited for once, for both."""
        data, n = self.ratings.row_sum(USER, self._expected_squares(USER, squares)), self.ratings.n_ratings
        parts = torch.stack([torch.zeros_like(data) + alpha, data, *self._parts_of_bound()])
        α, expected, log_weights, *others = parts.tolist()
        bound: float = 0.5 * n * math.log(α / (2 * math.pi)) + log_weights - 0.5 * α * expected
        for part in others:
            bound += part
        return bound, α

    def _parts_of_bound(self) -> Iterator[Tensor]:
        """Those of L that do not depend on α, () each in float64; the first is that of the ratings' weights."""
        weights, zero = self.ratings.weights, self.gammas[USER].new_zeros(())
        yield zero if weights is None else 0.5 * self.ratings.total(ordered_sum(weights.double().log()))
        yield zero if self.sessions is None else self.sessions.bound()
        for term, variances, precision in zip(self.terms, self.term_variances, self.precision, strict=True):
            columns = self.columns[term.entity]
            s, squares = variances[:, columns].double(), self.model.weights(term)[:, columns].double().square()
            p = precision[:, columns].double()
            yield 0.5 * self.ratings.row_sum(term.row_entity, p.log() - p * (squares + s) + s.log() + 1)
        # A GPU would have to be waited for to check the arguments.
        c = zero + PRECISION_SCALE_SHAPE
        prior = torch.distributions.Gamma(c, c, validate_args=False)
        for entity, counts in ((USER, self.ratings.user_counts), (ITEM, self.ratings.item_counts)):
            shape, rate = self.gammas[entity][:, :, 0]
            yield 0.5 * self.ratings.row_sum(entity, counts * (torch.digamma(shape) - rate.log()))
            scales = torch.distributions.Gamma(shape, rate, validate_args=False)
            yield -self.ratings.row_sum(entity, torch.distributions.kl_divergence(scales, prior))

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "alpha": self.alpha,
            "gammas": self.gammas,
            "precision": self.precision,
            "variances": self.term_variances,
            "sessions": None if self.sessions is None else self.sessions.state_dict(),
        }

    def map_tables(self, state: Mapping[str, Any], change: TableMap) -> dict[str, Any]:
        gammas = [[change(entity, number) for number in pair] for entity, pair in enumerate(state["gammas"])]
        variances = zip(self.terms, state["variances"], strict=True)
        return {
            **state,
            "gammas": [None if shape is None else torch.stack([shape, rate]) for shape, rate in gammas],
            "variances": [v if term.row_entity is None else change(term.row_entity, v) for term, v in variances],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.alpha = state["epochs"], state["alpha"]
        device = self.ratings.device
        self.precision = [tensor.to(device) for tensor in state["precision"]]
        self.term_variances = [tensor.to(device) for tensor in state["variances"]]
        self.variances = [self._row_variances(entity) for entity in (USER, ITEM)]
        self.gammas = [tensor.to(device) for tensor in state["gammas"]]
        if self.model.sessions is not None:
            self.sessions = SessionField.from_state(self.model.sessions, state["sessions"])
        self.views = retargeted(self.views, *targets(self.model, self.ratings))
        self.views = reweighted(self.views, self._precision_scales())
