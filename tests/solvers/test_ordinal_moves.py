"""The ordinal likelihood: latents, cutpoints and the scale of the scores have the distributions that are stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.testing import assert_close

from mfrec.errors import InputError
from mfrec.model import level_likelihood
from mfrec.model.level_likelihood import LevelSums, level_sums, log_likelihood, truncated_normals
from mfrec.solvers.ordinal import HELD, OrdinalLatents, _Density, assembled
from mfrec.sums import torch_threads

DOUBLE = torch.float64
LAMBDAS = [(torch.tensor([20.0, 8.0], dtype=DOUBLE), 1.0), (torch.tensor([3.0], dtype=DOUBLE), 2.0)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(n: int, n_levels: int, seed: int = 0, std: float = 0.7) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, precisions and levels 1 … K of n ratings; the cutpoints go from −1.5 to 1.5."""
    generator = seeded(seed)
    eta = std * torch.randn(n, generator=generator, dtype=DOUBLE)
    v = 0.5 + torch.rand(n, generator=generator, dtype=DOUBLE)
    z = eta + torch.randn(n, generator=generator, dtype=DOUBLE) * v.rsqrt()
    cutpoints = torch.linspace(-1.5, 1.5, n_levels - 1, dtype=DOUBLE) if n_levels > 2 else z.new_tensor([0.3])
    return eta, v, torch.bucketize(z, cutpoints).double() + 1


