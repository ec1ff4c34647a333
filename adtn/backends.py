"""The backend interface: what a framework must offer beyond array operations, and the registry that finds it.

Array operations themselves go through autoray. A backend is a class without state, published under the
entry-point group ``adtn.backends``; another distribution adds one by declaring the same group.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
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
        What a person calls it.
    memory_bytes : int or None
        Total memory, ``None`` when the framework does not tell.
    dtypes : tuple of str
        Floating-point dtypes that work there.
    usable : bool
        Whether arrays can be put there now.
    reason : str
        Why not, and what to do, when it is not usable.
    """

    name: str
    description: str = ""
    memory_bytes: int | None = None
    dtypes: tuple[str, ...] = ()
    usable: bool = True
    reason: str = ""


class Elementwise(Protocol):
    """A function of every entry, and its derivative, over autoray."""

    @property
    def name(self) -> str:
        """The name by which :attr:`Backend.fused` knows it."""
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
    """A workspace: how intermediates are computed, and where they go; this one leaves both to the framework."""

    def matmul(self, x: Float[Array, "*stack m k"], y: Float[Array, "*stack k n"]) -> Float[Array, "*stack m n"]:
        """Compute ``x @ y``."""
        return x @ y

    def packed(self, x: Float[Array, "..."], shape: Shape) -> Float[Array, "..."]:
        """Return ``x`` reshaped; a copy when its entries are not stored in this order."""
        return do("reshape", x, shape)

    def activate(self, sigma: Elementwise, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Compute ``sigma(z)``."""
        return sigma.value(z)

    def activate_vjp(
        self, sigma: Elementwise, z: Float[Array, "*shape"], xbar: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """The adjoint of :meth:`activate`."""
        return xbar * sigma.derivative(z)


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation on arrays, as the null backend notes it and a device profile prices it.

    Parameters
    ----------
    kind : str
        ``"matmul"``, ``"permute"``, ``"sum"``, ``"arithmetic"``, or the name of an elementwise function.
    dtype : str
        Of its result.
    shape : tuple of int
        ``(batch, m, n, k)`` of a product; ``(entries, inner, stride, next, axes)`` of a permuting copy, with the length
        of the last axis of the result, the stride at which it is read, the length of the axis before it and the
        number of axes that do not lie together; ``(entries,)`` otherwise.
    read_bytes, written_bytes : int
        Of operands and result.
    fresh_bytes : int
        Of the result, when memory is taken for it.
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
        """Read and written."""
        return self.read_bytes + self.written_bytes


class Optimizer(Protocol):
    """A first-order optimizer as three pure-looking functions; state is explicit so that it can be saved."""

    def init(self, params: Params) -> Any:
        """Return the state for parameters that have not been stepped yet."""
        ...

    def step(self, params: Params, grads: Params, state: Any, lr: float) -> tuple[Params, Any]:
        """One update with learning rate ``lr``; returns new parameters and new state."""
        ...

    def snapshot(self, params: Params) -> Params:
        """The parameters as they are now; later steps do not change them."""
        ...

    def export_state(self, state: Any) -> dict[str, np.ndarray]:
        """The state as named NumPy arrays, for a checkpoint."""
        ...

    def import_state(self, params: Params, arrays: dict[str, np.ndarray]) -> Any:
        """The inverse of :meth:`export_state`."""
        ...


class Differentiable(Protocol):
    """A function of named arrays and one more array, with its adjoint."""

    @property
    def keeps(self) -> bool:
        """Whether the way back reads a tape, or computes again what it needs."""
        ...

    def __call__(self, arrays: Params, x: Float[Array, "batch n_in"]) -> Float[Array, "batch n_out"]:
        """The value."""
        ...

    def with_tape(
        self, arrays: Params, x: Float[Array, "batch n_in"]
    ) -> tuple[Float[Array, "batch n_out"], tuple[Float[Array, "..."], ...]]:
        """The value, and arrays that :meth:`pullback` needs."""
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
        """Return whether arrays of this type belong to the framework; asked once per type."""
        ...

    @property
    def compiles(self) -> bool:
        """Whether :meth:`compile` makes a program whose first call takes long and whose operations are fused."""
        ...

    @property
    def scratch_bytes(self) -> int:
        """The memory that the framework takes beside a program's arrays: packed operands, thread stacks, compiling."""
        ...

    @property
    def fused(self) -> frozenset[str]:
        """Names of activations that its workspaces compute in one pass, and their adjoints in another."""
        ...

    def shares_memory(self, device: str) -> bool:
        """Return whether arrays on ``device`` can be views of NumPy arrays."""
        ...

    def devices(self) -> list[DeviceInfo]:
        """Every device, usable or not (then with a reason)."""
        ...

    def asarray(self, x: np.ndarray, device: str, dtype: str | None, *, copy: bool = True) -> Array:
        """An array of this framework on ``device``; ``None`` keeps integers and booleans what they are.

        Without ``copy`` it may share memory with ``x``: for what nobody writes to.
        """
        ...

    def to_numpy(self, x: Array) -> np.ndarray:
        """A NumPy copy on the host; bfloat16 becomes float32, exactly."""
        ...

    def device_of(self, x: Array) -> str:
        """The device string (without backend) on which ``x`` lies."""
        ...

    def dtype_of(self, x: Array) -> str:
        """The dtype of ``x`` as one of :data:`DTYPES`."""
        ...

    def value_and_grad(self, fn: Callable[..., Array]) -> Callable[..., tuple[Array, tuple[Any, ...]]]:
        """Differentiate ``fn(W, extra, *batch) -> loss``: return a function that returns ``(loss, (dW, d_extra))``."""
        ...

    def compile(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``fn`` made faster where the framework can; the same function otherwise."""
        ...

    def scope(self, dtype: str) -> AbstractContextManager[Any]:
        """A context in which operations on arrays of ``dtype`` keep it (JAX's 64-bit mode)."""
        ...

    def threads(self, flops: float) -> AbstractContextManager[Any]:
        """A context for work whose largest product has so many operations: with as many threads as that is worth."""
        ...

    def synchronize(self, device: str, result: Any = None) -> None:
        """Wait until everything that was asked of ``device`` is done, and ``result`` is there."""
        ...

    def with_vjp(self, layer: Differentiable) -> Callable[..., Float[Array, "batch n_out"]]:
        """Return ``layer(arrays, x)`` for which the framework uses the layer's own adjoint."""
        ...

    def workspace(self, keep_bytes: int | None = None) -> Workspace:
        """Return memory for intermediates that is used again, by everybody in the process.

        Results of more than a quarter of ``keep_bytes`` are left to the framework's own allocator.
        """
        ...

    def loop(self, n: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """Run ``for i in range(n): carry = body(i, carry)``."""
        ...

    def take(self, x: Shaped[Array, " n *item"], i: Any) -> Shaped[Array, "*item"]:
        """Return ``x[i]``."""
        ...

    def put(self, x: Shaped[Array, " n *item"], i: Any, y: Shaped[Array, "*item"]) -> Shaped[Array, " n *item"]:
        """Set ``x[i] = y``; like the following, in place where the framework can: use what is returned."""
        ...

    def add_at(self, x: Float[Array, " n *item"], i: Any, y: Float[Array, "*item"]) -> Float[Array, " n *item"]:
        """Add, ``x[i] += y``."""
        ...

    def add(self, x: Float[Array, "*shape"], y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Add, ``x += y``."""
        ...

    def subtract(self, x: Float[Array, "*shape"], y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Subtract, ``x -= y``."""
        ...

    def optimizer(self, name: str, **options: float) -> Optimizer:
        """One of :data:`OPTIMIZERS`, adapted from the framework's own library."""
        ...

    def model(self, model: Any, device: str | None) -> Any | None:
        """An adapter with which ``adtn.compress`` replaces layers of a model, or of the model in a folder (a ``Path``).

        ``None`` for what is no model of it.
        """
        ...


@lru_cache(maxsize=1)
def _entry_points() -> dict[str, EntryPoint]:
    return {ep.name: ep for ep in entry_points(group=GROUP)}


def backend_names() -> tuple[str, ...]:
    """Names of all registered backends, installed framework or not."""
    return tuple(sorted(_entry_points()))


@cache
def get_backend(name: str) -> Backend:
    """The backend called ``name``.

    Raises
    ------
    DeviceError
        If no distribution registers that name.
    MissingDependencyError
        If the framework behind it is not installed; the message names the pip command.
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
    """Split ``"torch:cuda:0"`` into ``("torch", "cuda:0")``; a bare backend means its CPU."""
    name, _, rest = device.partition(":")
    if not name:
        raise DeviceError(f"Got device {device!r}; expected 'backend:device' such as 'numpy:cpu' or 'torch:cuda:0'.")
    return name, rest or "cpu"


@checked(DeviceError)
def check_device(device: str, dtype: str) -> tuple[Backend, str]:
    """Resolve a full device string and check that ``dtype`` works there.

    Returns
    -------
    tuple of Backend and str
        The backend and the device string it understands.

    Raises
    ------
    DeviceError
        For unknown or unusable devices and for dtypes that the device lacks.
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
    """Ask the backends; one named after a framework that is not loaded yet has no arrays and is not loaded for it."""
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
