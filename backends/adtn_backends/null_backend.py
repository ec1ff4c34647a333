"""The null backend: shapes, dtypes, operations and bytes, but no values."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import autoray
import numpy as np
from adtn._backend import Backend, DeviceInfo
from adtn._errors import DeviceError
from adtn._typing import Params, Shape

_ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class Counter:
    """What a computation on null arrays would have cost.

    Parameters
    ----------
    flops : int
        Floating-point operations; a multiply-add counts two, an elementwise function one per entry.
    moved_bytes : int
        Bytes read and written by operations that touch memory.
    allocated_bytes : int
        Bytes of all results.
    """

    def __init__(self) -> None:
        self.flops = 0
        self.moved_bytes = 0
        self.allocated_bytes = 0

    def add(self, flops: int, read: int, written: int) -> None:
        """Count one operation."""
        self.flops += flops
        self.moved_bytes += read + written
        self.allocated_bytes += written


class NullArray:
    """An array without values; operations on it are counted by the counter it carries."""

    def __init__(self, shape: Shape, dtype: str, counter: Counter) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.dtype = dtype
        self.counter = counter

    def __repr__(self) -> str:
        return f"NullArray({self.shape}, {self.dtype})"

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the entries would take."""
        return self.size * _ITEMSIZE.get(self.dtype, 1)

    def __getitem__(self, key: tuple[slice, ...] | slice) -> NullArray:
        keys = key if isinstance(key, tuple) else (key,)
        cut = tuple(len(range(*k.indices(n))) for k, n in zip(keys, self.shape, strict=False))
        return NullArray((*cut, *self.shape[len(cut) :]), self.dtype, self.counter)

    def _with(self, other: Any = None) -> NullArray:
        return _elementwise(self, other)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _with
    __gt__ = __lt__ = __ge__ = __le__ = _with

    def __neg__(self) -> NullArray:
        return _elementwise(self)


def _elementwise(*args: Any, **_: Any) -> NullArray:
    arrays = [x for x in args if isinstance(x, NullArray)]
    out = NullArray(np.broadcast_shapes(*(x.shape for x in arrays)), arrays[0].dtype, arrays[0].counter)
    out.counter.add(out.size, sum(x.nbytes for x in arrays), out.nbytes)
    return out


def _matmul(x: NullArray, y: NullArray) -> NullArray:
    if x.shape[-1] != y.shape[-2] or x.shape[:-2] != y.shape[:-2]:
        raise ValueError(f"matmul of {x.shape} and {y.shape}")
    out = NullArray((*x.shape[:-1], y.shape[-1]), x.dtype, x.counter)
    out.counter.add(2 * out.size * x.shape[-1], x.nbytes + y.nbytes, out.nbytes)
    return out


def _transpose(x: NullArray, axes: tuple[int, ...]) -> NullArray:
    # a matrix product reads a swapped matrix as it is; any other permutation is a copy
    out = NullArray(tuple(x.shape[a] for a in axes), x.dtype, x.counter)
    if axes[:-2] != tuple(range(len(axes) - 2)):
        out.counter.add(0, x.nbytes, out.nbytes)
    return out


def _reshape(x: NullArray, shape: Shape) -> NullArray:
    if -1 in shape:
        known = -math.prod(shape)
        shape = tuple(x.size // known if n == -1 else n for n in shape)
    if math.prod(shape) != x.size:
        raise ValueError(f"cannot reshape {x.shape} to {shape}")
    return NullArray(shape, x.dtype, x.counter)


def _sum(x: NullArray, axis: tuple[int, ...] | None = None) -> NullArray:
    gone = range(x.ndim) if axis is None else axis
    out = NullArray(tuple(n for a, n in enumerate(x.shape) if a not in gone), x.dtype, x.counter)
    out.counter.add(x.size, x.nbytes, out.nbytes)
    return out


def _broadcast_to(x: NullArray, shape: Shape) -> NullArray:
    return NullArray(shape, x.dtype, x.counter)


def _concatenate(arrays: tuple[NullArray, ...], axis: int) -> NullArray:
    shape = list(arrays[0].shape)
    shape[axis] = sum(x.shape[axis] for x in arrays)
    out = NullArray(tuple(shape), arrays[0].dtype, arrays[0].counter)
    out.counter.add(0, out.nbytes, out.nbytes)
    return out


def _astype(x: NullArray, dtype: str) -> NullArray:
    return NullArray(x.shape, dtype, x.counter)


autoray.register_backend(NullArray, "adtn_null")
autoray.register_function("adtn_null", "get_dtype_name", lambda x: x.dtype)
for _name, _fn in {
    "matmul": _matmul, "transpose": _transpose, "reshape": _reshape, "sum": _sum,
    "broadcast_to": _broadcast_to, "concatenate": _concatenate, "astype": _astype,
}.items():  # fmt: skip
    autoray.register_function("adtn_null", _name, _fn)
for _name in ("tanh", "exp", "log1p", "abs", "sin", "cos", "sqrt", "where", "scipy.special.erf"):
    autoray.register_function("adtn_null", _name, _elementwise)


class NullBackend:
    """Computes shapes and costs, no values: for plans and tests without hardware."""

    name = "null"

    def __init__(self) -> None:
        self.counter = Counter()

    def devices(self) -> list[DeviceInfo]:
        """One device that holds anything."""
        return [DeviceInfo("null:cpu", "counts operations, computes nothing", None, tuple(_ITEMSIZE))]

    def asarray(self, x: np.ndarray, device: str, dtype: str | None) -> NullArray:
        """The shape of ``x``, with a counter of its own backend."""
        return NullArray(np.shape(x), dtype or str(x.dtype), self.counter)

    def to_numpy(self, x: NullArray) -> np.ndarray:
        """Refused: there are no values."""
        raise DeviceError(f"{x!r} has no values; the null backend only counts. Use 'numpy:cpu' for numbers.")

    def device_of(self, x: NullArray) -> str:
        """Always ``"cpu"``."""
        return "cpu"

    def dtype_of(self, x: NullArray) -> str:
        """Name of the dtype."""
        return x.dtype

    def value_and_grad(self, fn: Callable[..., Any]) -> Callable[..., tuple[Any, tuple[Any, ...]]]:
        """Refused: there are no values."""
        raise DeviceError("The null backend cannot differentiate; it only counts. Use 'numpy:cpu'.")

    def compile(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Nothing to compile."""
        return fn

    def scope(self, dtype: str) -> AbstractContextManager[Any]:
        """Nothing to set."""
        return nullcontext()

    def synchronize(self, device: str) -> None:
        """Nothing to wait for."""

    def optimizer(self, name: str, **options: float) -> Any:
        """Refused: there are no values."""
        raise DeviceError("The null backend cannot optimise; it only counts. Use 'numpy:cpu'.")

    def arrays_like(self, arrays: Params, dtype: str = "float32") -> tuple[dict[str, NullArray], Counter]:
        """Null arrays of the same shapes that share a fresh counter."""
        counter = Counter()
        return {name: NullArray(x.shape, dtype, counter) for name, x in arrays.items()}, counter


_check: type[Backend] = NullBackend
