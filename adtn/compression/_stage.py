"""The stages of a recipe, with options of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from typing import Annotated, Any, Literal

from .._checks import Count, Positive, Range, check_fields, checked
from ..errors import CompressError

StageName = Literal[
    "closed-form",
    "compensate",
    "normalise",
    "reconstruct",
    "reconstruct-data",
    "distill-local",
    "truncate",
    "grow",
    "finetune",
]
_OPTIONS: Mapping[StageName, tuple[str, ...]] = {
    "closed-form": ("batches",),
    "compensate": ("batches",),
    "normalise": ("batches",),
    "reconstruct": ("steps", "lr"),
    "reconstruct-data": ("steps", "lr", "batches"),
    "distill-local": ("steps", "lr", "batches"),
    "truncate": ("keep", "batches"),
    "grow": ("components", "batches"),
    "finetune": ("steps", "lr", "batches"),
}
STAGES: tuple[StageName, ...] = tuple(_OPTIONS)


@dataclass(frozen=True)
class Stage:
    """A stage of a recipe with options of its own; those that are not given come from the config.

    Parameters
    ----------
    name : str
        The name of the stage, see :class:`Config`.
    steps : int, optional
        The number of steps, of stages that fit or train; 0 skips the training.
    lr : float, optional
        The initial learning rate of these stages.
    batches : int, optional
        The number of batches that the stage may use: the first ones of the data, in every pass over them. If both
        ``"closed-form"`` and ``"reconstruct-data"`` have it, the smaller one counts, as they share second moments.
    keep : float, optional
        The part of the parameters of the generators that ``"truncate"`` keeps, by default a half.
    components : int, optional
        The number of new components on every bond of ``"grow"``, by default 1; fewer where a bond cannot use them.

    Raises
    ------
    CompressError
        If a value is not allowed, or the stage has no such option.

    Examples
    --------
    >>> import adtn
    >>> recipe = ("closed-form", adtn.Stage("distill-local", steps=100, lr=1e-2), adtn.Stage("finetune", steps=500))
    >>> [stage.steps for stage in adtn.Config(topology=adtn.MPO(bond=4), recipe=recipe).stages(has_data=True)]
    [None, 100, 500]
    """

    name: StageName
    _: KW_ONLY
    steps: Annotated[int, Range(0)] | None = None
    lr: Positive | None = None
    batches: Count | None = None
    keep: Annotated[float, Range(0.0, 1.0, above=True)] | None = None
    components: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self, CompressError)
        allowed = _OPTIONS[self.name]
        for option in ("steps", "lr", "batches", "keep", "components"):
            if getattr(self, option) is not None and option not in allowed:
                raise CompressError(
                    f"Got {option}={getattr(self, option)} for the stage {self.name!r}, which has only "
                    f"{' and '.join(allowed)}; expected None. Leave it out."
                )

    @classmethod
    @checked(CompressError)
    def from_dict(cls, values: Mapping[str, Any]) -> Stage:
        """Read a stage from plain values.

        Examples
        --------
        >>> Stage.from_dict({"name": "finetune", "steps": 500}).steps
        500
        """
        names = [f.name for f in fields(cls)]
        if "name" not in values or set(values) - set(names):
            raise CompressError(
                f"Got the values {dict(values)} for a stage; expected a name, and options among {', '.join(names[1:])}."
            )
        return cls(**values)

    @property
    def is_local(self) -> bool:
        """Whether the stage fits every weight by itself."""
        return self.name.startswith("reconstruct")

    @property
    def trains(self) -> bool:
        """Whether the stage trains layers or the model, for at least one step."""
        return self.name in ("distill-local", "finetune") and self.steps != 0
