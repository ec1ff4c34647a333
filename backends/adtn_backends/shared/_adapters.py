"""What adapters of all frameworks have in common: adding, naming, switching and removing them, and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any, TypeVar

from adtn import Generator
from adtn.compression import load_layers, save_layers
from adtn.errors import CompressError

M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class Modules:
    """How modules of a framework are found, read and replaced.

    Parameters
    ----------
    adapted : type
        The class of layers with adapters.
    wrap : callable
        ``wrap(dense)``, a dense layer as one that has no adapter yet.
    places : callable
        ``places(model)``, modules by name, those at several places under each of their names.
    at : callable
        ``at(model, name)``, the module of one name.
    put : callable
        ``put(model, name, module)``, in place of what is there.
    parameters : callable
        ``parameters(module)``, its own ones that an adapter changes when it is merged.
    generated : callable
        ``generated(generator, dense)``, a generated weight beside a dense layer.
    """

    adapted: type
    wrap: Callable[[Any], Any]
    places: Callable[[Any], Mapping[str, Any]]
    at: Callable[[Any, str], Any]
    put: Callable[[Any, str, Any], None]
    parameters: Callable[[Any], Iterable[Any]]
    generated: Callable[[Generator, Any], Any]

    def layers(self, model: Any) -> list[tuple[str, Any]]:
        """Adapted layers of a model by name, each once."""
        named: dict[int, tuple[str, Any]] = {}
        for name, module in self.places(model).items():
            if isinstance(module, self.adapted):
                named.setdefault(id(module), (name, module))
        return list(named.values())

    def dense(self, module: Any) -> Any:
        """The dense layer, without its adapters."""
        return module.base_layer if isinstance(module, self.adapted) else module


@singledispatch
def modules_for(model: Any) -> Modules:
    """How modules of a model are found; frameworks register theirs.

    Raises
    ------
    CompressError
        If the model is of no framework that was imported.
    """
    raise CompressError(f"Got {type(model).__name__}; expected a torch.nn.Module or a flax.nnx.Module.")


def adapter_names(model: Any) -> list[str]:
    """Names of all adapters in a model."""
    return sorted({name for _, layer in modules_for(model).layers(model) for name in layer.adapters})


def set_adapter(model: Any, *names: str) -> None:
    """Switch to one adapter, to several together, or to none: the dense model.

    What is active is static: functions that :func:`flax.nnx.jit` or :func:`torch.compile` compiled are compiled again.

    Raises
    ------
    CompressError
        If a name is unknown; nothing is switched then.
    """
    known = adapter_names(model)
    unknown = set(names) - set(known)
    if unknown:
        raise CompressError(f"Got adapters {sorted(unknown)}; the model has {known}.")
    for _, layer in modules_for(model).layers(model):
        layer.unmerge()
        layer.active = tuple(n for n in names if n in layer.adapters)


def merge_adapters(model: Any) -> None:
    """Put the active adapters into the dense weights: inference costs what it cost before."""
    for _, layer in modules_for(model).layers(model):
        layer.merge()


def unmerge_adapters(model: Any) -> None:
    """Take the adapters out again: the dense weights are as they were, to the bit."""
    for _, layer in modules_for(model).layers(model):
        layer.unmerge()


def remove_adapters(model: Any) -> Any:
    """Put the dense layers back, with adapters merged in where they are merged.

    Returns
    -------
    torch.nn.Module or flax.nnx.Module
        The model, or the dense layer where the model itself is a layer with adapters.

    Raises
    ------
    CompressError
        If a merged adapter would have to stay in a weight that is computed; nothing is changed then.
    """
    modules = modules_for(model)
    places = [(name, module) for name, module in modules.places(model).items() if isinstance(module, modules.adapted)]
    for _, layer in places:
        layer.check_stay()
    for name, layer in places:
        layer.stay()
        if not name:
            return layer.base_layer
        modules.put(model, name, layer.base_layer)
    return model


def add_adapter(model: M, generators: Mapping[str, Generator], name: str = "default") -> M:
    """Add generated weights to layers of a model, in place; returns the model.

    Parameters
    ----------
    model : torch.nn.Module or flax.nnx.Module
    generators : mapping of str to Generator
        By name of the layer; weights as in PyTorch, ``(n_out, n_in, ...)``.
    name : str
        Of the adapter, which becomes the active one.

    Raises
    ------
    CompressError, LayoutError
        If a layer is missing or has no generated form, or the shapes differ. Nothing is changed then.
    """
    if "" in generators:
        raise CompressError("Got an adapter for the model itself, which has no place; use Adapted(model).add(...).")
    modules = modules_for(model)
    places = modules.places(model)
    for where in generators:
        if where not in places:
            raise CompressError(f"Got an adapter for {where!r}, which {type(model).__name__} does not have.")
    made = {where: _adapted(modules, places, where, name, generator) for where, generator in generators.items()}
    for where, layer in made.items():
        if isinstance(places[where], modules.adapted):
            places[where].unmerge()
        modules.put(model, where, layer)
    for _, layer in modules.layers(model):  # what the new adapter does not touch is dense
        layer.active = (name,) if name in layer.adapters else ()
    return model


def _adapted(modules: Modules, places: Mapping[str, Any], where: str, name: str, generator: Generator) -> Any:
    """A layer with the adapters that it has, and another one."""
    module = places[where]
    dense = modules.dense(module)
    _refuse_ties(modules, places, where, dense)
    layer = modules.wrap(dense)
    if isinstance(module, modules.adapted):
        for other in module.adapters:
            layer.adapters[other] = module.adapters[other]
    layer.add(name, modules.generated(generator, dense))
    return layer


def _refuse_ties(modules: Modules, places: Mapping[str, Any], where: str, dense: Any) -> None:
    """Refuse a layer whose adapter, when it is merged, would change what shares the weight, too."""
    own = {id(p) for p in modules.parameters(dense)}
    others = [
        name
        for name, module in places.items()
        if name not in (where, f"{where}.base_layer") and own & {id(p) for p in modules.parameters(module)}
    ]
    if others:
        raise CompressError(f"Layer {where!r} shares its weight with {', '.join(others)}; it cannot be adapted alone.")


def adapter_generators(model: Any, name: str = "default") -> dict[str, Generator]:
    """Generators of one adapter with the parameters as they are now, by layer.

    Raises
    ------
    CompressError
        If there is none of that name.
    """
    layers = modules_for(model).layers(model)
    made = {where: layer.adapters[name].generated.generator() for where, layer in layers if name in layer.adapters}
    if not made:
        raise CompressError(f"Got the adapter name {name!r}; the model has {adapter_names(model)}.")
    return made


def save_adapter(model: Any, folder: str | Path, name: str = "default", dtype: Any = None) -> None:
    """Save one small file per layer, and nothing of the dense model; ``dtype`` as of :func:`adtn.save`."""
    save_layers(folder, adapter_generators(model, name), dtype)


def load_adapter(model: M, folder: str | Path, name: str = "default") -> M:
    """Add what :func:`save_adapter` wrote, in any framework where layers have the same names; returns the model.

    Raises
    ------
    CompressError
        If the folder holds no adapter.
    """
    return add_adapter(model, load_layers(folder, "adapter; pass a folder that save_adapter wrote"), name)
