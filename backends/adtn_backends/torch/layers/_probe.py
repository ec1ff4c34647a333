"""Bonds as modules: what is on them for an input, and changes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from adtn.backends import get_backend
from adtn.errors import TopologyError
from adtn.weight import Sweep
from torch import nn

from ...shared._bond_names import Patches, checked_value, chosen, patches_of
from ...shared._geometry import check_input
from ._calls import autocasts, in_own_precision
from ._kind import Kind, at
from ._kinds import kind_of_generated
from ._weight import GeneratedWeight

Patch: TypeAlias = torch.Tensor | Callable[[torch.Tensor], torch.Tensor]

_CONTAINER = "bonds"


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


@dataclass(frozen=True, kw_only=True)
class Probed:
    """A generated weight whose products pass its bonds.

    Parameters
    ----------
    weight : GeneratedWeight
    sweep : Sweep
    points : ModuleDict
        A :class:`BondPoint` for every bond.
    """

    weight: GeneratedWeight
    sweep: Sweep
    points: nn.ModuleDict

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply ``(*batch, n_in)`` to ``(*batch, n_out)``."""
        check_input(x.shape, math.prod(self.weight.shape[1:]))
        if x.numel() == 0:  # nothing to see
            return nn.functional.linear(x, self.weight.now().flatten(1))
        batch, rows = x.shape[:-1], x.reshape(-1, x.shape[-1])
        rows = rows.to(self.weight.dtype) if autocasts(x.device) else rows

        def visit(bond: str, value: torch.Tensor) -> torch.Tensor:
            given = value.reshape(*batch, *value.shape[1:])
            return checked_value(bond, self.points[bond](given), given).reshape(value.shape)

        with in_own_precision(x.device):
            y = self.weight(lambda arrays: self.sweep(arrays, rows, visit))
        return y.reshape(*batch, y.shape[-1])


