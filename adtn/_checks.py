"""Run-time validation of arguments from their annotations, with errors that name the argument.

``steps: Annotated[int, Range(1)]`` is all that :func:`checked` (functions) and :func:`check_fields` (dataclasses) need
to refuse ``0``, ``True``, ``"3"`` and NaN, and to accept ``np.int64(3)`` as ``3``. A string in ``Annotated`` is the
description of the expected value in error messages. Annotations without meaning at run time, such as ``Any``, are not
checked.
"""

from __future__ import annotations

import builtins
import inspect
import math
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, wraps
from numbers import Integral, Real
from typing import Annotated, Any, Literal, ParamSpec, TypeAlias, TypeVar, Union, get_args, get_origin

from .errors import ADTNError

P = ParamSpec("P")
T = TypeVar("T")

_INT64 = 2**63 - 1


@dataclass(frozen=True)
class Range:
    """A range of allowed numbers; NaN and infinity are never allowed.

    Parameters
    ----------
    least, most : float
        The bounds, inclusive.
    above, below : bool
        Exclude the lower or upper bound itself.
    """

    least: float | None = None
    most: float | None = None
    above: bool = False
    below: bool = False

    def __contains__(self, x: float) -> bool:
        if self.least is not None and (x < self.least or (self.above and x == self.least)):
            return False
        return self.most is None or not (x > self.most or (self.below and x == self.most))

    def __str__(self) -> str:
        if None not in (self.least, self.most) and not (self.above or self.below):
            return f" from {_number(self.least or 0)} to {_number(self.most or 0)}"
        least = "" if self.least is None else f" {'above' if self.above else 'of at least'} {_number(self.least)}"
        most = "" if self.most is None else f" {'below' if self.below else 'of at most'} {_number(self.most)}"
        return f"{least}{' and' if least and most else ''}{most}"


Count: TypeAlias = Annotated[int, Range(1)]
Seed: TypeAlias = Annotated[int, Range(0, 2**64 - 1)]
Positive: TypeAlias = Annotated[float, Range(0.0, above=True)]
NotNegative: TypeAlias = Annotated[float, Range(0.0)]
Name: TypeAlias = Annotated[str, Range(1), "a name"]
PathArgument: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True)
class Registered:
    """A name in a registry, looked up at the time of the check, when it may hold more than at import.

    Parameters
    ----------
    knows : callable
        Whether the registry has an entry of that name.
    expected : callable
        Description of the expected names for error messages.
    """

    knows: Callable[[str], bool]
    expected: Callable[[], str]


class Refused(Exception):
    """A value does not satisfy a rule."""


@dataclass(frozen=True)
class Rule:
    """A condition on a value, with its description.

    Parameters
    ----------
    says : str or callable
        Description of the expected value; a function where it can change while the program runs.
    convert : callable
        Returns the value as a plain Python object, or raises :class:`Refused`.
    """

    says: str | Callable[[], str]
    convert: Callable[[Any], Any]

    @property
    def expected(self) -> str:
        """The current description of the expected value."""
        return self.says if isinstance(self.says, str) else self.says()

    def __call__(self, name: str, value: Any, error: type[ADTNError]) -> Any:
        """Convert a value.

        Raises
        ------
        ADTNError
            An instance of ``error`` if the value does not satisfy the rule.
        """
        try:
            return self.convert(value)
        except Refused:
            raise error(f"Got {name}={shown(value)}; expected {self.expected}.") from None


def number(name: str, value: Any, error: type[ADTNError], bounds: Range | None = None) -> float:
    """Check one finite number, such as the return value of a caller's function.

    Raises
    ------
    ADTNError
        An instance of ``error`` if it is anything else.
    """
    return _real(bounds or Range())(name, value, error)


