"""The config: what is compressed, into what, and how."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from .._checks import Count, Name, NotNegative, PathArgument, Positive, Range, Seed, check_fields, checked
from .._typing import Shape
from ..errors import CompressError, missing
from ..layout import Layout
from ..optim import OptimizerName
from ..topology import (
    MPO,
    TTN,
    IdentityBase,
    RuleBase,
    SeededBase,
    Topology,
    TopologyArgument,
    Tucker,
    get_topology,
    topology_from_json,
)
from ._budget import Budget
from ._model import Layer, Tuning

Stage = Literal["reconstruct", "reconstruct-data", "distill-local", "finetune"]
STAGES: tuple[Stage, ...] = ("reconstruct", "reconstruct-data", "distill-local", "finetune")
RECIPES = (*STAGES, "local-then-global")
Recipe = Literal["reconstruct", "reconstruct-data", "distill-local", "finetune", "local-then-global"]
Names = Annotated[Sequence[str], "a list of names, such as ['fc1']"]
Whole = Annotated[int, Range(0)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A record of what to compress and how.

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
        Target size of a leg; the topology's default when not given.
    order : str, optional
        ``"axis"`` or ``"interleaved"``; the topology's own when not given.
    layers : mapping of str to mapping
        Other ``topology``, ``leg``, ``order``, ``base`` or ``candidates`` for layers that match a name, pattern or
        class; the first match counts.
    base : SeededBase or IdentityBase, optional
        Added to every generated weight.
    budget : Budget, optional
        Size of the model, or what it may lose. Topology, bond and layout of every layer are then chosen among the
        candidates; ``topology``, ``leg`` and ``order`` do not count.
    candidates : sequence of Topology
        For a budget; their bonds do not count.
    restarts : int
        Seeds that begin every generator; the worse half is given up again and again (successive halving).
    recipe : str or sequence of str
        One of these, or several, done in this order:

        - ``"reconstruct"``: every weight by itself, without data
        - ``"reconstruct-data"``: every layer's outputs, by the second moments of its inputs
        - ``"distill-local"``: every layer's outputs on cached batches, by Adam; from random generators of the weights'
          spread when nothing comes before
        - ``"finetune"``: the model's own loss, from where the others ended
        - ``"local-then-global"``: the second where there is data, else the first; then the last
    mode : {"replace", "adapter"}
        Whether generated weights take the place of the dense ones, or are added to them, which stay frozen. An adapter
        starts at zero and is trained by ``"finetune"``.
    adapter : str
        Name of the adapter.
    smallest : int
        Weights with fewer entries stay dense.
    steps, lr, optimizer
        Of the local fits, see :func:`adtn.fit`.
    tune_steps, tune_lr, tune_optimizer, distill, train, clip
        Of the training of the whole model: ``distill`` is the weight of the dense model's outputs in the loss (the
        divergence of the classes' probabilities, or the squared error where labels are no whole numbers),
        ``train`` says whether other parameters are trained, too (``"generated"`` or ``"all"``).
    dropout : float, optional
        Rate of all dropouts in that training, in place of their own: a few hundred parameters need less than the layers
        that they replace.
    capture : bool
        Whether that training is recorded once as a CUDA graph and replayed, for small generators take longer to launch
        than to run. The loss must not wait for the device; batches of another shape than the fourth are not replayed.
        PyTorch on CUDA only.
    autocast : {"bfloat16"}, optional
        In which the training of the whole model and ``"distill-local"`` multiply; parameters, losses and all that is
        measured keep their own dtype. PyTorch only: layers of Flax are made with ``dtype=``.
    rates : mapping of str to float
        Factors of ``tune_lr`` for parameters whose names match a pattern, such as ``{"*.generated.*": 1, "*": 0.1}``;
        the first match counts, 0 freezes.
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

    targets: Names = ()
    exclude: Names = ()
    topology: TopologyArgument = field(default_factory=lambda: TTN(bond=4))
    leg: Annotated[int, Range(2, 2**20)] | None = None
    order: Literal["axis", "interleaved"] | None = None
    layers: Annotated[Mapping[str, Mapping[str, Any]], "values by names, such as {'Conv2d': {'leg': 4}}"] = field(
        default_factory=dict
    )
    base: Annotated[RuleBase | None, "adtn.SeededBase(seed=0), adtn.IdentityBase(), or None"] = None
    budget: Annotated[Budget | None, "adtn.Budget(ratio=20), or None"] = None
    candidates: Annotated[Sequence[Topology], "topologies, such as (adtn.TTN(), adtn.MPO())"] = (
        TTN(),
        TTN(activation="identity"),
        MPO(),
        Tucker(),
    )
    restarts: Count = 1
    recipe: Annotated[Recipe | Annotated[Sequence[Recipe], Range(1)], f"one or several of {', '.join(RECIPES)}"] = (
        "local-then-global"
    )
    mode: Literal["replace", "adapter"] = "replace"
    adapter: Name = "default"
    smallest: Whole = 256
    steps: Whole = 500
    lr: Positive = 2e-2
    optimizer: OptimizerName = "lbfgs"
    tune_steps: Whole = 500
    tune_lr: Positive = 5e-3
    tune_optimizer: Literal["adam", "sgd"] = "adam"
    distill: Annotated[float, Range(0.0, 1.0)] = 0.0
    train: Literal["generated", "all"] = "generated"
    clip: Positive | None = 1.0
    dropout: Annotated[float, Range(0.0, 1.0, below=True)] | None = None
    capture: bool = False
    autocast: Literal["bfloat16"] | None = None
    rates: Annotated[Mapping[str, NotNegative], "numbers of at least 0 by names, such as {'*': 0.1}"] = field(
        default_factory=dict
    )
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self, CompressError)
        if self.mode == "adapter" and (self.budget is not None or self.base is not None):
            raise CompressError("Got mode='adapter' with a budget or base; an adapter's base is the dense weight.")
        if self.budget is not None and not self.candidates:
            raise CompressError("Got a budget without candidates; give some topologies.")
        for pattern, own in self.layers.items():
            unknown = set(own) - {"topology", "leg", "order", "base", "candidates"}
            if unknown:
                raise CompressError(
                    f"Got {sorted(unknown)} for layers {pattern!r}; expected topology, leg, order, base, candidates."
                )
            replace(self, layers={}, **own)  # checks its values

    @classmethod
    @checked(CompressError)
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Read a config from plain values: a topology is a name, or a mapping with its options.

        Examples
        --------
        >>> Config.from_dict({"targets": ["fc1"], "topology": {"name": "mera", "bond": 4}}).topology.bond
        4
        """
        known = {f.name for f in fields(cls)}
        unknown = set(values) - known
        if unknown:
            raise CompressError(f"Got {sorted(unknown)}; a config knows {', '.join(sorted(known))}.")
        return cls(**{k: _value(k, v) for k, v in values.items()})

    @classmethod
    @checked(CompressError)
    def load(cls, path: PathArgument) -> Config:
        """Read a config from a TOML file, or from a YAML file where PyYAML is installed.

        Raises
        ------
        CompressError
            If it cannot be read or holds something unknown.
        """
        try:
            text = Path(path).read_text()
            if Path(path).suffix in (".yaml", ".yml"):
                return cls.from_dict(_yaml(text, path))
            return cls.from_dict(tomllib.loads(text))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
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
        by_name = {layer.name: layer for layer in layers}
        for layer in layers:
            partners = [by_name[name] for name in layer.tied if name in by_name]
            asked = any(_matches(p, layer) for p in self.targets) or not (self.targets or layer.optional)
            entries = sum(map(math.prod, layer.weights.values()))
            if layer.reason:
                dense[layer.name] = layer.reason
            elif not asked:
                kept = f"{layer.kind} is replaced only when targets name it" if layer.optional else ""
                dense[layer.name] = kept if kept and not self.targets else "not among the targets"
            elif any(_matches(p, one) for p in self.exclude for one in (layer, *partners)):
                dense[layer.name] = "excluded"
            elif stays := next((one for one in partners if one.reason), None):
                dense[layer.name] = f"shares its weight with {stays.name} ({stays.reason})"
            elif layer.name in covered:
                continue  # replaced with the layer it is tied to
            elif self.mode == "adapter" and layer.tied:
                dense[layer.name] = f"shares its weight with {', '.join(layer.tied)}"
            elif self.mode == "adapter" and not layer.adaptable:
                dense[layer.name] = f"no adapter for {layer.kind}"
            elif entries < self.smallest:
                dense[layer.name] = f"{entries} entries, fewer than smallest={self.smallest}"
            else:
                chosen.append(layer)
                covered.update(layer.tied)
        return chosen, {name: reason for name, reason in dense.items() if name not in covered}

    def stages(self, has_data: bool) -> tuple[str, ...]:
        """Return the stages, in order.

        Raises
        ------
        CompressError
            If a stage needs data that are not given.
        """
        if self.mode == "adapter":
            wanted: tuple[str, ...] = ("finetune",)
        elif self.recipe == "local-then-global":
            return ("reconstruct-data", "finetune") if has_data else ("reconstruct",)
        else:
            wanted = (self.recipe,) if isinstance(self.recipe, str) else tuple(self.recipe)
        short = [one for one in wanted if one != "reconstruct"]
        if short and not has_data:
            raise CompressError(f"Got {short[0]!r} without data; pass data=, or use recipe='reconstruct'.")
        both = ("reconstruct-data", "finetune")
        return tuple(stage for one in wanted for stage in (both if one == "local-then-global" else (one,)))

    def tuning(self, steps: int) -> Tuning:
        """Return how the whole model is trained for so many steps."""
        return Tuning(
            steps=steps,
            lr=self.tune_lr,
            distill=self.distill,
            train=self.train,
            clip=self.clip,
            rates=self.rates,
            seed=self.seed,
            optimizer=self.tune_optimizer,
            dropout=self.dropout,
            capture=self.capture,
            autocast=self.autocast,
        )

    def options_of(self, layer: Layer) -> Config:
        """The config with what is special about a layer."""
        for pattern, own in self.layers.items():
            if _matches(pattern, layer):
                return replace(self, **own)
        return self

    def layout(self, shape: Shape) -> Layout:
        """Return how a weight is cut into legs."""
        top = self.topology
        if self.leg is None and self.order is None:
            return top.default_layout(shape)
        order: Any = self.order or top.order
        return Layout.of(shape, self.leg or top.leg, order, exact=top.exact)


