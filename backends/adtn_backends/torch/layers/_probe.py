"""Bonds as modules: what is on them for an input, and changes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeAlias

import torch
from adtn.backends import get_backend
from adtn.errors import TopologyError
from torch import nn
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

from ...shared._bond_probe import CONTAINER, BondProbe, ProbedLayer, plain_class
from ...shared._passage import NoPassage, Passage, Passed
from ._calls import autocasts, in_own_precision
from ._kind import at
from ._kinds import kind_of_generated
from ._slice import GeneratedSlice
from ._weight import GeneratedWeight

Patch: TypeAlias = torch.Tensor | Callable[[torch.Tensor], torch.Tensor]


class BondPoint(nn.Module):
    """A bond of a generated layer, through which everything on it passes: register a forward hook to see or change it.

    Parameters
    ----------
    size : int
        The dimension of the bond.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def extra_repr(self) -> str:
        """Return the dimension."""
        return str(self.size)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Return ``(*batch, rest, bond)`` as it is."""
        return value


class Probe(BondProbe):
    """The bonds of a model of PyTorch, which are modules while it is open.

    Parameters
    ----------
    model : Module
    names : str or sequence of str
        Patterns.
    patch : mapping of str to tensor or callable
    """

    call: ClassVar[str] = "forward"
    not_seen: ClassVar[str] = "Call the model inside the block; functions that were compiled before it pass no bonds."
    model: nn.Module

    def __init__(self, model: nn.Module, names: str | Sequence[str], patch: Mapping[str, Patch]) -> None:
        if hasattr(model, "_orig_mod"):
            raise TopologyError("Got a compiled model; expected the one from which it is compiled.")
        self._found: dict[str, list[torch.Tensor]] = {}
        self._level = 0
        super().__init__(model, names, patch)

    def places(self) -> Iterable[tuple[str, nn.Module]]:
        """Return all modules of the model with their names, also those that have several."""
        return self.model.named_modules(remove_duplicate=False)

    def passage_of(self, module: nn.Module) -> Passage | NoPassage | None:
        """Return how inputs pass a module, or why they do not; ``None`` if that is up to the modules inside."""
        kind = kind_of_generated(module)
        if kind is None:
            return None
        passage = kind.passage(module)
        if isinstance(passage, NoPassage) and not passage.whole:
            return passage
        # a subclass, or whoever wrapped the layer, computes something else than the kind does
        if "forward" in vars(module) or getattr(kind.generated, "forward", None) is not plain_class(module).forward:
            return NoPassage(reason=f"the forward pass of this {type(module).__name__} was replaced")
        return passage

    def passed(self, layer: nn.Module, path: str, passage: Passage) -> Passed:
        """Return a generated weight of a layer whose products pass its bonds."""
        weight = at(layer, path)
        whole: GeneratedWeight = getattr(weight, "whole", weight)
        return Passed.of(weight, whole.structure, passage.enters, get_backend("torch"))

    def is_weight(self, module: nn.Module) -> bool:
        """Return whether a module is a generated weight or a slice of one."""
        return isinstance(module, GeneratedWeight | GeneratedSlice)

    def opened(self, own: ProbedLayer) -> None:
        """Put modules for the bonds into a layer, with hooks on those that are noted or patched."""
        self._level = _level()
        points = {
            part: nn.ModuleDict({bond: BondPoint(n) for bond, n in passed.sweep.sizes.items()})
            for part, passed in own.parts.items()
        }
        own.layer.add_module(CONTAINER, points[""] if "" in points else nn.ModuleDict(points))
        named = {own.full(part, bond): point for part, inside in points.items() for bond, point in inside.items()}
        for name in named.keys() & self._patches.keys():
            named[name].register_forward_hook(lambda m, args, value, name=name: self.patched(name, value))
        for name in named.keys() & self._noted:
            named[name].register_forward_hook(partial(self._note, name))

    def _note(self, name: str, point: nn.Module, args: Any, value: torch.Tensor) -> None:
        self._found.setdefault(name, []).append(_lowered(value, self._level))

    def closed(self, own: ProbedLayer) -> None:
        """Take the modules out again."""
        own.layer._modules.pop(CONTAINER, None)  # pyright: ignore[reportPrivateUsage] # it may have been deleted

    def without_bonds(self, state: Any) -> Any:
        """Return the state of a probed layer without modules for bonds."""
        modules = {name: module for name, module in state["_modules"].items() if name != CONTAINER}
        return {**state, "_modules": modules}

    def passing(self, own: ProbedLayer) -> Callable[..., Any]:
        """Return the forward pass of a layer that passes its bonds; the dtype of results follows autocast."""

        def forward(layer: Any, *args: Any, **options: Any) -> Any:
            is_nested = any(isinstance(x, torch.Tensor) and x.is_nested for x in args)
            if is_nested or not self.holds(own):  # without a shape of what is on bonds; or called by a wrapper later
                return plain_class(layer).forward(layer, *args, **options)
            products = {part: _product(layer, own, part) for part in own.parts}
            found = own.passage.through(layer, products, *args, **options)
            y = found[0] if isinstance(found, tuple) else found
            if autocasts(y.device):
                y = y.to(torch.get_autocast_dtype(y.device.type))
            return (y, *found[1:]) if isinstance(found, tuple) else y

        return forward

    def clear(self) -> None:
        """Forget what was found."""
        self._found = {}

    def calls(self, name: str) -> list[torch.Tensor]:
        """Return what was on a bond in all calls of its layer."""
        return list(self._found.get(name, ()))

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return what was on a bond in the last call of its layer, ``(*batch, rest, bond)``."""
        return self._found[name][-1] if name in self._found else self.refuse(name)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of bonds that were passed."""
        return iter(self._found)

    def __len__(self) -> int:
        """Return the number of bonds that were passed."""
        return len(self._found)


def _level() -> int:
    """Return how many transforms of ``torch.func`` are around."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    top = functorch.peek_interpreter_stack()
    return 0 if top is None else top.level()


