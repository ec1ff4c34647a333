"""Adding, switching, merging, removing and saving adapters, for every framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any, TypeVar

from adtn import Generator
from adtn.errors import CompressError

M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class Modules:
    """The functions with which a framework finds, reads and replaces the modules of a model.

    Parameters
    ----------
    adapted : type
        The class of layers with adapters.
    wrap : callable
        ``wrap(dense)`` wraps a dense layer in a layer that has no adapter yet.
    places : callable
        ``places(model)`` returns modules by name; a module at several places is listed under each of its names.
    at : callable
        ``at(model, name)`` returns the module of one name.
    put : callable
        ``put(model, name, module)`` replaces the module of that name.
    parameters : callable
        ``parameters(module)`` returns the module's own parameters that change when an adapter is merged.
    generated : callable
        ``generated(generator, dense)`` makes a generated weight on the device and with the dtype of a dense layer.
    sliced : callable
        ``sliced(generated, start, shape)`` makes the weight of one of the layers that share a generated one.
    """

    adapted: type
    wrap: Callable[[Any], Any]
    places: Callable[[Any], Mapping[str, Any]]
    at: Callable[[Any, str], Any]
    put: Callable[[Any, str, Any], None]
    parameters: Callable[[Any], Iterable[Any]]
    generated: Callable[[Generator, Any], Any]
    sliced: Callable[[Any, int, tuple[int, ...]], Any]

    def layers(self, model: Any) -> list[tuple[str, Any]]:
        """List the adapted layers of a model with their names, each layer once."""
        named: dict[int, tuple[str, Any]] = {}
        for name, module in self.places(model).items():
            if isinstance(module, self.adapted):
                named.setdefault(id(module), (name, module))
        return list(named.values())

    def dense(self, module: Any) -> Any:
        """Return the dense layer, without its adapters."""
        return module.base_layer if isinstance(module, self.adapted) else module


@singledispatch
def modules_for(model: Any) -> Modules:
    """Return the functions for the modules of a model, which its framework registered.

    Raises
    ------
    CompressError
        If the model belongs to none of the frameworks that were imported.
    """
    raise CompressError(f"Got {type(model).__name__}; expected a torch.nn.Module or a flax.nnx.Module.")


def adapter_names(model: Any) -> list[str]:
    """Return the names of all adapters in a model."""
    return sorted({name for _, layer in modules_for(model).layers(model) for name in layer.adapters})


def set_adapter(model: Any, *names: str) -> None:
    """Switch to one adapter, to several together, or to none, which gives the dense model.

    The names of active adapters are static, so functions compiled by :func:`flax.nnx.jit` or :func:`torch.compile` are
    compiled again.

    Raises
    ------
    CompressError
        If a name is unknown; the model is unchanged then.
    """
    existing = adapter_names(model)
    unknown = set(names) - set(existing)
    if unknown:
        raise CompressError(f"Got adapters {sorted(unknown)}; the model has {existing}.")
    for _, layer in modules_for(model).layers(model):
        layer.unmerge()
        layer.active = tuple(n for n in names if n in layer.adapters)


def merge_adapters(model: Any) -> None:
    """Merge the active adapters into the dense weights, so that inference costs the same as without adapters."""
    for _, layer in modules_for(model).layers(model):
        layer.merge()


def unmerge_adapters(model: Any) -> None:
    """Take merged adapters out again and restore the dense weights, bit for bit."""
    for _, layer in modules_for(model).layers(model):
        layer.unmerge()


def remove_adapters(model: Any) -> Any:
    """Put the dense layers back; adapters that are merged stay in their weights.

    Returns
    -------
    torch.nn.Module or flax.nnx.Module
        The model, or the dense layer where the model itself is a layer with adapters.

    Raises
    ------
    CompressError
        If a merged adapter would have to stay in a weight that is computed; the model is unchanged then.
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
    """Add an adapter, a generated weight for each of several layers, to a model in place; return the model.

    Parameters
    ----------
    model : torch.nn.Module or flax.nnx.Module
        The model; its dense weights are not changed.
    generators : mapping of str to Generator
        Generators by the name of the layer; the axes of weights are those of PyTorch, ``(n_out, n_in, ...)``.
    name : str
        The name of the adapter, which becomes the active one.

    Raises
    ------
    CompressError, LayoutError
        If a layer is missing or has no generated form, or the shapes differ; the model is unchanged then.
    """
    if "" in generators:
        raise CompressError(
            "Got an adapter for the model itself, which cannot be replaced in place; use Adapted(model).add(...)."
        )
    modules = modules_for(model)
    places = modules.places(model)
    for where in generators:
        if where not in places:
            raise CompressError(f"Got an adapter for {where!r}, which {type(model).__name__} does not have.")
    adapted = {where: _adapted(modules, places, where, name, generator) for where, generator in generators.items()}
    for where, layer in adapted.items():
        if isinstance(places[where], modules.adapted):
            places[where].unmerge()
        modules.put(model, where, layer)
    for _, layer in modules.layers(model):  # layers without the new adapter become dense
        layer.active = (name,) if name in layer.adapters else ()
    return model


def _adapted(modules: Modules, places: Mapping[str, Any], where: str, name: str, generator: Generator) -> Any:
    """Make a layer that has the adapters of the present one, and the new adapter."""
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
    """Refuse a layer that shares its weight: a merged adapter would change the other layers as well."""
    parameters = {id(p) for p in modules.parameters(dense)}
    others = [
        name
        for name, module in places.items()
        if name not in (where, f"{where}.base_layer") and parameters & {id(p) for p in modules.parameters(module)}
    ]
    if others:
        raise CompressError(f"Layer {where!r} shares its weight with {', '.join(others)}; it cannot be adapted alone.")


def adapter_generators(model: Any, name: str = "default") -> dict[str, Generator]:
    """Return the generators of one adapter by layer, with the present parameters.

    Raises
    ------
    CompressError
        If there is no adapter of that name.
    """
    layers = modules_for(model).layers(model)
    by_layer = {where: layer.adapters[name].generated.generator() for where, layer in layers if name in layer.adapters}
    if not by_layer:
        raise CompressError(f"Got the adapter name {name!r}; the model has {adapter_names(model)}.")
    return by_layer


def save_adapter(model: Any, folder: str | Path, name: str = "default", dtype: Any = None) -> None:
    """Save an adapter as one small file per layer, without the dense model; for ``dtype`` see :func:`adtn.save`."""
    from adtn.compression import save_layers  # late: layers alone need no whole models

    save_layers(folder, adapter_generators(model, name), dtype)


def load_adapter(model: M, folder: str | Path, name: str = "default") -> M:
    """Add an adapter that :func:`save_adapter` wrote to a model, and return the model.

    The framework may be another one, as long as layers have the same names.

    Raises
    ------
    CompressError
        If the folder holds no adapter.
    """
    from adtn.compression import load_layers  # late: layers alone need no whole models

    return add_adapter(model, load_layers(folder, "adapter; pass a folder that save_adapter wrote"), name)
