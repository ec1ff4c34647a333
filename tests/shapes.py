"""A pytest plugin that checks annotated shapes at every call.

Use it as ``PYTHONPATH=tests python -m pytest -p shapes tests/test_permutation.py``.

Load it before anything imports adtn. Functions whose annotations name shapes (``Float[Array, "n_out n_in"]``, see
``adtn/_typing.py``) are wrapped as soon as their module has run; jaxtyping and beartype check all of their arguments
and results with such an annotation. ``CALLS`` counts the calls by function and framework.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

KINDS = {"Bool": jaxtyping.Bool, "Float": jaxtyping.Float, "Int": jaxtyping.Int, "Shaped": jaxtyping.Shaped}
PACKAGES = ("adtn", "adtn_backends")
OUT = "ADTN_SHAPES_OUT"
"""The environment variable with the path of a JSON file, to which the counts are written after the tests."""
CALLS: defaultdict[str, Counter[str]] = defaultdict(Counter)
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is accepted as a float


def shaped(annotation: object) -> bool:
    """Return whether an annotation, a string as in all modules, names a shape."""
    return isinstance(annotation, str) and any(f"{kind}[" in annotation for kind in KINDS)


def checked(function: types.FunctionType) -> Callable[..., Any]:
    """Wrap a function; its annotations are evaluated at the first call, when all modules are loaded."""
    name = f"{function.__module__}.{function.__qualname__}"
    CALLS[name]  # listed, though never called

    @functools.cache
    def checking() -> Callable[..., Any]:
        space = {**inspect.unwrap(function).__globals__, **KINDS}
        signature, nothing = inspect.signature(function), inspect.Parameter.empty

        def evaluated(annotation: object) -> object:
            return eval(str(annotation), space) if shaped(annotation) else nothing

        parameters = [p.replace(annotation=evaluated(p.annotation)) for p in signature.parameters.values()]
        signature = signature.replace(parameters=parameters, return_annotation=evaluated(signature.return_annotation))

        def same(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        same.__module__, same.__qualname__, same.__signature__ = function.__module__, name, signature  # type: ignore[attr-defined]
        return jaxtyping.jaxtyped(same, typechecker=_check)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = checking()(*args, **kwargs)
        for framework in {"any", *(frameworks(x) for x in (result, *args, *kwargs.values()))} - {""}:
            CALLS[name][framework] += 1
        return result

    return wrapper


def frameworks(x: Any) -> str:
    """Name the framework of the first array in an argument."""
    if hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, type):
        return type(x).__module__.partition(".")[0].removesuffix("lib")
    values = x.values() if isinstance(x, Mapping) else x if isinstance(x, list | tuple) else ()
    return next((name for name in map(frameworks, values) if name), "")


def wrap_all(module: types.ModuleType) -> None:
    """Wrap the functions and classes that a module defines."""
    for holder in (module, *(x for x in vars(module).values() if isinstance(x, type))):
        for name, value in list(vars(holder).items()):
            if getattr(holder, "__module__", module.__name__) == module.__name__ and (new := wrapped(value, module)):
                setattr(holder, name, new)


def wrapped(value: Any, module: types.ModuleType) -> Any:
    """Return a checked function, or nothing if there is nothing to check."""
    if isinstance(value, classmethod | staticmethod):
        inner = wrapped(value.__func__, module)
        return inner and type(value)(inner)
    if isinstance(value, property):
        inner = value.fget and wrapped(value.fget, module)
        return inner and property(inner, value.fset, value.fdel, value.__doc__)
    if (
        inspect.isfunction(value)
        and value.__module__ == module.__name__
        and any(map(shaped, value.__annotations__.values()))
    ):
        return checked(value)
    return None


class Finder(importlib.abc.MetaPathFinder):
    """A finder of the project's modules, which wraps their functions as soon as they are defined."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in PACKAGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                run(module)
                wrap_all(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def pytest_unconfigure() -> None:
    if OUT in os.environ:
        Path(os.environ[OUT]).write_text(json.dumps(CALLS))


early = sorted(name for name in sys.modules if name.partition(".")[0] in PACKAGES)
if early:
    raise ImportError(f"Got {early[0]} imported already; load this plugin with -p, before anything imports adtn.")
sys.meta_path.insert(0, Finder())
