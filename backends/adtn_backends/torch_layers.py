"""PyTorch modules whose weight is generated: plain parameters, stable keys, no tensor subclasses."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from adtn import Generator
from adtn._backend import get_backend
from adtn._errors import LayoutError
from adtn.schedule import Plan, TiledWeight, decide, generate
from torch import nn

Mode = Literal["materialise", "stream", "factored"]
_BACKEND = get_backend("torch")
_SPACE = _BACKEND.workspace()


class ADTNLinear(nn.Module):
    """``y = x Wᵀ + b`` with W generated from a few trained numbers.

    Parameters
    ----------
    generator : Generator
        Of the weight, ``(n_out, n_in)``; its numbers are the first values.
    bias : array or bool
        ``(n_out,)``, ``True`` for zeros, ``False`` for none.
    mode : {"materialise", "stream", "factored"}, optional
        The scheduler chooses by the batch when not given.

    Raises
    ------
    LayoutError
        If the weight is not a matrix.

    Examples
    --------
    >>> import adtn, torch
    >>> layer = ADTNLinear(adtn.Generator((64, 32), adtn.TTN(bond=2)))
    >>> layer(torch.zeros(5, 32)).shape
    torch.Size([5, 64])
    """

    def __init__(self, generator: Generator, bias: Any = True, mode: Mode | None = None) -> None:
        super().__init__()
        if len(generator.shape) != 2:
            raise LayoutError(f"Got a weight of shape {generator.shape}; a linear layer needs (n_out, n_in).")
        self.out_features, self.in_features = generator.shape
        self.mode = mode
        self._generator = generator
        self._names = {name: name.replace(".", "_") for name in generator.params}
        for name, key in self._names.items():
            self.register_parameter(key, nn.Parameter(torch.tensor(generator.params[name])))
        constants = {name: x for name, x in generator.constants().items() if name not in generator.params}
        self._constants = {name: f"frozen_{name.replace('.', '_')}" for name in constants}
        for name, key in self._constants.items():
            # rebuilt from its rule, so not part of the state
            x = torch.tensor(np.asarray(constants[name], dtype=generator.dtype))
            self.register_buffer(key, x, persistent=False)
        if bias is False:
            self.register_parameter("bias", None)
        else:
            values = np.zeros(self.out_features, generator.dtype) if bias is True else np.asarray(bias, generator.dtype)
            self.bias = nn.Parameter(torch.tensor(values))
        self._whole = _weight_of(decide(generator, "generate", device="torch:cpu"))
        self._plans: dict[tuple[str, str, int], Any] = {}

    def extra_repr(self) -> str:
        """Sizes and topology."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._generator!r}"

    def generator(self) -> Generator:
        """A generator with the numbers as they are now."""
        numbers = {name: getattr(self, key).detach().cpu().float().numpy() for name, key in self._names.items()}
        return self._generator.with_params(numbers)

    def weight(self) -> torch.Tensor:
        """The weight, differentiable."""
        return generate(self._whole, _BACKEND, self._arrays(), _SPACE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., n_in)`` to ``(..., n_out)``."""
        if torch.compiler.is_compiling():  # one graph for every batch
            return nn.functional.linear(x, self.weight(), self.bias)
        rows = x.reshape(-1, self.in_features)
        y = self._layer(rows)(self._arrays(), rows).reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def _arrays(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, key) for name, key in (self._names | self._constants).items()}

    def _layer(self, x: torch.Tensor) -> Any:
        """What runs batches up to the next power of two."""
        device, dtype = f"torch:{_BACKEND.device_of(x)}", _BACKEND.dtype_of(x)
        key = (device, dtype, 1 << max(x.shape[0] - 1, 0).bit_length())
        if key not in self._plans:
            plan = decide(self._generator, "train", device=device, dtype=dtype, batch=key[2], mode=self.mode)
            self._plans[key] = plan.function(_BACKEND)
        return self._plans[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}


def _weight_of(plan: Plan) -> TiledWeight:
    assert plan.weight is not None
    return plan.weight
