"""The null backend: shapes, dtypes, operations and bytes, but no values.

The planner runs the library's own code on null arrays to find out what a device would have to do.
"""

from __future__ import annotations

import math
from collections import Counter as Multiset
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import autoray
import numpy as np
from adtn._typing import Params, Shape
from adtn.backends import Backend, DeviceInfo, Differentiable, Elementwise, Op, Workspace
from adtn.errors import DeviceError
from adtn.layout import Permutation, index_on

from . import _functions as null_functions

_ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class Counter:
    """The cost that a computation on null arrays would have on a device.

    Parameters
    ----------
    ops : collections.Counter of Op
        Every operation, with the number of times it is done.
    flops : int
        Floating-point operations; a multiply-add counts as two, an elementwise function as one per entry.
    moved_bytes : int
        Bytes read and written by operations that touch memory.
    allocated_bytes : int
        Bytes of all results.
    live_bytes, peak_bytes : int
        Bytes of all arrays that exist, now and at most.
    """

    def __init__(self) -> None:
        self.ops: Multiset[Op] = Multiset()
        self.flops = 0
        self.moved_bytes = 0
        self.allocated_bytes = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self.times = 1
        self.fused = frozenset[str]()
        """Names of activations that count as one operation, as do their adjoints."""

    def record(self, op: Op) -> None:
        """Record one operation."""
        self.ops[op] += self.times
        self.flops += op.flops * self.times
        self.moved_bytes += op.moved_bytes * self.times
        self.allocated_bytes += op.fresh_bytes * self.times

    def hold(self, nbytes: int) -> None:
        """Count memory as allocated, or as freed where ``nbytes`` is negative."""
        self.live_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


class Buffer:
    """The memory of one array or of several views, freed with the last of them."""

    __slots__ = ("counter", "nbytes")

    def __init__(self, nbytes: int, counter: Counter) -> None:
        self.nbytes = nbytes
        self.counter = counter
        counter.hold(nbytes)

    def __del__(self) -> None:
        self.counter.hold(-self.nbytes)


