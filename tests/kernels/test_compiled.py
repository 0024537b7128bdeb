"""Compilation and threads of kernels: every task runs once, errors arrive, and forks and read-only folders work."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfrec.kernels.compiled import kernel, parallel, row_chunks

PACKAGE = Path(__file__).parents[2] / "mfrec"


@pytest.mark.parametrize("n_tasks", [0, 1, 2, 7, 100])
def test_each_task_runs_once(threads, n_tasks):
    calls = np.zeros(n_tasks, int)

    def task(number: int) -> None:
        calls[number] += 1

    parallel(task, n_tasks)
    assert (calls == 1).all()


def test_tasks_run_on_as_many_threads_as_torch_uses(threads):
    together = threading.Barrier(threads, timeout=60)
    parallel(lambda number: together.wait(), threads)  # a missing thread breaks the barrier


def test_the_error_of_a_task_arrives_after_all_running_tasks_have_ended(threads):
    running = set()

    def task(number: int) -> None:
        running.add(number)
        try:
            if number == 3:
                raise ValueError("task 3")
        finally:
            running.remove(number)

    with pytest.raises(ValueError, match="task 3"):
        parallel(task, 50)
    assert not running


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 20))
def test_row_chunks_cut_all_rows_into_chunks_of_about_equal_size(counts, n_entries):
    crow = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    bounds = row_chunks(crow, n_entries)
    assert bounds[0] == 0
    assert bounds[-1] == len(counts)
    assert (np.diff(bounds) > 0).all()
    sizes = np.diff(crow[bounds])
    assert all(size < n_entries + max(counts) for size in sizes)


def test_only_one_module_imports_numba():
    importers = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "numba" for name in names):
                importers.append(path.relative_to(PACKAGE).as_posix())
    assert set(importers) == {"kernels/compiled.py"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_starts_threads_of_its_own():
    code = """
import os, threading, torch
from mfrec.kernels.compiled import parallel
torch.set_num_threads(2)
def together():
    barrier = threading.Barrier(2, timeout=30)
    parallel(lambda number: barrier.wait(), 2)
together()
child = os.fork()
together()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


SUM_KERNEL = '''
from mfrec.kernels.compiled import kernel

@kernel
def total(values):
    """The sum of values."""
    total = 0.0
    for n in range(len(values)):
        total += values[n]
    return total
'''


def run_sum_kernel(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a kernel of a module in a folder, in another process."""
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import numpy as np, sums; print(sums.total(np.ones(5)))"
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_the_first_use_says_that_it_compiles_and_the_second_does_not(tmp_path):
    (tmp_path / "sums.py").write_text(SUM_KERNEL)
    first, second = (run_sum_kernel(tmp_path, NUMBA_DISABLE_JIT="0") for _ in range(2))
    assert first.stdout == second.stdout == "5.0\n"
    assert first.stderr == "compiling kernels for this machine; this takes a few seconds, the first time only\n"
    assert second.stderr == ""


def test_the_process_that_compiles_gets_the_same_bits_as_those_that_load_the_machine_code(tmp_path):
    code = """
import hashlib, torch
from mfrec.data.synthetic import synthetic
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.solvers.registry import SOLVERS
ratings = synthetic(100, 80, 5000, generator=torch.Generator().manual_seed(0)).ratings
model = MatrixFactorization.from_ratings(ratings, 16)
SOLVERS["vb"](model, ratings, Objective()).epoch()
for parameter in model.parameters():
    print(hashlib.sha256(parameter.detach().numpy().tobytes()).hexdigest())
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_DISABLE_JIT": "0"}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        for _ in range(2)
    )
    assert "compiling" in first.stderr
    assert "compiling" not in second.stderr
    assert first.stdout == second.stdout


def test_a_kernel_runs_where_no_cache_can_be_written(tmp_path):
    (tmp_path / "sums.py").write_text(SUM_KERNEL)
    # A file where a folder is needed stops root too.
    (tmp_path / "__pycache__").write_text("")
    (tmp_path / "file").write_text("")
    result = run_sum_kernel(
        tmp_path, HOME=str(tmp_path / "file"), XDG_CACHE_HOME=str(tmp_path / "file"), PYTHONDONTWRITEBYTECODE="1"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "5.0\n"


def test_a_kernel_is_plain_python_without_compilation(tmp_path):
    (tmp_path / "sums.py").write_text(SUM_KERNEL)
    result = run_sum_kernel(tmp_path, NUMBA_DISABLE_JIT="1")
    assert (result.stdout, result.stderr) == ("5.0\n", "")


def test_a_kernel_keeps_infinities_and_nan():
    @kernel
    def double(values):  # type: ignore[no-untyped-def]
        for n in range(len(values)):
            values[n] = values[n] + values[n]

    values = np.array([np.inf, np.nan, 1.0])
    double(values)
    assert values[0] == np.inf
    assert np.isnan(values[1])
    assert values[2] == 2.0
