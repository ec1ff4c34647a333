"""The PyTorch backend, for the CPU, CUDA and Apple's MPS, with optimizers from torch.optim."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import autoray
import numpy as np
import torch
from adtn._checks import shown
from adtn._typing import Params, Shape
from adtn.backends import Backend, DeviceInfo, Dialect, Differentiable, Elementwise, Workspace
from adtn.errors import DeviceError, FitError
from torch.nn import functional as F

from ..shared._in_place import InPlace
from ..shared._memory import host_memory_bytes
from ..shared._pool import POOL
from . import _functions as _functions
from ._vjp import differentiable_vjp, must_differentiate

# PyTorch's compiler cannot trace autoray's translation of the arguments of this function,
autoray.register_function("torch", "concatenate", torch.concatenate)
# nor, from 2.14 on, how autoray finds the module of a parameter's class,
autoray.register_backend(torch.nn.Parameter, "torch")
# nor how autoray imports a function at its first use
for _name in ("broadcast_to", "einsum", "index_on", "matmul", "reshape", "sum", "transpose", "zeros_like"):
    autoray.get_lib_fn("torch", _name)

# measured: six products of 256 KiB take 70 us with PyTorch's own memory and 133 us with the pool, those of 512 KiB
# 711 us and 246 us
_SMALLEST = 1 << 19

_DIALECT = Dialect(
    permute="permute",
    products={2: "mm", 3: "bmm"},
    expand="{x}.expand({shape})",
    names={"mm": torch.mm, "bmm": torch.bmm},
)
_aten = torch.ops.aten
# an activation in one pass, and its adjoint (xbar, z) -> zbar in another: launches and passes over memory dominate
_FUSED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "relu": (torch.relu, lambda xbar, z: _aten.threshold_backward(xbar, z, 0)),
    "leaky_relu": (
        lambda z: F.leaky_relu(z, 0.01),
        lambda xbar, z: _aten.leaky_relu_backward(xbar, z, 0.01, False),
    ),
    "silu": (F.silu, _aten.silu_backward),
    "gelu": (F.gelu, _aten.gelu_backward),
    "tanh": (torch.tanh, lambda xbar, z: _aten.tanh_backward(xbar, torch.tanh(z))),
    # linear from 40 on, where exp(-z) is negligible in any dtype
    "softplus": (lambda z: F.softplus(z, 1, 40), lambda xbar, z: _aten.softplus_backward(xbar, z, 1, 40)),
}

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def cuda_devices(cuda: Any) -> list[DeviceInfo]:
    """List the CUDA devices that ``torch.cuda``, or a stand-in for it, reports."""
    if not cuda.is_available():
        reason = (
            "this PyTorch is built without CUDA: install a CUDA build from pytorch.org"
            if torch.version.cuda is None
            else "PyTorch finds no CUDA device: check the driver with nvidia-smi"
        )
        return [DeviceInfo(name="torch:cuda:0", description="CUDA", usable=False, reason=reason)]
    devices: list[DeviceInfo] = []
    for i in range(cuda.device_count()):
        properties = cuda.get_device_properties(i)
        dtypes = ["float64", "float32", "float16"]
        if (properties.major, properties.minor) >= (8, 0):
            dtypes.insert(2, "bfloat16")
        devices.append(
            DeviceInfo(
                name=f"torch:cuda:{i}",
                description=properties.name,
                memory_bytes=properties.total_memory,
                dtypes=tuple(dtypes),
            )
        )
    return devices


def mps_devices(mps_backend: Any, mps: Any, macos: str) -> list[DeviceInfo]:
    """List the MPS device that ``torch.backends.mps`` and ``torch.mps``, or stand-ins for them, report."""
    if not mps_backend.is_available():
        reason = (
            "needs macOS 12.3 or later on Apple silicon"
            if mps_backend.is_built()
            else "this PyTorch is built without MPS: install the macOS arm64 build"
        )
        return [DeviceInfo(name="torch:mps", description="Apple MPS", usable=False, reason=reason)]
    # no float64 on MPS at all; bfloat16 since macOS 14
    newer = int(macos.partition(".")[0] or 0) >= 14
    dtypes = ("float32", "bfloat16", "float16") if newer else ("float32", "float16")
    return [
        DeviceInfo(name="torch:mps", description="Apple MPS", memory_bytes=mps.recommended_max_memory(), dtypes=dtypes)
    ]


class TorchBackend(InPlace):
    """The backend for PyTorch tensors on all its devices."""

    name = "torch"
    compiles = False
    dialect = _DIALECT
    fused = frozenset(_FUSED)
    scratch_bytes = 9 << 20  # measured: 8.3 MiB above the arrays of a streamed fit

    def owns(self, kind: type) -> bool:
        """Return whether a type is a tensor or a subclass."""
        return issubclass(kind, torch.Tensor)

    def shares_memory(self, device: str) -> bool:
        """Return whether the device is the CPU."""
        return device == "cpu"

    def devices(self) -> list[DeviceInfo]:
        """List the CPU, CUDA devices and MPS, usable or not."""
        import platform

        cpu = DeviceInfo(
            name="torch:cpu",
            description=f"PyTorch {torch.__version__}",
            memory_bytes=host_memory_bytes(),
            dtypes=tuple(_DTYPES),
        )
        mps = mps_devices(torch.backends.mps, torch.mps, platform.mac_ver()[0])
        return [cpu, *cuda_devices(torch.cuda), *mps]

    def asarray(self, x: np.ndarray, device: str, dtype: str | None, *, copy: bool = True) -> torch.Tensor:
        """Make a new tensor; it is converted to ``dtype`` before it is copied, as MPS does not support float64."""
        if device.startswith("mps") and dtype == "float64":
            raise DeviceError(
                "Got dtype 'float64' on 'torch:mps', which does not support it. Pass dtype='float32', or use "
                "'torch:cpu'."
            )
        x = np.asarray(x)
        # PyTorch warns about read-only memory of NumPy, although it is not written to
        y = torch.tensor(x) if copy or not x.flags.writeable else torch.from_numpy(np.ascontiguousarray(x))
        return (y if dtype is None else y.to(_DTYPES[dtype])).to(device)

    def to_numpy(self, x: torch.Tensor) -> np.ndarray:
        """Copy a tensor to the host."""
        x = x.detach().cpu()
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy().copy()

    def device_of(self, x: torch.Tensor) -> str:
        """Return the device of a tensor, such as ``"cpu"`` or ``"cuda:0"``."""
        return str(x.device)

    def dtype_of(self, x: torch.Tensor) -> str:
        """Return the name of the dtype."""
        if x.dtype not in _NAMES:
            raise DeviceError(f"Got a tensor of {x.dtype}; expected one of {', '.join(_DTYPES)}. Convert it first.")
        return _NAMES[x.dtype]

    def value_and_grad(self, fn: Callable[..., Any]) -> Callable[..., tuple[Any, tuple[Any, ...]]]:
        """Differentiate in reverse mode, with respect to the weight and the extra parameters."""

        def run(weight: torch.Tensor, extra: Params | None, *batch: Any) -> tuple[Any, tuple[Any, ...]]:
            with torch.enable_grad():
                w = weight.detach().requires_grad_()
                free = {k: v.detach().requires_grad_() for k, v in extra.items()} if extra is not None else None
                loss = fn(w, *batch) if free is None else fn(w, free, *batch)
                leaves = [w] if free is None else [w, *free.values()]
                if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
                    raise FitError(
                        f"Got {shown(loss)} from the function of a task (target=); expected one number that depends on "
                        "the weight."
                    )
                grads = torch.autograd.grad(loss, leaves, allow_unused=True)
            dense = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]
            rest = () if free is None else (dict(zip(free, dense[1:], strict=True)),)
            return loss.detach(), (dense[0], *rest)

        return run

    def compile(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Switch off autograd, as the library computes its own adjoints."""
        return torch.no_grad()(fn)

    def scope(self, dtype: str) -> AbstractContextManager[Any]:
        """Return an empty context."""
        return nullcontext()

    def threads(self, flops: float) -> AbstractContextManager[Any]:
        """Return an empty context, as PyTorch chooses the number of threads."""
        return nullcontext()

    def synchronize(self, device: str, result: Any = None) -> None:
        """Wait for CUDA or MPS."""
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        elif device.startswith("mps"):
            torch.mps.synchronize()

    def with_vjp(self, layer: Differentiable) -> Callable[..., Any]:
        """Wrap the layer in a :class:`torch.autograd.Function` if there is something to differentiate.

        On accelerators, where launches from Python are slow, PyTorch's own backward pass is used for layers that keep a
        tape.
        """

        class Applied(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, names: tuple[str, ...], x: torch.Tensor, *cores: torch.Tensor) -> torch.Tensor:
                y, tape = layer.with_tape(dict(zip(names, cores, strict=True)), x)
                ctx.names = names
                ctx.save_for_backward(x, *cores, *tape)
                return y

            @staticmethod
            def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
                names, (x, *saved) = ctx.names, ctx.saved_tensors
                arrays, tape = dict(zip(names, saved, strict=False)), tuple(saved[len(names) :])
                if must_differentiate(cotangents[0]):
                    return None, *differentiable_vjp(lambda: layer(arrays, x), (x, *arrays.values()), cotangents[0])
                need_x = ctx.needs_input_grad[1]
                with torch.no_grad():
                    grads, xbar = layer.pullback(tape, arrays, x, cotangents[0].contiguous(), need_x=need_x)
                return None, xbar, *(grads.get(name) for name in names)

        def run(arrays: Params, x: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled() and (x.requires_grad or any(a.requires_grad for a in arrays.values())):
                if layer.keeps and x.device.type != "cpu":
                    return layer(arrays, x)
                return Applied.apply(tuple(arrays), x, *arrays.values())  # pyright: ignore[reportReturnType]
            with torch.no_grad():
                return layer(arrays, x)

        return run

    def workspace(self, keep_bytes: int | None = None) -> TorchWorkspace:
        """Make a workspace that uses the pool of the process on the CPU, and PyTorch's allocators elsewhere."""
        return TorchWorkspace(keep_bytes)

    def model(self, model: Any, device: str | None) -> Any | None:
        """Wrap a :class:`torch.nn.Module` or the one in a Hugging Face folder; return ``None`` for other objects."""
        from ._model import TorchModel

        if isinstance(model, Path):
            from .huggingface import RESULT, pretrained

            model = pretrained(model, weights=not any((model / name).exists() for name in RESULT))
        if not isinstance(model, torch.nn.Module):
            return None

        return TorchModel(model, device)

    def probe(self, model: Any, names: Sequence[str], patch: Mapping[str, Any]) -> Any | None:
        """Return a probe of the bonds of a :class:`torch.nn.Module`; return ``None`` for other objects."""
        if not isinstance(model, torch.nn.Module):
            return None
        from .layers._probe import Probe

        return Probe(model, names, patch)

    def decoder(self, model: Any) -> Any | None:
        """Wrap a decoder of transformers, whose caches ``adtn.KVCodec`` codes; return ``None`` for other objects."""
        from ._decoder import decoder_of

        return decoder_of(model)

    def optimizer(self, name: str, **options: float) -> TorchOptimizer:
        """Make Adam, AdamW or SGD."""
        return TorchOptimizer(name, **options)


class TorchWorkspace(Workspace):
    """A workspace that reuses memory on the CPU, where PyTorch allocates large tensors from the system every time."""

    def __init__(self, keep_bytes: int | None = None) -> None:
        self._largest = math.inf if keep_bytes is None else keep_bytes // 4

    def matmul(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Compute ``x @ y``."""
        shape = (*x.shape[:-1], y.shape[-1])
        if self._leaves_alone(x, shape):
            return torch.matmul(x, y)
        return torch.matmul(x, y, out=self._empty(shape, x.dtype))

    def packed(self, x: torch.Tensor, shape: Shape) -> torch.Tensor:
        """Reshape ``x``, with a copy where its entries are not stored in this order."""
        if x.is_contiguous() or self._leaves_alone(x, x.shape):
            return x.reshape(shape)
        return self._empty(x.shape, x.dtype).copy_(x).view(shape)

    def activate(self, sigma: Elementwise, z: torch.Tensor) -> torch.Tensor:
        """Apply an activation, in one pass where PyTorch has it."""
        return _FUSED[sigma.name][0](z) if sigma.name in _FUSED else super().activate(sigma, z)

    def activate_vjp(self, sigma: Elementwise, z: torch.Tensor, xbar: torch.Tensor) -> torch.Tensor:
        """Compute the adjoint of an activation, in one pass where PyTorch has it."""
        return _FUSED[sigma.name][1](xbar, z) if sigma.name in _FUSED else super().activate_vjp(sigma, z, xbar)

    def _empty(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        # made of bytes, as NumPy has no bfloat16
        flat = POOL.empty((math.prod(shape) * dtype.itemsize,), np.uint8, self._largest)
        return torch.from_numpy(flat).view(dtype).view(shape)

    def _leaves_alone(self, x: torch.Tensor, shape: Shape) -> bool:
        if torch.compiler.is_compiling():  # checked first, as reading a size adds a guard
            return True
        small = math.prod(shape) * x.itemsize < _SMALLEST
        return small or torch.is_grad_enabled() or x.device.type != "cpu"


class TorchOptimizer:
    """An optimizer of :mod:`torch.optim`, used through ``init`` and ``step``."""

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
        adam: dict[str, Any] = {"betas": (beta1, beta2), "eps": eps}
        options: dict[str, tuple[Any, dict[str, Any]]] = {
            "adam": (torch.optim.Adam, adam),
            "adamw": (torch.optim.AdamW, {**adam, "weight_decay": weight_decay}),
            "sgd": (torch.optim.SGD, {"momentum": momentum}),
        }
        self.make, self.options = options[name]

    def init(self, params: Params) -> torch.optim.Optimizer:
        """Make a torch optimizer, which is the state, for copies of the parameters in the order of their names."""
        copies = [params[name].detach().clone() for name in sorted(params)]
        return self.make(copies, lr=0.0, **self.options)

    @torch.no_grad()
    def step(
        self, params: Params, grads: Params, state: torch.optim.Optimizer, lr: float
    ) -> tuple[Params, torch.optim.Optimizer]:
        """Take one step."""
        group = state.param_groups[0]
        group["lr"] = lr
        names = sorted(params)
        for name, x in zip(names, group["params"], strict=True):
            if x is not params[name]:
                x.copy_(params[name])
            x.grad = grads[name].reshape(x.shape)
        state.step()
        return dict(zip(names, group["params"], strict=True)), state

    def snapshot(self, params: Params) -> Params:
        """Copy the parameters, as torch.optim works in place."""
        return {name: x.clone() for name, x in params.items()}

    def export_state(self, state: torch.optim.Optimizer) -> dict[str, np.ndarray]:
        """Return the entries of ``state_dict`` as named arrays."""
        out: dict[str, np.ndarray] = {}
        for i, entries in state.state_dict()["state"].items():
            for key, x in entries.items():
                if x is not None:
                    x = torch.as_tensor(x).cpu()
                    out[f"{i}.{key}"] = (x.float() if x.dtype == torch.bfloat16 else x).numpy().copy()
        return out

    def import_state(self, params: Params, arrays: dict[str, np.ndarray]) -> torch.optim.Optimizer:
        """Rebuild the state from named arrays, the inverse of :meth:`export_state`."""
        state = self.init(params)
        moments: dict[int, dict[str, Any]] = {}
        for key, x in arrays.items():
            i, _, field = key.partition(".")
            moments.setdefault(int(i), {})[field] = torch.tensor(x)
        state.load_state_dict({"state": moments, "param_groups": state.state_dict()["param_groups"]})
        return state


_check: type[Backend] = TorchBackend