class NullArray:
    """An array without values; operations on it are counted by the counter it carries."""

    __slots__ = ("buffer", "counter", "dtype", "shape", "strides")

    def __init__(
        self, shape: Shape, dtype: str, counter: Counter, *, strides: Shape | None = None, buffer: Buffer | None = None
    ) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.dtype = dtype
        self.counter = counter
        self.strides = strides if strides is not None else _dense_strides(self.shape)
        self.buffer = buffer if buffer is not None else Buffer(self.nbytes, counter)

    def __repr__(self) -> str:
        return f"NullArray({self.shape}, {self.dtype})"

    @property
    def ndim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Return the number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the number of bytes that the entries would take."""
        return self.size * _ITEMSIZE.get(self.dtype, 1)

    @property
    def mT(self) -> NullArray:
        """A view with the last two axes exchanged."""
        *lead, m, n = self.shape
        *ahead, s, t = self.strides
        return self.view((*lead, n, m), (*ahead, t, s))

    def view(self, shape: Shape, strides: Shape) -> NullArray:
        """Make a view of the same memory."""
        return NullArray(shape, self.dtype, self.counter, strides=strides, buffer=self.buffer)

    def __getitem__(self, key: tuple[slice | int | np.ndarray | None, ...] | slice | int | None) -> NullArray:
        shape: list[int] = []
        strides: list[int] = []
        at = 0
        for k in key if isinstance(key, tuple) else (key,):
            if k is None:
                shape.append(1)
                strides.append(0)
                continue
            if isinstance(k, slice):
                shape.append(len(range(*k.indices(self.shape[at]))))
                strides.append(self.strides[at] * (k.step or 1))
            if isinstance(k, np.ndarray):  # a gather along one axis: a copy
                return _gathered(self, at, len(k))
            at += 1
        return self.view((*shape, *self.shape[at:]), (*strides, *self.strides[at:]))

    def _with(self, other: Any = None) -> NullArray:
        return elementwise("arithmetic", self, other)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _with
    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = (
        _with
    )
    __gt__ = __lt__ = __ge__ = __le__ = __neg__ = __pos__ = __abs__ = __invert__ = _with
    __array_ufunc__ = None  # so that scalars of NumPy leave operators to this class

    def __pow__(self, other: Any) -> NullArray:
        return elementwise("arithmetic" if isinstance(other, int) else "exp", self, other)

    def __rpow__(self, other: Any) -> NullArray:
        return elementwise("exp", self, other)

    def __matmul__(self, other: NullArray) -> NullArray:
        return _matmul(self, other)


def _gathered(x: NullArray, axis: int, n: int) -> NullArray:
    shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
    blocks = _coalesced(x.shape, x.strides)
    before = blocks[-2][0] if len(blocks) > 1 else 1
    return _new(shape, x, "permute", (math.prod(shape), *blocks[-1], before, len(blocks)), x.nbytes)


def _dense_strides(shape: Shape) -> Shape:
    return tuple(math.prod(shape[a + 1 :]) for a in range(len(shape)))


def _new(
    shape: Shape,
    like: NullArray,
    kind: str,
    sizes: tuple[int, ...],
    read: int,
    out: NullArray | None = None,
    space: NullWorkspace | None = None,
    transposed: int = 0,
) -> NullArray:
    """Record an operation and return its result: ``out`` where it is given, else a new array."""
    result = out if out is not None else NullArray(shape, like.dtype, like.counter)
    fresh = result.nbytes if out is None else 0
    if space is not None and out is None:
        fresh = 0 if space.reuses(result.nbytes) else result.nbytes
    like.counter.record(
        Op(
            kind=kind,
            dtype=like.dtype,
            shape=sizes,
            read_bytes=read,
            written_bytes=result.nbytes,
            fresh_bytes=fresh,
            transposed=transposed,
        )
    )
    return result


def elementwise(name: str, *args: Any, out: NullArray | None = None, **_: Any) -> NullArray:
    """Record an elementwise operation, or one of ``"arithmetic"``."""
    arrays = [x for x in args if isinstance(x, NullArray)]
    shape = np.broadcast_shapes(*(x.shape for x in arrays))
    return _new(shape, arrays[0], name, (math.prod(shape),), sum(x.nbytes for x in arrays), out)


def _matmul(x: NullArray, y: NullArray, *, space: NullWorkspace | None = None) -> NullArray:
    is_dot = x.ndim == y.ndim == 1
    if is_dot:
        x, y = x[None, :], y[:, None]
    if x.shape[-1] != y.shape[-2] or (x.ndim > 2 and y.ndim > 2 and x.shape[:-2] != y.shape[:-2]):
        raise ValueError(f"Got shapes {x.shape} and {y.shape} for a matrix product; their dimensions do not match.")
    lead = x.shape[:-2] or y.shape[:-2]
    if y.ndim == 2 and lead:  # all share one matrix: a single product with more rows
        sizes = (1, math.prod(lead) * x.shape[-2], y.shape[-1], x.shape[-1])
    else:
        sizes = (math.prod(lead), x.shape[-2], y.shape[-1], x.shape[-1])
    shape = () if is_dot else (*lead, x.shape[-2], y.shape[-1])
    transposed = _is_transposed(x) + 2 * _is_transposed(y)
    return _new(shape, x, "matmul", sizes, x.nbytes + y.nbytes, space=space, transposed=transposed)


def _is_transposed(x: NullArray) -> bool:
    return min(x.shape[-2:]) > 1 and x.strides[-1] != 1 and x.strides[-2] == 1


def _transpose(x: NullArray, axes: tuple[int, ...]) -> NullArray:
    return x.view(tuple(x.shape[a] for a in axes), tuple(x.strides[a] for a in axes))


def _reshape(x: NullArray, shape: Shape, *, space: NullWorkspace | None = None) -> NullArray:
    if -1 in shape:
        others = -math.prod(shape)
        shape = tuple(x.size // others if n == -1 else n for n in shape)
    if math.prod(shape) != x.size:
        raise ValueError(f"Got an array of shape {x.shape}, which cannot be reshaped to {shape}.")
    strides = _reshaped(x.shape, x.strides, tuple(shape))
    if strides is not None:
        return x.view(tuple(shape), strides)
    blocks = _coalesced(x.shape, x.strides)
    before = blocks[-2][0] if len(blocks) > 1 else 1
    copied = _new(x.shape, x, "permute", (x.size, *blocks[-1], before, len(blocks)), x.nbytes, space=space)
    return copied.view(tuple(shape), _dense_strides(tuple(shape)))


def _coalesced(shape: Shape, strides: Shape) -> list[tuple[int, int]]:
    """Return axes as ``(length, stride)``, with axes that are contiguous to each other merged."""
    blocks: list[tuple[int, int]] = []
    for n, s in zip(shape, strides, strict=True):
        if n == 1:
            continue
        if blocks and blocks[-1][1] == n * s:
            blocks[-1] = (blocks[-1][0] * n, s)
        else:
            blocks.append((n, s))
    return blocks or [(1, 1)]


def _reshaped(shape: Shape, strides: Shape, new: Shape) -> Shape | None:
    """Return the strides of a reshaped view, or ``None`` where only a copy has that shape."""
    blocks = _coalesced(shape, strides)[::-1]
    out: list[int] = []
    at, left = 0, blocks[0][0]
    for n in reversed(new):
        if n == 1:
            out.append(0)
            continue
        if left == 1:
            at += 1
            left = blocks[at][0]
        if left % n:
            return None
        out.append(blocks[at][1] * (blocks[at][0] // left))
        left //= n
    return tuple(reversed(out))


def _sum(x: NullArray, axis: tuple[int, ...] | int | None = None) -> NullArray:
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    return _new(tuple(n for a, n in enumerate(x.shape) if a not in axes), x, "sum", (x.size,), x.nbytes)


def _broadcast_to(x: NullArray, shape: Shape) -> NullArray:
    lead = len(shape) - x.ndim
    strides = (s if n == m else 0 for s, n, m in zip(x.strides, x.shape, shape[lead:], strict=True))
    return x.view(tuple(shape), ((0,) * lead + tuple(strides)))


def _concatenate(arrays: tuple[NullArray, ...], axis: int) -> NullArray:
    shape = list(arrays[0].shape)
    shape[axis] = sum(x.shape[axis] for x in arrays)
    read = sum(x.nbytes for x in arrays)
    return _new(tuple(shape), arrays[0], "arithmetic", (math.prod(shape),), read)


def _zeros_like(x: NullArray) -> NullArray:
    return _new(x.shape, x, "arithmetic", (x.size,), 0)


def _astype(x: NullArray, dtype: str) -> NullArray:
    result = NullArray(x.shape, dtype, x.counter)
    x.counter.record(
        Op(
            kind="arithmetic",
            dtype=dtype,
            shape=(x.size,),
            read_bytes=x.nbytes,
            written_bytes=result.nbytes,
            fresh_bytes=result.nbytes,
        )
    )
    return result


# autoray looks up all other functions in the module of this name
autoray.register_backend(NullArray, "adtn_backends.null._functions")
autoray.register_function("adtn_backends.null._functions", "get_dtype_name", lambda x: x.dtype)
for _name, _fn in {
    "matmul": _matmul,
    "transpose": _transpose,
    "reshape": _reshape,
    "sum": _sum,
    "zeros_like": _zeros_like,
    "broadcast_to": _broadcast_to,
    "concatenate": _concatenate,
    "astype": _astype,
}.items():
    autoray.register_function("adtn_backends.null._functions", _name, _fn)
null_functions.apply = elementwise


@index_on.register("adtn_backends.null._functions")
def _index(x: NullArray, permutation: Permutation, inverse: bool) -> np.ndarray:
    return permutation.array


class NullWorkspace(Workspace):
    """A workspace where only results larger than a quarter of ``keep_bytes`` take fresh memory, as with a pool."""

    def __init__(self, keep_bytes: int | None) -> None:
        self._largest = math.inf if keep_bytes is None else keep_bytes // 4

    def matmul(self, x: NullArray, y: NullArray) -> NullArray:
        return _matmul(x, y, space=self)

    def packed(self, x: NullArray, shape: Shape) -> NullArray:
        return _reshape(x, shape, space=self)

    def activate(self, sigma: Elementwise, z: NullArray) -> NullArray:
        return elementwise(sigma.name, z) if sigma.name in z.counter.fused else super().activate(sigma, z)

    def activate_vjp(self, sigma: Elementwise, z: NullArray, xbar: NullArray) -> NullArray:
        if sigma.name in z.counter.fused:
            return elementwise(sigma.name, xbar, z)
        return super().activate_vjp(sigma, z, xbar)

    def reuses(self, nbytes: int) -> bool:
        """Return whether the pool has memory of this size that was used before."""
        return nbytes <= self._largest


class NullBackend:
    """A backend that computes shapes and costs, but no values: for plans, and for tests without hardware."""

    name = "null"
    compiles = False
    dialect = None
    fused = frozenset[str]()
    scratch_bytes = 0

    def owns(self, kind: type) -> bool:
        """Return whether a type is that of null arrays."""
        return issubclass(kind, NullArray)

    def __init__(self) -> None:
        self.counter = Counter()

    def shares_memory(self, device: str) -> bool:
        """Return true, as there is nothing to copy."""
        return True

    def devices(self) -> list[DeviceInfo]:
        """List the one device, which has memory for everything."""
        return [DeviceInfo(name="null:cpu", description="counts operations, computes nothing", dtypes=tuple(_ITEMSIZE))]

    def asarray(self, x: np.ndarray, device: str, dtype: str | None, *, copy: bool = True) -> NullArray:
        """Make a null array of the shape of ``x`` that counts with this backend's counter."""
        return NullArray(np.shape(x), dtype or str(x.dtype), self.counter)

    def to_numpy(self, x: NullArray) -> np.ndarray:
        """Refuse: a null array has no values."""
        raise DeviceError(f"Got {x!r}, which has no values; the null backend only counts. Compute on 'numpy:cpu'.")

    def device_of(self, x: NullArray) -> str:
        """Return ``"cpu"``."""
        return "cpu"

    def dtype_of(self, x: NullArray) -> str:
        """Return the name of the dtype."""
        return x.dtype

    def value_and_grad(self, fn: Callable[..., Any]) -> Callable[..., tuple[Any, tuple[Any, ...]]]:
        """Refuse: without values there are no gradients."""
        raise DeviceError("The null backend cannot differentiate; it only counts. Use 'numpy:cpu'.")

    def with_vjp(self, layer: Differentiable) -> Callable[..., Any]:
        """Return the layer, as nothing is differentiated."""
        return layer

    def compile(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function unchanged."""
        return fn

    def scope(self, dtype: str) -> AbstractContextManager[Any]:
        """Return an empty context."""
        return nullcontext()

    def threads(self, flops: float) -> AbstractContextManager[Any]:
        """Return an empty context, as nothing is computed."""
        return nullcontext()

    def synchronize(self, device: str, result: Any = None) -> None:
        """Return at once."""

    def workspace(self, keep_bytes: int | None = None) -> NullWorkspace:
        """Make a workspace that counts like a pool in its second use."""
        return NullWorkspace(keep_bytes)

    def loop(self, n: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """Run the first two passes, counting the second once for each later one, which does the same."""
        carry = body(0, carry)
        if n > 1:
            counter, times = self.counter, self.counter.times
            counter.times = times * (n - 1)
            carry = body(1, carry)
            counter.times = times
        return carry

    def take(self, x: NullArray, i: int) -> NullArray:
        """View one entry."""
        return x[i]

    def put(self, x: NullArray, i: int, y: NullArray) -> NullArray:
        """Record a copy into one entry, in place."""
        elementwise("arithmetic", y, out=x[i])
        return x

    def add_at(self, x: NullArray, i: int, y: NullArray) -> NullArray:
        """Record an addition to one entry, in place."""
        part = x[i]
        elementwise("arithmetic", part, y, out=part)
        return x

    def add(self, x: NullArray, y: NullArray) -> NullArray:
        """Record an addition, in place."""
        return elementwise("arithmetic", x, y, out=x)

    def subtract(self, x: NullArray, y: NullArray) -> NullArray:
        """Record a subtraction, in place."""
        return elementwise("arithmetic", x, y, out=x)

    def model(self, model: Any, device: str | None) -> None:
        """Return ``None``, as there are no null models."""

    def optimizer(self, name: str, **options: float) -> Any:
        """Refuse: without values there is nothing to optimise."""
        raise DeviceError("The null backend cannot optimise; it only counts. Use 'numpy:cpu'.")

    def arrays_like(self, arrays: Params, dtype: str = "float32") -> tuple[dict[str, NullArray], Counter]:
        """Make null arrays of the same shapes, with a new counter that they share."""
        self.counter = Counter()
        return {name: NullArray(x.shape, dtype, self.counter) for name, x in arrays.items()}, self.counter


_check: type[Backend] = NullBackend
