"""The backend interface: what a framework must offer beyond array operations, and the registry that finds it.

Array operations themselves go through autoray. A backend is a class without state, published under the
entry-point group ``adtn.backends``; another distribution adds one by declaring the same group.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, Protocol, runtime_checkable

import numpy as np
from autoray import do

from ._checks import checked
from ._typing import Array, ElementwiseFunction, Float, Params, Shape, Shaped
from .errors import BackendError, DeviceError, MissingDependencyError

GROUP = "adtn.backends"
DTYPES = ("float64", "float32", "bfloat16", "float16")
OPTIMIZERS = ("adam", "adamw", "sgd")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """One device of one backend.

    Parameters
    ----------
    name : str
        Full device string such as ``"torch:cuda:0"``.
    description : str
        A human-readable description.
    memory_bytes : int or None
        Total memory, ``None`` if the framework does not report it.
    dtypes : tuple of str
        Floating-point dtypes that the device supports.
    usable : bool
        Whether arrays can be created on the device.
    reason : str
        The reason and the remedy if the device is not usable.
    """

    name: str
    description: str = ""
    memory_bytes: int | None = None
    dtypes: tuple[str, ...] = ()
    usable: bool = True
    reason: str = ""


class Elementwise(Protocol):
    """An elementwise function and its derivative, written with autoray."""

    @property
    def name(self) -> str:
        """The name of the function, as in :attr:`Backend.fused`."""
        ...

    @property
    def value(self) -> ElementwiseFunction:
        """The function."""
        ...

    @property
    def derivative(self) -> ElementwiseFunction:
        """The derivative of the function."""
        ...


class Workspace:
    """The computation and the memory of intermediates; this class leaves both to the framework."""

    def matmul(self, x: Float[Array, "*stack m k"], y: Float[Array, "*stack k n"]) -> Float[Array, "*stack m n"]:
        """Compute ``x @ y``."""
        return x @ y

    def packed(self, x: Float[Array, "..."], shape: Shape) -> Float[Array, "..."]:
        """Reshape ``x``, with a copy where its entries are not stored in this order."""
        return do("reshape", x, shape)

    def activate(self, sigma: Elementwise, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Compute ``sigma(z)``."""
        return sigma.value(z)

    def activate_vjp(
        self, sigma: Elementwise, z: Float[Array, "*shape"], xbar: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Compute the adjoint of :meth:`activate`."""
        return xbar * sigma.derivative(z)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dialect:
    """The names of operations on arrays, for straight-line code; see :class:`adtn.calculus.FlatProgram`.

    Parameters
    ----------
    permute : str
        The method that permutes axes, with the axes as a tuple.
    products : mapping of int to str
        Functions for products of matrices and of stacks of matrices, by the number of axes.
    expand : str
        An expression that broadcasts ``{x}`` to ``{shape}``.
    names : mapping of str to callable
        The functions in these expressions.
    """

    permute: str
    products: Mapping[int, str]
    expand: str
    names: Mapping[str, Callable[..., Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """An operation on arrays, as the null backend records it and a device profile prices it.

    Parameters
    ----------
    kind : str
        ``"matmul"``, ``"permute"``, ``"sum"``, ``"arithmetic"``, or the name of an elementwise function.
    dtype : str
        The dtype of the result.
    shape : tuple of int
        ``(batch, m, n, k)`` of a product; ``(entries, inner, stride, next, axes)`` of a permuting copy, with the length
        of the last axis of the result, the stride at which it is read, the length of the axis before it and the
        number of axes that are not contiguous to each other; ``(entries,)`` otherwise.
    read_bytes, written_bytes : int
        Bytes of the operands, and of the result.
    fresh_bytes : int
        Bytes of the result if new memory is allocated for it.
    transposed : int
        Which operands of a product are transposed: 1 for the left one, 2 for the right one, 3 for both.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    read_bytes: int = 0
    written_bytes: int = 0
    fresh_bytes: int = 0
    transposed: int = 0

    @property
    def flops(self) -> int:
        """The number of floating-point operations; a multiply-add counts two."""
        if self.kind == "matmul":
            batch, m, n, k = self.shape
            return 2 * batch * m * n * k
        return 0 if self.kind == "permute" else self.shape[0]

    @property
    def moved_bytes(self) -> int:
        """The number of bytes read and written."""
        return self.read_bytes + self.written_bytes


class Optimizer(Protocol):
    """A first-order optimizer, whose state is explicit so that it can be saved."""

    def init(self, params: Params) -> Any:
        """Return the state before the first step."""
        ...

    def step(self, params: Params, grads: Params, state: Any, lr: float) -> tuple[Params, Any]:
        """Take one step with learning rate ``lr``; return new parameters and a new state."""
        ...

    def snapshot(self, params: Params) -> Params:
        """Return the present parameters in a form that later steps do not change."""
        ...

    def export_state(self, state: Any) -> dict[str, np.ndarray]:
        """Return the state as named NumPy arrays, for a checkpoint."""
        ...

    def import_state(self, params: Params, arrays: dict[str, np.ndarray]) -> Any:
        """Rebuild the state, the inverse of :meth:`export_state`."""
        ...


class Differentiable(Protocol):
    """A function of named arrays and one more array, with its adjoint."""

    @property
    def keeps(self) -> bool:
        """Whether the backward pass reads a tape, instead of recomputing what it needs."""
        ...

    def __call__(self, arrays: Params, x: Float[Array, "batch n_in"]) -> Float[Array, "batch n_out"]:
        """Compute the value."""
        ...

    def with_tape(
        self, arrays: Params, x: Float[Array, "batch n_in"]
    ) -> tuple[Float[Array, "batch n_out"], tuple[Float[Array, "..."], ...]]:
        """Compute the value, and the arrays that :meth:`pullback` needs."""
        ...

    def pullback(
        self, tape: tuple[Array, ...], arrays: Params, x: Array, ybar: Array, *, need_x: bool = True
    ) -> tuple[dict[str, Array], Array | None]:
        """Compute the adjoints of the trained arrays, and of ``x`` unless nobody wants it."""
        ...


@runtime_checkable
class Backend(Protocol):
    """The part of a framework that autoray lacks; devices come without the backend's name: ``"cpu"``, ``"cuda:0"``."""

    name: str

    def owns(self, kind: type) -> bool:
        """Return whether arrays of this type belong to the framework; called once per type."""
        ...

    @property
    def compiles(self) -> bool:
        """Whether :meth:`compile` makes a program, whose first call takes long and whose operations are fused."""
        ...

    @property
    def dialect(self) -> Dialect | None:
        """The names of its operations, if straight-line code is faster than a call per step; compilers need none."""
        ...

    @property
    def scratch_bytes(self) -> int:
        """The memory that the framework uses besides a program's arrays: packed operands, thread stacks, compiling."""
        ...

    @property
    def fused(self) -> frozenset[str]:
        """The names of activations that its workspaces compute in one pass, and their adjoints in another."""
        ...

    def shares_memory(self, device: str) -> bool:
        """Return whether arrays on ``device`` can be views of NumPy arrays."""
        ...

    def devices(self) -> list[DeviceInfo]:
        """List every device, with a reason if it is not usable."""
        ...

    def asarray(self, x: np.ndarray, device: str, dtype: str | None, *, copy: bool = True) -> Array:
        """Make an array of this framework on ``device``; with ``None``, integers and booleans keep their dtype.

        Without ``copy``, it may share memory with ``x`` and must not be written to.
        """
        ...

    def to_numpy(self, x: Array) -> np.ndarray:
        """Copy an array to NumPy on the host; bfloat16 is converted to float32, exactly."""
        ...

    def device_of(self, x: Array) -> str:
        """Return the device of ``x``, without the name of the backend."""
        ...

    def dtype_of(self, x: Array) -> str:
        """Return the dtype of ``x`` as one of :data:`DTYPES`."""
        ...

    def value_and_grad(self, fn: Callable[..., Array]) -> Callable[..., tuple[Array, tuple[Any, ...]]]:
        """Differentiate ``fn(W, extra, *batch) -> loss``: return a function that returns ``(loss, (dW, d_extra))``."""
        ...

    def compile(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile ``fn`` if the framework can, or else return it unchanged."""
        ...

    def scope(self, dtype: str) -> AbstractContextManager[Any]:
        """Return a context in which operations on arrays of ``dtype`` preserve it (JAX's 64-bit mode)."""
        ...

    def threads(self, flops: float) -> AbstractContextManager[Any]:
        """Return a context with the best number of threads for work whose largest product has ``flops`` operations."""
        ...

    def synchronize(self, device: str, result: Any = None) -> None:
        """Wait until all work of ``device`` is done and ``result`` is computed."""
        ...

    def with_vjp(self, layer: Differentiable) -> Callable[..., Float[Array, "batch n_out"]]:
        """Return ``layer(arrays, x)`` as a function that the framework differentiates by the layer's own adjoint."""
        ...

    def workspace(self, keep_bytes: int | None = None) -> Workspace:
        """Return a workspace for intermediates, whose memory is reused in the whole process.

        Results larger than a quarter of ``keep_bytes`` are allocated by the framework.
        """
        ...

    def loop(self, n: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """Run ``for i in range(n): carry = body(i, carry)``."""
        ...

    def take(self, x: Shaped[Array, " n *item"], i: Any) -> Shaped[Array, "*item"]:
        """Return ``x[i]``."""
        ...

    def put(self, x: Shaped[Array, " n *item"], i: Any, y: Shaped[Array, "*item"]) -> Shaped[Array, " n *item"]:
        """Set ``x[i] = y`` and return ``x``; like the following, in place if the framework can, so use the result."""
        ...

    def add_at(self, x: Float[Array, " n *item"], i: Any, y: Float[Array, "*item"]) -> Float[Array, " n *item"]:
        """Add, ``x[i] += y``, and return ``x``."""
        ...

    def add(self, x: Float[Array, "*shape"], y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Add, ``x += y``, and return ``x``."""
        ...

    def subtract(self, x: Float[Array, "*shape"], y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Subtract, ``x -= y``, and return ``x``."""
        ...

    def optimizer(self, name: str, **options: float) -> Optimizer:
        """Make one of :data:`OPTIMIZERS`, adapted from the framework's own library."""
        ...

    def model(self, model: Any, device: str | None) -> Any | None:
        """Wrap a model, or the model in a folder (a ``Path``), so that ``adtn.compress`` can replace its layers.

        Return ``None`` for objects that are not models of the framework.
        """
        ...


@lru_cache(maxsize=1)
def _entry_points() -> dict[str, EntryPoint]:
    return {ep.name: ep for ep in entry_points(group=GROUP)}


def backend_names() -> tuple[str, ...]:
    """List the names of all registered backends, whether their framework is installed or not."""
    return tuple(sorted(_entry_points()))


@cache
def get_backend(name: str) -> Backend:
    """Return the backend called ``name``.

    Raises
    ------
    DeviceError
        If no distribution registers the name.
    MissingDependencyError
        If its framework is not installed; the message names the pip command.
    """
    entry = _entry_points().get(name)
    if entry is None:
        raise DeviceError(
            f"Got a device of backend {name!r}; registered are {', '.join(backend_names())}. A new one needs an entry "
            f"point in the group {GROUP!r} and its package installed (for an editable checkout: pip install -e .)."
        )
    try:
        cls = entry.load()
    except ImportError as error:
        extra = entry.dist.metadata["Name"] if entry.dist is not None else "adtn"
        hint = f"pip install 'adtn[{name}]'" if extra == "adtn" else f"pip install {extra}"
        raise MissingDependencyError(f"Backend {name!r} cannot be loaded ({error}). Get it with: {hint}") from error
    return cls()


@checked(DeviceError)
def split_device(device: str) -> tuple[str, str]:
    """Split ``"torch:cuda:0"`` into ``("torch", "cuda:0")``; a backend alone means its CPU."""
    name, _, rest = device.partition(":")
    if not name:
        raise DeviceError(f"Got device {device!r}; expected 'backend:device' such as 'numpy:cpu' or 'torch:cuda:0'.")
    return name, rest or "cpu"


@checked(DeviceError)
def check_device(device: str, dtype: str) -> tuple[Backend, str]:
    """Resolve a full device string, and check that the device supports ``dtype``.

    Returns
    -------
    tuple of Backend and str
        The backend and the device string it understands.

    Raises
    ------
    DeviceError
        If the device is unknown or not usable, or does not support the dtype.
    """
    name, rest = split_device(device)
    backend = get_backend(name)
    if dtype not in DTYPES:
        raise DeviceError(f"Got dtype {dtype!r}; expected one of {', '.join(DTYPES)}.")
    infos = {info.name: info for info in backend.devices()}
    full = f"{name}:{rest}"
    info = infos.get(full) or infos.get(f"{full}:0")
    if info is None:
        raise DeviceError(f"Got device {device!r}; {name} has {', '.join(infos)} here.")
    if not info.usable:
        raise DeviceError(f"Device {device!r} is not usable: {info.reason}")
    if dtype not in info.dtypes:
        raise DeviceError(
            f"Got dtype {dtype!r} on {device!r}, which has {', '.join(info.dtypes)}. "
            f"Pass dtype='float32', or run on '{name}:cpu'."
        )
    return backend, info.name.partition(":")[2]


@lru_cache(maxsize=256)
def _backend_of(kind: type) -> Backend:
    """Find the owner of a type, without loading frameworks that are not loaded yet, as they cannot have arrays."""
    names = [name for name in backend_names() if name in sys.modules or find_spec(name) is None]
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            backend = get_backend(name)
        except MissingDependencyError:
            continue
        if backend.owns(kind):
            return backend
    raise BackendError(
        f"Got an array of type {kind.__module__}.{kind.__name__}; no backend is registered for it. "
        f"Registered are {', '.join(backend_names())}."
    )


def backend_of(x: Array) -> Backend:
    """Find the backend that owns an array.

    Raises
    ------
    BackendError
        If no registered backend owns it.

    Examples
    --------
    >>> import numpy as np
    >>> backend_of(np.ones(3)).name
    'numpy'
    """
    return _backend_of(type(x))
