"""Compilation of kernels, and threads to run them on; the only module that imports numba and its LLVM.

A kernel is a function of numpy arrays, written as plain loops.  numba compiles it on its first call, and keeps the
machine code in a cache on disk: next to the module, or in the user's cache folder if that is read-only.  Modules of
kernels are imported where they are called, so that nothing else waits for numba.

A kernel holds no lock of the interpreter.  `parallel` calls it from Python's own threads, as many as torch uses.
numba's threads are not used: of its three threading layers, workqueue crashes when two threads call it, OpenMP hangs
after a fork, and TBB is another package.  A kernel that starts no threads compiles in half the time as well.

Kernels give the same bits on any number of threads.  A task does its work in a fixed order.  It writes to places that
no other task reads or writes.  Results do not depend on how the work is divided into tasks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import extending
from numba.core import cgutils, config, event, types

logger = logging.getLogger("mfrec.kernels")

Function = TypeVar("Function", bound=Callable[..., Any])

# Sums may be reordered and multiplications fused, which vectorizes them.  Infinities and NaN are kept: they show that
# training has diverged.
FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}


def kernel(function: Function) -> Function:
    """Compile a function when it is first called; with NUMBA_DISABLE_JIT=1 it stays plain Python."""
    # A call that is not inlined may end in another module's copy of the function, whose sums have another order.  Bits
    # would depend on which kernels the process has compiled, and which it has loaded.
    options: dict[str, Any] = {"nogil": True, "fastmath": FAST_MATH, "error_model": "numpy", "forceinline": True}
    try:
        compiled: Function = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        compiled = numba.njit(**options)(function)
    return compiled


def _prefetch_line(array: npt.NDArray[Any], row: int, column: int) -> None:
    """Start to load the cache line of array[row, column]; without compilation, do nothing."""


if not config.DISABLE_JIT:  # type: ignore[attr-defined]

    @extending.intrinsic
    def _prefetch_line(typing_context: Any, array: Any, row: Any, column: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array_type = signature.args[0]
            values = context.make_array(array_type)(context, builder, arguments[0])
            place = cgutils.get_item_pointer(context, builder, array_type, values, arguments[1:])  # type: ignore[no-untyped-call]
            address = builder.bitcast(place, cgutils.voidptr_t)
            flag = cgutils.int32_t
            declared = ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
            # To be read, kept in all levels of the cache, as data.
            to_read, keep, data = flag(0), flag(3), flag(1)
            prefetch = builder.module.declare_intrinsic("llvm.prefetch", [address.type], declared)
            builder.call(prefetch, [address, to_read, keep, data])
            return context.get_dummy_value()

        return types.void(array, types.intp, types.intp), generate


@kernel
def prefetch(array: npt.NDArray[Any], row: int) -> None:
    """Start to load a row of a matrix into the cache, and go on."""
    for column in range(0, array.shape[1], 64 // array.itemsize):
        _prefetch_line(array, row, column)


class _Announcement(event.Listener):
    """Says once a process that kernels are compiled: it takes seconds, which need an explanation."""

    def __init__(self) -> None:
        self.is_due = True

    def on_start(self, event: event.Event) -> None:
        if self.is_due:
            self.is_due = False
            logger.warning("compiling kernels for this machine; this takes a few seconds, the first time only")

    def on_end(self, event: event.Event) -> None:
        pass


event.register("numba:compile", _Announcement())  # type: ignore[no-untyped-call]


class _Threads:
    """Threads that wait for tasks; started when first needed, and anew in a forked process."""

    def __init__(self) -> None:
        self.pool: ThreadPoolExecutor | None = None
        self.n = 0

    def submit(self, n: int, work: Callable[[], None]) -> list[Future[None]]:
        """Run `work` on each of n threads."""
        if self.pool is None or self.n < n:
            self.pool, self.n = ThreadPoolExecutor(n, "mfrec-kernel"), n
        return [self.pool.submit(work) for _ in range(n)]

    def forget(self) -> None:
        """Drop the threads of the parent process, which do not exist in a forked one."""
        self.pool, self.n = None, 0


_threads = _Threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.forget)


def parallel(task: Callable[[int], object], n_tasks: int) -> None:
    """Call task(0), …, task(n_tasks − 1), on up to `torch.get_num_threads()` threads, in any order.

    The calling thread takes part.  Tasks should take a tenth of a millisecond or more: a thread takes that long to
    start.

    Raises:
        Exception: the first that a task raised, after all running tasks have ended.
    """
    tasks = iter(range(n_tasks))

    def work() -> None:
        for number in tasks:  # one thread at a time takes the next, under the interpreter's lock
            task(number)

    n_threads = min(torch.get_num_threads(), n_tasks)
    others = _threads.submit(n_threads - 1, work) if n_threads > 1 else []
    try:
        work()
    finally:
        _take_all(tasks)  # after an exception, such as Ctrl-C, no thread begins another task
        for future in others:
            future.exception()  # waits
    for future in others:
        future.result()


def _take_all(tasks: Iterator[int]) -> None:
    for _ in tasks:
        pass


def row_chunks(crow: npt.NDArray[Any], n_entries: int) -> npt.NDArray[np.int64]:
    """(n_chunks + 1,) bounds of chunks of whole rows, with about `n_entries` entries each.

    Args:
        crow: (n_rows + 1,) where each row's entries begin, as in `CSRPattern`.

    Examples:
        >>> row_chunks(np.array([0, 3, 3, 4, 9, 10]), 4).tolist()
        [0, 3, 4, 5]
    """
    n_rows = len(crow) - 1
    targets = np.arange(n_entries, crow[-1], n_entries)
    inner = np.searchsorted(crow, targets, side="left")
    bounds = np.concatenate([[0], inner, [n_rows]])
    return np.unique(bounds).astype(np.int64)
