"""The NumPy backend: the reference, which is always available, with optimizers from quimb."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from adtn._checks import shown
from adtn._typing import Params, Shape
from adtn.backends import Backend, DeviceInfo, Dialect, Differentiable, Elementwise, Workspace
from adtn.errors import DeviceError, FitError

from ..shared._in_place import InPlace
from ..shared._memory import host_memory_bytes
from ..shared._pool import POOL, SMALLEST
from ._threads import blas_threads

_DIALECT = Dialect(
    permute="transpose",
    products={2: "matmul", 3: "matmul"},
    expand="broadcast_to({x}, {shape})",
    names={"matmul": np.matmul, "broadcast_to": np.broadcast_to},
)


class NumpyBackend(InPlace):
    """The backend for NumPy arrays on the CPU."""

    name = "numpy"
    compiles = False
    dialect = _DIALECT
    fused = frozenset[str]()
    scratch_bytes = 1 << 20

    def owns(self, kind: type) -> bool:
        """Return whether a type is one of NumPy's arrays or scalars."""
        return issubclass(kind, np.ndarray | np.generic)

    def shares_memory(self, device: str) -> bool:
        """Return true."""
        return True

    def devices(self) -> list[DeviceInfo]:
        """List the one device, the CPU."""
        return [
            DeviceInfo(
                name="numpy:cpu",
                description=f"NumPy {np.__version__}",
                memory_bytes=host_memory_bytes(),
                dtypes=("float64", "float32", "float16"),
            )
        ]

    def asarray(self, x: np.ndarray, device: str, dtype: str | None, *, copy: bool = True) -> np.ndarray:
        """Make a new array, or a view without ``copy``."""
        if device != "cpu" or dtype == "bfloat16":
            raise DeviceError(
                f"Got device {device!r} and dtype {dtype!r}; NumPy supports only the CPU, and no bfloat16."
            )
        return np.array(x, dtype=dtype, copy=copy or None)

    def to_numpy(self, x: np.ndarray) -> np.ndarray:
        """Copy an array."""
        return np.array(x)

    def device_of(self, x: np.ndarray) -> str:
        """Return ``"cpu"``."""
        return "cpu"

    def dtype_of(self, x: np.ndarray) -> str:
        """Return the name of the dtype."""
        return str(x.dtype)

    def value_and_grad(self, fn: Callable[..., Any]) -> Callable[..., tuple[Any, tuple[Any, ...]]]:
        """Check the results of ``fn``, which must be ``(loss, dW)`` or ``(loss, (dW, d_extra))``.

        NumPy cannot differentiate, so the function of a task has to compute its own gradients.
        """

        def checked(weight: np.ndarray, extra: Params | None, *batch: Any) -> tuple[Any, tuple[Any, ...]]:
            result = fn(weight, *batch) if extra is None else fn(weight, extra, *batch)
            if not isinstance(result, tuple) or len(result) != 2:
                raise FitError(
                    f"Got a {type(result).__name__} from the function of a task (target=); expected (loss, dL/dW), as "
                    "NumPy cannot differentiate. Return both, or run on 'torch:cpu' or 'jax:cpu', which can."
                )
            loss, grads = result
            if np.shape(loss) != () or np.asarray(loss).dtype.kind not in "fiu":
                raise FitError(
                    f"Got the loss {shown(loss)} from the function of a task (target=); expected one number."
                )
            grads = grads if isinstance(grads, tuple) else (grads,)
            if np.shape(grads[0]) != weight.shape:
                raise FitError(
                    f"Got a gradient of shape {np.shape(grads[0])} from the function of a task (target=); expected "
                    f"that of the weight, {weight.shape}."
                )
            return loss, grads

        return checked

    def compile(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Silence floating-point warnings: as on the other backends, the caller judges an infinite result."""
        return np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")(fn)

    def scope(self, dtype: str) -> AbstractContextManager[Any]:
        """Return an empty context."""
        return nullcontext()

    def threads(self, flops: float) -> AbstractContextManager[Any]:
        """Return a context with one thread for small products, see :mod:`adtn_backends.numpy._threads`."""
        return blas_threads(flops)

    def synchronize(self, device: str, result: Any = None) -> None:
        """Return at once, as NumPy computes synchronously."""

    def with_vjp(self, layer: Differentiable) -> Callable[..., Any]:
        """Return the layer: NumPy cannot differentiate, so call its ``pullback`` yourself."""
        return layer

    def workspace(self, keep_bytes: int | None = None) -> NumpyWorkspace:
        """Make a workspace that draws from the pool of the process."""
        return NumpyWorkspace(keep_bytes)

    def model(self, model: Any, device: str | None) -> None:
        """Return ``None``, as there are no NumPy models."""

    def optimizer(self, name: str, **options: float) -> QuimbOptimizer:
        """Make Adam, AdamW or SGD."""
        return QuimbOptimizer(name, **options)


class NumpyWorkspace(Workspace):
    """A workspace that writes results to memory that was used before."""

    def __init__(self, keep_bytes: int | None = None) -> None:
        self._largest = math.inf if keep_bytes is None else keep_bytes // 4

    def matmul(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Compute ``x @ y``."""
        shape = (*x.shape[:-1], y.shape[-1])
        if math.prod(shape) * x.itemsize < SMALLEST:
            return np.matmul(x, y)
        return np.matmul(x, y, out=self._empty(shape, x.dtype))

    def packed(self, x: np.ndarray, shape: Shape) -> np.ndarray:
        """Reshape ``x``, with a copy where its entries are not stored in this order."""
        if x.flags.c_contiguous or x.nbytes < SMALLEST:
            return x.reshape(shape)
        out = self._empty(x.shape, x.dtype)
        np.copyto(out, x)
        return out.reshape(shape)

    def activate(self, sigma: Elementwise, z: np.ndarray) -> np.ndarray:
        """Compute an activation; SiLU, the default one, with one array instead of five."""
        if sigma.name != "silu":
            return super().activate(sigma, z)
        out = self._sigmoid(z)
        out *= z
        return out

    def activate_vjp(self, sigma: Elementwise, z: np.ndarray, xbar: np.ndarray) -> np.ndarray:
        """Compute the adjoint of an activation; that of SiLU with two arrays."""
        if sigma.name != "silu":
            return super().activate_vjp(sigma, z, xbar)
        s = self._sigmoid(z)
        out = np.subtract(1.0, s, out=self._empty(z.shape, z.dtype))  # s (1 + z (1 - s))
        out *= z
        out += 1.0
        out *= s
        out *= xbar
        return out

    def _empty(self, shape: Shape, dtype: Any) -> np.ndarray:
        return POOL.empty(shape, dtype, self._largest)

    def _sigmoid(self, z: np.ndarray) -> np.ndarray:
        out = np.multiply(z, 0.5, out=self._empty(z.shape, z.dtype))
        np.tanh(out, out=out)
        out *= 0.5
        out += 0.5
        return out


class QuimbOptimizer:
    """An optimizer of :mod:`quimb.tensor.optimize` that takes one step at a time, on one flat vector.

    quimb's optimizers are written for ``scipy.optimize.minimize``; with ``maxiter=1`` and a fixed gradient they take
    one step and remember their moments. AdamW is Adam after a decoupled weight decay (Loshchilov and Hutter 2019,
    arXiv:1711.05101).
    """

    def __init__(
        self,
        name: str,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        self.name = name
        self.betas = {"beta1": beta1, "beta2": beta2, "eps": eps}
        self.momentum = momentum
        self.weight_decay = weight_decay

    def init(self, params: Params) -> Any:
        """Make a new quimb optimizer, which is the state."""
        from quimb.tensor.optimize import ADAM, SGD

        return SGD() if self.name == "sgd" else ADAM()

    def step(self, params: Params, grads: Params, state: Any, lr: float) -> tuple[Params, Any]:
        """Take one step."""
        x, g = _flat(params), _flat(grads)
        if self.weight_decay:
            x = x * x.dtype.type(1.0 - lr * self.weight_decay)
        if self.name == "sgd":
            # quimb damps the gradient by 1 - mass; the usual heavy ball does not
            options = {"mass": self.momentum, "learning_rate": lr / (1.0 - self.momentum)}
        else:
            options = {**self.betas, "learning_rate": lr}
        result = state(lambda _: 0.0, x, lambda _: g, maxiter=1, **options)
        return _unflat(result.x, params), state

    def snapshot(self, params: Params) -> Params:
        """Return the parameters themselves, as steps make new arrays."""
        return params

    def export_state(self, state: Any) -> dict[str, np.ndarray]:
        """Return the moments and the step count."""
        moments = {"velocity": state._velocity} if self.name == "sgd" else {"m": state._m, "v": state._v}
        return {"step": np.asarray(state._i), **{k: x for k, x in moments.items() if x is not None}}

    def import_state(self, params: Params, arrays: dict[str, np.ndarray]) -> Any:
        """Rebuild the state from the moments and the step count."""
        state = self.init(params)
        state._i = int(arrays["step"])
        for key, x in arrays.items():
            if key != "step":
                setattr(state, f"_{key}", x)
        return state


def _flat(params: Params) -> np.ndarray:
    return np.concatenate([np.ravel(params[name]) for name in sorted(params)])


def _unflat(x: np.ndarray, like: Params) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    at = 0
    for name in sorted(like):
        size = like[name].size
        out[name] = x[at : at + size].reshape(like[name].shape).astype(like[name].dtype, copy=False)
        at += size
    return out


_check: type[Backend] = NumpyBackend
