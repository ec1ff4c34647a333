"""Permutations of generated weights that move into neighbouring layers of a PyTorch model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator as Generated
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from adtn import Permutation
from adtn._typing import Int
from adtn.errors import LayoutError
from adtn.ordering import Absorption
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ...shared._neighbours import absorb_all
from ...shared._probes import Heads, LinearLayer, OrderedModel, Watch
from .._structures import note_structures, noted_structures
from ._absorb import FIXED_ROTARY
from ._adapted import Adapted
from ._attention import is_attention
from ._kind import at
from ._kinds import kind_of
from ._linear import is_linear
from ._weight import GeneratedWeight


def absorb_orders(model: nn.Module, *inputs: Any, **options: Any) -> Absorption:
    """Move the permutations of generated weights into neighbouring layers, where they cost nothing.

    The neighbours are found by experiments with example inputs: outputs of a layer are permuted, and the inputs of all
    others are compared. A permutation moves if everything that sees it can take it over: hidden units between linear
    layers with elementwise functions between them (also gated ones), channels of values inside each head, heads,
    channels of keys and queries, also where one layer computes several of these, and rotary pairs with the frequencies.
    All others stay, and the layer permutes its inputs or outputs as before; so it is with the residual stream, behind
    normalisations, and for weights that several layers share or that have a base. The model is changed in place; its
    outputs change by rounding only, which is checked with the example, or else the move is undone.

    The frequencies of rotary positions are no part of most checkpoints: after one of kind ``"rotary"``, a saved state
    belongs to a model with the same frequencies.

    Parameters
    ----------
    model : torch.nn.Module
        The model before :func:`torch.compile`.
    *inputs, **options
        An example call, ``model(*inputs, **options)``: several samples, or tokens, of which no two are equal.

    Returns
    -------
    Absorption
        What moved where, how many bits are saved, and why the rest stays.

    Raises
    ------
    LayoutError
        If there is no model or example, the model is compiled, or it answers differently to the same inputs.

    Examples
    --------
    >>> import adtn, torch
    >>> from adtn_backends.torch import ADTNLinear
    >>> found = adtn.einsort(torch.randn(24, 16), ordering="norm", topology="tt", bytes=1100)
    >>> model = torch.nn.Sequential(ADTNLinear(found.generator), torch.nn.GELU(), torch.nn.Linear(24, 5))
    >>> print(absorb_orders(model, torch.randn(7, 16)))
    1 order absorbed, 79.0 bits saved; 1 kept (44.3 bits)
      hidden: 0 outputs -> 2 inputs (79.0 bits)
      kept: 0 inputs (44.3 bits), no layer before it has outputs of this size
    """
    if not isinstance(model, nn.Module):
        raise LayoutError(f"Got a {type(model).__name__} as the model; expected a torch.nn.Module.")
    if not inputs and not options:
        raise LayoutError("Got no example inputs; expected those of a call, absorb_orders(model, x).")
    if hasattr(model, "_orig_mod"):
        raise LayoutError("Got a compiled model; expected the one from which it is compiled. Compile it afterwards.")
    ordered = TorchOrders(model, inputs, options)
    found = absorb_all(ordered)
    ordered.note()
    return found


class TorchOrders(OrderedModel):
    """The linear layers of a PyTorch model."""

    def __init__(self, model: nn.Module, inputs: Sequence[Any], options: Mapping[str, Any]) -> None:
        self.model, self.inputs, self.options = model, inputs, options
        dtypes = {x.dtype for x in (*model.parameters(), *model.buffers()) if x.is_floating_point()}
        self.eps = max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
        owners = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)  # pyright: ignore[reportPrivateUsage]
        self._tied = {key for key, n in owners.items() if n > 1}
        modules = list(model.named_modules())
        self._heads: dict[str, Any] = {name: m for name, m in modules if is_attention(m)}
        hidden = tuple(f"{name}." for name, m in modules if is_attention(m) or isinstance(m, Adapted) or _own(m))
        self._modules = {name: m for name, m in modules if is_linear(m) and not f"{name}.".startswith(hidden)}
        holders = Counter(id(w) for m in self._modules.values() for w in [getattr(m, "generated", m)])
        holders.update(id(getattr(m, "generated", m)) for m in self._heads.values())
        self._shared = {key for key, n in holders.items() if n > 1}

    def layers(self) -> dict[str, LinearLayer]:
        """Return the linear layers, and the projections inside attentions."""
        found = {name: self._layer(m) for name, m in self._modules.items()}
        for name, m in self._heads.items():
            for part, reason in self._parts(name):
                found[part] = self._layer(m if part.endswith("in_proj") else m.out_proj, reason)
        return found

    def _parts(self, name: str) -> list[tuple[str, str]]:
        """Return the names of the projections of an attention, and why they cannot be permuted."""
        m = self._heads[name]
        has_own = m.in_proj_weight is None or m.bias_k is not None
        reason = "its attention has weights of its own for keys" if has_own else ""
        return [(f"{name}.{part}".lstrip("."), reason) for part in ("in_proj", "out_proj")]

    def _layer(self, module: Any, reason: str = "") -> LinearLayer:
        weight = getattr(module, "generated", None)
        if isinstance(weight, GeneratedWeight):
            structure = weight.structure
            if structure.base is not None:
                reason = "its weight has a base, which keeps its order"
            orders: Any = structure.permutations or (None, None)
        else:
            orders = None
            name = "in_proj_weight" if is_attention(module) else "weight"
            x = weight if weight is not None else getattr(module, name)
            if weight is not None or is_parametrized(module) or module._forward_pre_hooks:  # pyright: ignore[reportPrivateUsage]
                reason = "its weight is a part of another one, or is computed from others"
            elif x is not None and id(x) in self._tied:
                reason = "its weight is that of another module as well"
        shape = tuple(weight.shape if weight is not None else _oriented(module).shape)
        if id(weight if weight is not None else module) in self._shared:
            reason = "its weight is that of another layer as well"
        return LinearLayer(n_out=shape[0], n_in=shape[1], orders=orders, reason=reason)

    def attentions(self) -> list[Heads]:
        """List the attentions of PyTorch."""
        heads = self._heads.items()
        return [Heads(into=self._parts(k)[0][0], out=self._parts(k)[1][0], channels=m.head_dim) for k, m in heads]

    def tables(self) -> dict[str, int]:
        """Return the frequencies of rotary positions, unless they change with the length of the input."""
        found: dict[str, int] = {}
        for name, m in self.model.named_modules():
            if getattr(m, "rope_type", "default") in FIXED_ROTARY:
                for key, x in (*m._buffers.items(), *vars(m).items()):  # pyright: ignore[reportPrivateUsage]
                    if isinstance(x, torch.Tensor) and x.ndim == 1 and "freq" in key:
                        found[f"{name}.{key}".lstrip(".")] = len(x)
        return found

    @torch.no_grad()
    def call(self, watch: Watch) -> list[np.ndarray]:
        """Call the model with hooks."""
        handles = [hook for name, m in self._modules.items() for hook in _hooked(m, name, watch)]
        try:
            with _evaluating(self.model):
                return [self.values(x) for x in _tensors(self.model(*self.inputs, **self.options))]
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def gather(self, name: str, axis: int, index: Int[np.ndarray, " n"]) -> None:
        """Permute rows with the bias, or columns."""
        owner, _, part = name.rpartition(".")
        of_heads = self._heads.get(owner) if part in ("in_proj", "out_proj") else None
        module: Any = self._modules[name] if of_heads is None else of_heads if part == "in_proj" else of_heads.out_proj
        is_into = of_heads is not None and part == "in_proj"
        weight = getattr(module, "generated", None)
        if weight is not None:
            weight.permute(axis, Permutation(index))
        else:
            _take(module.in_proj_weight if is_into else _oriented(module), axis, index)
        bias = module.in_proj_bias if is_into else module.bias
        if axis == 0 and bias is not None:
            _take(bias, 0, index)

    @torch.no_grad()
    def gather_table(self, name: str, index: Int[np.ndarray, " n"]) -> None:
        """Permute frequencies."""
        _take(at(self.model, name), 0, index)

    def values(self, x: torch.Tensor) -> np.ndarray:
        """Copy a tensor to the host."""
        return x.detach().double().cpu().numpy()

    def note(self) -> None:
        """Describe the new permutations in the configuration of a transformers model."""
        weights = {name: m for name, m in self.model.named_modules() if isinstance(m, GeneratedWeight)}
        noted = noted_structures(self.model, list(weights))
        owners = {name: weights.get(f"{name}.generated") for name in noted}
        changed = {name: weight.structure for name, weight in owners.items() if weight is not None}
        if changed:
            note_structures(self.model, changed, noted)


def _own(module: nn.Module) -> bool:
    """Return whether a module other than a linear layer has a weight that is generated for all of it."""
    return not is_linear(module) and not isinstance(module, GeneratedWeight) and hasattr(module, "generated")


def _oriented(module: Any) -> torch.Tensor:
    """Return the weight of a dense layer as ``(n_out, n_in)``, a view."""
    return module.in_proj_weight if is_attention(module) else kind_of(module).oriented(module.weight)


def _take(x: torch.Tensor, axis: int, index: Int[np.ndarray, " n"]) -> None:
    x.copy_(x.index_select(axis, torch.tensor(index, device=x.device)))


def _hooked(module: nn.Module, name: str, watch: Watch) -> Iterator[Any]:
    """Let a watch see the inputs and outputs of a layer; its own hooks see what it gives back."""

    def before(_: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if inputs:
            return (watch.before(name, inputs[0]), *inputs[1:]), options
        return inputs, options | {key: watch.before(name, x) for key, x in options.items() if key in ("input", "x")}

    yield module.register_forward_pre_hook(before, with_kwargs=True)
    yield module.register_forward_hook(lambda _, inputs, y: watch.after(name, y))


@contextmanager
def _evaluating(model: nn.Module) -> Generated[None, None, None]:
    """Switch to evaluation mode inside this block."""
    before = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for m, mode in before:
            m.training = mode


def _tensors(outputs: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of real numbers in the outputs of a model."""
    if isinstance(outputs, torch.Tensor):
        yield from [outputs] if outputs.is_floating_point() else []
    elif isinstance(outputs, Mapping):
        yield from (x for value in outputs.values() for x in _tensors(value))
    elif isinstance(outputs, list | tuple):
        yield from (x for value in outputs for x in _tensors(value))