@pytest.fixture(params=["kernels", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations, the definition in torch by blocks of 100 ratings."""
    if request.param == "torch":
        monkeypatch.setattr(level_likelihood, "has_kernel", lambda tensor: False)
        monkeypatch.setattr(level_likelihood, "BLOCK", 100)
    return str(request.param)


def extremes() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores up to 60 standard deviations from the interval of their level, precisions, levels, and cutpoints."""
    eta = torch.linspace(-30, 30, 1000, dtype=DOUBLE)
    level = (torch.arange(1000) % 4).to(torch.int8)
    v = 0.5 + 1.5 * torch.rand(1000, generator=seeded(2), dtype=DOUBLE)
    return eta, v, level, torch.tensor([-1.0, 0.2, 0.3], dtype=DOUBLE)


def test_the_kernels_sums_are_those_of_the_definition(monkeypatch):
    eta, v, level, cutpoints = extremes()
    ordinary = eta.abs() < 12
    for columns in ((eta, v, level), tuple(tensor[ordinary] for tensor in (eta, v, level))):
        by_kernel = level_sums(*columns, cutpoints, 0.9), log_likelihood(*columns, cutpoints, 0.9)
        with monkeypatch.context() as patch:
            patch.setattr(level_likelihood, "has_kernel", lambda tensor: False)
            expected = level_sums(*columns, cutpoints, 0.9), log_likelihood(*columns, cutpoints, 0.9)
        assert_close(torch.stack(by_kernel[0]), torch.stack(expected[0]), rtol=1e-7, atol=1e-9)
        assert by_kernel[1] == pytest.approx(expected[1], rel=1e-9)


def test_the_kernels_latents_are_those_of_the_definition(monkeypatch):
    ratings = extremes()
    by_kernel = truncated_normals(*ratings, seeded(0))
    monkeypatch.setattr(level_likelihood, "has_kernel", lambda tensor: False)
    assert_close(by_kernel, truncated_normals(*ratings, seeded(0)), rtol=1e-7, atol=1e-7)


def test_any_number_of_threads_gives_the_same_bits():
    n = 50_000
    eta, v, values = planted(n, 5)
    level, cutpoints, threads = (values - 1).to(torch.int8), torch.linspace(-1, 1, 4, dtype=DOUBLE), []
    for count in (1, 2, 5):
        with torch_threads(count):
            sums = torch.stack(level_sums(eta, v, level, cutpoints))
            z = truncated_normals(eta, v, level, cutpoints, seeded(0))
            threads.append([sums, z, torch.tensor(log_likelihood(eta, v, level, cutpoints))])
    assert all(torch.equal(a, b) for again in threads[1:] for a, b in zip(threads[0], again, strict=True))


def test_the_sums_are_the_derivatives_of_the_log_likelihood(implementation):
    eta, v, values = planted(300, 4)
    level, point = (values - 1).to(torch.int8), torch.tensor([-0.8, 0.1, 0.9, 0.2], dtype=DOUBLE)

    def value_and_gradient(point: Tensor) -> tuple[float, Tensor, Tensor, LevelSums]:
        sums = level_sums(eta, v, level, point[:-1], math.exp(float(point[-1])))
        return *assembled(sums), sums

    value, gradient, curvature, sums = value_and_gradient(point)
    assert value == pytest.approx(log_likelihood(eta, v, level, point[:-1], math.exp(0.2)))
    h = 1e-5
    for n, step in enumerate(torch.eye(4, dtype=DOUBLE) * h):
        above, below = value_and_gradient(point + step), value_and_gradient(point - step)
        assert (above[0] - below[0]) / (2 * h) == pytest.approx(float(gradient[n]), rel=1e-6)
        second = -(above[1] - below[1]) / (2 * h)
        # The curvature in u leaves out the first derivative.
        second[-1] += sums.u.sum() if n == 3 else 0
        assert_close(curvature[n], second, rtol=1e-5, atol=1e-5)
    assert float(torch.linalg.eigvalsh(curvature).min()) > 0


@pytest.mark.parametrize("score", [-50.0, -5.0, -1.0, 0.2, 1.0, 9.0, 50.0])
def test_latents_have_the_moments_of_truncated_normals(implementation, score):
    n, cutpoints, v = 4000, torch.tensor([-1.0, 0.5, 0.8], dtype=DOUBLE), 1.7
    bounds = [-np.inf, *cutpoints.tolist(), np.inf]
    for k in range(4):
        eta, level = torch.full((n,), score, dtype=DOUBLE), torch.full((n,), k, dtype=torch.int8)
        z = truncated_normals(eta, torch.full_like(eta, v), level, cutpoints, seeded(k))
        a, b = (math.sqrt(v) * (bounds[k + side] - score) for side in (0, 1))
        assert bounds[k] - 1e-9 <= float(z.min())
        assert float(z.max()) <= bounds[k + 1] + 1e-9
        t = math.sqrt(v) * (z - score)
        if max(a, -b) < 30:
            mean, variance = (float(moment) for moment in scipy.stats.truncnorm.stats(a, b))
            assert abs(float(t.mean()) - mean) < 5 * math.sqrt(variance / n)
            assert float(t.var()) == pytest.approx(variance, rel=0.2)
        elif math.isinf(min(-a, b)):
            # So far in the tail, the distance from the bound is exponential.
            assert float((t.abs() - max(a, -b)).mean()) == pytest.approx(1 / max(a, -b), rel=0.1)


def density_on_grid(latents: OrdinalLatents, eta: Tensor, v: Tensor, n: int = 41) -> tuple[Tensor, Tensor]:
    """Points (γ, u), (m, K), around the mode, and their shares of the exact density."""
    rms = float(eta.square().mean().sqrt())
    density = _Density(latents, eta, v, LAMBDAS, rms, held=False)
    mode, curvature = density.mode()
    std = torch.linalg.inv(curvature).diagonal().sqrt()
    axes = [mode[c] + std[c] * torch.linspace(-6, 9, n, dtype=DOUBLE) for c in range(len(mode))]
    points = torch.cartesian_prod(*axes)
    points = points[(points[:, :-1].diff(dim=1) > 0).all(1)]
    u = points[:, -1:] - math.log(rms)

    def log_p(eta: Tensor, v: Tensor, level: Tensor) -> Tensor:
        total = torch.zeros(len(points), dtype=DOUBLE)
        bounds = torch.nn.functional.pad(points[:, :-1], (1, 1))
        bounds[:, 0], bounds[:, -1] = -math.inf, math.inf
        for score, precision, k in zip(eta, v, level.long(), strict=True):
            z = precision.sqrt() * (bounds[:, k : k + 2] - u.exp() * score)
            total += (torch.special.ndtr(z[:, 1]) - torch.special.ndtr(z[:, 0])).log()
        return total

    n_levels = len(latents.levels)
    value = log_p(eta, v, latents.level)
    value += log_p(torch.zeros(n_levels).double(), torch.ones(n_levels).double(), torch.arange(n_levels))
    for lambdas, power in LAMBDAS:
        value -= (0.5 * power * u + 0.5 * lambdas * (-power * u).exp()).sum(1)
    return points, (value - value.max()).exp() / (value - value.max()).exp().sum()


@pytest.mark.parametrize(("n_levels", "n"), [(2, 12), (2, 60), (3, 40)])
def test_cutpoints_and_scale_have_their_exact_distribution(n_levels, n):
    eta, v, values = planted(n, n_levels)
    latents = OrdinalLatents(values, seeded(0))
    points, shares = density_on_grid(latents, eta, v)
    latents.n_draws = HELD
    u, draws = 0.0, []
    for _ in range(1200):
        scaled = [(λ * math.exp(-power * u), power) for λ, power in LAMBDAS]
        u += math.log(latents.draw_cutpoints(eta * math.exp(u), v, scaled))
        draws.append(torch.cat([latents.cutpoints, torch.tensor([u + math.log(float(eta.square().mean().sqrt()))])]))
    drawn = torch.stack(draws)
    mean = shares @ points
    std = (shares @ (points - mean).square()).sqrt()
    # An independence sampler that accepts two in three has about half as many effective draws.
    assert float(((drawn.mean(0) - mean).abs() / std).max()) < 5 / math.sqrt(600)
    assert_close(drawn.std(0), std, rtol=0.15, atol=0)
    for c in range(n_levels):
        for share in (0.1, 0.9):
            order = points[:, c].argsort()
            quantile = points[order, c][torch.searchsorted(shares[order].cumsum(0), share)]
            assert float((drawn[:, c] < quantile).double().mean()) == pytest.approx(share, abs=0.06)


def test_the_proposal_does_not_depend_on_the_present_state():
    eta, v, values = planted(5000, 5)
    modes = []
    for scale in (0.2, 1.0, 7.0):
        latents = OrdinalLatents(values, seeded(0))
        latents.cutpoints = latents.cutpoints * scale + 1
        scaled = [(λ * scale**-power, power) for λ, power in LAMBDAS]
        rms = float((eta * scale).square().mean().sqrt())
        modes.append(_Density(latents, eta * scale, v, scaled, rms, held=False).mode())
    for mode, curvature in modes[1:]:
        assert_close(mode, modes[0][0], rtol=1e-9, atol=1e-9)
        assert_close(curvature, modes[0][1], rtol=1e-9, atol=1e-6)


def test_moves_leave_the_joint_distribution_of_parameters_and_ratings_unchanged():
    # Independent draws of everything from the prior, moved and rated anew a few times, still follow the prior.
    n, generator, kept = 12, np.random.default_rng(0), []
    for seed in range(250):
        # The prior of one cutpoint γ is Φ(γ) (1 − Φ(γ)), here by rejection from a normal.
        while True:
            γ = 1.2 * generator.standard_normal()
            p = scipy.stats.norm.cdf(γ)
            if generator.random() < p * (1 - p) / 0.2507 * math.exp(0.5 * (γ / 1.2) ** 2) * 0.98:
                break
        precision = generator.gamma(0.5) / 0.5
        mean = generator.standard_normal() / math.sqrt(precision)
        weights = torch.from_numpy(mean + generator.standard_normal(n) / math.sqrt(precision))
        for turn in range(3):
            z = weights.numpy() + generator.standard_normal(n)
            values = torch.from_numpy((z > γ).astype(float))
            if len(values.unique()) < 2:
                continue
            latents = OrdinalLatents(values, seeded(10 * seed + turn))
            latents.n_draws, latents.cutpoints = HELD, torch.tensor([γ], dtype=DOUBLE)
            s = latents.draw_cutpoints(weights, torch.ones(n).double(), [(torch.tensor([precision]), 2.0)])
            weights, precision, γ = s * weights, precision / s**2, float(latents.cutpoints)
        kept.append((precision, γ))
    precisions, cutpoints = np.array(kept).T
    assert scipy.stats.kstest(precisions, scipy.stats.gamma(0.5, scale=2).cdf).pvalue > 0.01
    assert abs(cutpoints.mean()) < 0.3


@pytest.mark.parametrize(
    ("n", "n_levels", "least"), [(20_000, 5, 0.65), (20_000, 10, 0.65), (200, 2, 0.65), (50_000, 40, 0.5)]
)
def test_draws_are_accepted_and_find_the_planted_cutpoints(n, n_levels, least):
    eta, v, values = planted(n, n_levels)
    latents, s = OrdinalLatents(values, seeded(0)), 2.0
    for _ in range(HELD):
        assert latents.draw_cutpoints(eta * s, v, LAMBDAS) == 1.0
    for _ in range(60):
        s *= latents.draw_cutpoints(eta * s, v, LAMBDAS)
    assert latents.n_accepted > least * latents.n_draws
    if n_levels > 2:
        expected = torch.linspace(-1.5, 1.5, n_levels - 1, dtype=DOUBLE)
        assert float((latents.cutpoints - expected).abs().max()) < 0.1
        assert s == pytest.approx(1.0, abs=0.1)


def test_a_level_with_one_rating_among_many_keeps_its_interval():
    eta, v, values = planted(30_000, 5)
    values[values == 2] = 3.0
    values[values == 5] = 4.0
    values[7], values[8] = 2.0, 5.0
    latents = OrdinalLatents(values, seeded(0))
    for _ in range(40):
        latents.draw_cutpoints(eta, v, LAMBDAS)
        z = latents.draw_latents(eta, v)
        assert bool((latents.cutpoints.diff() > 0).all())
        assert bool(torch.isfinite(z).all())
        assert latents.cutpoints[0] < z[7] < latents.cutpoints[1]
        assert z[8] > latents.cutpoints[3]
    assert latents.n_accepted > 12


def test_scores_of_zero_hold_the_scale():
    _, v, values = planted(50, 3)
    latents = OrdinalLatents(values, seeded(0))
    assert {latents.draw_cutpoints(v * 0, v, LAMBDAS) for _ in range(20)} == {1.0}
    assert latents.n_accepted > 10


def test_levels_are_the_distinct_values_in_order():
    latents = OrdinalLatents(torch.tensor([4.5, 0.5, 2.0, 0.5]), seeded(0))
    assert latents.levels.tolist() == [0.5, 2.0, 4.5]
    assert latents.level.tolist() == [2, 0, 1, 0]
    assert bool((latents.cutpoints.diff() > 0).all())


@pytest.mark.parametrize("values", [torch.full((5,), 3.0), torch.linspace(0, 1, 51)])
def test_too_few_or_too_many_levels_are_refused(values):
    with pytest.raises(InputError, match=r"needs ratings with 2 to 50 distinct values \(got (1|51)\)"):
        OrdinalLatents(values, seeded(0))


def test_a_loaded_state_continues_with_the_same_bits():
    eta, v, values = planted(500, 4)
    first = OrdinalLatents(values, seeded(0))
    for _ in range(HELD + 2):
        first.draw_cutpoints(eta, v, LAMBDAS)
    second = OrdinalLatents(values, torch.Generator())
    second.load_state_dict(first.state_dict())
    second.generator.set_state(first.generator.get_state())
    scales = [latents.draw_cutpoints(eta, v, LAMBDAS) for latents in (first, second)]
    assert scales[0] == scales[1]
    assert torch.equal(first.cutpoints, second.cutpoints)
    assert torch.equal(first.draw_latents(eta, v), second.draw_latents(eta, v))
