"""Sorting by counting: the order of a stable sort and the transpose of a pattern, the same bits on any threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfrec.kernels import layout
from mfrec.kernels.layout import counting_order, transpose


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few dozen entries are counted in several chunks."""
    monkeypatch.setattr(layout, "_n_chunks", lambda n_entries, n_keys: min(5, max(1, n_entries // 7)))


def some_keys(n: int, n_keys: int, dtype: type = np.int32) -> np.ndarray:
    return np.random.default_rng(n).integers(0, n_keys, n).astype(dtype)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(("n", "n_keys"), [(0, 0), (0, 3), (1, 1), (50, 1), (100, 7), (60, 1000), (300, 40)])
def test_counting_gives_the_order_of_a_stable_sort(threads: int, n: int, n_keys: int, dtype: type) -> None:
    keys = some_keys(n, n_keys, dtype)
    order, starts = counting_order(keys, n_keys)
    assert order.dtype == np.int32
    assert order.tolist() == np.argsort(keys, kind="stable").tolist()
    assert starts.tolist() == np.searchsorted(keys[order], np.arange(n_keys + 1)).tolist()


@given(st.lists(st.integers(0, 9), max_size=60))
def test_any_keys_are_sorted_stably(keys: list[int]) -> None:
    order, starts = counting_order(np.array(keys, dtype=np.int32), 10)
    assert order.tolist() == sorted(range(len(keys)), key=keys.__getitem__)
    assert np.diff(starts).tolist() == [keys.count(key) for key in range(10)]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(("n", "shape"), [(0, (0, 0)), (0, (3, 4)), (1, (1, 1)), (90, (30, 5)), (200, (9, 50))])
def test_a_transpose_has_each_columns_entries_by_row(threads: int, n: int, shape: tuple[int, int], dtype: type) -> None:
    n_rows, n_cols = shape
    rows, col = np.sort(some_keys(n, max(n_rows - 1, 1))), some_keys(n, max(n_cols, 1), dtype)
    crow = np.searchsorted(rows, np.arange(n_rows + 1))
    order, starts, by_column = transpose(crow, col, n_cols)
    assert order.dtype == starts.dtype == by_column.dtype == dtype
    assert order.tolist() == np.argsort(col, kind="stable").tolist()
    assert starts.tolist() == np.searchsorted(col[order], np.arange(n_cols + 1)).tolist()
    assert by_column.tolist() == rows[order].tolist()


def test_chunks_are_long_enough_for_their_counters_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert layout._n_chunks(1000, 10) == 1
    assert layout._n_chunks(4 * layout.CHUNK, 10) == 4
    assert layout._n_chunks(25_000_000, 1_000_000) == 3
    assert layout._n_chunks(10**10, 10) == layout.MAX_CHUNKS
