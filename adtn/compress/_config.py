"""What is compressed, into what, and how."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from .._errors import CompressError
from .._typing import Shape
from ..network import TTN, Layout, SeededBase, Topology, get_topology
from ._model import Layer

Recipe = Literal["reconstruct", "reconstruct-data", "finetune", "local-then-global"]
RECIPES = ("reconstruct", "reconstruct-data", "finetune", "local-then-global")


@dataclass(frozen=True)
class Config:
    """What to compress and how.

    Parameters
    ----------
    targets : sequence of str
        Layers by name, by a pattern such as ``"classifier.*"``, or by class such as ``"Conv2d"``. Every layer that can
        be replaced when empty.
    exclude : sequence of str
        The same for layers that stay dense.
    topology : Topology
        Of every generator.
    leg : int, optional
        Wished size of a leg; the topology's own when not given.
    order : str, optional
        ``"axis"`` or ``"interleaved"``; the topology's own when not given.
    layers : mapping of str to mapping
        Other ``topology``, ``leg``, ``order`` or ``base`` for layers that match a name, pattern or class; the first
        match counts.
    base : SeededBase, optional
        Added to every generated weight.
    recipe : {"local-then-global", "reconstruct", "reconstruct-data", "finetune"}
        - ``"reconstruct"``: every weight by itself, without data
        - ``"reconstruct-data"``: every layer's outputs, by the second moments of its inputs
        - ``"finetune"``: the model's own loss, from random generators of the weights' spread
        - ``"local-then-global"``: the second where there is data, else the first; then the third
    smallest : int
        Weights with fewer entries stay dense.
    steps, lr, optimizer
        Of the local fits, see :func:`adtn.fit`.
    tune_steps, tune_lr, distill, train, clip
        Of the training of the whole model: ``distill`` is the weight of the dense model's outputs in the loss,
        ``train`` says whether other parameters are trained, too (``"generated"`` or ``"all"``).
    seed : int

    Raises
    ------
    CompressError
        If a value makes no sense.

    Examples
    --------
    >>> import adtn
    >>> adtn.Config(targets=["fc*"], topology=adtn.TTN(bond=4)).recipe
    'local-then-global'
    """

    targets: Sequence[str] = ()
    exclude: Sequence[str] = ()
    topology: Topology = field(default_factory=lambda: TTN(bond=4))
    leg: int | None = None
    order: str | None = None
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    base: SeededBase | None = None
    recipe: Recipe = "local-then-global"
    smallest: int = 256
    steps: int = 500
    lr: float = 2e-2
    optimizer: str = "lbfgs"
    tune_steps: int = 500
    tune_lr: float = 5e-3
    distill: float = 0.0
    train: str = "generated"
    clip: float | None = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("targets", "exclude"):
            got = getattr(self, name)
            if isinstance(got, str):
                raise CompressError(f"Got {name}={got!r}; expected a list, such as [{got!r}].")
        if self.recipe not in RECIPES:
            raise CompressError(f"Got recipe={self.recipe!r}; expected one of {', '.join(RECIPES)}.")
        if self.train not in ("generated", "all"):
            raise CompressError(f"Got train={self.train!r}; expected 'generated' or 'all'.")
        if not 0.0 <= self.distill <= 1.0:
            raise CompressError(f"Got distill={self.distill}; expected a weight between 0 and 1.")
        for name in ("steps", "tune_steps", "smallest"):
            if getattr(self, name) < 0:
                raise CompressError(f"Got {name}={getattr(self, name)}; expected 0 or more.")
        for pattern, own in self.layers.items():
            unknown = set(own) - {"topology", "leg", "order", "base"}
            if unknown:
                raise CompressError(
                    f"Got {sorted(unknown)} for layers {pattern!r}; expected topology, leg, order, base."
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """From plain values: a topology is a name, or a mapping with its options.

        Examples
        --------
        >>> Config.from_dict({"targets": ["fc1"], "topology": {"name": "mera", "bond": 4}}).topology.bond
        4
        """
        known = {f.name for f in fields(cls)}
        unknown = set(values) - known
        if unknown:
            raise CompressError(f"Got {sorted(unknown)}; a config knows {', '.join(sorted(known))}.")
        found = {k: _value(k, v) for k, v in values.items()}
        if "layers" in found:
            found["layers"] = {p: {k: _value(k, v) for k, v in own.items()} for p, own in found["layers"].items()}
        return cls(**found)

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """From a TOML file.

        Raises
        ------
        CompressError
            If it cannot be read or holds something unknown.
        """
        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text()))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise CompressError(f"Cannot read the config {path}: {error}.") from error

    def select(self, layers: Sequence[Layer]) -> tuple[list[Layer], dict[str, str]]:
        """The layers to replace, and for every other one that was asked for, or might have been, the reason.

        Raises
        ------
        CompressError
            If a target matches no layer.
        """
        for pattern in self.targets:
            if not any(_matches(pattern, layer) for layer in layers):
                names = ", ".join(f"{layer.name} ({layer.kind})" for layer in layers)
                raise CompressError(f"Got target {pattern!r}, which matches no layer; there are {names}.")
        chosen: list[Layer] = []
        dense: dict[str, str] = {}
        covered: set[str] = set()
        for layer in layers:
            asked = not self.targets or any(_matches(p, layer) for p in self.targets)
            entries = sum(map(math.prod, layer.weights.values()))
            if layer.reason:
                dense[layer.name] = layer.reason
            elif not asked:
                dense[layer.name] = "not among the targets"
            elif any(_matches(p, layer) for p in self.exclude):
                dense[layer.name] = "excluded"
            elif layer.name in covered:
                continue  # replaced with the layer it is tied to
            elif entries < self.smallest:
                dense[layer.name] = f"{entries} entries, fewer than smallest={self.smallest}"
            else:
                chosen.append(layer)
                covered.update(layer.tied)
        return chosen, dense

    def options_of(self, layer: Layer) -> Config:
        """The config with what is special about a layer."""
        for pattern, own in self.layers.items():
            if _matches(pattern, layer):
                return replace(self, **own)
        return self

    def layout(self, shape: Shape) -> Layout:
        """How a weight is cut into legs."""
        top = self.topology
        if self.leg is None and self.order is None:
            return top.default_layout(shape)
        order: Any = self.order or top.order
        return Layout.of(shape, self.leg or top.leg, order, exact=top.exact)


def _matches(pattern: str, layer: Layer) -> bool:
    return pattern == layer.kind or fnmatchcase(layer.name, pattern)


def _value(key: str, value: Any) -> Any:
    """A topology or base from plain values."""
    if key == "topology" and not isinstance(value, Topology):
        options = dict(value) if isinstance(value, Mapping) else {"name": value}
        cls = get_topology(str(options.pop("name", "ttn")))
        unknown = set(options) - set(cls.__dataclass_fields__)
        if unknown:
            raise CompressError(
                f"{cls.__name__} takes no {sorted(unknown)}; it takes {list(cls.__dataclass_fields__)}."
            )
        return cls(**options)
    if key == "base" and isinstance(value, int):
        return SeededBase(value)
    return value
