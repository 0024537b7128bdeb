"""A second device for machines without one: tensors on it hold their numbers on the CPU, where torch computes them.

`FakeDevice` refuses what a GPU refuses, an operation on tensors of both devices, and notes what makes the CPU wait for
a GPU.  Since the numbers are real, control flow that depends on them runs, and results are compared with those of the
CPU.  It shows nothing of speed, memory, or the order of a GPU's sums.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import mfrec
from mfrec.sparse import torch_has_products

# torch's C++ code looks for a driver of most types of device, but not of this one.
DEVICE = torch.device("meta")
CPU = torch.device("cpu")
PACKAGE = f"{Path(mfrec.__file__).parent}/"

aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_}
# What returns a number to Python, or a tensor whose size depends on the values.
WAITING = {
    aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim,
    aten.unique_consecutive, aten.bincount, aten._linalg_check_errors,
}  # fmt: skip


class FakeTensor(Tensor):
    """A tensor on the fake device.

    Attributes:
        on_cpu: its numbers, in any layout.
    """

    on_cpu: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> FakeTensor:
        strided = on_cpu.layout == torch.strided
        strides, offset = (on_cpu.stride(), on_cpu.storage_offset()) if strided else (None, None)
        fake: FakeTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, on_cpu.shape, strides=strides, storage_offset=offset, dtype=on_cpu.dtype, device=DEVICE
        )
        fake.on_cpu = on_cpu
        return fake

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FakeTensor({self.on_cpu})"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{operation} of a tensor on the fake device, outside `FakeDevice`")


class FakeDevice:
    """A context in which tensors can live on `DEVICE`.

    Attributes:
        waits: for each time the CPU would have waited for a GPU, the operation and the line of mfrec that asked for it.
    """

    def __init__(self) -> None:
        self.waits: list[str] = []

    def __enter__(self) -> FakeDevice:
        self.stack = ExitStack()
        torch_has_products.cache_clear()
        self.stack.callback(torch_has_products.cache_clear)
        self.stack.enter_context(_Functions())
        self.stack.enter_context(_Operations(self.waits))
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stack.close()


class _Functions(TorchFunctionMode):
    """Replaces the functions whose C++ code looks at a tensor's type or memory."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if not (args and isinstance(args[0], FakeTensor)):
            return function(*args, **kwargs)
        if function is Tensor.new_tensor:
            return torch.tensor(*args[1:], dtype=kwargs.get("dtype", args[0].dtype)).to(DEVICE)
        if function is Tensor.tolist:
            return args[0].cpu().tolist()
        if function is Tensor.numpy:
            raise TypeError("tensors on the fake device cannot be converted to numpy")
        if function == Tensor.data.__set__:  # type: ignore[attr-defined]
            args[0].on_cpu = args[1].on_cpu
        return function(*args, **kwargs)


class _Operations(TorchDispatchMode):
    """Computes operations on the CPU, and returns results on the device where a GPU would have them."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fakes = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        device = kwargs.get("device")
        is_fake = device.type == DEVICE.type if device is not None else bool(fakes)
        if operation.overloadpacket in COPIES:
            self._note_copy(operation, args, kwargs, is_fake)
        else:
            # torch takes a number on the CPU as an argument of a GPU's operation.
            strangers = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor) and tensor.ndim]
            assert not (fakes and strangers), f"{operation} takes tensors of two devices at {_line()}"
            if fakes and _waits(operation, args, kwargs):
                self._note(operation.overloadpacket.__name__)
        if device is not None:
            kwargs["device"] = CPU
        result = operation(*tree_map(_unwrapped, args), **tree_map(_unwrapped, kwargs))
        written = list(_written(operation, args, kwargs))
        if written:
            return written[0] if len(written) == 1 else tuple(written)
        wrapped: Callable[[Any], Any] = lambda x: FakeTensor(x) if isinstance(x, Tensor) else x  # noqa: E731
        return tree_map(wrapped, result) if is_fake else result

    def _note_copy(self, operation: Any, args: Any, kwargs: Any, is_fake: bool) -> None:
        to_fake, source = is_fake, args[0]
        if operation.overloadpacket is aten.copy_:
            to_fake, source = isinstance(args[0], FakeTensor), args[1]
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        else:
            non_blocking = kwargs.get("non_blocking", False)
        if isinstance(source, FakeTensor) and not to_fake:
            self._note("copy to the CPU")
        elif to_fake and not isinstance(source, FakeTensor) and not non_blocking:
            self._note("copy from the CPU")

    def _note(self, what: str) -> None:
        self.waits.append(f"{what} at {_line()}")


def _unwrapped(x: Any) -> Any:
    return x.on_cpu if isinstance(x, FakeTensor) else x


def _written(operation: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    """The arguments that an operation writes to and returns."""
    arguments, returns = operation._schema.arguments, operation._schema.returns
    if any(value.alias_info is not None and value.alias_info.is_write for value in returns):
        for n, argument in enumerate(arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                yield args[n] if n < len(args) else kwargs[argument.name]


def _waits(operation: Any, args: Any, kwargs: Any) -> bool:
    """Whether a GPU's result is waited for."""
    if operation.overloadpacket in WAITING:
        return True
    if operation is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if operation.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
        # A mask becomes the positions where it is true.
        return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])
    return False


def _line() -> str:
    """The innermost line of mfrec that is being executed."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PACKAGE):
            text = linecache.getline(path, frame.f_lineno).strip()
            return f"{path.removeprefix(PACKAGE)}:{frame.f_lineno}: {text}"
        frame = frame.f_back
    return "a line outside mfrec"
