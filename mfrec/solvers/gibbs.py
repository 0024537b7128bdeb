"""Bayesian matrix factorization by Gibbs sampling, where a draw costs what a sweep of ALS costs.

    y(i, j) − μ ~ N(θ̃_j · x̃_i, 1/(α τ_j τ_i w))   α ~ Gamma(a, b), τ ~ Gamma(c, c)         ratings, with weights w
    P_j ~ N(m, diag(λ)⁻¹)                         λ_c ~ Gamma(a, b), m_c ~ N(0, 1/λ_c)    each side's own rows
    W_f ~ N(0, diag(λ′)⁻¹)                        λ′_c ~ Gamma(a, b)                      each block of feature weights

(Salakhutdinov & Mnih 2008, "Bayesian probabilistic matrix factorization using Markov chain Monte Carlo", with diagonal
in place of full precisions.  That the ratings of some users and items are noisier than others', by factors τ_j and τ_i,
is from Lakshminarayanan, Bouchard & Archambeau 2011, "Robust Bayesian matrix factorisation".)

Given all else, a term's table W̃ is Gaussian, with precision αH, where H is the Hessian of the ridge regression
(`ridge.py`) with weights v = τ_j τ_i w and penalty Λ/α, and with its minimum as the mean.  A draw is the minimum of a
perturbed problem (Papandreou & Yuille 2010, "Gaussian sampling by local perturbations"):

    W̃ = H⁻¹ (Fᵀ (v (y − μ + ε)) X̃ + (Λ/α)(m + η))        ε_n ~ N(0, 1/(α v_n)),  η_c ~ N(0, 1/λ_c)

since the right side has the mean H E[W̃] and the covariance H/α.  So nothing is factorized, conjugate gradients solve
all rows at once from where the last sweep left them, and features cost what they cost ALS.

The conjugate posterior of λ_c and m_c given the n rows of a table, with their mean p̄ and m_c | λ_c as above:

    λ_c ~ Gamma(a + n/2, b + ½ Σ_j (P_jc − p̄)² + ½ n/(n+1) p̄²),    m_c ~ N(n p̄/(n+1), 1/((n+1) λ_c))

λ′_c ~ Gamma(a + n/2, b + ½ Σ_f W_fc²), α ~ Gamma(a + n/2, b + ½ Σ v e²) over the n ratings, and
τ_j ~ Gamma(c + n_j/2, c + ½ α Σ_i τ_i w e²) over the user's, τ_i likewise.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.model.factorization import ITEM, USER, MatrixFactorization, Term
from mfrec.model.objective import Objective, squared_error
from mfrec.model.ridge import minimize_by_cg, problem, sides_of, weighed_by
from mfrec.posteriors.posterior import NOISE_SHAPE, Samples, standard_gamma, standard_normal
from mfrec.sparse import matmul, sampled_dot

# a and b of every Gamma prior, by shape and rate: as much evidence as one observation.
PRIOR_SHAPE, PRIOR_RATE = 0.5, 0.5


class Gibbs:
    """Bayesian, by Gibbs sampling, with a deviation of every prediction.

    An epoch is a sweep: the noise, then for either side its rows and their prior, the weights of its features and
    theirs.  After each the model is the last draw; predictions are averaged over the draws after the burn-in.

    Args:
        burn_in: sweeps whose draws are thrown away, while the chain is on its way.
        samples: how many draws a run keeps, evenly spread; predictions are averaged over all of them.
        cg_steps: conjugate-gradient steps a draw of rows.
        feature_steps: the same of feature weights, which are coupled and so need more.
        same_noise: whether all ratings have the same noise, rather than more or less of it by user and by item.

    Raises:
        InputError: a count is too small, the loss is not the squared error, or the model is non-negative.
    """

    space: ClassVar[dict[str, tuple[float, float, str]]] = {"rank": (8, 64, "log")}
    takes: ClassVar[tuple[str, ...]] = ("features",)
    defaults: ClassVar[dict[str, Any]] = {"rank": 32, "epochs": 200, "valid_fraction": 0.0, "l2": 0.0, "log_every": 5}
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
        cg_steps: int = 3,
        feature_steps: int = 9,
        same_noise: bool = False,
    ) -> None:
        if objective.loss is not squared_error:
            raise InputError("gibbs samples Gaussian noise, not other losses; use sgd, gd or optim")
        if model.nonnegative:
            raise InputError("gibbs samples Gaussian factors, which are not non-negative; use als, gd or sgd")
        counts = {"burn_in": burn_in, "samples": samples, "cg_steps": cg_steps, "feature_steps": feature_steps}
        for name, value in counts.items():
            least = 0 if name == "burn_in" else 1
            if value < least:
                raise InputError(f"{name} {value} is too few; give {least} or more")
        self.model, self.ratings, self.objective, self.generator = model, ratings, objective, generator
        self.burn_in, self.same_noise = burn_in, same_noise
        self.cg_steps, self.feature_steps = cg_steps, feature_steps
        self.samples = Samples(model, samples, same_noise)
        self.sides = sides_of(model, ratings)
        self.terms = model.all_terms
        # λ and m of each term.  Where ratings are d apart, factors are √d: a wide enough prior to start from, whatever
        # the factors start as, for from factors near zero the chain would take long to leave them.
        deviation = float(self.sides[USER].targets.double().std(correction=0)) or 1.0
        self.alpha = 1 / deviation**2
        self.noise = [
            torch.ones(n, 1, dtype=ratings.values.dtype, device=ratings.device)
            for n in (ratings.n_users, ratings.n_items)
        ]
        self.priors = [
            (
                torch.full_like(free[0], 50 / deviation),
                torch.zeros_like(free[0]),
            )
            for free in (self.sides[term.side].free for term in self.terms)
        ]
        self.epochs = 0

    @property
    def posterior(self) -> Samples | None:
        """The draws after the burn-in; None before there is one."""
        return self.samples if self.samples.draws else None

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        self._draw_noise()
        for n, term in enumerate(self.terms):
            self._draw_table(term, *self.priors[n])
            table = self.model.table(term)
            self.priors[n] = self._draw_prior(table) if term.features is None else self._draw_precision(table)
        self.epochs += 1
        if self.epochs > self.burn_in:
            self.samples.offer(self.alpha, self.noise, self.priors)
        return {"noise_deviation": self.alpha**-0.5}

    def _draw_table(self, term: Term, precision: Tensor, mean: Tensor) -> None:
        side = self.sides[term.side]
        ridge = precision / self.alpha
        noise = self._normal((len(side.targets),)).mul_(self.alpha**-0.5)
        if side.weights is not None:
            noise = noise * side.weights.rsqrt()
        shape = self.model.table(term).shape
        push = ridge * (mean + self._normal(shape) * precision.rsqrt())
        regression = problem(self.model, term, side, self.model.tables(), ridge, noise, push)
        steps = self.cg_steps if term.features is None else self.feature_steps
        self.model.assign(term, minimize_by_cg(regression, steps))

    def _draw_noise(self) -> None:
        """α, and where it is not the same for all, τ of each user and item; with them the weights of the ratings."""
        tables, ratings = self.model.tables(), self.ratings
        user_side = self.sides[USER]
        squares = ratings.weighted((user_side.targets - sampled_dot(user_side.pattern, *tables)).square())
        by_side = (squares, squares.index_select(0, ratings.item_order))
        total = (matmul(ratings.by_user, squares, self.noise[ITEM]) * self.noise[USER]).double().sum()
        self.alpha = float(self._gamma(torch.tensor(PRIOR_SHAPE + 0.5 * len(squares)), PRIOR_RATE + 0.5 * total))
        if self.same_noise:
            return
        for side, pattern in ((USER, ratings.by_user), (ITEM, ratings.by_item)):
            sums = matmul(pattern, by_side[side], self.noise[1 - side]).double()
            counts = pattern.counts.double()[:, None]
            drawn = self._gamma(NOISE_SHAPE + 0.5 * counts, NOISE_SHAPE + 0.5 * self.alpha * sums)
            self.noise[side] = drawn.to(squares.dtype)
        self.sides = weighed_by(self.sides, ratings, self.noise)

    def _draw_prior(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(λ, m), each (k,), of a side's own rows."""
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
            "noise": list(self.noise),
            "priors": [list(prior) for prior in self.priors],
            "posterior": self.samples.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.alpha, device = state["epochs"], state["alpha"], self.ratings.device
        self.noise = [tensor.to(device) for tensor in state["noise"]]
        self.priors = [(precision.to(device), mean.to(device)) for precision, mean in state["priors"]]
        self.samples.load_state_dict(state["posterior"])
        self.generator.set_state(state["generator"].cpu())
