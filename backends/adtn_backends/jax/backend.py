"""The JAX backend, for the CPU, GPUs and TPUs, with optimizers from optax."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from adtn._checks import shown
from adtn._typing import Params
from adtn.backends import Backend, DeviceInfo, Differentiable, Workspace
from adtn.errors import DeviceError, FitError, missing
from jax.core import Tracer

from ..shared._memory import host_memory_bytes


def _x64(dtype: str) -> AbstractContextManager[Any]:
    """Switch on JAX's 64-bit mode, which float64 needs, inside this block only."""
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()


def describe(device: Any) -> DeviceInfo:
    """Describe one JAX device, or a stand-in for it."""
    stats = (device.memory_stats() or {}) if device.platform != "cpu" else {}
    memory = host_memory_bytes() if device.platform == "cpu" else stats.get("bytes_limit")
    name = f"jax:{device.platform}" if device.platform == "cpu" else f"jax:{device.platform}:{device.id}"
    dtypes = ("float64", "float32", "bfloat16", "float16")
    return DeviceInfo(
        name=name, description=f"JAX {jax.__version__} {device.device_kind}", memory_bytes=memory, dtypes=dtypes
    )


class JaxBackend:
    """The backend for JAX arrays on all its devices."""

    name = "jax"
    compiles = True
    dialect = None
    fused = frozenset[str]()  # not needed: XLA fuses elementwise operations itself
    scratch_bytes = 24 << 20  # measured: 20 to 23 MiB above the arrays of a streamed fit

    def owns(self, kind: type) -> bool:
        """Return whether a type is one of JAX's arrays, including traced ones."""
        return issubclass(kind, jax.Array | Tracer)

    def shares_memory(self, device: str) -> bool:
        """Return false, as XLA makes its own copies."""
        return False

    def devices(self) -> list[DeviceInfo]:
        """List the CPU and, where the plug-in is installed, GPUs."""
        cpu = describe(jax.devices("cpu")[0])
        devices = [cpu]
        try:
            devices += [describe(d) for d in jax.devices("gpu")]
        except RuntimeError:
            reason = "this JAX has no GPU plug-in: pip install 'jax[cuda13]'"
            devices.append(DeviceInfo(name="jax:gpu:0", description="GPU", usable=False, reason=reason))
        return devices

    def asarray(self, x: np.ndarray, device: str, dtype: str | None, *, copy: bool = True) -> jax.Array:
        """Make a new array that is committed to the device."""
        platform, _, index = device.partition(":")
        # labels are often int64, which JAX supports in 64-bit mode only
        target = dtype or jax.dtypes.canonicalize_dtype(x.dtype)
        with _x64(dtype or ""):
            host = np.array(x) if copy else np.asarray(x)
            return jax.device_put(jnp.asarray(host, dtype=target), jax.devices(platform)[int(index or 0)])

    def to_numpy(self, x: jax.Array) -> np.ndarray:
        """Copy an array to the host."""
        with _x64(str(x.dtype)):
            return np.array(x.astype("float32") if x.dtype == jnp.bfloat16 else x)

    def device_of(self, x: jax.Array) -> str:
        """Return the device of an array, such as ``"cpu"`` or ``"gpu:0"``."""
        device = next(iter(x.devices()))
        return "cpu" if device.platform == "cpu" else f"{device.platform}:{device.id}"

    def dtype_of(self, x: jax.Array) -> str:
        """Return the name of the dtype."""
        return str(x.dtype)

    def value_and_grad(self, fn: Callable[..., Any]) -> Callable[..., tuple[Any, tuple[Any, ...]]]:
        """Differentiate in reverse mode, with respect to the weight and the extra parameters."""

        def loss_of(*args: Any) -> Any:
            loss = fn(*args)
            if not hasattr(loss, "dtype") or jnp.shape(loss) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
                raise FitError(f"Got {shown(loss)} from the function of a task (target=); expected one real number.")
            return loss

        def run(weight: Any, extra: Params | None, *batch: Any) -> tuple[Any, tuple[Any, ...]]:
            if extra is None:
                loss, grad = jax.value_and_grad(loss_of)(weight, *batch)
                return loss, (grad,)
            return jax.value_and_grad(loss_of, argnums=(0, 1))(weight, dict(extra), *batch)

        return run

    def compile(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile with ``jax.jit``, in 64-bit mode if an argument is float64; GPUs do not use TF32."""
        jitted = jax.jit(fn)

        def run(*args: Any) -> Any:
            wide = any(getattr(x, "dtype", None) == np.float64 for x in jax.tree.leaves(args))
            with self.scope("float64" if wide else "float32"):
                return jitted(*args)

        return run

    @contextmanager
    def scope(self, dtype: str) -> Generator[None, None, None]:
        """Switch on 64-bit mode for float64, and switch off TF32 on GPUs, for compiled code and other code."""
        with _x64(dtype), jax.default_matmul_precision("highest"):
            yield

    def threads(self, flops: float) -> AbstractContextManager[Any]:
        """Return an empty context, as XLA chooses the number of threads."""
        return nullcontext()

    def synchronize(self, device: str, result: Any = None) -> None:
        """Wait until everything that was dispatched is done."""
        platform, _, index = device.partition(":")
        if result is not None:
            jax.block_until_ready(result)
            return
        jax.device_put(0.0, jax.devices(platform)[int(index or 0)]).block_until_ready()

    def with_vjp(self, layer: Differentiable) -> Callable[..., Any]:
        """Compile the layer with its own adjoint, by ``jax.custom_vjp``."""
        custom = jax.custom_vjp(layer)

        def forward(arrays: Params, x: Any) -> tuple[Any, Any]:
            y, tape = layer.with_tape(arrays, x)
            return y, (tape, arrays, x)

        def backward(saved: Any, cotangent: Any) -> tuple[Any, Any]:
            tape, arrays, x = saved
            grads, xbar = layer.pullback(tape, arrays, x, cotangent)  # XLA removes what is not used
            return {k: grads[k] if k in grads else jnp.zeros_like(a) for k, a in arrays.items()}, xbar

        custom.defvjp(forward, backward)
        return self.compile(custom)

    def workspace(self, keep_bytes: int | None = None) -> Workspace:
        """Make a workspace that allocates nothing, as XLA plans its own buffers."""
        return Workspace()

    def loop(self, n: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """Run a loop with ``lax.fori_loop``."""
        return jax.lax.fori_loop(0, n, body, carry)

    def take(self, x: Any, i: Any) -> Any:
        """Take one entry of the first axis, by a dynamic slice."""
        return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)

    def put(self, x: Any, i: Any, y: Any) -> Any:
        """Replace one entry of the first axis in a new array; in compiled code XLA does so in place."""
        return jax.lax.dynamic_update_index_in_dim(x, y, i, 0)

    def add_at(self, x: Any, i: Any, y: Any) -> Any:
        """Add to one entry of the first axis in a new array; in compiled code XLA does so in place."""
        return jax.lax.dynamic_update_index_in_dim(x, self.take(x, i) + y, i, 0)

    def add(self, x: Any, y: Any) -> Any:
        """Add two arrays."""
        return x + y

    def subtract(self, x: Any, y: Any) -> Any:
        """Subtract two arrays."""
        return x - y

    def model(self, model: Any, device: str | None) -> Any | None:
        """Wrap a :class:`flax.nnx.Module`; return ``None`` for other objects."""
        try:
            from flax import nnx
        except ImportError as error:
            raise missing("flax", "jax", "models of Flax") from error
        if not isinstance(model, nnx.Module):
            return None
        from ._model import NnxModel

        return NnxModel(model, device)

    def probe(self, model: Any, names: Sequence[str], patch: Mapping[str, Any]) -> Any | None:
        """Return a probe of the bonds of a :class:`flax.nnx.Module`; return ``None`` for other objects."""
        try:
            from flax import nnx
        except ImportError as error:
            raise missing("flax", "jax", "models of Flax") from error
        if not isinstance(model, nnx.Module):
            return None
        from .layers._probe import Probe

        return Probe(model, names, patch)

    def optimizer(self, name: str, **options: float) -> OptaxOptimizer:
        """Make Adam, AdamW or SGD."""
        return OptaxOptimizer(name, **options)


class OptaxOptimizer:
    """A compiled chain of optax transformations, with the learning rate as an argument of every step."""

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
        self.chain, self._step = _optax_chain(name, beta1, beta2, eps, momentum, weight_decay)

    def init(self, params: Params) -> Any:
        """Make the state of the chain."""
        with _x64(_dtype(params)):
            return self.chain.init(dict(params))

    def step(self, params: Params, grads: Params, state: Any, lr: float) -> tuple[Params, Any]:
        """Take one step."""
        dtype = _dtype(params)
        with _x64(dtype):
            return self._step(dict(params), dict(grads), state, jnp.asarray(lr, dtype=dtype))

    def snapshot(self, params: Params) -> Params:
        """Return the parameters themselves, as steps make new arrays."""
        return params

    def export_state(self, state: Any) -> dict[str, np.ndarray]:
        """Return the leaves of the state, numbered."""
        return {str(i): np.array(x) for i, x in enumerate(jax.tree.leaves(state))}

    def import_state(self, params: Params, arrays: dict[str, np.ndarray]) -> Any:
        """Rebuild the state from its numbered leaves."""
        with _x64(_dtype(params)):
            initial = self.init(params)
            leaves = [
                jax.device_put(jnp.asarray(arrays[str(i)], dtype=x.dtype), next(iter(x.devices())))
                for i, x in enumerate(jax.tree.leaves(initial))
            ]
            return jax.tree.unflatten(jax.tree.structure(initial), leaves)


@lru_cache(maxsize=32)  # optimizers with the same options share compiled code
def _optax_chain(
    name: str, beta1: float, beta2: float, eps: float, momentum: float, weight_decay: float
) -> tuple[Any, Any]:
    """Return the chain and its compiled step."""
    adam = optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps)
    chain = {
        "adam": adam,
        "adamw": optax.chain(adam, optax.add_decayed_weights(weight_decay)),
        "sgd": optax.trace(decay=momentum),
    }[name]
    return chain, jax.jit(partial(_optax_step, chain))


def _optax_step(chain: Any, params: Any, grads: Any, state: Any, lr: Any) -> tuple[Any, Any]:
    updates, state = chain.update(grads, state, params)
    return jax.tree.map(lambda p, u: p - lr * u, params, updates), state


def _dtype(params: Params) -> str:
    dtypes = [str(x.dtype) for x in params.values()]
    if not dtypes:
        raise DeviceError("Got no parameters to optimise; the generator has nothing to train.")
    return dtypes[0]


_check: type[Backend] = JaxBackend
