"""Bayesian matrix factorization by Gibbs sampling, where a draw costs as much as a sweep of ALS.

    y(i, j) − μ ~ N(θ̃_j · x̃_i, 1/(α τ_j τ_i w))   α ~ Gamma(a, b), τ ~ Gamma(c, c)         ratings, with weights w
    P_j ~ N(m, diag(λ)⁻¹)                         λ_c ~ Gamma(a, b), m_c ~ N(0, 1/λ_c)    each entity's own rows
    W_f ~ N(0, diag(λ′)⁻¹)                        λ′_c ~ Gamma(a, b)                      each block of feature weights

Precisions are diagonal instead of full.  The ratings of some users and items are noisier than others', hence the
precision scales τ_j and τ_i.

    Salakhutdinov & Mnih 2008, "Bayesian probabilistic matrix factorization using Markov chain Monte Carlo"
    Lakshminarayanan, Bouchard & Archambeau 2011, "Robust Bayesian matrix factorisation"

Given all else, a term's W̃ is Gaussian.  Its mean is the minimum of the ridge regression (`mfrec.model.ridge`) with
weights v = τ_j τ_i w and penalty Λ/α.  Its precision is αH, with H the Hessian.  A draw is the minimum of a
perturbed problem (Papandreou & Yuille 2010, "Gaussian sampling by local perturbations"):

    W̃ = H⁻¹ (Fᵀ (v (y − μ + ε)) X̃ + (Λ/α)(m + η))        ε_n ~ N(0, 1/(α v_n)),  η_c ~ N(0, 1/λ_c)

since the right-hand side has the mean H E[W̃] and the covariance H/α.  Nothing is factorized, conjugate gradients solve
all rows at once from where the last sweep left them, and features cost as much as in ALS.

The conjugate posterior of λ_c and m_c given the n rows of P, with their mean p̄ and m_c | λ_c as above:

    λ_c ~ Gamma(a + n/2, b + ½ Σ_j (P_jc − p̄)² + ½ n/(n+1) p̄²),    m_c ~ N(n p̄/(n+1), 1/((n+1) λ_c))

The others, with α over all n ratings and τ_j over the user's n_j (τ_i likewise):

    λ′_c ~ Gamma(a + n/2, b + ½ Σ_f W_fc²)
    α ~ Gamma(a + n/2, b + ½ Σ v e²)
    τ_j ~ Gamma(c + n_j/2, c + ½ α Σ_i τ_i w e²)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfrec.model.entity import ITEM, USER, Term
from mfrec.model.ridge import minimize, ratings_views, reweighted
from mfrec.model.squared_errors import column_sums, row_sums, squared_errors
from mfrec.posteriors.base import PRECISION_SCALE_SHAPE
from mfrec.posteriors.draws import standard_gamma, standard_normal
from mfrec.posteriors.samples import PosteriorSamples
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import GibbsOptions

# a and b of every Gamma prior, by shape and rate: as much evidence as one observation.
PRIOR_SHAPE, PRIOR_RATE = 0.5, 0.5


class Gibbs(Solver):
    """Bayesian matrix factorization by Gibbs sampling.

    An epoch is a sweep: the noise, then for users and for items the rows and their prior, and the feature weights and
    theirs.  After it the model is the last draw; predictions average over the draws after the burn-in.
    """

    options: GibbsOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        ratings, options = self.ratings, self.options
        self.samples = PosteriorSamples(self.model, options.samples, options.homoscedastic)
        self.views = ratings_views(self.model, ratings)
        self.terms = self.model.all_terms
        # If ratings have standard deviation d, factors have √d.  The first prior is wide enough for them, since a chain
        # that starts near zero under a narrow prior takes long to leave it.
        std = float(self.views[USER].targets.double().std(correction=0)) or 1.0
        self.alpha = 1 / std**2
        self.precision_scales = [
            torch.ones(n, 1, dtype=ratings.values.dtype, device=ratings.device)
            for n in (ratings.n_users, ratings.n_items)
        ]
        # λ and m of each term.
        self.priors = [
            (torch.full_like(free[0], 50 / std), torch.zeros_like(free[0]))
            for free in (self.views[term.entity].free for term in self.terms)
        ]
        self.epochs = 0

    def inference(self) -> PosteriorSamples:
        return self.samples

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        self._draw_noise()
        for n, term in enumerate(self.terms):
            self._draw_weights(term, *self.priors[n])
            weights = self.model.weights(term)
            self.priors[n] = self._draw_prior(weights) if term.features is None else self._draw_precision(weights)
        self.epochs += 1
        if self.epochs > self.options.burn_in:
            self.samples.add(self.alpha, self.precision_scales, self.priors)
        return {"noise_std": self.alpha**-0.5}

    def _draw_weights(self, term: Term, precision: Tensor, mean: Tensor) -> None:
        ridge = precision / self.alpha
        rhs_shift = ridge * (mean + self._normal(self.model.weights(term).shape) * precision.rsqrt())
        steps = self.options.cg_steps if term.features is None else self.options.feature_steps
        weights, _ = minimize(
            self.model,
            term,
            self.views[term.entity],
            ridge[None],
            steps,
            rhs_shift=rhs_shift,
            noise_std=self.alpha**-0.5,
            generator=self.generator,
        )
        self.model.assign(term, weights)

    def _draw_noise(self) -> None:
        """Draw α and, unless homoscedastic, τ of each user and item; they change the weights of the ratings."""
        ratings, tau = self.ratings, self.precision_scales
        squares = squared_errors(self.views[USER], *self.model.augmented_factors())
        sums = row_sums(ratings.pattern, squares, tau[ITEM])
        rate = PRIOR_RATE + 0.5 * (sums * tau[USER].double()).sum()
        self.alpha = float(self._gamma(torch.tensor(PRIOR_SHAPE + 0.5 * len(squares)), rate))
        if self.options.homoscedastic:
            return
        for entity, counts in ((USER, ratings.user_counts), (ITEM, ratings.item_counts)):
            if entity == ITEM:
                sums = column_sums(ratings.pattern, squares, tau[USER])
            shape = PRECISION_SCALE_SHAPE + 0.5 * counts.double()[:, None]
            tau[entity] = self._gamma(shape, PRECISION_SCALE_SHAPE + 0.5 * self.alpha * sums).to(squares.dtype)
        self.views = reweighted(self.views, tau)

    def _draw_prior(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(λ, m), each (k,), of an entity's own rows."""
        rows = rows.double()
        n, mean = len(rows), rows.mean(0)
        squares = (rows - mean).square().sum(0) + n / (n + 1) * mean.square()
        precision = self._gamma(torch.full_like(mean, PRIOR_SHAPE + 0.5 * n), PRIOR_RATE + 0.5 * squares)
        drawn = n / (n + 1) * mean + self._normal(mean.shape).double() / ((n + 1) * precision).sqrt()
        return precision.to(self.ratings.values.dtype), drawn.to(self.ratings.values.dtype)

    def _draw_precision(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(λ′, 0), each (k,), of a block of feature weights."""
        squares = weights.double().square().sum(0)
        shape = torch.full_like(squares, PRIOR_SHAPE + 0.5 * len(weights))
        return self._gamma(shape, PRIOR_RATE + 0.5 * squares).to(weights.dtype), torch.zeros_like(weights[0])

    def _gamma(self, shape: Tensor, rate: Tensor) -> Tensor:
        return standard_gamma(shape, self.generator).to(rate.device) / rate

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return standard_normal(shape, self.ratings.values, self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "alpha": self.alpha,
            "precision_scales": list(self.precision_scales),
            "priors": [list(prior) for prior in self.priors],
            "samples": self.samples.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.alpha, device = state["epochs"], state["alpha"], self.ratings.device
        self.precision_scales = [tensor.to(device) for tensor in state["precision_scales"]]
        self.priors = [(precision.to(device), mean.to(device)) for precision, mean in state["priors"]]
        self.samples.load_state_dict(state["samples"])
        self.generator.set_state(state["generator"].cpu())
