"""On a GPU: every solver, fold-in, lists and posteriors give the CPU's numbers; and the benchmark of GPUs runs.

`test_devices.py` makes the same comparisons on a fake device, for machines without a GPU.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from device_examples import CASES, EPOCHS, WAITS, answers, folded_answers, moved, state_of, trained, waits_by_numbers
from posterior_examples import EXAMPLES, a_model
from torch.testing import assert_close

from mfrec.draws import counter_normals

Test = TypeVar("Test", bound=Callable[..., None])
CUDA = torch.device("cuda:0")
# Epochs amplify the rounding of another order of sums, samplers most; hence few in float32.
SETTINGS = {torch.float32: (3, 1e-2), torch.float64: (EPOCHS, 1e-6)}


def on_gpu(test: Test) -> Test:
    """Marks a test, and skips it without a GPU."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")(test))


@on_gpu
@pytest.mark.parametrize("dtype", SETTINGS)
@pytest.mark.parametrize("case", CASES)
def test_a_solver_trains_on_a_gpu_as_on_the_cpu(case, dtype):
    epochs, tolerance = SETTINGS[dtype]
    expected, solver = trained(case, None, dtype, epochs - 1), trained(case, CUDA, dtype, epochs - 1)
    values, of_gpu = expected.epoch(), solver.epoch()
    assert {parameter.device for parameter in solver.model.parameters()} == {CUDA}
    assert of_gpu == pytest.approx(values, rel=tolerance, abs=tolerance)
    assert_close(state_of(solver.model), state_of(expected.model), rtol=tolerance, atol=tolerance)


@on_gpu
@pytest.mark.parametrize("case", [case for case in CASES if not waits_by_numbers(case)])
def test_an_epoch_waits_for_a_gpu_only_where_it_must(case):
    solver = trained(case, CUDA)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solver.epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchronizing" in str(warning.message)]
    allowed = sum(WAITS.get(case.split()[0], {}).values()) * CASES[case][1].get("chains", 1)
    assert len(waits) <= allowed, waits


@on_gpu
@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_posterior_answers_on_a_gpu_as_on_the_cpu(kind):
    posterior = EXAMPLES[kind](a_model())
    expected = answers(posterior)
    assert_close(answers(moved(posterior, CUDA)), expected)


@on_gpu
@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("entity", ["users", "items"])
def test_rows_are_folded_in_on_a_gpu_as_on_the_cpu(kind, entity):
    assert_close(folded_answers(kind, entity, CUDA), folded_answers(kind, entity), rtol=1e-6, atol=1e-6)


@on_gpu
def test_a_gpu_draws_the_numbers_of_the_cpu():
    like = torch.zeros(0, dtype=torch.float64)
    drawn = counter_normals(7, 2**33, 100_000, like.to(CUDA)).cpu()
    assert_close(drawn, counter_normals(7, 2**33, 100_000, like), rtol=1e-12, atol=0)


def test_the_benchmark_of_gpus_runs_without_one():
    """On few ratings; its figures mean nothing."""
    program = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    command = [sys.executable, str(program), "--small", "--ranks", "4"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for solver in ("block-sgd", "gd", "optim", "quasi-newton", "als", "vb", "gibbs"):
        assert f"| `{solver}`, rank 4 |" in printed
    assert "| row_products, items, rank 4 |" in printed
