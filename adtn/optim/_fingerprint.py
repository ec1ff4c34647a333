"""Fingerprints of problems, which must be the same when interrupted work continues."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from ..backends import backend_of

_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
FORMER = (
    "builtins",
    "abc",
    "typing",
    "functools",
    "numpy",
    "scipy",
    "torch",
    "jax",
    "flax",
    "optax",
    "transformers",
)
"""Libraries of older marks, which depended on what had been computed before: do() of autoray caches in its module."""
LIBRARIES = (*FORMER, "autoray")
_OWN = ("adtn", "adtn_backends")
_DEPTH = 80


def fingerprint(*parts: object, libraries: Sequence[str] = LIBRARIES) -> str:
    """Compute a digest of any objects, the same in every process.

    Parameters
    ----------
    *parts
        Arrays of any framework count by their entries, functions by their code, defaults and closures (and the
        functions, constants and networks of their module that they name), other objects by class and attributes.
        Numbers in a list or set do not count, as they are more often counters and logs than settings.
    libraries : sequence of str
        Packages whose functions count without the objects of their modules, among which are caches that change.
    """
    digest = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part, {}, 0, libraries):
            digest.update(piece)
        digest.update(b"|")
    return digest.hexdigest()


def _pieces(x: Any, seen: dict[int, Any], depth: int, libraries: Sequence[str]) -> Iterator[bytes | memoryview]:
    if isinstance(x, _PLAIN):
        yield f"{type(x).__name__}:{x!r}".encode(errors="surrogateescape")
        return
    if id(x) in seen or depth > _DEPTH:
        yield b"again"
        return
    array = _array(x)
    if array is not None:
        yield f"array:{array.shape}:{array.dtype}".encode()
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        return
    seen[id(x)] = x  # keeps it alive, so that no other object has its id
    into: Callable[[Any], Iterator[Any]] = lambda part: _pieces(part, seen, depth + 1, libraries)  # noqa: E731
    yield type(x).__qualname__.encode()
    if isinstance(x, Mapping):
        for key in sorted(x, key=repr):
            yield repr(key).encode()
            yield from into(x[key])
    elif isinstance(x, tuple):
        for part in x:
            yield from into(part)
    elif isinstance(x, list | Set):
        parts = sorted(x, key=repr) if isinstance(x, Set) else x
        for part in parts:
            if not isinstance(part, _PLAIN) or isinstance(part, str):
                yield from into(part)
    elif isinstance(x, functools.partial):
        yield from into((x.func, x.args, x.keywords))
    elif isinstance(x, MethodType):
        yield from into((x.__func__, x.__self__))
    elif isinstance(wrapped := _attribute(x, "__wrapped__"), FunctionType) and _is_library(x.__module__, libraries):
        yield from into(wrapped)  # a function that a framework compiled
    elif isinstance(x, FunctionType):
        yield from _function(x, into, libraries)
    elif isinstance(x, CodeType):
        yield from _code(x, into)
    elif isinstance(x, type):
        yield from _class(x, into, libraries)
    elif isinstance(x, ModuleType) or inspect.isbuiltin(x):
        yield str(getattr(x, "__qualname__", x.__name__)).encode()
    else:
        yield from into(type(x))
        attributes = _attribute(x, "__dict__")
        # some objects have attributes of every name
        yield from into(dict(attributes) if isinstance(attributes, Mapping) else {})


def _attribute(x: Any, name: str) -> Any:
    try:
        return getattr(x, name, None)
    except Exception:  # some objects look attributes up in a dictionary of theirs, and raise what that raises
        return None


def _array(x: Any) -> np.ndarray | None:
    """Copy an array of any framework to NumPy; return ``None`` for other objects."""
    if isinstance(x, type) or _attribute(x, "shape") is None or _attribute(x, "dtype") is None:
        return None
    try:
        values = x if isinstance(x, np.ndarray) else backend_of(x).to_numpy(x)
        return None if values.dtype.hasobject else values
    except Exception:  # keys of random numbers, arrays without values, objects that only resemble arrays
        return None


def _is_library(module: str | None, libraries: Sequence[str]) -> bool:
    return (module or "").partition(".")[0].removesuffix("lib") in (*libraries, *_OWN)


def _function(x: FunctionType, into: Callable[[Any], Iterator[Any]], libraries: Sequence[str]) -> Iterator[Any]:
    yield from _code(x.__code__, into)
    yield from into((x.__defaults__, x.__kwdefaults__))
    for cell in x.__closure__ or ():
        try:
            yield from into(cell.cell_contents)
        except ValueError:  # the cell is empty
            yield b"empty"
    if not _is_library(x.__module__, libraries):
        for name in _names(x.__code__):
            value = x.__globals__.get(name)
            constant = isinstance(value, (*_PLAIN, tuple, dict, FunctionType, functools.partial))
            if name in x.__globals__ and (
                constant or _array(value) is not None or _attribute(value, "parameters") is not None
            ):
                yield from into((name, value))


def _names(code: CodeType) -> list[str]:
    """List the names that a function and its inner functions may look up in their module."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return sorted({*code.co_names, *inner})


def _code(code: CodeType, into: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
    yield code.co_code
    yield repr((code.co_names, code.co_varnames, code.co_freevars)).encode()
    for part in code.co_consts:
        # sets among constants are unordered
        yield from into(part if not isinstance(part, frozenset) else tuple(sorted(map(repr, part))))


def _class(cls: type, into: Callable[[Any], Iterator[Any]], libraries: Sequence[str]) -> Iterator[Any]:
    for base in cls.__mro__:
        yield f"{base.__module__}.{base.__qualname__}".encode()
        if not _is_library(base.__module__, libraries):
            for name in sorted(vars(base)):
                if not name.startswith(("__doc__", "__module__")):
                    for part in _members(vars(base)[name]):
                        yield from into((name, part))


def _members(value: Any) -> list[Any]:
    """Return the functions and constants of one attribute of a class."""
    if isinstance(value, functools.partialmethod):
        return [value.func, value.args, value.keywords]
    if isinstance(value, property):
        parts = [f for f in (value.fget, value.fset, value.fdel) if f is not None]
    else:
        parts = [getattr(value, "__func__", getattr(value, "func", value))]  # of class, static and cached ones
    return [part for part in map(inspect.unwrap, parts) if isinstance(part, (FunctionType, *_PLAIN))]