def shown(value: Any, most: int = 120) -> str:
    """Format a value for an error message, shortened."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None and shape != ():
        return f"an array of shape {tuple(shape)} and {dtype}"
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def listed(texts: Sequence[str]) -> str:
    """Join strings to a list in a sentence: ``a, b or c``."""
    return f"{', '.join(texts[:-1])} or {texts[-1]}" if len(texts) > 1 else texts[0]


def check_fields(thing: Any, error: type[ADTNError]) -> None:
    """Check the fields of a frozen dataclass against their annotations and convert them to plain Python objects.

    Raises
    ------
    ADTNError
        An instance of ``error`` for the first invalid field.
    """
    for name, rule in _rules_of_class(type(thing)).items():
        value = getattr(thing, name)
        plain = rule(name, value, error)
        if plain is not value:
            object.__setattr__(thing, name, plain)


def checked(error: type[ADTNError], **others: type[ADTNError]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that its arguments are checked against their annotations and converted.

    Parameters
    ----------
    error : type
        Class of the errors.
    **others
        Classes of the errors for individual arguments.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        names = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> T:
            rules = _rules_of_function(function)
            for name, value in kwargs.items():
                if name in rules:
                    kwargs[name] = rules[name](name, value, others.get(name, error))
            plain = [
                rules[name](name, value, others.get(name, error)) if name in rules else value
                for name, value in zip(names, args, strict=False)
            ]
            return function(*plain, *args[len(plain) :], **kwargs)  # type: ignore[arg-type]

        return call  # type: ignore[return-value]

    return decorate


@lru_cache(maxsize=1024)
def _rules_of_class(cls: type) -> dict[str, Rule]:
    rules: dict[str, Rule | None] = {}
    for base in reversed(cls.__mro__):
        space = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
        for name, annotation in inspect.get_annotations(base).items():
            rules[name] = _rule_of_text(annotation, space)
    own = {f.name for f in fields(cls)}
    return {name: rule for name, rule in rules.items() if rule is not None and name in own}


@lru_cache(maxsize=1024)
def _rules_of_function(function: Callable[..., Any]) -> dict[str, Rule]:
    space = function.__globals__  # type: ignore[attr-defined]
    rules = {name: _rule_of_text(annotation, space) for name, annotation in function.__annotations__.items()}
    return {name: rule for name, rule in rules.items() if rule is not None and name != "return"}


def _rule_of_text(annotation: Any, space: Mapping[str, Any]) -> Rule | None:
    """Evaluate an annotation, which is a string and may refer to imports for type checkers only."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, dict(space))
        except (NameError, AttributeError, TypeError):
            return None
    return rule_of(annotation)


