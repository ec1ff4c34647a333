"""Functions that PyTorch lacks under their NumPy names or on MPS, registered with autoray when this is imported."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import autoray
import torch
from adtn.layout import Permutation, index_on

_OF_TENSORS = (
    "arctan2 atan2 copysign fmax fmin heaviside hypot ldexp logaddexp logaddexp2 logical_and logical_or logical_xor "
    "maximum minimum nextafter"
)
_OTHER_NAMES: dict[str, Callable[..., Any]] = {
    "cbrt": lambda x: torch.sign(x) * torch.abs(x) ** (1.0 / 3.0),
    "degrees": torch.rad2deg,
    "fabs": torch.abs,
    "mod": torch.remainder,
    "radians": torch.deg2rad,
    "rint": torch.round,
}


def _of_numbers(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that accepts numbers besides a tensor, as NumPy's and JAX's do."""

    @wraps(fn)
    def call(*args: Any) -> Any:
        like = next(x for x in args if isinstance(x, torch.Tensor))
        return fn(*(x if isinstance(x, torch.Tensor) else like.new_tensor(x) for x in args))

    return call


def _not_on_mps(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that runs on the CPU instead of MPS, which lacks it."""

    @wraps(fn)
    def call(*args: Any) -> Any:
        device = args[0].device
        if device.type != "mps":
            return fn(*args)
        found = fn(*(x.cpu() for x in args))
        return tuple(x.to(device) for x in found) if isinstance(found, tuple) else found.to(device)

    return call


@index_on.register("torch")
def _index(x: torch.Tensor, permutation: Permutation, inverse: bool) -> torch.Tensor:
    """Return the index on the device of ``x``, to which it is copied once."""
    if torch.compiler.is_compiling():  # compilers treat NumPy arrays as tensors
        return torch.as_tensor(permutation.inverse if inverse else permutation.array).to(x.device)
    return _placed(permutation, inverse, x.device)


@lru_cache(maxsize=64)
def _placed(permutation: Permutation, inverse: bool, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor(permutation.inverse if inverse else permutation.array, device=device)


for _name in _OF_TENSORS.split():
    autoray.register_function("torch", _name, _of_numbers(getattr(torch, _name)))
for _name, _fn in _OTHER_NAMES.items():
    autoray.register_function("torch", _name, _fn)
for _name in ("qr", "solve"):
    autoray.register_function("torch", f"linalg.{_name}", _not_on_mps(getattr(torch.linalg, _name)))
for _name in dir(torch.special):
    if not _name.startswith("_") and callable(getattr(torch.special, _name)):
        autoray.register_function("torch", f"scipy.special.{_name}", getattr(torch.special, _name))
