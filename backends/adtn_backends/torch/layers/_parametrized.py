"""Any module with some of its parameters generated, for layers that have no generated form of their own."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, ClassVar

import torch
from adtn.errors import LayoutError
from torch import nn

from ._calls import is_traced, refuse_tracers
from ._kind import ONE, Kind, Part, Weights
from ._weight import GeneratedWeight

STANDARD = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.modules.conv._ConvNd)
"""Layers whose matrices are their weights, whatever their subclasses make of them."""


class Parametrized(nn.Module):
    """A module whose code runs as it is and finds generated weights where it had parameters.

    Made by :func:`parametrized`, as a class of its own for every class of modules: transposed convolutions, recurrent
    layers, experts that are one tensor, subclasses of known layers. The weights are made once per forward.
    """

    generated: nn.ModuleDict
    _dense_class: ClassVar[type[nn.Module]]
    _generated_names: ClassVar[tuple[str, ...]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the dense module's forward with generated weights."""
        if is_traced():
            try:
                return super().forward(*args, **kwargs)
            finally:
                if not torch.compiler.is_compiling():
                    _forget(self)
        refuse_tracers(self, *args)
        weights: Any = self.generated.values()
        with ExitStack() as made:
            for weight in weights:
                if not weight.made:
                    made.enter_context(weight.once())
            if not isinstance(self, nn.RNNBase):
                return super().forward(*args, **kwargs)
            # recurrent layers look at a list of their weights: each call, and each thread, has its own
            twin = object.__new__(type(self))
            vars(twin).update(vars(self))
            list_again(twin)
            return super(Parametrized, twin).forward(*args, **kwargs)

    def to_dense(self) -> nn.Module:
        """A copy of the module with the weights as they are now."""
        dense = self.blank_dense()
        self.fill_dense(dense, {id(self): dense}, {})
        return dense

    def blank_dense(self) -> nn.Module:
        """The dense module without attributes."""
        return object.__new__(self._dense_class)

    def fill_dense(self, dense: nn.Module, memo: dict[int, Any], weights: dict[int, nn.Parameter]) -> None:
        """Copies of all attributes, and parameters for generated weights, each once.

        Parameters
        ----------
        dense : torch.nn.Module
            From :meth:`blank_dense`.
        memo : dict
            Of :func:`copy.deepcopy`.
        weights : dict of int to torch.nn.Parameter
            By generated weight; others are added.
        """
        own = {key: value for key, value in vars(self).items() if key not in ("_flat_weights", "_flat_weight_refs")}
        own["_modules"] = {name: m for name, m in self._modules.items() if name != "generated"}
        vars(dense).update(copy.deepcopy(own, memo))
        generated: Any = self.generated
        for name, weight in generated.items():
            if id(weight) not in weights:
                trains = any(x.requires_grad for x in weight.arrays().values())
                weights[id(weight)] = nn.Parameter(weight.own().detach().clone(), trains)
            dense._parameters[name] = weights[id(weight)]
        list_again(dense)

    def _apply(self, fn: Any, recurse: bool = True) -> Parametrized:
        super()._apply(fn, recurse)
        _forget(self)
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {key: value for key, value in vars(self).items() if key != "_flat_weight_refs"}
        return _blank, (self._dense_class, self._generated_names), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def parametrized(dense: nn.Module, weights: Mapping[str, GeneratedWeight]) -> Parametrized:
    """A copy of a module with generated parameters; children and other parameters are those of the original.

    Parameters
    ----------
    dense : torch.nn.Module
        Left as it is.
    weights : mapping of str to GeneratedWeight
        By the name of the parameter in the module, of the same shape.

    Raises
    ------
    LayoutError
        If the module has no such parameter, or one of another shape.

    Examples
    --------
    >>> import adtn, torch
    >>> dense = torch.nn.ConvTranspose1d(32, 16, 3)
    >>> layer = parametrized(dense, {"weight": GeneratedWeight(adtn.Generator((32, 16, 3), adtn.TTN(bond=2)))})
    >>> layer(torch.zeros(5, 32, 10)).shape
    torch.Size([5, 16, 12])
    """
    if getattr(dense, "max_norm", None) is not None:
        raise LayoutError(f"Got {type(dense).__name__} with max_norm, which writes to its weight; leave it out.")
    for name, weight in weights.items():
        own = dense._parameters.get(name)
        if own is None or tuple(own.shape) != weight.shape:
            shape = None if own is None else tuple(own.shape)
            raise LayoutError(f"Got a generator of {weight.shape} for {type(dense).__name__}.{name}, which is {shape}.")
    made = _blank(type(dense), tuple(weights))
    vars(made).update(_own(dense))
    for name in weights:
        del made._parameters[name]
    made.generated = nn.ModuleDict(weights)
    _forget(made)
    return made


def list_again(module: nn.Module) -> None:
    """Recurrent layers look at a list that they made of their parameters, and make it anew for other tensors."""
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
        module._flat_weight_refs = [weakref.ref(weight) for weight in module._flat_weights]


def _forget(module: nn.Module) -> None:
    """The list again: what was generated lives as long as a forward."""
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [None] * len(module._flat_weights_names)  # type: ignore[list-item]


def _own(module: nn.Module) -> dict[str, Any]:
    """Attributes of a shallow copy: lists of parts of its own, parts that are shared."""
    return vars(module) | {key: dict(vars(module)[key]) for key in ("_parameters", "_buffers", "_modules")}


def _blank(dense: type[nn.Module], names: tuple[str, ...]) -> Any:
    """A module without attributes, as for copies and pickles."""
    return object.__new__(_class_of(dense, names))


@lru_cache(maxsize=256)
def _class_of(dense: type[nn.Module], names: tuple[str, ...]) -> type[Parametrized]:
    def generated(name: str) -> property:
        return property(lambda self: self.generated[name].own())

    attributes: dict[str, Any] = {name: generated(name) for name in names}
    attributes |= {"_dense_class": dense, "_generated_names": names}
    return type(f"Parametrized{dense.__name__}", (Parametrized, dense), attributes)


def _matrices(module: nn.Module) -> list[str]:
    """Names of a module's own parameters of two and more axes."""
    own = module.named_parameters(recurse=False)
    return [name for name, p in own if p.ndim > 1 and p.is_floating_point()]


def _parts(module: nn.Module) -> Mapping[str, Part]:
    names = _matrices(module)
    return ONE if names == ["weight"] else {name: Part(parameter=name, generated=f"generated.{name}") for name in names}


def _build(dense: nn.Module, weights: Weights, bias: bool) -> Parametrized:
    return parametrized(dense, {part or "weight": weight for part, weight in weights.items()})


def _refusal(dense: Any) -> str:
    if isinstance(dense, nn.Embedding | nn.EmbeddingBag) and dense.max_norm is not None:
        return "max_norm changes its rows in place"
    if not _matrices(dense):
        return f"no generated form of {type(dense).__name__}"
    return "its gradients are sparse" if getattr(dense, "sparse", False) else ""


KINDS = (
    Kind(
        matches=lambda module: True,
        generated=Parametrized,
        build=_build,
        parts=_parts,
        biases=(),
        refusal=_refusal,
        optional=lambda dense: not isinstance(dense, STANDARD),
        tied=lambda dense: isinstance(dense, nn.Linear | nn.Embedding),
        filled_later=True,
    ),
)
"""All other modules, whose matrices can be generated."""