def rule_of(annotation: Any) -> Rule | None:
    """Derive the rule of an annotation; ``None`` where it allows anything."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _annotated(args[0], args[1:])
    if origin in (Union, types.UnionType):
        paths = [one for one in args if one is os.PathLike or get_origin(one) is os.PathLike]
        return _either([rule_of(one) for one in args if not (paths and one is str)])
    if origin is Literal:
        return Rule(listed([repr(one) for one in args]), lambda value: _chosen(value, args))
    if origin is tuple and args[-1:] != (Ellipsis,):
        return _fixed([rule_of(one) for one in args])
    if origin in (tuple, list, Sequence):
        return _items(rule_of(args[0]), origin)
    if origin is Iterable:
        return Rule("an iterable", _iterable)
    if origin in (Mapping, dict):
        return _mapping(rule_of(args[1]))
    if origin is Callable:
        return Rule("a function", lambda value: _if(callable(value), value))
    if annotation in (None, type(None)):
        return Rule("None", lambda value: _if(value is None, value))
    if annotation in _SCALARS:
        return _SCALARS[annotation](Range())
    if origin is os.PathLike or annotation is os.PathLike:
        return Rule("a path", _path)
    if annotation is Any or not isinstance(annotation, type) or getattr(annotation, "_is_protocol", False):
        return None
    return Rule(f"a {annotation.__name__}", lambda value: _if(isinstance(value, annotation), value))


def _annotated(inner: Any, notes: Sequence[Any]) -> Rule | None:
    says = next((note for note in notes if isinstance(note, str)), None)
    bounds = next((note for note in notes if isinstance(note, Range)), None)
    names = next((note for note in notes if isinstance(note, Registered)), None)
    if names is not None:
        rule: Rule | None = _registered(names)
    elif inner in _SCALARS:
        rule = _SCALARS[inner](bounds or Range())
    else:
        rule = rule_of(inner)
        if rule is not None and bounds is not None:  # bounds of the length
            rule = _of_length(rule, bounds)
    return rule if rule is None or says is None else Rule(says, rule.convert)


def _registered(names: Registered) -> Rule:
    return Rule(names.expected, lambda value: str(_if(isinstance(value, str) and names.knows(value), value)))


def _of_length(rule: Rule, bounds: Range) -> Rule:
    def convert(value: Any) -> Any:
        converted = rule.convert(value)
        return _if(len(converted) in bounds, converted)

    return Rule(rule.says, convert)


def _either(rules: Sequence[Rule | None]) -> Rule | None:
    given = [rule for rule in rules if rule is not None]
    if len(given) < len(rules):
        return None

    def convert(value: Any) -> Any:
        for rule in given:
            try:
                return rule.convert(value)
            except Refused:
                continue
        raise Refused

    return Rule(lambda: listed(list(dict.fromkeys(rule.expected for rule in given))), convert)


def _items(rule: Rule | None, kind: Any) -> Rule:
    def convert(value: Any) -> Any:
        if isinstance(value, str | bytes | Mapping) or not (isinstance(value, Sequence) or _is_vector(value)):
            raise Refused
        return tuple(value) if rule is None else tuple(rule.convert(one) for one in value)

    return Rule(f"a {'tuple' if kind is tuple else 'list'}{f' of {_plural(rule.expected)}' if rule else ''}", convert)


def _fixed(rules: Sequence[Rule | None]) -> Rule:
    def convert(value: Any) -> Any:
        if isinstance(value, str | bytes | Mapping) or not (isinstance(value, Sequence) or _is_vector(value)):
            raise Refused
        if len(value) != len(rules):
            raise Refused
        return tuple(one if rule is None else rule.convert(one) for rule, one in zip(rules, value, strict=True))

    return Rule(f"a tuple of {len(rules)}: {', '.join(r.expected for r in rules if r is not None)}", convert)


def _mapping(rule: Rule | None) -> Rule:
    def convert(value: Any) -> Any:
        if not isinstance(value, Mapping) or any(not isinstance(key, str) for key in value):
            raise Refused
        return value if rule is None else {key: rule.convert(one) for key, one in value.items()}

    return Rule(f"a mapping from names{f' to {_plural(rule.expected)}' if rule else ''}", convert)


def _iterable(value: Any) -> Any:
    is_iterable = hasattr(value, "__iter__") or hasattr(value, "__getitem__")
    return _if(is_iterable and not isinstance(value, str | bytes | type), value)


def _chosen(value: Any, known: Sequence[Any]) -> Any:
    return _if(isinstance(value, str) and value in known, str(value) if isinstance(value, str) else value)


def _whole(bounds: Range) -> Rule:
    most = bounds.most if bounds.most is not None else _INT64
    least = bounds.least if bounds.least is not None else -_INT64
    limits = Range(least, most)

    def convert(value: Any) -> Any:
        value = _plain(value)
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) not in limits:
            raise Refused
        return int(value)

    return Rule(f"a whole number{bounds}", convert)


def _real(bounds: Range) -> Rule:
    def convert(value: Any) -> Any:
        value = _plain(value)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise Refused
        try:
            number = float(value)
        except OverflowError:
            raise Refused from None
        if not math.isfinite(number) or number not in bounds:
            raise Refused
        return value if isinstance(value, int) else number

    return Rule(f"a number{bounds}", convert)


def _text(bounds: Range) -> Rule:
    least = int(bounds.least or 0)
    return Rule("a string", lambda value: str(_if(isinstance(value, str) and len(value) >= least, value)))


def _flag(bounds: Range) -> Rule:
    def convert(value: Any) -> Any:
        value = _plain(value)
        return _if(isinstance(value, bool), value)

    return Rule("True or False", convert)


def _path(value: Any) -> Any:
    if not isinstance(value, str | os.PathLike):
        raise Refused
    text = os.fspath(value)
    return _if(isinstance(text, str) and text != "" and "\0" not in text, value)


_SCALARS: dict[Any, Callable[[Range], Rule]] = {int: _whole, float: _real, bool: _flag, str: _text}


def _plain(value: Any) -> Any:
    """Convert a scalar of NumPy or another framework to a Python number."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        try:
            return value.item()
        except Exception:  # a tracer has no value
            raise Refused from None
    return value


def _is_vector(value: Any) -> bool:
    return len(getattr(value, "shape", ())) == 1 and hasattr(value, "dtype")


def _if(valid: bool, value: Any) -> Any:
    if not valid:
        raise Refused
    return value


def _number(x: float) -> str:
    if isinstance(x, builtins.int) and x.bit_length() > 20:
        return f"2**{x.bit_length() - 1}" if x & (x - 1) == 0 else f"2**{x.bit_length()} - 1"
    return f"{x:g}"


def _plural(expected: str) -> str:
    for one, many in (
        ("a whole number", "whole numbers"),
        ("a number", "numbers"),
        ("a string", "strings"),
        ("a ", ""),
    ):
        if expected.startswith(one):
            return many + expected.removeprefix(one)
    return expected
