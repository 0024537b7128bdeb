"""The ordinal likelihood of the Gibbs sampler: latents in place of ratings, cutpoints, and the scale of the latents.

    z_n ~ N(η_n, 1/v_n)  in (γ_{k−1}, γ_k) for a rating of level k        η = θ̃ · x̃ + session biases,  v = τ_j τ_i w

The latents z are the targets of every regression, with α = 1.  Cutpoints that are drawn given z move slowly, since z
confines them: the more ratings, the slower (Cowles 1996, "Accelerating Monte Carlo Markov chain convergence for
cumulative-link generalized linear models").  So z is integrated out.  With γ, the scale s of all scores is drawn.  It
changes every parameter at once (Liu & Sabatti 2000, "Generalised Gibbs sampler and multigrid Monte Carlo"):

    η → s η        factors and their prior means → √s,  biases and theirs → s,  precisions λ_c → s^(−p_c) λ_c

with p = 1 for columns of factors and of their feature weights, p = 2 for biases and sessions.  A column's n weights
have the density λ^(n/2) exp(−½ λ Σ (w − m)²).  The move leaves the exponent as it is; λ^(n/2) changes by the factor
s^(−p n/2), and the volume by s^(p n/2).  The same holds for m ~ N(0, 1/λ).  This leaves λ ~ Gamma(a, b), with its
density λ^(a − 1) exp(−b λ) and its volume s^(−p): together s^(−a p) exp(−b λ s^(−p)).  Scales are a group with the
invariant measure ds/s = du, u = log s.  So (γ, u) has the log-density

    Σ_n log P(y_n | γ, e^u η_n) + Σ_k log P(level k | γ, η = 0, v = 1) − Σ_c (a p_c u + b λ_c e^(−p_c u))

whose second sum is the prior of γ: a rating at each level, which keeps cutpoints apart.  As a density of s it has the
further term −log s.

The proposal is a t distribution at the mode, with the curvature there, and is accepted as an independence sampler.  It
has 5 degrees of freedom, or K if that is more: in many dimensions, a t with few is much wider than a normal.

For this, mode and curvature may not depend on the present (γ, u).  They do not: Newton's method starts at the quantiles
of the levels and at scores of mean square 1, first with a sample of the ratings, then with all.  It depends on η only
divided by its root mean square, and on λ only multiplied by that to the power p; a step of u changes neither.
Where it stops short of the mode, fewer draws are accepted, and their distribution is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mfrec.draws import standard_gamma
from mfrec.errors import InputError
from mfrec.model.level_likelihood import LevelSums, level_sums, log_likelihood, truncated_normals
from mfrec.posteriors.base import PRIOR_RATE, PRIOR_SHAPE
from mfrec.posteriors.levels import MAX_LEVELS
from mfrec.sums import ordered_mean

# Draws of the cutpoints before the scale moves: in the first sweeps, factors have not left their start.
HELD = 3
# The degrees of freedom of the proposal, at least.
DEGREES = 5
# Ratings in the sample that Newton's method starts with, at most, in all; of a level, the second number may be.
SAMPLE, SAMPLE_LEVEL = 2**15, 256
# Newton's method ends when it is this near to the mode, in standard deviations, or after this many passes.
NEAR, MAX_PASSES = 0.2, 30

# Scores, precisions and levels.
Columns = tuple[Tensor, Tensor, Tensor]
# A value, its gradient and its curvature.
Evaluation = tuple[float, Tensor, Tensor]


class OrdinalLatents:
    """The levels of the ratings, the cutpoints between them, and the draws of cutpoints and latents.

    Args:
        values: (n,) ratings.
        generator: the source of the draws, on the CPU; it does not belong to the state.

    Attributes:
        levels: (K,) the distinct values, ascending.
        level: (n,) int8, the position of each rating's value in `levels`.
        cutpoints: (K − 1,) γ, ascending, in float64 on the CPU.
        n_draws, n_accepted: how many times the cutpoints were drawn, and how many draws were accepted.

    Raises:
        InputError: the ratings have fewer than 2 or more than `MAX_LEVELS` distinct values.
    """

    def __init__(self, values: Tensor, generator: torch.Generator) -> None:
        self.levels = torch.unique(values)
        if not 2 <= len(self.levels) <= MAX_LEVELS:
            raise InputError(
                f"an ordinal likelihood needs ratings with 2 to {MAX_LEVELS} distinct values "
                f"(got {len(self.levels):,}); use the Gaussian likelihood, or round the ratings"
            )
        level = torch.searchsorted(self.levels, values)
        self.level, self.generator = level.to(torch.int8), generator
        self.counts = torch.bincount(level, minlength=len(self.levels)).double().cpu()
        # Scores and noise have the variance 1 each.
        shares = (self.counts.cumsum(0) / len(values))[:-1]
        self.start = math.sqrt(2) * torch.special.ndtri(shares)
        self.cutpoints = self.start.clone()
        self.n_draws = self.n_accepted = 0
        self.sample = _sample(self.level, self.counts)
        self.sample_weights = self.counts / torch.bincount(level[self.sample], minlength=len(self.levels)).cpu()

    def draw_cutpoints(self, eta: Tensor, v: Tensor, precisions: Sequence[tuple[Tensor, float]]) -> float:
        """Draw γ and the scale of the scores; returns s, by which the caller multiplies η, or 1.

        Args:
            eta: (n,) scores η.
            v: (n,) their precisions.
            precisions: the precisions λ of columns of weights, (k,), and their power p, 1 or 2.
        """
        rms = float(ordered_mean(eta.double().square()).sqrt())
        held = self.n_draws < HELD or rms == 0 or not math.isfinite(rms)
        density = _Density(self, eta, v, precisions, rms, held)
        present = torch.cat([self.cutpoints, self.cutpoints.new_tensor([density.u])])
        mode, curvature = density.mode()
        proposal, log_ratio = self._propose(mode, curvature, present)
        uniform = float(torch.rand((), generator=self.generator, dtype=torch.float64))
        self.n_draws += 1
        if not _is_ascending(proposal[:-1]):
            return 1.0
        log_ratio += density.log_density(proposal) - density.log_density(present)
        if not math.log(max(uniform, 1e-300)) < log_ratio:
            return 1.0
        self.n_accepted += 1
        self.cutpoints = proposal[:-1].clone()
        return math.exp(float(proposal[-1]) - density.u)

    def _propose(self, mode: Tensor, curvature: Tensor, present: Tensor) -> tuple[Tensor, float]:
        """A draw from the t distribution, and the logarithm of its density at the present point over that at the draw.

        Args:
            mode, present: (K,) points (γ, u).
            curvature: of the first d numbers of a point, (d, d); the others stay as they are.
        """
        d, degrees = len(curvature), max(DEGREES, len(mode))
        factor = torch.linalg.cholesky(curvature)
        normal = torch.randn(d, 1, generator=self.generator, dtype=torch.float64)
        chi_square = 2 * float(standard_gamma(torch.tensor(degrees / 2, dtype=torch.float64), self.generator))
        turned = torch.linalg.solve_triangular(factor.mT, normal, upper=True)[:, 0]
        proposal = present.clone()
        proposal[:d] = mode[:d] + turned * math.sqrt(degrees / chi_square)

        def log_t(point: Tensor) -> float:
            square = float((factor.mT @ (point - mode)[:d]).square().sum())
            return -0.5 * (degrees + d) * math.log1p(square / degrees)

        return proposal, log_t(present) - log_t(proposal)

    def draw_latents(self, eta: Tensor, v: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(n,) z drawn given the scores, their precisions, the levels and the cutpoints.

        Args:
            eta, v: (n,) each.
            generator: the source of the draws instead of the object's, on the CPU.
        """
        return truncated_normals(eta, v, self.level, self.cutpoints, generator or self.generator)

    def state_dict(self) -> dict[str, Any]:
        """The cutpoints, and how often they were drawn and accepted."""
        return {"cutpoints": self.cutpoints.clone(), "n_draws": self.n_draws, "n_accepted": self.n_accepted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()` of the same ratings."""
        self.cutpoints = state["cutpoints"].cpu().clone()
        self.n_draws, self.n_accepted = state["n_draws"], state["n_accepted"]


class _Density:
    """The log-density of (γ, u), where e^u is the root mean square of the scores.

    Args:
        rms: the root mean square of the present scores.
        held: whether u stays at its present value.

    Attributes:
        u: its present value.
    """

    def __init__(
        self,
        latents: OrdinalLatents,
        eta: Tensor,
        v: Tensor,
        precisions: Sequence[tuple[Tensor, float]],
        rms: float,
        held: bool,
    ) -> None:
        self.latents, self.eta, self.v, self.held = latents, eta, v, held
        self.u, self.rms = (math.log(rms), rms) if rms > 0 and math.isfinite(rms) else (0.0, 1.0)
        self.lambdas = torch.cat([λ.double().cpu().reshape(-1) for λ, _ in precisions] or [torch.zeros(0).double()])
        self.powers = torch.cat([torch.full((λ.numel(),), float(p)).double() for λ, p in precisions] or [self.lambdas])
        n_levels = len(latents.levels)
        self.one_each = torch.zeros(n_levels), torch.ones(n_levels), torch.arange(n_levels, dtype=torch.int8)

    def log_density(self, point: Tensor) -> float:
        """The log-density at (γ, u), (K,), up to a constant."""
        cutpoints, scale = point[:-1], math.exp(float(point[-1])) / self.rms
        ratings = log_likelihood(self.eta, self.v, self.latents.level, cutpoints, scale)
        return ratings + log_likelihood(*self.one_each, cutpoints) + self._prior(float(point[-1]))[0]

    def _prior(self, u: float) -> tuple[float, float, float]:
        """−Σ_c (a p u + b λ e^(−p u)) with u relative to its present value, its derivative and its curvature."""
        scaled = PRIOR_RATE * self.lambdas * (-self.powers * (u - self.u)).exp()
        value = -PRIOR_SHAPE * self.powers * (u - self.u) - scaled
        first, second = self.powers * (scaled - PRIOR_SHAPE), self.powers.square() * scaled
        return float(value.sum()), float(first.sum()), float(second.sum())

    def mode(self) -> tuple[Tensor, Tensor]:
        """The mode (γ, u), (K,), and the curvature there, (d, d); d = K − 1 if u is held, else K."""
        latents, sample = self.latents, self.latents.sample
        part = self.eta[sample], self.v[sample], latents.level[sample]
        least = float(latents.counts.min())
        start = torch.cat([latents.start, latents.start.new_tensor([self.u if self.held else 0.0])])
        if len(sample) < len(latents.level):
            start, _ = newton(lambda point: self._evaluate(point, part, latents.sample_weights), start, least)
        everything = self.eta, self.v, latents.level
        return newton(lambda point: self._evaluate(point, everything, None), start, least)

    def _evaluate(self, point: Tensor, ratings: Columns, weights: Tensor | None) -> Evaluation:
        """The log-density at a point, its gradient, (d,), and its curvature, (d, d)."""
        cutpoints, u = point[:-1], float(point[-1])
        sums = level_sums(*ratings, cutpoints, math.exp(u) / self.rms)
        sums = (sums if weights is None else sums.weighted(weights)) + level_sums(*self.one_each, cutpoints)
        value, gradient, curvature = assembled(sums)
        prior = self._prior(u)
        gradient[-1] += prior[1]
        curvature[-1, -1] += prior[2]
        d = len(point) - self.held
        return value + prior[0], gradient[:d], curvature[:d, :d]


def assembled(sums: LevelSums) -> Evaluation:
    """Σ log P, its gradient in (γ, u), (K,), and its curvature, (K, K): tridiagonal, plus a row and a column."""
    gradient = torch.cat([sums.upper[:-1] - sums.lower[1:], sums.u.sum()[None]])
    between = sums.B[1:-1]
    curvature = torch.diag(torch.cat([sums.A[:-1] + sums.C[1:], sums.uu.sum()[None]]))
    k = torch.arange(len(between))
    curvature[k, k + 1] = curvature[k + 1, k] = -between
    curvature[:-1, -1] = curvature[-1, :-1] = -(sums.upper_u[:-1] + sums.lower_u[1:])
    return float(sums.log_p.sum()), gradient, curvature


def newton(evaluate: Callable[[Tensor], Evaluation], start: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Newton's method towards a maximum: the point after the last step, and the curvature just before it.

    Args:
        evaluate: gives the value, the gradient, (d,), and the curvature, (d, d), of the first d numbers of a point.
        start: (K,) ascending but for its last number.
        least: the least number of ratings of a level.  After a step of λ standard deviations, the mode is about
            λ²/√least standard deviations away.

    A step is halved until the value rises.
    """
    point = start
    best: tuple[Tensor, Evaluation] | None = None
    for _ in range(MAX_PASSES):
        evaluation = evaluate(point)
        if best is not None and not evaluation[0] >= best[1][0]:
            point = (point + best[0]) / 2
            continue
        best = point, evaluation
        _, gradient, curvature = evaluation
        step = torch.zeros_like(point)
        step[: len(gradient)] = torch.linalg.solve(curvature, gradient)
        point = point + _fraction(point, step) * step
        if float(gradient @ step[: len(gradient)]) < NEAR * math.sqrt(least):
            return point, curvature
    assert best is not None
    return best[0], best[1][2]


def _fraction(point: Tensor, step: Tensor) -> float:
    """How much of a step keeps a tenth of each gap between cutpoints, and changes u by at most 1."""
    gaps, changes = point[:-1].diff(), step[:-1].diff()
    limits = -0.9 * gaps[changes < 0] / changes[changes < 0]
    return float(min(1.0, 1 / max(1.0, abs(float(step[-1]))), *limits.tolist()))


def _is_ascending(cutpoints: Tensor) -> bool:
    return bool((cutpoints.diff() > 0).all())


def _sample(level: Tensor, counts: Tensor) -> Tensor:
    """The positions, ascending, of every n-th rating of each level; all of a level with few."""
    at_most = max(SAMPLE // len(counts), SAMPLE_LEVEL)
    chosen = []
    for k, count in enumerate(counts.tolist()):
        positions = (level == k).nonzero()[:, 0]
        chosen.append(positions[:: max(1, math.ceil(count / at_most))])
    return torch.cat(chosen).sort().values
