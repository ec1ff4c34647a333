"""The config: what is compressed, into what, and how."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from .._checks import Count, Name, NotNegative, PathArgument, Positive, Range, Seed, check_fields, checked
from .._typing import Shape
from ..errors import CompressError
from ..layout import Layout
from ..optim import OptimizerName
from ..precision import Precision
from ..topology import (
    TTN,
    RuleBase,
    Topology,
    TopologyArgument,
)
from ._budget import Budget
from ._config_values import config_value, read_yaml
from ._learning_rate import SMALLEST_RATE
from ._model import Layer, Tuning
from ._stage import STAGES, Stage, StageName

RECIPES = (*STAGES, "local-then-global")
Recipe = StageName | Literal["local-then-global"]
Names = Annotated[Sequence[str], "a list of names, such as ['fc1']"]
Whole = Annotated[int, Range(0)]


ADAPTER_TOPOLOGY = TTN(bond=4)
"""The topology of an adapter without one."""
_RATES = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 4.0, 4.5, 5.0, 6.0)


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
    topology : Topology, optional
        The topology of every generator. Without it, and without a budget, formats are chosen within a budget of a
        quarter of the bytes of these layers; an adapter is then a ``TTN(bond=4)``.
    leg : int, optional
        The target size of a leg; by default, the topology chooses it.
    order : str, optional
        ``"axis"`` or ``"interleaved"``; by default, the topology chooses it.
    layers : mapping of str to mapping
        Other values of ``topology``, ``leg``, ``order``, ``base`` or ``candidates`` for layers that match a name,
        pattern or class; the first match counts. Where only some layers have a topology, the others stay dense.
    base : SeededBase or IdentityBase, optional
        The base that is added to every generated weight.
    share : sequence of sequences of str
        Groups of layers, or of single weights, by name, pattern or class: one generator makes all weights of a group,
        and is stored, trained and counted once. Weights of shapes ``(R_g, ...)`` are flattened to matrices
        ``(R_g, C_g)``, padded with zeros to the largest ``(R, C)``, and put below each other in one matrix
        ``(k R, C)``, whose first leg tells the layers apart; a layer uses its own rows and columns. A low-rank pair
        needs no padding of the rows: ``W_g = U_g V``, with one basis ``V`` for all layers. The members of a group
        have one topology, dtype and device, and their errors are measured by the mean of the second moments of their
        inputs if these have the same size, or else by the weights. Within a budget, one format is chosen for a group,
        whose weights then need the same number of columns. ``"compensate"`` leaves groups as they are.
    budget : Budget, optional
        The size of the model, or the loss of quality that is allowed. Topology, bond and layout of every layer are
        then chosen among the candidates, and ``topology``, ``leg`` and ``order`` are ignored, unless the recipe has the
        stage ``"truncate"``. Without a topology, the default is a quarter of the bytes of the chosen layers.
    candidates : sequence of Topology
        The topologies to choose from for a budget; their bonds are ignored. By default, those that are best on trained
        weights: low-rank pairs, and for convolutions also spatial pairs, Tucker-2 and tensor trains over whole axes. A
        weight may stay dense as well.
    precisions : sequence of Precision
        The precisions to choose from for a budget in bytes: all for dense weights, and for cores the integers, of each
        number of bits those with the largest groups, and entropy codes of 2, 3 and 4 bits. Entropy codes
        (``Precision("coded", rate=...)``) make the smallest files, and are decoded when a model is loaded; they are not
        chosen with ``allow_slower``, which is for models whose memory counts.
    orders : bool, optional
        Whether columns of dense weights may be ordered before they are rounded to integers in groups, so that columns
        of similar entries share scales, for a budget in bytes. An order is kept where the half of the samples that did
        not choose it shows smaller errors of the outputs; the rows of the report say ``ordered`` then. By default,
        where there are no entropy codes to choose from, which are smaller than ordered integers.
    largest_error : float
        The largest relative error of a weight that is allowed for a budget without data, as nothing else shows then
        what the model loses.
    rest : {"choose", "same", "float16", "bfloat16", "int8"}
        The precision of what is not compressed: embeddings, norms, biases and dense layers. ``"int8"`` stores matrices
        in 8 bits with a scale per row, and the rest in float16. By default, it is chosen for a budget in bytes, and
        otherwise the same as in the model.
    allow_slower : bool
        Whether layers hold their codes only and decode them in every call, which takes less memory and more time than
        the dense layer. By default, codes are decoded once: files are as small, but the memory of what is stored as
        integers is that of its decoded values. A ``state_dict`` has the codes only; a pickled module has both.
    samples : int
        The number of samples from which second moments of inputs are computed.
    restarts : int
        The number of seeds with which the fit of every generator starts; the worse half is dropped repeatedly
        (successive halving).
    recipe : str or Stage, or a sequence of them
        One of these stages, or several, in this order; a :class:`Stage` has steps, a rate and a number of batches of
        its own:

        - ``"closed-form"``: decompose every weight, in the metric of the second moments of its inputs where there are
          data
        - ``"compensate"``: decompose every weight again, in the order of a forward pass, so that it answers to the
          errors of the layers before it; undone if the outputs of the model do not become closer to the dense ones
        - ``"normalise"``: correct the running statistics of batch normalisation, by data without labels
        - ``"reconstruct"``: fit every weight, without data
        - ``"reconstruct-data"``: fit every layer's outputs, by the second moments of its inputs
        - ``"distill-local"``: train every layer with Adam to have the outputs of the dense one on cached batches, in
          the order of a forward pass: inputs come from the layers that are trained already, or with an executor from
          the dense model. Without an earlier stage, from random generators with the weights' standard deviation
        - ``"truncate"``: make the bonds of the generators smaller where the outputs of the model are expected to lose
          least, by second moments of inputs and of gradients in the dense model; layers that share a generator, and
          rounded ones, stay as they are. With a ``topology`` and a budget in parameters, they are cut to the budget,
          and no formats are chosen
        - ``"grow"``: give every bond of the generators new components, which change nothing at first, in the directions
          in which the loss of the model changes most
        - ``"finetune"``: train by the model's own loss, starting from the result of the other stages
        - ``"local-then-global"``: within a budget, closed forms, compensation, statistics and fine-tuning; without one,
          ``"reconstruct-data"`` and fine-tuning. Without data, closed forms or ``"reconstruct"`` alone
    mode : {"replace", "adapter"}
        Whether generated weights replace the dense ones, or are added to them while they are frozen. An adapter starts
        at zero and is trained by ``"finetune"``.
    adapter : str
        The name of the adapter.
    smallest : int
        The number of entries below which a weight stays dense.
    steps, lr, optimizer
        Options of the local fits, see :func:`adtn.fit`. L-BFGS ends before its steps where 20 of them lower the loss by
        less than a thousandth.
    tune_steps, tune_lr, tune_optimizer, distill, train, clip
        Options of the training of the whole model: ``distill`` is the share of the dense model's outputs in the loss
        (the divergence of the classes' probabilities, or the squared error if labels are real numbers), and ``train``
        says whether other parameters are fine-tuned as well (``"generated"`` or ``"all"``). After closed forms, which
        are close to the dense weights, the default is to train all parameters with a share of 0.9 (1 if labels are not
        indices of classes and there is no loss), and with the largest rate of 1e-2, 3e-3 and 1e-3 that leaves the
        model better after a tenth of the steps (1e-3 for fewer than 50 steps); otherwise, generated ones with 5e-3 and
        0.
    dropout : float, optional
        The rate of all dropouts in that training, instead of their own: a few hundred parameters need less dropout
        than the layers that they replace.
    capture : bool
        Whether to capture a step of that training as a CUDA graph and replay it, as small generators take longer to
        launch than to run. The loss must not wait for the device, and only batches of the same shape as the fourth are
        replayed. PyTorch on CUDA only.
    autocast : {"bfloat16"}, optional
        The dtype of products in the training of the whole model and in ``"distill-local"``; parameters, losses and
        measurements keep their own dtype. PyTorch only: layers of Flax are made with ``dtype=``.
    rates : mapping of str to float
        Factors of ``tune_lr`` for parameters whose names match a pattern, such as ``{"*.generated.*": 1, "*": 0.1}``;
        the first match counts, and 0 freezes.
    relative_rates : bool
        Whether the rate of every core is in proportion to the root mean square of its entries, over the geometric mean
        of all, so that all cores change by about the same part in a step.
    seed : int
        The seed of all random numbers.

    Raises
    ------
    CompressError
        If a value is not allowed, or values contradict each other.

    Examples
    --------
    >>> import adtn
    >>> adtn.Config(targets=["fc*"], topology=adtn.TTN(bond=4)).recipe
    'local-then-global'
    """

    targets: Names = ()
    exclude: Names = ()
    topology: TopologyArgument | None = None
    leg: Annotated[int, Range(2, 2**20)] | None = None
    order: Literal["axis", "interleaved"] | None = None
    layers: Annotated[Mapping[str, Mapping[str, Any]], "values by names, such as {'Conv2d': {'leg': 4}}"] = field(
        default_factory=dict
    )
    base: Annotated[RuleBase | None, "adtn.SeededBase(seed=0), adtn.IdentityBase(), or None"] = None
    share: Annotated[Sequence[Names], "groups of names, such as [['fc1', 'fc2']]"] = ()
    budget: Annotated[Budget | None, "adtn.Budget(ratio=20), or None"] = None
    candidates: Annotated[Sequence[Topology] | None, "topologies, such as (adtn.LowRank(), adtn.MPO()), or None"] = None
    precisions: Annotated[Sequence[Precision], "precisions, such as (adtn.Precision('int4', 64),)"] = (
        Precision("float16"),
        Precision("int8"),
        Precision("int4", 32),
        Precision("int4", 128),
        Precision("int3", 32),
        Precision("int3", 128),
        Precision("int2", 32),
        Precision("int2", 128),
        *(Precision("coded", rate=rate) for rate in _RATES),
    )
    orders: bool | None = None
    largest_error: Annotated[float, Range(0.0, 1.0)] = 0.3
    rest: Literal["choose", "same", "float16", "bfloat16", "int8"] = "choose"
    allow_slower: bool = False
    samples: Count = 512
    restarts: Count = 1
    recipe: Annotated[
        Recipe | Stage | Annotated[Sequence[Recipe | Stage], Range(1)],
        f"one or several of {', '.join(RECIPES)}, or adtn.Stage('finetune', steps=500)",
    ] = "local-then-global"
    mode: Literal["replace", "adapter"] = "replace"
    adapter: Name = "default"
    smallest: Whole = 256
    steps: Whole = 500
    lr: Positive = 2e-2
    optimizer: OptimizerName = "lbfgs"
    tune_steps: Whole = 500
    tune_lr: Positive | None = None
    tune_optimizer: Literal["adam", "sgd"] = "adam"
    distill: Annotated[float, Range(0.0, 1.0)] | None = None
    train: Literal["generated", "all"] | None = None
    clip: Positive | None = 1.0
    dropout: Annotated[float, Range(0.0, 1.0, below=True)] | None = None
    capture: bool = False
    autocast: Literal["bfloat16"] | None = None
    rates: Annotated[Mapping[str, NotNegative], "numbers of at least 0 by names, such as {'*': 0.1}"] = field(
        default_factory=dict
    )
    relative_rates: bool = False
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self, CompressError)
        if self.mode == "adapter" and (self.budget is not None or self.base is not None):
            raise CompressError("Got mode='adapter' with a budget or base; an adapter's base is the dense weight.")
        if self.mode == "adapter" and self.rest not in ("choose", "same"):
            raise CompressError(f"Got rest={self.rest!r} with mode='adapter', whose dense weights stay as they are.")
        if self.budget is not None and self.candidates is not None and not self.candidates:
            raise CompressError("Got a budget without candidates; pass some topologies.")
        for pattern, options in self.layers.items():
            unknown = set(options) - {"topology", "leg", "order", "base", "candidates"}
            if unknown:
                raise CompressError(
                    f"Got {sorted(unknown)} for layers {pattern!r}; expected topology, leg, order, base, candidates."
                )
            replace(self, layers={}, share=(), **options)  # checks their values
        if self.budget is None and self.topology is None and self.chooses_formats:
            given = {name: getattr(self, name) for name in ("leg", "order", "base")}
            if name := next((name for name, value in given.items() if value is not None), None):
                raise CompressError(f"Got {name}={given[name]!r} without a topology to use it; pass topology= as well.")
        if self.share:
            self._check_share()
        self._check_truncation()

    def _check_share(self) -> None:
        if self.mode == "adapter":
            raise CompressError("Got share with mode='adapter'; an adapter belongs to one layer. Leave one out.")
        if any("distill-local" in (one, getattr(one, "name", "")) for one in self._given):
            raise CompressError(
                "Got share with the stage 'distill-local', which trains one layer at a time; use 'reconstruct-data' or "
                "'finetune'."
            )

    def _check_truncation(self) -> None:
        stages = [
            one if isinstance(one, Stage) else Stage(one)
            for one in self._given
            if one in STAGES or isinstance(one, Stage)
        ]
        changing = [stage for stage in stages if stage.name in ("truncate", "grow")]
        if changing and self.mode == "adapter":
            raise CompressError(f"Got the stage {changing[0].name!r} with mode='adapter', which is trained only.")
        if not self.is_cut_to_budget or self.budget is None:
            return
        own = any(options.get("topology") is not None for options in self.layers.values())
        if self.topology is None and not own:
            raise CompressError(
                "Got the stage 'truncate' within a budget, which chooses formats that keep to it already. Leave the "
                "stage out, or pass a topology, whose bonds are then cut to the budget."
            )
        if self.budget.unit != "parameters" or self.budget.accuracy_loss is not None:
            raise CompressError(f"Got the stage 'truncate' within {self.budget}; expected a budget of params or ratio.")
        if kept := [stage.keep for stage in changing if stage.keep is not None]:
            raise CompressError(f"Got keep={kept[0]} for the stage 'truncate' within a budget; leave one of both out.")

    @property
    def _given(self) -> tuple[Recipe | Stage, ...]:
        return (self.recipe,) if isinstance(self.recipe, str | Stage) else tuple(self.recipe)

    @property
    def is_cut_to_budget(self) -> bool:
        """Whether a stage cuts bonds down to a budget."""
        return self.budget is not None and any("truncate" in (one, getattr(one, "name", "")) for one in self._given)

    @property
    def chooses_formats(self) -> bool:
        """Whether the format of every weight is chosen within a budget, also within that by default."""
        own = any(options.get("topology") is not None for options in self.layers.values())
        if self.is_cut_to_budget:
            return False
        return self.budget is not None or (self.mode == "replace" and self.topology is None and not own)

    @property
    def compares_orders(self) -> bool:
        """Whether integers are compared with and without an order of the columns, by default without entropy codes."""
        coded = not self.allow_slower and any(precision.is_coded for precision in self.precisions)
        return not coded if self.orders is None else self.orders

    @classmethod
    @checked(CompressError)
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Read a config from plain values: a topology is a name, or a mapping with its options.

        Examples
        --------
        >>> Config.from_dict({"targets": ["fc1"], "topology": {"name": "mera", "bond": 4}}).topology.bond
        4
        """
        names = {f.name for f in fields(cls)}
        unknown = set(values) - names
        if unknown:
            raise CompressError(
                f"Got {sorted(unknown)} in a config; expected options among {', '.join(sorted(names))}."
            )
        return cls(**{k: config_value(k, v) for k, v in values.items()})

    @classmethod
    @checked(CompressError)
    def load(cls, path: PathArgument) -> Config:
        """Read a config from a TOML file, or from a YAML file where PyYAML is installed.

        Raises
        ------
        CompressError
            If it cannot be read, or contains an unknown option or a value that is not allowed.
        """
        import tomllib  # not needed by those who write their config in Python

        try:
            text = Path(path).read_text()
            if Path(path).suffix in (".yaml", ".yml"):
                return cls.from_dict(read_yaml(text, path))
            return cls.from_dict(tomllib.loads(text))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise CompressError(f"Cannot read the config {path}: {error}.") from error

    def select(self, layers: Sequence[Layer]) -> tuple[list[Layer], dict[str, str]]:
        """Select the layers to replace, and give a reason for every other layer that a user may expect to be replaced.

        Raises
        ------
        CompressError
            If a target matches no layer.
        """
        for pattern in self.targets:
            if not any(_matches(pattern, layer) for layer in layers):
                names = ", ".join(f"{layer.name} ({layer.kind})" for layer in layers)
                raise CompressError(f"Got target {pattern!r}, which matches no layer; expected one of {names}.")
        chosen: list[Layer] = []
        dense: dict[str, str] = {}
        covered: set[str] = set()
        by_name = {layer.name: layer for layer in layers}
        for layer in layers:
            partners = [by_name[name] for name in layer.tied if name in by_name]
            is_target = any(_matches(p, layer) for p in self.targets) or not (self.targets or layer.optional)
            entries = sum(map(math.prod, layer.weights.values()))
            if layer.reason:
                dense[layer.name] = layer.reason
            elif not is_target:
                hint = f"{layer.kind} is replaced only when targets name it" if layer.optional else ""
                dense[layer.name] = hint if hint and not self.targets else "not among the targets"
            elif any(_matches(p, other) for p in self.exclude for other in (layer, *partners)):
                dense[layer.name] = "excluded"
            elif dense_partner := next((partner for partner in partners if partner.reason), None):
                dense[layer.name] = f"shares its weight with {dense_partner.name} ({dense_partner.reason})"
            elif layer.name in covered:
                continue  # replaced together with the layer that it is tied to
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

    def stages(self, has_data: bool) -> tuple[Stage, ...]:
        """Return the stages in order, with all their steps and rates.

        Raises
        ------
        CompressError
            If a stage needs data, and there are none.
        """
        if self.mode == "adapter":
            own = [recipe for recipe in self._given if isinstance(recipe, Stage) and recipe.name == "finetune"]
            recipes: tuple[Recipe | Stage, ...] = tuple(own) or ("finetune",)
        elif self.recipe == "local-then-global":
            with_data = ("closed-form", "compensate", "normalise") if self.chooses_formats else ("reconstruct-data",)
            without = "closed-form" if self.chooses_formats else "reconstruct"
            recipes = (*with_data, "finetune") if has_data else (without,)
        else:
            recipes = self._given
        both = ("reconstruct-data", "finetune")
        stages: list[Stage] = []
        for recipe in recipes:
            names = both if recipe == "local-then-global" else (recipe,)
            stages += [self._complete(one if isinstance(one, Stage) else Stage(one)) for one in names]
        needing = [stage.name for stage in stages if stage.name not in ("reconstruct", "closed-form")]
        if needing and not has_data:
            raise CompressError(
                f"Got {needing[0]!r} without data; pass data=, or use recipe='closed-form' or 'reconstruct'."
            )
        return tuple(stages)

    def _complete(self, stage: Stage) -> Stage:
        """Return a stage with the steps and the rate of the config where it has none."""
        if not (stage.is_local or stage.trains):
            return stage
        steps, lr = (self.steps, self.lr) if stage.is_local else (self.tune_steps, self.tune_lr)
        if lr is None and not (stage.name == "finetune" and self.chooses_formats):  # whose rate is tried
            lr = 1e-3 if self.chooses_formats else 5e-3
        return replace(
            stage,
            steps=steps if stage.steps is None else stage.steps,
            lr=lr if stage.lr is None else stage.lr,
        )

    def tuning(self, stage: Stage, labelled: bool = True) -> Tuning:
        """Return the options of the training in one of the :meth:`stages`.

        Parameters
        ----------
        stage : Stage
        labelled : bool
            Whether there is a loss without a teacher.
        """
        is_close = self.chooses_formats
        share = (0.9 if labelled else 1.0) if is_close else 0.0
        return Tuning(
            steps=stage.steps or 0,
            lr=stage.lr or SMALLEST_RATE,
            distill=self.distill if self.distill is not None else share,
            train=self.train or ("all" if is_close else "generated"),
            clip=self.clip,
            rates=self.rates,
            relative=self.relative_rates,
            seed=self.seed,
            optimizer=self.tune_optimizer,
            dropout=self.dropout,
            capture=self.capture,
            autocast=self.autocast,
        )

    def options_of(self, layer: Layer) -> Config:
        """Return the config with the options that apply to one layer."""
        layer = layer.group[0] if layer.group else layer  # its members have the same options
        own = next((options for pattern, options in self.layers.items() if _matches(pattern, layer)), {})
        if self.mode == "adapter" and self.topology is None:
            own = {"topology": ADAPTER_TOPOLOGY, **own}
        return replace(self, **own) if own else self

    def layout(self, shape: Shape) -> Layout:
        """Return the layout of a weight: how its axes are factored into legs; whole axes without a topology."""
        top = self.topology
        if top is None:
            return Layout.whole(shape)
        if self.leg is None and self.order is None:
            return top.default_layout(shape)
        order: Any = self.order or top.order
        return Layout.of(shape, self.leg or top.leg, order, exact=top.exact)


def _matches(pattern: str, layer: Layer) -> bool:
    return pattern == layer.kind or fnmatchcase(layer.name, pattern)
