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
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mfrec.model.entity import ITEM, USER
from mfrec.model.ridge import minimize, ratings_views, reweighted
from mfrec.model.squared_errors import column_sums, row_sums, squared_errors
from mfrec.posteriors.base import PRECISION_SCALE_SHAPE
from mfrec.posteriors.mean_field import MeanFieldPosterior
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import VariationalBayesOptions

# Sweeps before λ, τ and α are learned: a λ learned from factors that are still near zero would keep them there.
FIXED_SWEEPS = 5


class VariationalBayes(Solver):
    """Mean-field variational Bayes."""

    options: VariationalBayesOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        ratings = self.ratings
        self.views = ratings_views(self.model, ratings)
        self.terms = self.model.all_terms
        # If ratings have standard deviation d, factors have √d: the start is in the ratings' own unit.
        std = float(self.views[USER].targets.double().std(correction=0)) or 1.0
        self.alpha = 1 / std**2
        self.precision = [torch.full_like(view.free, 3 / std) for view in self.views]
        sizes = (ratings.n_users, ratings.n_items)
        self.variances = [
            (0.02 * std * view.free).expand(n, -1).clone() for view, n in zip(self.views, sizes, strict=True)
        ]
        # A and B of the users and of the items, (2, n, 1): initially those of the prior.
        self.gammas = [
            torch.full((2, n, 1), PRECISION_SCALE_SHAPE, dtype=torch.float64, device=ratings.device) for n in sizes
        ]
        self.views = reweighted(self.views, self._precision_scales())
        self.epochs = 0

    def inference(self) -> MeanFieldPosterior:
        return MeanFieldPosterior(self.model, self.variances, self.precision, self.alpha, self._precision_scales())

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        for term in self.terms:
            view = self.views[term.entity]
            ridge = self.precision[term.entity] / self.alpha * view.free
            partner_variances, steps = self.variances[1 - term.entity], self.options.cg_steps
            weights, diagonal = minimize(self.model, term, view, ridge, steps, variances=partner_variances)
            self.variances[term.entity] = view.free / (self.alpha * diagonal)
            self.model.assign(term, weights)
        squares = self._rating_squares()
        if self.epochs >= FIXED_SWEEPS:
            self._learn(squares)
        self.epochs += 1
        return {"bound": self._bound(squares), "noise_std": self.alpha**-0.5}

    def _learn(self, squares: Tensor) -> None:
        """Update λ, τ and α, with the factors fixed; squares are w E[e²], (n_ratings,)."""
        for term, variances in zip(self.terms, self.variances, strict=True):
            means = self.model.weights(term).square() + variances
            self.precision[term.entity] = len(means) / means.sum(0, keepdim=True).clamp_min(1e-6)
        for entity, counts in ((USER, self.ratings.user_counts), (ITEM, self.ratings.item_counts)):
            # Σ t_i w E[e²] over a user's ratings is Σ ω E[e²] without the user's own t_j.
            sums = self._expected_squares(entity, squares)
            self.alpha = len(self.ratings) / float(sums.sum())
            sums = sums / self._precision_scales()[entity].double()
            self.gammas[entity] = PRECISION_SCALE_SHAPE + 0.5 * torch.stack(
                [counts.double()[:, None], self.alpha * sums]
            )
        self.views = reweighted(self.views, self._precision_scales())

    def _precision_scales(self) -> list[Tensor]:
        """t of users and of items, each (n, 1)."""
        return [(shape / rate).to(self.model.dtype) for shape, rate in self.gammas]

    def _rating_squares(self) -> Tensor:
        """w E[e²] of each rating, (n_ratings,)."""
        return squared_errors(self.views[USER], *self.model.augmented_factors(), self.variances)

    def _expected_squares(self, entity: int, squares: Tensor | None = None) -> Tensor:
        """Σ ω E[e²] over the ratings of each row of an entity, (n, 1); squares are w E[e²], (n_ratings,)."""
        squares, t = self._rating_squares() if squares is None else squares, self._precision_scales()
        sums = (row_sums, column_sums)[entity](self.ratings.pattern, squares, t[1 - entity])
        return t[entity].double() * sums

    @torch.no_grad()
    def bound(self) -> float:
        """L, in nats."""
        return self._bound(self._rating_squares())

    def _bound(self, squares: Tensor) -> float:
        weights, n = self.ratings.weights, len(self.ratings)
        bound = 0.5 * n * math.log(self.alpha / (2 * math.pi))
        bound += 0.5 * float(weights.double().log().sum()) if weights is not None else 0.0
        bound -= 0.5 * self.alpha * float(self._expected_squares(USER, squares).sum())
        scale = torch.tensor(PRECISION_SCALE_SHAPE, dtype=torch.float64)
        prior = torch.distributions.Gamma(scale, scale)
        counts = (self.ratings.user_counts, self.ratings.item_counts)
        for term, variances, precision, gammas, row_counts in zip(
            self.terms, self.variances, self.precision, self.gammas, counts, strict=True
        ):
            free = self.views[term.entity].free[0] > 0
            s, squares = variances[:, free].double(), self.model.weights(term)[:, free].double().square()
            p = precision[:, free].double()
            bound += 0.5 * float((p.log() - p * (squares + s) + s.log() + 1).sum())
            shape, rate = gammas[0, :, 0], gammas[1, :, 0]
            bound += 0.5 * float((row_counts * (torch.digamma(shape) - rate.log())).sum())
            bound -= float(torch.distributions.kl_divergence(torch.distributions.Gamma(shape, rate), prior).sum())
        return bound

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "alpha": self.alpha,
            "gammas": self.gammas,
            "precision": self.precision,
            "variances": self.variances,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.alpha = state["epochs"], state["alpha"]
        device = self.ratings.device
        self.precision = [tensor.to(device) for tensor in state["precision"]]
        self.variances = [tensor.to(device) for tensor in state["variances"]]
        self.gammas = [tensor.to(device) for tensor in state["gammas"]]
        self.views = reweighted(self.views, self._precision_scales())