def _lowered(value: torch.Tensor, level: int) -> torch.Tensor:
    """Return a value outside of transforms above a level, with all samples of ``vmap`` along its first axis."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    if (top := _level()) <= level:
        return value
    axis = 0
    if functorch.is_functorch_wrapped_tensor(value) and functorch.maybe_get_level(value) == top:
        axis = functorch.maybe_get_bdim(value) if functorch.is_batchedtensor(value) else 0
        value = functorch.get_unwrapped(value)
    with temporarily_pop_interpreter_stack():  # which would wrap the result again
        return _lowered(value.movedim(axis, 0) if axis else value, level)


def _product(layer: Any, own: ProbedLayer, part: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the product with a weight of a layer, or the lookup of its rows, that passes its bonds."""
    weight, passed = at(layer, own.passage.weights[part]), own.parts[part]

    def visit(bond: str, value: torch.Tensor) -> torch.Tensor:
        return layer.get_submodule(own.full(part, bond).removeprefix(own.name).removeprefix("."))(value)

    def one_hot(digits: torch.Tensor, d: int) -> torch.Tensor:
        return nn.functional.one_hot(digits, d).to(weight.dtype)

    def product(x: torch.Tensor) -> torch.Tensor:
        with in_own_precision(x.device):
            if passed.sweep.enters == "lookup":
                return weight(lambda arrays: passed.rows(arrays, x, one_hot, visit))
            passed.check(x.shape)
            if not x.numel():  # nothing to see
                matrix = weight.now().flatten(1)
                return x @ (matrix.mT if passed.sweep.enters == "columns" else matrix)
            given = x.to(weight.dtype) if autocasts(x.device) else x
            return weight(lambda arrays: passed.product(arrays, given, visit))

    return product
