"""Variational Bayes: alternating least squares with a ridge and weights that adapt, and nothing to tune.

    y(i, j) − μ ~ N(θ̃_j · x̃_i, 1/(α τ_j τ_i w)),    θ_jc ~ N(0, 1/λ_c),    x_ic ~ N(0, 1/λ′_c),    τ ~ Gamma(c, c)

with w the weights of the ratings, and τ_j and τ_i telling that the ratings of some users and items are noisier than
others'.  The posterior is approximated by independent Gaussians θ_jc ~ N(θ̃_jc, s_jc), x_ic ~ N(x̃_ic, v_ic) and Gammas
τ ~ Gamma(A, B) that, with α and λ, maximize the bound on the log evidence (Raiko, Ilin & Karhunen 2007, "Principal
component analysis for large scale problems with lots of missing values"; Lim & Teh 2007, "Variational Bayesian approach
to movie rating prediction"):

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
from typing import Any, ClassVar

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.model.factorization import ITEM, USER, MatrixFactorization
from mfrec.model.objective import Objective, squared_error
from mfrec.model.ridge import Side, minimize_by_cg, problem, sides_of, weighed_by
from mfrec.posteriors.posterior import NOISE_SHAPE, MeanField
from mfrec.sparse import matmul, sampled_dot

# Sweeps before λ, τ and α are learned: a λ told from factors that have not yet left zero would keep them there.
FIXED_SWEEPS = 5


class VariationalBayes:
    """Variational Bayes, with a deviation of every prediction.

    Mean-field and fast.

    Args:
        cg_steps: conjugate-gradient steps a half-sweep.

    Raises:
        InputError: cg_steps are below 1, the loss is not the squared error, or the model is non-negative or has
            features.
    """

    space: ClassVar[dict[str, tuple[float, float, str]]] = {"rank": (4, 32, "log")}
    takes: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[dict[str, Any]] = {"rank": 14, "epochs": 16, "valid_fraction": 0.0, "l2": 0.0, "log_every": 8}
    learned: ClassVar[tuple[str, ...]] = ("l2", "bias_l2", "scaling")

    def __init__(
        self,
        model: MatrixFactorization,
        ratings: Ratings,
        objective: Objective,
        *,
        generator: torch.Generator | None = None,
        cg_steps: int = 2,
    ) -> None:
        if objective.loss is not squared_error:
            raise InputError("vb knows Gaussian noise, not other losses; use sgd, gd or optim")
        if model.nonnegative:
            raise InputError("vb has Gaussian factors, which are not non-negative; use als, gd or sgd")
        if model.featured:
            raise InputError("vb takes no features; use gibbs, als, sgd, gd, optim or quasi-newton")
        if cg_steps < 1:
            raise InputError(f"cg_steps {cg_steps} leave nothing to do; give 1 or more")
        self.model, self.ratings, self.objective, self.cg_steps = model, ratings, objective, cg_steps
        self.sides = sides_of(model, ratings)
        self.own = model.all_terms
        # Where ratings are d apart, factors are √d: what the start assumes, in the ratings' own unit.
        deviation = float(self.sides[USER].targets.double().std(correction=0)) or 1.0
        self.alpha = 1 / deviation**2
        self.precision = [torch.full_like(side.free, 3 / deviation) for side in self.sides]
        sizes = (ratings.n_users, ratings.n_items)
        self.variances = [
            (0.02 * deviation * side.free).expand(n, -1).clone() for side, n in zip(self.sides, sizes, strict=True)
        ]
        # A and B of the rows of either side, (n, 1): at first as the prior has them.
        self.gammas = [torch.full((2, n, 1), NOISE_SHAPE, dtype=torch.float64, device=ratings.device) for n in sizes]
        self.sides = weighed_by(self.sides, self.ratings, self._noise())
        self.epochs = 0

    @property
    def posterior(self) -> MeanField:
        """The approximate posterior as it is now."""
        return MeanField(self.model, self.variances, self.precision, self.alpha, self._noise())

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        for term in self.own:
            side = self.sides[term.side]
            spread = self._sum(side, self.variances[1 - term.side])
            ridge = (self.precision[term.side] / self.alpha + spread) * side.free
            regression = problem(self.model, term, side, self.model.tables(), ridge)
            self.variances[term.side] = side.free / (self.alpha * regression.diagonal)
            self.model.assign(term, minimize_by_cg(regression, self.cg_steps))
        if self.epochs >= FIXED_SWEEPS:
            self._learn()
        self.epochs += 1
        return {"bound": self.bound(), "noise_deviation": self.alpha**-0.5}

    def _learn(self) -> None:
        """λ, τ and α from the tables as they are."""
        for term, variances in zip(self.own, self.variances, strict=True):
            squares = self.model.table(term).square() + variances
            self.precision[term.side] = len(squares) / squares.sum(0, keepdim=True).clamp_min(1e-6)
        for side, counts in ((USER, self.ratings.user_counts), (ITEM, self.ratings.item_counts)):
            # Σ of t_i w E[e²] over a user's ratings is that of ω E[e²] without the user's own t_j.
            sums = self._expected_squares(side)
            self.alpha = len(self.ratings) / float(sums.sum())
            sums = sums / self._noise()[side].double()
            self.gammas[side] = NOISE_SHAPE + 0.5 * torch.stack([counts.double()[:, None], self.alpha * sums])
            self.sides = weighed_by(self.sides, self.ratings, self._noise())

    def _noise(self) -> list[Tensor]:
        """t of users and of items, each (n, 1)."""
        return [(shape / rate).to(self.model.scale.dtype) for shape, rate in self.gammas]

    def _sum(self, side: Side, rows: Tensor) -> Tensor:
        """Σ ω over each row's observed entries of the other side's rows."""
        assert side.weights is not None
        return matmul(side.pattern, side.weights, rows)

    def _expected_squares(self, of: int) -> Tensor:
        """Σ ω E[e²] over the ratings of each row of a side, (n, 1)."""
        tables, side = self.model.tables(), self.sides[of]
        own, other = tables[of], tables[1 - of]
        assert side.weights is not None
        s, v = self.variances[of], self.variances[1 - of]
        errors = side.targets - sampled_dot(side.pattern, own, other)
        squares = self._sum(side._replace(weights=side.weights * errors.square()), torch.ones_like(other[:, :1]))
        spread = own.square() * self._sum(side, v) + s * self._sum(side, other.square() + v)
        return squares.double() + spread.double().sum(1, keepdim=True)

    @torch.no_grad()
    def bound(self) -> float:
        """L, in nats."""
        weights, n = self.ratings.weights, len(self.ratings)
        bound = 0.5 * n * math.log(self.alpha / (2 * math.pi))
        bound += 0.5 * float(weights.double().log().sum()) if weights is not None else 0.0
        bound -= 0.5 * self.alpha * float(self._expected_squares(USER).sum())
        prior = torch.distributions.Gamma(*torch.tensor([NOISE_SHAPE, NOISE_SHAPE], dtype=torch.float64))
        counts = (self.ratings.user_counts, self.ratings.item_counts)
        for term, variances, precision, gammas, own in zip(
            self.own, self.variances, self.precision, self.gammas, counts, strict=True
        ):
            free = self.sides[term.side].free[0] > 0
            s, squares = variances[:, free].double(), self.model.table(term)[:, free].double().square()
            p = precision[:, free].double()
            bound += 0.5 * float((p.log() - p * (squares + s) + s.log() + 1).sum())
            shape, rate = gammas[0, :, 0], gammas[1, :, 0]
            bound += 0.5 * float((own * (torch.digamma(shape) - rate.log())).sum())
            bound -= float(torch.distributions.kl_divergence(torch.distributions.Gamma(shape, rate), prior).sum())
        return bound

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "alpha": self.alpha,
            "gammas": self.gammas,
            "posterior": self.posterior.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.alpha = state["epochs"], state["alpha"]
        device = self.ratings.device
        self.precision = [tensor.to(device) for tensor in state["posterior"]["precision"]]
        self.variances = [tensor.to(device) for tensor in state["posterior"]["variances"]]
        self.gammas = [tensor.to(device) for tensor in state["gammas"]]
        self.sides = weighed_by(self.sides, self.ratings, self._noise())
