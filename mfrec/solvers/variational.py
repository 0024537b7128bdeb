"""Variational Bayes: alternating least squares with a ridge that adapts, and nothing to tune.

    y(i, j) − μ ~ N(θ̃_j · x̃_i, 1/α),    θ_jc ~ N(0, 1/λ_c),    x_ic ~ N(0, 1/λ′_c)

The posterior is approximated by independent Gaussians, θ_jc ~ N(θ̃_jc, s_jc) and x_ic ~ N(x̃_ic, v_ic), that maximize the
bound on the log evidence (Raiko, Ilin & Karhunen 2007, "Principal component analysis for large scale problems with lots
of missing values"; Lim & Teh 2007, "Variational Bayesian approach to movie rating prediction"):

    L = ½ Σ log(α w / 2π) − ½ α E[Σ w e²] + ½ Σ_jc (log λ_c − λ_c (θ_jc² + s_jc) + log s_jc + 1) + the same of x

    E[Σ w e²] = Σ w e² + Σ w Σ_c (θ_jc² v_ic + s_jc x_ic² + s_jc v_ic)           over the observed entries

Each update below maximizes L in some variables while all others are fixed, so that L never falls:

    s_jc = 1 / (λ_c + α Σ_i w (x_ic² + v_ic))
    θ_j   the ridge regression with λ_jc = λ_c/α + Σ_i w v_ic   (a few conjugate-gradient steps towards its minimum)
    λ_c = n / Σ_j (θ_jc² + s_jc),    α = n / E[Σ w e²]
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from mfrec.errors import InputError
from mfrec.model import ITEM, USER, MatrixFactorization
from mfrec.objective import Objective, squared_error
from mfrec.posterior import MeanField
from mfrec.ratings import Ratings
from mfrec.solvers.ridge import Side, minimize_by_cg, problem, sides_of
from mfrec.sparse import matmul, sampled_dot


class VariationalBayes:
    """Mean-field variational Bayes: nothing to tune, fast, and a deviation of every prediction.

    Args:
        cg_steps: conjugate-gradient steps a half-sweep.
    """

    defaults: ClassVar[dict[str, Any]] = {"rank": 16, "epochs": 20, "valid_fraction": 0.0, "l2": 0.0}
    learned: ClassVar[tuple[str, ...]] = ("l2", "bias_l2", "scaling")

    def __init__(
        self,
        model: MatrixFactorization,
        ratings: Ratings,
        objective: Objective,
        *,
        generator: torch.Generator | None = None,
        cg_steps: int = 3,
    ) -> None:
        if objective.loss is not squared_error:
            raise InputError("vb knows Gaussian noise, not other losses; use sgd, gd or optim")
        if model.nonnegative:
            raise InputError("vb has Gaussian factors, which are not non-negative; use als, gd or sgd")
        if any(term.features is not None for side in (USER, ITEM) for term in model.terms(side)):
            raise InputError("vb takes no features; use gibbs, als, sgd, gd, optim or quasi-newton")
        if cg_steps < 1:
            raise InputError(f"cg_steps {cg_steps} leave nothing to do; give 1 or more")
        self.model, self.ratings, self.objective, self.cg_steps = model, ratings, objective, cg_steps
        self.sides = sides_of(model, ratings)
        self.own = [model.terms(side)[0] for side in (USER, ITEM)]
        # Where ratings are d apart, factors are √d: what the start assumes, in the ratings' own unit.
        deviation = float(self.sides[USER].targets.double().std(correction=0)) or 1.0
        self.alpha = 1 / deviation**2
        self.precision = [torch.full_like(side.free, 10 / deviation) for side in self.sides]
        self.variances = [
            (0.02 * deviation * side.free).expand(n, -1).clone()
            for side, n in zip(self.sides, (ratings.n_users, ratings.n_items), strict=True)
        ]
        self.epochs = 0

    @property
    def posterior(self) -> MeanField:
        """The approximate posterior as it is now."""
        return MeanField(self.model, (self.variances[USER], self.variances[ITEM]), 1 / self.alpha)

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        for term, side in zip(self.own, self.sides, strict=True):
            tables, free = self.model.tables(), side.free
            other, spread = tables[1 - term.side], self._sum(side, self.variances[1 - term.side])
            precision = self.precision[term.side]
            self.variances[term.side] = free / (precision + self.alpha * (self._sum(side, other.square()) + spread))
            ridge = (precision / self.alpha + spread) * free
            table = minimize_by_cg(problem(self.model, term, side, tables, ridge), self.cg_steps)
            self.model.assign(term, table)
        if self.epochs:  # the first sweep is far from where the precisions can be told
            for term, variances in zip(self.own, self.variances, strict=True):
                squares = self.model.table(term).square() + variances
                self.precision[term.side] = len(squares) / squares.sum(0, keepdim=True).clamp_min(1e-6)
            self.alpha = len(self.ratings) / self._expected_squares()
        self.epochs += 1
        return {"bound": self.bound(), "noise_deviation": self.alpha**-0.5}

    def _sum(self, side: Side, rows: Tensor) -> Tensor:
        """Σ w over each row's observed entries of the other side's rows."""
        weights = torch.ones_like(side.targets) if side.weights is None else side.weights
        return matmul(side.pattern, weights, rows)

    def _expected_squares(self) -> float:
        """E[Σ w e²] under the approximate posterior."""
        users, items = self.model.tables()
        s, v = self.variances
        side = self.sides[USER]
        errors = self.ratings.weighted((side.targets - sampled_dot(side.pattern, users, items)).square())
        spread = users.square() * self._sum(side, v) + s * self._sum(side, items.square() + v)
        return float(errors.double().sum() + spread.double().sum())

    @torch.no_grad()
    def bound(self) -> float:
        """L, in nats."""
        weights = self.ratings.weights
        evidence = 0.5 * len(self.ratings) * math.log(self.alpha / (2 * math.pi))
        evidence += 0.5 * float(weights.double().log().sum()) if weights is not None else 0.0
        evidence -= 0.5 * self.alpha * self._expected_squares()
        for term, side, variances, precision in zip(self.own, self.sides, self.variances, self.precision, strict=True):
            free = side.free[0] > 0
            s, squares = variances[:, free].double(), self.model.table(term)[:, free].double().square()
            p = precision[:, free].double()
            evidence += 0.5 * float((p.log() - p * (squares + s) + s.log() + 1).sum())
        return evidence

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "alpha": self.alpha,
            "precision": self.precision,
            "posterior": self.posterior.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.alpha = state["epochs"], state["alpha"]
        device = self.ratings.device
        self.precision = [tensor.to(device) for tensor in state["precision"]]
        self.variances = [tensor.to(device) for tensor in state["posterior"]["variances"]]
