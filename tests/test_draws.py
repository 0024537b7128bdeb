"""Draws of a counter: the kernel's numbers in torch's operations, wherever they are cut."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from fake_device import DEVICE, FakeDevice
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mfrec import draws
from mfrec.draws import counter_gammas, counter_normals, portable_normals

LIKE = torch.zeros(0, dtype=torch.float64)
seeds, positions = st.integers(0, 2**62 - 1), st.integers(0, 2**40)


@given(seeds, positions, st.integers(1, 200))
def test_the_kernels_numbers_are_those_of_the_definition(seed, first, n):
    expected = portable_normals(seed, torch.arange(first, first + n))
    # At the ends of the approximations, their polynomials lose three digits of a number's sixteen.
    assert_close(counter_normals(seed, first, n, LIKE), expected, rtol=1e-12, atol=0)
    single = counter_normals(seed, first, n, LIKE.float())
    assert_close(single, expected.float(), rtol=2e-7, atol=0)


@given(seeds, positions, st.integers(0, 50), st.integers(0, 50))
def test_a_draw_depends_on_its_position_alone(seed, first, n, m):
    whole = counter_normals(seed, first, n + m, LIKE)
    assert torch.equal(
        torch.cat([counter_normals(seed, first, n, LIKE), counter_normals(seed, first + n, m, LIKE)]), whole
    )


def test_both_branches_are_tested():
    z = portable_normals(1, torch.arange(20000))
    share = float((z.abs() > 1.9725).double().mean())
    assert 0.04 < share < 0.06
    assert bool((z > 3).any())
    assert bool((z < -3).any())


@pytest.mark.parametrize("n", [0, 5, 23])
def test_a_device_draws_the_same_numbers_block_by_block_without_waiting(n, monkeypatch):
    monkeypatch.setattr(draws, "BLOCK", 10)
    with FakeDevice() as device:
        drawn = counter_normals(7, 2**33, n, LIKE.to(DEVICE))
        assert not device.waits[1:]
        actual = drawn.cpu()
    assert_close(actual, counter_normals(7, 2**33, n, LIKE), rtol=1e-12, atol=0)


def plain_gamma(seed, position, a):
    """Marsaglia and Tsang's draw, from the definition of the normal numbers."""
    d, first = a - 1 / 3, position * 256
    while True:
        z, z1, z2 = portable_normals(seed, torch.arange(first, first + 3)).tolist()
        first += 3
        v = (1 + z / math.sqrt(9 * d)) ** 3
        # −log u of a uniform number u.
        exponential = (z1**2 + z2**2) / 2
        if v > 0 and -exponential < z**2 / 2 + d - d * v + d * math.log(v):
            return d * v


@given(seeds, positions, st.lists(st.floats(1, 1e6), max_size=20))
def test_gammas_are_those_of_the_definition(seed, first, shapes):
    places = torch.arange(first, first + len(shapes))
    drawn = counter_gammas(seed, places, torch.tensor(shapes, dtype=torch.float64))
    expected = [plain_gamma(seed, position, a) for position, a in zip(places.tolist(), shapes, strict=True)]
    assert drawn.tolist() == pytest.approx(expected, rel=1e-9)


def test_a_gamma_depends_on_its_position_and_shape_alone(threads):
    shapes = 1 + 99 * torch.rand(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    some = torch.tensor([9_999, 3, 4_500])
    whole = counter_gammas(5, torch.arange(10_000), shapes)
    assert torch.equal(counter_gammas(5, some, shapes[some]), whole[some])
    assert not torch.equal(counter_gammas(6, some, shapes[some]), whole[some])


@pytest.mark.parametrize("a", [1.0, 1.5, 16.5, 1000.0])
def test_gammas_have_the_distribution_of_their_shape(a):
    drawn = counter_gammas(3, torch.arange(100_000), torch.full((100_000,), a, dtype=torch.float64))
    assert scipy.stats.kstest(drawn.numpy(), scipy.stats.gamma(a).cdf).pvalue > 0.01
