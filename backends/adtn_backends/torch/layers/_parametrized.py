"""Modules with some of their parameters generated, for layers that have no generated form of their own."""

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

from ...shared._passage import NoPassage, Passage
from ._calls import is_traced, refuse_tracers
from ._kind import ONE, Kind, Part, Weights
from ._slice import Weight
from ._transposed import transposed_passage

STANDARD = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.modules.conv._ConvNd)  # pyright: ignore[reportPrivateUsage]
"""Layers whose matrices are weights, in subclasses as well."""


class Parametrized(nn.Module):
    """A module whose own code runs with generated weights in place of parameters.

    It is made by :func:`parametrized`, which derives a class from the class of the module: transposed convolutions,
    recurrent layers, experts stacked in one tensor, subclasses of known layers. Weights are generated once per forward.
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
        with ExitStack() as stack:
            for weight in weights:
                if not weight.made:
                    stack.enter_context(weight.once())
            if not isinstance(self, nn.RNNBase):
                return super().forward(*args, **kwargs)
            # recurrent layers read a list of their weights, so each call, and each thread, has its own copy
            twin = object.__new__(type(self))
            vars(twin).update(vars(self))
            refresh_weight_list(twin)
            return super(Parametrized, twin).forward(*args, **kwargs)

    def to_dense(self) -> nn.Module:
        """Copy the module, with the present weights as parameters."""
        dense = self.blank_dense()
        self.fill_dense(dense, {id(self): dense}, {})
        return dense

    def blank_dense(self) -> nn.Module:
        """Make the dense module without attributes."""
        return object.__new__(self._dense_class)

    def fill_dense(self, dense: nn.Module, memo: dict[int, Any], weights: dict[int, nn.Parameter]) -> None:
        """Copy all attributes to a dense module, and add one parameter for each generated weight.

        Parameters
        ----------
        dense : torch.nn.Module
            A module that :meth:`blank_dense` made.
        memo : dict
            The memo of :func:`copy.deepcopy`.
        weights : dict of int to torch.nn.Parameter
            Parameters by the id of their generated weight; new ones are added.
        """
        attributes = {k: value for k, value in vars(self).items() if k not in ("_flat_weights", "_flat_weight_refs")}
        attributes["_modules"] = {name: m for name, m in self._modules.items() if name != "generated"}
        vars(dense).update(copy.deepcopy(attributes, memo))
        generated: Any = self.generated
        for name, weight in generated.items():
            if id(weight) not in weights:
                trains = weight.trains
                weights[id(weight)] = nn.Parameter(weight.own().detach().clone(), trains)
            dense._parameters[name] = weights[id(weight)]
        refresh_weight_list(dense)

    def _apply(self, fn: Any, recurse: bool = True) -> Parametrized:
        super()._apply(fn, recurse)
        _forget(self)
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {key: value for key, value in vars(self).items() if key != "_flat_weight_refs"}
        return _blank, (self._dense_class, self._generated_names), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def parametrized(dense: nn.Module, weights: Mapping[str, Weight]) -> Parametrized:
    """Make a copy of a module with generated parameters, which shares its children and other parameters.

    Parameters
    ----------
    dense : torch.nn.Module
        The module, which is not changed.
    weights : mapping of str to GeneratedWeight
        Generated weights of the same shapes, by the names of the parameters in the module.

    Raises
    ------
    LayoutError
        If the module has no such parameter, or one of another shape.

    Examples
    --------
    >>> import adtn, torch
    >>> from adtn_backends.torch import GeneratedWeight
    >>> dense = torch.nn.ConvTranspose1d(32, 16, 3)
    >>> layer = parametrized(dense, {"weight": GeneratedWeight(adtn.Generator((32, 16, 3), adtn.TTN(bond=2)))})
    >>> layer(torch.zeros(5, 32, 10)).shape
    torch.Size([5, 16, 12])
    """
    if getattr(dense, "max_norm", None) is not None:
        raise LayoutError(f"Got a {type(dense).__name__} with max_norm, which writes to its weight; leave it out.")
    for name, weight in weights.items():
        parameter = dense._parameters.get(name)  # pyright: ignore[reportPrivateUsage]
        if parameter is None or tuple(parameter.shape) != weight.shape:
            shape = "does not exist" if parameter is None else f"has shape {tuple(parameter.shape)}"
            raise LayoutError(
                f"Got a generator of shape {weight.shape} for {type(dense).__name__}.{name}, which {shape}."
            )
    module = _blank(type(dense), tuple(weights))
    vars(module).update(_shallow(dense))
    for name in weights:
        del module._parameters[name]
    module.generated = nn.ModuleDict(weights)
    _forget(module)
    return module


def refresh_weight_list(module: nn.Module) -> None:
    """Rebuild the list of weights from which recurrent layers read them."""
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]  # pyright: ignore[reportPrivateUsage]
        module._flat_weight_refs = [weakref.ref(weight) for weight in module._flat_weights]  # pyright: ignore[reportPrivateUsage]


def _forget(module: nn.Module) -> None:
    """Clear that list, so that generated weights are freed after a forward."""
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [None] * len(module._flat_weights_names)  # type: ignore[list-item]


def _shallow(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a shallow copy, with its own tables of parameters, buffers and modules."""
    return vars(module) | {key: dict(vars(module)[key]) for key in ("_parameters", "_buffers", "_modules")}


def _blank(dense: type[nn.Module], names: tuple[str, ...]) -> Any:
    """Make a module without attributes, as copies and pickles need it."""
    return object.__new__(_class_of(dense, names))


@lru_cache(maxsize=256)
def _class_of(dense: type[nn.Module], names: tuple[str, ...]) -> type[Parametrized]:
    def generated(name: str) -> property:
        return property(lambda self: self.generated[name].own())

    attributes: dict[str, Any] = {name: generated(name) for name in names}
    attributes |= {"_dense_class": dense, "_generated_names": names}
    return type(f"Parametrized{dense.__name__}", (Parametrized, dense), attributes)


def _matrices(module: nn.Module) -> list[str]:
    """Return the names of a module's own parameters with two or more axes."""
    params = module.named_parameters(recurse=False)
    return [name for name, p in params if p.ndim > 1 and p.is_floating_point()]


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


def _passage(layer: Any) -> Passage | NoPassage:
    names, dense = layer._generated_names, layer._dense_class  # pyright: ignore[reportPrivateUsage]
    known = transposed_passage(dense) if names == ("weight",) else None
    reason = f"{type(layer).__name__} runs its own code with generated weights"
    return known or NoPassage(reason=reason, whole=False)


KINDS = (
    Kind(
        matches=lambda module: True,
        generated=Parametrized,
        build=_build,
        parts=_parts,
        biases=(),
        refusal=_refusal,
        passage=_passage,
        optional=lambda dense: not isinstance(dense, STANDARD),
        tied=lambda dense: isinstance(dense, nn.Linear | nn.Embedding),
        filled_later=True,
    ),
)
"""All other modules that have matrices."""
