"""Convergence of chains: R̂ and the effective sample size of sequences with known theory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mfrec.solvers.convergence import MIN_DRAWS, Traces, effective_samples, scale_reduction, split_halves


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def autoregressive(n: int, m: int, φ: float) -> np.ndarray:
    """(n, m, 1) x_t = φ x_{t−1} + ε, whose variance is 1, from its stationary distribution."""
    noise, rows = drawn(n, m), [drawn(m, seed=1)]
    for row in noise[1:]:
        rows.append(φ * rows[-1] + (1 - φ**2) ** 0.5 * row)
    return np.stack(rows)[:, :, None]


def traces_of(draws: np.ndarray) -> Traces:
    traces = Traces()
    traces.draws = list(torch.tensor(draws))
    return traces


def test_independent_draws_have_a_scale_reduction_near_1_and_all_count():
    traces = drawn(1000, 4, 5)
    assert (np.abs(scale_reduction(traces) - 1) < 0.01).all()
    sizes = effective_samples(traces)
    assert (sizes > 0.8 * 4000).all()
    assert (sizes <= 4000).all()


def test_chains_apart_and_a_chain_that_drifts_have_a_large_scale_reduction():
    apart = drawn(200, 2, 1) + np.array([0.0, 5.0])[:, None]
    assert scale_reduction(apart)[0] > 2
    assert effective_samples(apart)[0] < 10
    drifting = drawn(200, 1, 1) + np.linspace(0, 10, 200)[:, None, None]
    assert scale_reduction(split_halves(drifting))[0] > 1.5


def test_the_scale_reduction_is_that_of_the_plain_formula():
    sequences = drawn(6, 3, 2) + np.arange(3)[:, None]
    n, m, k = sequences.shape
    for number in range(k):
        columns = [sequences[:, chain, number] for chain in range(m)]
        means = [sum(column) / n for column in columns]
        mean = sum(means) / m
        between = sum((each - mean) ** 2 for each in means) / (m - 1)
        within = sum(((column - each) ** 2).sum() / (n - 1) for column, each in zip(columns, means, strict=True)) / m
        expected = (((n - 1) / n * within + between) / within) ** 0.5
        assert scale_reduction(sequences)[number] == pytest.approx(expected)


@pytest.mark.parametrize("φ", [0.3, 0.7, 0.9])
def test_the_effective_sample_size_of_an_autoregressive_chain_is_near_its_theory(φ):
    n, m = 4000, 4
    (size,) = effective_samples(autoregressive(n, m, φ))
    # 1 + 2 Σ φᵗ = (1 + φ)/(1 − φ)
    assert size == pytest.approx(m * n * (1 - φ) / (1 + φ), rel=0.2)


def test_draws_that_alternate_count_at_most_as_often_as_they_are():
    (size,) = effective_samples(autoregressive(1000, 2, -0.8))
    assert size <= 2000


def test_numbers_that_never_change_have_converged():
    sequences = np.concatenate([np.full((20, 2, 1), 3.0), drawn(20, 2, 1)], axis=2)
    assert scale_reduction(sequences)[0] == 1
    assert effective_samples(sequences)[0] == 40
    assert np.isfinite([scale_reduction(sequences), effective_samples(sequences)]).all()


def test_halves_leave_out_the_middle_of_an_odd_number_of_draws():
    traces = np.arange(14.0).reshape(7, 2, 1)
    halves = split_halves(traces)
    assert halves.shape == (3, 4, 1)
    assert halves[:, :, 0].T.tolist() == [[0, 2, 4], [1, 3, 5], [8, 10, 12], [9, 11, 13]]


def test_diagnostics_are_the_worst_numbers_of_the_halves_and_need_some_draws():
    draws = drawn(50, 2, 3)
    draws[:, 1, 2] += 4
    halves = split_halves(draws)
    diagnostics = traces_of(draws).diagnostics()
    assert diagnostics["r_hat"] == pytest.approx(scale_reduction(halves)[2])
    assert diagnostics["effective_samples"] == pytest.approx(effective_samples(halves).min())
    assert traces_of(draws[: MIN_DRAWS - 1]).diagnostics() == {}
    assert traces_of(draws[:MIN_DRAWS]).diagnostics().keys() == diagnostics.keys()


def test_traces_survive_saving():
    traces, empty = traces_of(drawn(20, 2, 3)), traces_of(drawn(5, 2, 3))
    again = Traces()
    again.load_state_dict(traces.state_dict())
    assert again.diagnostics() == traces.diagnostics()
    again.draws.append(torch.zeros(2, 3))
    assert len(traces.draws) == 20
    empty.load_state_dict(Traces().state_dict())
    assert empty.draws == []
