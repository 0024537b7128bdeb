"""The programs in Triton agree with torch's products: on a GPU, or else in Triton's interpreter on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
pytest.importorskip("triton", reason="Triton is not installed; it comes with torch's builds for GPUs")

from mfrec import sparse  # noqa: E402
from mfrec.kernels import triton_products  # noqa: E402
from mfrec.kernels.triton_products import segments  # noqa: E402
from mfrec.sparse import CSRPattern, csr_pattern, row_products, sddmm, spmm  # noqa: E402

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_products, "SEGMENT", 7)
    monkeypatch.setattr(triton_products, "TILE", 4)


def pattern_of(lengths: list[int], n_cols: int) -> CSRPattern:
    """Rows with these numbers of entries, in random columns."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.long))
    cols = [torch.randperm(n_cols, generator=generator)[:n].sort().values for n in lengths]
    return csr_pattern(rows, torch.cat(cols), (len(lengths), n_cols))[0]


PATTERNS = {
    # Some rows have several segments, and some segments are full.
    "long and short rows": pattern_of([0, 1, 30, 7, 0, 8, 14, 3, 0], 30),
    "no entries": pattern_of([0, 0], 3),
    "one row": pattern_of([5], 5),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rank", [1, 3, 16, 34])
def test_programs_agree_with_torch(name, dtype, rank, monkeypatch):
    pattern, generator = PATTERNS[name].apply(lambda tensor: tensor.to(DEVICE)), torch.Generator().manual_seed(1)
    A, B = (torch.randn(n, rank, generator=generator, dtype=dtype).to(DEVICE) for n in pattern.shape)
    values = torch.randn(pattern.n_entries, generator=generator, dtype=dtype).to(DEVICE)
    # Views of other tensors are not contiguous.
    A, B = (torch.cat([matrix, matrix], 1)[:, :rank] for matrix in (A, B))

    def products() -> list[torch.Tensor]:
        results = [row_products(pattern, weights, A, B) for weights in (None, values)]
        return [sddmm(pattern, A, B), spmm(pattern, values, B), *results]

    expected = products()
    monkeypatch.setattr(sparse, "TRITON_DEVICES", {DEVICE.type})
    actual = products()
    assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert all(torch.equal(a, b) for a, b in zip(actual, products(), strict=True))


def test_segments_hold_all_entries_once_in_order():
    pattern = PATTERNS["long and short rows"]
    pieces = segments(pattern.crow, pattern.col)
    entries = [torch.arange(a, b) for a, b in zip(pieces.begin.tolist(), pieces.end.tolist(), strict=True)]
    assert torch.equal(torch.cat(entries), torch.arange(pattern.n_entries))
    assert max(map(len, entries)) == 7
    assert all(pattern.row[part].eq(row).all() for part, row in zip(entries, pieces.row, strict=True))
    assert pieces.first.diff().tolist() == [0, 1, 5, 1, 0, 2, 2, 1, 0]


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from mfrec.kernels import triton_products as programs

pointers = {"col": "*i32", "row": "*i64", "begin": "*i64", "end": "*i64", "first": "*i64", "k": "i32"}
constants = {"K": 128, "TILE": programs.TILE, "WEIGHTED": True}
for name in ("_sddmm_segment", "_spmm_segment", "_row_products_segment", "_sum_segments"):
    program = getattr(programs, name)
    types = {a: "constexpr" if a in constants else pointers.get(a, "*fp32") for a in program.arg_names}
    fixed = {(n,): constants[a] for n, a in enumerate(program.arg_names) if a in constants}
    assert compile(ASTSource(program, types, fixed), target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


def test_programs_compile_for_a_gpu():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    assert subprocess.run([sys.executable, "-c", COMPILE], env=environment).returncode == 0