class Probe(Mapping[str, torch.Tensor]):
    """The bonds of a model by names, while it is open; see :func:`adtn.probe`.

    Parameters
    ----------
    model : Module
    names : sequence of str
        Patterns.
    patch : mapping of str to tensor or callable
    """

    def __init__(self, model: nn.Module, names: Sequence[str], patch: Mapping[str, Patch]) -> None:
        if hasattr(model, "_orig_mod"):
            raise TopologyError("Got a compiled model; expected the one from which it is compiled.")
        self.model = model
        self.skipped: dict[str, str] = {}
        self._layers: dict[str, tuple[nn.Module, Kind, dict[str, Probed]]] = {}
        self._found: dict[str, list[torch.Tensor]] = {}
        self._stops: list[Callable[[], None]] = []
        for name, layer, kind in _layers_of(model):
            probed = dict(self._parts(name, layer, kind))
            if probed:
                self._layers[name] = layer, kind, probed
        sizes = {name: point.size for name, point in self._points()}
        self.names = chosen(names, sizes, self.skipped)
        self._patches: Patches = patches_of(patch, sizes)

    def _parts(self, name: str, layer: nn.Module, kind: Kind) -> Iterator[tuple[str, Probed]]:
        for part, own in kind.parts(layer).items():
            full = ".".join(filter(None, (name, part)))
            weight = at(layer, own.generated)
            if _is_replaced(layer, kind):
                self.skipped[full] = f"the forward pass of this {type(layer).__name__} was replaced"
                continue
            if kind.through is None or not isinstance(weight, GeneratedWeight):
                self.skipped[full] = f"a {type(layer).__name__} does not pass its input through the network"
                continue
            structure = weight.structure
            try:
                sweep = Sweep(structure.segments, structure.weighting, get_backend("torch"))
            except TopologyError as error:
                self.skipped[full] = str(error)
                continue
            sizes = sweep.sizes
            points = nn.ModuleDict({bond: BondPoint(sizes[bond]) for bond in sweep.bonds})
            yield part, Probed(weight=weight, sweep=sweep, points=points)

    def _points(self) -> Iterator[tuple[str, BondPoint]]:
        for name, (_, _, probed) in self._layers.items():
            for part, own in probed.items():
                prefix = ".".join(filter(None, (name, _CONTAINER, part)))
                yield from ((f"{prefix}.{bond}", point) for bond, point in own.points.items())  # type: ignore[misc]

    def __enter__(self) -> Probe:
        """Put the bonds into the model."""
        if self._stops:
            raise TopologyError("This probe is open already; close it, or make another one.")
        wanted = {*self.names, *self._patches}
        points = dict(self._points())
        for name, (layer, kind, probed) in self._layers.items():
            prefix = ".".join(filter(None, (name, _CONTAINER)))
            if not any(own.startswith(f"{prefix}.") for own in wanted):
                continue
            if _CONTAINER in dict(layer.named_children()):
                self.close()
                raise TopologyError(f"Another probe is open in {name or 'the model'}; close it first.")
            bonds = probed[""].points if "" in probed else nn.ModuleDict({k: own.points for k, own in probed.items()})
            layer.add_module(_CONTAINER, bonds)
            layer.forward = partial(_passing, kind, layer, probed)  # type: ignore[method-assign]
            self._stops.append(partial(_restored, layer))
        for name, patch in self._patches.items():
            handle = points[name].register_forward_hook(lambda m, args, value, patch=patch: patch(value))
            self._stops.append(handle.remove)
        for name in self.names:
            handle = points[name].register_forward_hook(partial(self._note, name))
            self._stops.append(handle.remove)
        return self

    def _note(self, name: str, point: nn.Module, args: Any, value: torch.Tensor) -> None:
        self._found.setdefault(name, []).append(value)

    def __exit__(self, *_: object) -> None:
        """Take the bonds out of the model; what was found stays."""
        self.close()

    def close(self) -> None:
        """Take the bonds out of the model; what was found stays."""
        stops, self._stops = self._stops, []
        for stop in stops:
            stop()

    def clear(self) -> None:
        """Forget what was found."""
        self._found = {}

    def calls(self, name: str) -> list[torch.Tensor]:
        """Return what was on a bond in all calls of its layer."""
        return list(self._found.get(name, ()))

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return what was on a bond in the last call of its layer, ``(*batch, rest, bond)``."""
        return self._found[name][-1]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of bonds that were passed."""
        return iter(self._found)

    def __len__(self) -> int:
        """Return the number of bonds that were passed."""
        return len(self._found)

    def __repr__(self) -> str:
        """Return a line."""
        return f"<{len(self.names)} bonds of {type(self.model).__name__}, {len(self)} passed>"


def _passing(kind: Kind, layer: nn.Module, probed: dict[str, Probed], *args: Any, **options: Any) -> Any:
    """Apply a layer through its bonds; the dtype of results follows autocast, as it does without."""
    if any(isinstance(x, torch.Tensor) and x.is_nested for x in args):  # without a shape of what is on bonds
        return type(layer).forward(layer, *args, **options)
    assert kind.through is not None
    found = kind.through(layer, probed, *args, **options)
    y = found[0] if isinstance(found, tuple) else found
    if autocasts(y.device):
        y = y.to(torch.get_autocast_dtype(y.device.type))
    return (y, *found[1:]) if isinstance(found, tuple) else y


def _is_replaced(layer: nn.Module, kind: Kind) -> bool:
    """Return whether a subclass, or whoever wrapped the layer, computes something else than the kind does."""
    own = vars(layer).get("forward")
    is_probed = isinstance(own, partial) and own.func is _passing
    return (own is not None and not is_probed) or getattr(kind.generated, "forward", None) is not type(layer).forward


def _restored(layer: nn.Module) -> None:
    layer._modules.pop(_CONTAINER, None)  # pyright: ignore[reportPrivateUsage] # it may have been deleted
    vars(layer).pop("forward", None)


def _layers_of(model: nn.Module) -> Iterator[tuple[str, nn.Module, Kind]]:
    """Return the generated layers of a model; those inside another one belong to it."""
    inside: tuple[str, ...] = ()
    for name, layer in model.named_modules():
        kind = kind_of_generated(layer)
        if kind is None or name.startswith(inside):
            continue
        inside = (*inside, f"{name}." if name else "") if kind.whole else inside
        yield name, layer, kind
