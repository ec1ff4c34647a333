"""The modules and variables of a model by name."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from flax import nnx


def _parts(module: nnx.Module) -> Iterator[tuple[str, Any]]:
    """Yield attributes, or the entries of a list, with their names."""
    yield from ((str(k), v) for k, v in (enumerate(module) if isinstance(module, nnx.List) else vars(module).items()))


def modules_of(model: nnx.Module, name: str = "", inside: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every module with its name, once for each of its places."""
    yield name, model
    for part, value in _parts(model):
        if isinstance(value, nnx.Module) and id(value) not in inside:
            yield from modules_of(value, f"{name}.{part}" if name else part, (*inside, id(model)))


def put_module(model: nnx.Module, name: str, module: Any) -> None:
    """Replace the module at one place."""
    owner, _, leaf = name.rpartition(".")
    parent: Any = dict(modules_of(model))[owner]
    if isinstance(parent, nnx.List):
        parent[int(leaf)] = module
    else:
        setattr(parent, leaf, module)


def params_of(module: nnx.Module) -> list[Any]:
    """List the parameters of a module itself, without those of modules inside it."""
    return [v for _, v in _parts(module) if isinstance(v, nnx.Param)]


def variables_of(model: nnx.Module) -> dict[str, Any]:
    """Return all variables of a model by path, each variable once."""
    variables: dict[int, tuple[str, Any]] = {}
    for name, module in modules_of(model):
        for part, v in _parts(module):
            if isinstance(v, nnx.Variable):
                variables.setdefault(id(v), (f"{name}.{part}" if name else part, v))
    return dict(variables.values())


@contextmanager
def mode_of(model: nnx.Module, *, training: bool) -> Generator[None, None, None]:
    """Call ``model.train()`` or ``model.eval()``, and undo it at the end of this block."""
    flags = ("deterministic", "use_running_average")
    before = [(m, flag, vars(m)[flag]) for _, m in modules_of(model) for flag in flags if flag in vars(m)]
    (model.train if training else model.eval)()
    try:
        yield
    finally:
        for module, flag, value in before:
            setattr(module, flag, value)
