"""Draws of a counter: the kernel's numbers in torch's operations, wherever they are cut."""

from __future__ import annotations

import pytest
import torch
from fake_device import DEVICE, FakeDevice
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mfrec import draws
from mfrec.draws import counter_normals, portable_normals

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