def _matches(pattern: str, layer: Layer) -> bool:
    return pattern == layer.kind or fnmatchcase(layer.name, pattern)


def _yaml(text: str, path: PathArgument) -> Mapping[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise missing("pyyaml", "hf", f"The config {path}") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CompressError(f"Cannot read the config {path}: {error}.") from error
    if not isinstance(content, Mapping):
        raise CompressError(f"Got the config {path}, which holds a {type(content).__name__}; expected keys and values.")
    return content


def _value(key: str, value: Any) -> Any:
    """From plain values; what is of another kind stays as it is, for the config to refuse."""
    if key == "layers" and isinstance(value, Mapping):
        options = {p: own for p, own in value.items() if isinstance(own, Mapping)}
        return {**value, **{p: {k: _value(k, v) for k, v in own.items()} for p, own in options.items()}}
    if key == "candidates" and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_value("topology", one) for one in value)
    if key == "budget" and isinstance(value, Mapping):
        return Budget.from_dict(value)
    if key == "topology" and isinstance(value, str | Mapping):
        options = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = str(options.pop("name", "ttn"))
        cls = get_topology(name)
        unknown = set(options) - set(cls.__dataclass_fields__)
        if unknown:
            raise CompressError(
                f"{cls.__name__} takes no {sorted(unknown)}; it takes {list(cls.__dataclass_fields__)}."
            )
        return topology_from_json({"name": name, **options})
    if key == "base" and isinstance(value, int) and not isinstance(value, bool):
        return SeededBase(value)
    if key == "base" and isinstance(value, str):
        if value != "identity":
            raise CompressError(f"Got base={value!r}; expected a seed, or 'identity'.")
        return IdentityBase()
    return value
