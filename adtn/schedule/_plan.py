"""The plan: the decision of the scheduler for one task on one device, with the alternatives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from autoray import do

from .._typing import Array, Float, Params, Shape
from ..backends import Backend, get_backend
from ..device import DeviceProfile, format_bytes
from ..errors import ScheduleError
from ..program import MOMENT
from ..weight import (
    Executable,
    Factored,
    FitExecutable,
    Layer,
    Materialised,
    Weighting,
    output_distance,
    squared_distance,
)
from ._request import FitLoss

Task = Literal["generate", "apply", "train", "fit"]
TASKS: tuple[Task, ...] = ("generate", "apply", "train", "fit")


@dataclass(frozen=True, kw_only=True)
class Contraction:
    """A pairwise contraction of a plan.

    Parameters
    ----------
    segment : int
        The index of its segment.
    times : int
        The number of times that it is done: once, or once per tile.
    bmnk : tuple of int
        The batch, row, column and inner dimensions of the product.
    result : tuple of int
        The shape of the result.
    flops, nbytes : int
        Operations, and bytes read and written, of one execution.
    permutes : int
        The number of its three tensors that are copied to another order.
    seconds : float
        The predicted seconds of one execution.
    """

    segment: int
    times: int
    bmnk: tuple[int, int, int, int]
    result: Shape
    flops: int
    nbytes: int
    permutes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A way to do the task.

    Parameters
    ----------
    mode : {"materialise", "stream", "factored"}
    label : str
        A description of the mode and the tiles.
    by_rows : bool
        Whether tiles are blocks of rows, instead of blocks of legs in the order of the network.
    tiles : int
    tile_shape : tuple of int
    seconds : float
        The predicted seconds of one call.
    first_seconds : float
        The predicted seconds of work that is done once, such as generating a cached weight.
    peak_bytes : int
        The largest additional memory at any time.
    lost : str
        The reason why it was not chosen; empty for the chosen one.
    """

    mode: str
    label: str
    by_rows: bool
    tiles: int
    tile_shape: Shape
    seconds: float
    first_seconds: float
    peak_bytes: int
    lost: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The decision of how a task is done on a device, which prints as a table.

    Parameters
    ----------
    task : {"generate", "apply", "train", "fit"}
    shape : tuple of int
        The shape of the weight.
    topology : str
    device, dtype : str
    batch : int or None
        The number of rows of the input, for ``"apply"`` and ``"train"``.
    memory_bytes : int or None
        The memory limit, if there is one.
    profile : DeviceProfile
        The profile on which the predictions are based.
    chosen : Alternative
    alternatives : tuple of Alternative
        All alternatives, the chosen one first.
    contractions : tuple of Contraction
        The contractions of the chosen one in a forward pass.
    notes : tuple of str
        Notes for the reader, such as why streaming is not possible.
    weighting : Weighting
        The formula of the generator's weight.
    executable : Executable
        The object that runs the task, and that was traced to predict time and memory.

    Examples
    --------
    >>> import adtn
    >>> plan = adtn.plan(adtn.Generator((64, 64), adtn.TTN(bond=2)), "apply", batch=8)
    >>> plan.device, plan.mode in ("materialise", "stream", "factored"), plan.predicted_seconds > 0
    ('numpy:cpu', True, True)
    """

    task: str
    shape: Shape
    topology: str
    device: str
    dtype: str
    batch: int | None
    memory_bytes: int | None
    profile: DeviceProfile
    chosen: Alternative
    alternatives: tuple[Alternative, ...]
    contractions: tuple[Contraction, ...]
    notes: tuple[str, ...]
    weighting: Weighting = field(repr=False)
    executable: Executable = field(repr=False, compare=False)

    @property
    def mode(self) -> str:
        """The mode of execution."""
        return self.chosen.mode

    @property
    def tiles(self) -> int:
        """The number of tiles of the weight."""
        return self.chosen.tiles

    @property
    def predicted_seconds(self) -> float:
        """The predicted time of one call."""
        return self.chosen.seconds

    @property
    def peak_bytes(self) -> int:
        """The largest additional memory at any time, in bytes."""
        return self.chosen.peak_bytes

    def step(self, backend: Backend) -> Callable[[Params, Float[Array, "..."]], Any]:
        """Return the task as a function of the arrays and its input, with adjoints for ``"fit"`` and ``"train"``.

        The input is ``x``, or for ``"fit"`` the target from :meth:`FitExecutable.arrange`. The loss of a ``"fit"`` is
        ``‖W - target‖²``, without ``‖target‖²`` if the target is projected; the gradient is returned without its factor
        of two.
        """
        return backend.compile(task_call(self.task, self.executable.on(backend), self.weighting.scale))

    def code(self) -> str:
        """Return the straight-line Python code that a layer in the mode ``"factored"`` runs on this device.

        It has one function per pass: what :meth:`function` calls with arrays by name and a workspace for large ones.

        Raises
        ------
        ScheduleError
            If the plan is in another mode, or its framework compiles programs itself, as JAX does.

        Examples
        --------
        >>> import adtn
        >>> gen = adtn.Generator((64, 64), adtn.LowRank(bond=4))
        >>> code = adtn.plan(gen, "apply", batch=2, device="numpy:cpu", mode="factored").code()
        >>> print(code.partition("    return")[0].rstrip())
        def forward(arrays, space):
            v0 = arrays['left']
            v1 = arrays['right']
            v2 = arrays['x/input'].reshape((2, 64))
            v3 = matmul(v1, v2.mT)
            v4 = v3.mT
            v5 = matmul(v4, v0.mT)
        """
        dialect = get_backend(self.device.partition(":")[0]).dialect
        if not isinstance(self.executable, Factored) or dialect is None:
            raise ScheduleError(
                f"Got a plan in the mode {self.mode!r} for {self.device}; expected a layer in the mode 'factored' for "
                "NumPy or PyTorch, which run code without a compiler."
            )
        return self.executable.code(dialect)

    def generator(self, backend: Backend) -> Callable[[Params], Float[Array, "*shape"]]:
        """Return ``arrays -> W`` of a plan for ``"generate"``."""
        return backend.compile(self.materialised.on(backend).weight)

    def function(self, backend: Backend) -> Callable[[Params, Float[Array, "batch n_in"]], Float[Array, "batch n_out"]]:
        """Return ``(arrays, x) -> y`` of a plan for ``"apply"`` or ``"train"``, differentiable if the framework is."""
        return backend.with_vjp(self.layer.on(backend))

    @property
    def materialised(self) -> Materialised:
        """The executable of a plan for ``"generate"``.

        Raises
        ------
        ScheduleError
            If the plan is for another task.
        """
        return _expected(self, Materialised, "generate")

    @property
    def layer(self) -> Layer:
        """The executable of a plan for ``"apply"`` or ``"train"``.

        Raises
        ------
        ScheduleError
            If the plan is for another task.
        """
        return _expected(self, Layer, "apply", "train")

    @property
    def fit(self) -> FitExecutable:
        """The executable of a plan for ``"fit"``.

        Raises
        ------
        ScheduleError
            If the plan is for another task.
        """
        return _expected(self, FitExecutable, "fit")

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        size = "x".join(map(str, self.shape))
        batch = f", batch {self.batch}" if self.batch is not None else ""
        limit = f", memory limit {format_bytes(self.memory_bytes)}" if self.memory_bytes is not None else ""
        where = f"on {self.device}" if not self.device.startswith("null:") else "for a device that need not be here"
        lines = [
            f"{self.task} {size}{batch} by {self.topology}",
            f"{where}, {self.dtype}, profile {self.profile.name} ({self.profile.source}){limit}",
            "",
        ]
        rows = [("segment", "times", "product b x m x n x k", "result", "Mflop", "MB", "permutes", "ms")]
        for c in self.contractions:
            rows.append(
                (
                    str(c.segment),
                    str(c.times),
                    " x ".join(map(str, c.bmnk)),
                    "x".join(map(str, c.result)),
                    f"{c.times * c.flops / 1e6:.3g}",
                    f"{c.times * c.nbytes / 1e6:.3g}",
                    str(c.permutes or ""),
                    f"{c.times * c.seconds * 1e3:.3g}",
                )
            )
        lines += _table(rows, left=(2, 3))
        chosen = self.chosen
        lines += [
            "",
            f"mode {chosen.label}" + (f", each {'x'.join(map(str, chosen.tile_shape))}" if chosen.tiles > 1 else ""),
            f"predicted {chosen.seconds * 1e3:.3g} ms a call"
            + (f" after {chosen.first_seconds * 1e3:.3g} ms once" if chosen.first_seconds else "")
            + f", peak {format_bytes(chosen.peak_bytes)} of extra memory",
        ]
        others = [("alternative", "ms", "once ms", "peak", "why not")]
        for a in self.alternatives:
            if a.lost:
                first = f"{a.first_seconds * 1e3:.3g}" if a.first_seconds else ""
                others.append((a.label, f"{a.seconds * 1e3:.3g}", first, format_bytes(a.peak_bytes), a.lost))
        if len(others) > 1:
            lines += ["", *_table(others, left=(0, 4))]
        return lines + [f"note: {note}" for note in self.notes]

    def to_json(self) -> str:
        """Convert to a dictionary, without the executable."""
        content: dict[str, Any] = {
            "task": self.task,
            "shape": self.shape,
            "topology": self.topology,
            "device": self.device,
            "dtype": self.dtype,
            "batch": self.batch,
            "memory_bytes": self.memory_bytes,
            "profile": {"name": self.profile.name, "source": self.profile.source, "hardware": self.profile.hardware},
            "mode": self.mode,
            "tiles": self.tiles,
            "predicted_seconds": self.predicted_seconds,
            "peak_bytes": self.peak_bytes,
            "contractions": [vars(c) for c in self.contractions],
            "alternatives": [vars(a) for a in self.alternatives],
            "notes": self.notes,
        }
        return json.dumps(content, indent=1)


def task_call(
    task: str, executable: Any, scale: float, loss: FitLoss = "distance"
) -> Callable[[Params, Float[Array, "..."]], Any]:
    """Make one call of a task by an executable, which plans run and the planner traces."""

    def train(arrays: Params, x: Float[Array, "batch n_in"]) -> Any:
        y, tape = executable.with_tape(arrays, x)
        return executable.pullback(tape, arrays, x, y)

    def fit(arrays: Params, target: Float[Array, " tiles *tile"]) -> Any:
        def zero() -> Float[Array, ""]:
            return do("zeros_like", do("reshape", target, (-1,))[0])

        there, weighted = executable.backend, loss == "output distance"
        consume = output_distance(there, target, arrays[MOMENT]) if weighted else squared_distance(there, target)
        return executable.evaluate(arrays, target, consume, zero, scale=scale)

    def generate(arrays: Params, _: Any) -> Float[Array, "*shape"]:
        return executable.weight(arrays)

    return {"generate": generate, "apply": executable, "train": train, "fit": fit}[task]


_Kind = TypeVar("_Kind", bound=Executable)


def _expected(plan: Plan, kind: type[_Kind], *tasks: str) -> _Kind:
    if plan.task not in tasks or not isinstance(plan.executable, kind):
        raise ScheduleError(f"Got a plan for {plan.task!r}; expected one for {' or '.join(map(repr, tasks))}.")
    return plan.executable


def _table(rows: list[tuple[str, ...]], left: tuple[int, ...]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
