"""Bayesian matrix factorization by Gibbs sampling, where a draw costs what a sweep of ALS costs.

    y(i, j) − μ ~ N(θ̃_j · x̃_i, 1/α)         α ~ Gamma(a, b)
    P_j ~ N(m, diag(λ)⁻¹)                     λ_c ~ Gamma(a, b), m_c ~ N(0, 1/λ_c)         each side's own rows
    W_f ~ N(0, diag(λ′)⁻¹)                    λ′_c ~ Gamma(a, b)                           each block of feature weights

(Salakhutdinov & Mnih 2008, "Bayesian probabilistic matrix factorization using Markov chain Monte Carlo", with diagonal
in place of full precisions.)  Given all else, a term's table W̃ is Gaussian, with precision αH, where
H = Fᵀ(R-weighted X̃X̃ᵀ)F + Λ/α is the Hessian of its ridge regression (`ridge.py`), and with its minimum as the mean.
A draw is the minimum of a perturbed problem (Papandreou & Yuille 2010, "Gaussian sampling by local perturbations"):

    W̃ = H⁻¹ (Fᵀ ((y − μ + ε) X̃) + (Λ/α)(m + η))        ε_n ~ N(0, 1/α),  η_c ~ N(0, 1/λ_c)

since the right side has the mean H E[W̃] and the covariance H/α.  So nothing is factorized, conjugate gradients solve
all rows at once from where the last sweep left them, and features cost what they cost ALS.

The conjugate posterior of λ_c and m_c given the n rows of a table, with their mean p̄ and m_c | λ_c as above:

    λ_c ~ Gamma(a + n/2, b + ½ Σ_j (P_jc − p̄)² + ½ n/(n+1) p̄²),    m_c ~ N(n p̄/(n+1), 1/((n+1) λ_c))

and α ~ Gamma(a + n/2, b + ½ Σ w e²) over the n ratings, λ′_c ~ Gamma(a + n/2, b + ½ Σ_f W_fc²).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mfrec.errors import InputError
from mfrec.model import ITEM, USER, MatrixFactorization, Term
from mfrec.objective import Objective, squared_error
from mfrec.posterior import Samples
from mfrec.ratings import Ratings
from mfrec.solvers.ridge import minimize_by_cg, problem, sides_of
from mfrec.sparse import sampled_dot

# a and b of every Gamma prior, by shape and rate: as much evidence as one observation.
PRIOR_SHAPE, PRIOR_RATE = 0.5, 0.5


class Gibbs:
    """Bayesian matrix factorization by Gibbs sampling: nothing to tune, and a deviation of every prediction.

    An epoch is a sweep: α, then for either side the prior of its rows, the rows, and the weights of its features.
    After each the model is the last draw; predictions are averaged over the draws after the burn-in.

    Args:
        burn_in: sweeps whose draws are thrown away, while the chain is on its way.
        samples: how many draws a run keeps, evenly spread; predictions are averaged over all of them.
        cg_steps: conjugate-gradient steps a draw of rows; one of feature weights takes twice as many.
    """

    defaults: ClassVar[dict[str, Any]] = {"rank": 32, "epochs": 200, "valid_fraction": 0.0, "l2": 0.0}
    learned: ClassVar[tuple[str, ...]] = ("l2", "bias_l2", "scaling")

    def __init__(
        self,
        model: MatrixFactorization,
        ratings: Ratings,
        objective: Objective,
        *,
        generator: torch.Generator,
        burn_in: int = 20,
        samples: int = 16,
        cg_steps: int = 6,
    ) -> None:
        if objective.loss is not squared_error:
            raise InputError("gibbs samples Gaussian noise, not other losses; use sgd, gd or optim")
        if model.nonnegative:
            raise InputError("gibbs samples Gaussian factors, which are not non-negative; use als, gd or sgd")
        for name, value, least in (("burn_in", burn_in, 0), ("samples", samples, 1), ("cg_steps", cg_steps, 1)):
            if value < least:
                raise InputError(f"{name} {value} is too few; give {least} or more")
        self.model, self.ratings, self.objective, self.generator = model, ratings, objective, generator
        self.burn_in, self.cg_steps = burn_in, cg_steps
        self.samples = Samples(model, samples)
        self.sides = sides_of(model, ratings)
        self.terms = [term for side in (USER, ITEM) for term in model.terms(side)]
        self.epochs = 0

    @property
    def posterior(self) -> Samples | None:
        """The draws after the burn-in; None before there is one."""
        return self.samples if self.samples.draws else None

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        noise_variance = 1 / self._draw_alpha()
        priors: dict[str, Tensor] = {}
        for term in self.terms:
            table = self.model.table(term)
            if term.features is None:
                precision, mean = self._draw_prior(table)
                name = ("user", "item")[term.side]
                priors |= {f"{name}_precision": precision, f"{name}_mean": mean}
            else:
                precision, mean = self._draw_precision(table), torch.zeros_like(table[0])
            self._draw_table(term, noise_variance, precision, mean)
        self.epochs += 1
        if self.epochs > self.burn_in:
            self.samples.offer(noise_variance, **priors)
        return {"noise_deviation": noise_variance**0.5}

    def _draw_table(self, term: Term, noise_variance: float, precision: Tensor, mean: Tensor) -> None:
        side = self.sides[term.side]
        ridge = precision * noise_variance
        noise = self._normal((len(side.targets),)).mul_(noise_variance**0.5)
        if side.weights is not None:
            noise = noise * side.weights.rsqrt()
        shape = self.model.table(term).shape
        push = ridge * (mean + self._normal(shape) * precision.rsqrt())
        regression = problem(self.model, term, side, self.model.tables(), ridge, noise, push)
        steps = self.cg_steps if term.features is None else 2 * self.cg_steps
        self.model.assign(term, minimize_by_cg(regression, steps))

    def _draw_alpha(self) -> float:
        side = self.sides[USER]
        errors = side.targets - sampled_dot(side.pattern, *self.model.tables())
        squares = self.ratings.weighted(errors.square()).double().sum()
        return float(self._gamma(torch.tensor(PRIOR_SHAPE + 0.5 * len(errors)), PRIOR_RATE + 0.5 * squares))

    def _draw_prior(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(λ, m), each (k,), of a side's own rows."""
        rows = rows.double()
        n, mean = len(rows), rows.mean(0)
        squares = (rows - mean).square().sum(0) + n / (n + 1) * mean.square()
        precision = self._gamma(torch.full_like(mean, PRIOR_SHAPE + 0.5 * n), PRIOR_RATE + 0.5 * squares)
        drawn = n / (n + 1) * mean + self._normal(mean.shape).double() / ((n + 1) * precision).sqrt()
        return precision.to(self.ratings.values.dtype), drawn.to(self.ratings.values.dtype)

    def _draw_precision(self, weights: Tensor) -> Tensor:
        """λ′, (k,), of a block of feature weights."""
        squares = weights.double().square().sum(0)
        shape = torch.full_like(squares, PRIOR_SHAPE + 0.5 * len(weights))
        return self._gamma(shape, PRIOR_RATE + 0.5 * squares).to(weights.dtype)

    def _gamma(self, shape: Tensor, rate: Tensor) -> Tensor:
        # torch draws gammas from its global generator alone; numpy takes a seed.
        seed = int(torch.randint(2**62, (), generator=self.generator))
        standard = np.random.default_rng(seed).standard_gamma(shape.cpu().numpy())
        return torch.as_tensor(standard, dtype=torch.float64).to(rate.device) / rate

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        # Drawn on the CPU whatever the device, so that devices draw alike.
        drawn = torch.randn(shape, generator=self.generator, dtype=self.ratings.values.dtype)
        return drawn.to(self.ratings.device)

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "posterior": self.samples.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"]
        self.samples.load_state_dict(state["posterior"])
        self.generator.set_state(state["generator"].cpu())
