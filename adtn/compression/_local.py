"""Local fits: one generator for one weight, on any executor."""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from .._atomic import write_atomic
from ..errors import FileFormatError, OutputWarning
from ..generator import Generator
from ..layout import Layout
from ..optim import DataAwareReconstruction, OptimizerName, Reconstruction, decompose, fit, has_decomposition, is_linear
from ..precision import Precision
from ..topology import Dense, RuleBase, Topology
from ._layer_files import file_name
from ._rounding import PASSES, rounded_in_metric
from ._storage import from_bytes, load, to_bytes

_SLOW_STEPS, _SLOW_GAIN = 20, 1e-3  # measured on perceptrons: 180 more steps lower errors by 0.2 % at most


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """The fit of a generator to one weight, as a task for a worker.

    Parameters
    ----------
    name : str
        Of the weight.
    weight : numpy.ndarray
    moment : numpy.ndarray or None
        The second moment of its inputs; if given, the outputs are reconstructed.
    topology, layout, base, seed
        Of the generator.
    steps : int
        The number of steps; 0 for a random generator with the standard deviation of the weight.
    optimizer, lr, device
        Options of the fit.
    restarts : int
        The number of seeds at the start; the worse half is dropped repeatedly (successive halving).
    label : str
        The name of its file, if it differs from that of the weight.
    silent : bool
        Whether the generated weight starts at zero, for an adapter.
    start : {"closed-form", "random"}
        Where the fit starts; without a closed form, and unless there are steps, at random.
    precision : Precision or None
        The precision to which cores are rounded at the end.
    sweeps : int
        The largest number of sweeps of a closed form, see :func:`adtn.decompose`; with one or two, it is
        rounded in fewer passes as well.
    """

    name: str
    weight: np.ndarray
    moment: np.ndarray | None
    topology: Topology
    layout: Layout
    base: RuleBase | None
    seed: int
    steps: int
    optimizer: OptimizerName
    lr: float
    device: str
    restarts: int = 1
    label: str = ""
    silent: bool = False
    start: Literal["closed-form", "random"] = "random"
    precision: Precision | None = None
    sweeps: int = 40

    def mark(self) -> str:
        """Return everything that the result depends on, except the device."""
        parts = (
            self.name,
            self.topology,
            self.layout,
            self.base,
            self.seed,
            self.steps,
            self.optimizer,
            self.lr,
            self.restarts,
            self.silent,
            self.start,
            self.precision,
            self.sweeps,
        )
        digest = hashlib.sha256(repr(parts).encode())
        for x in (self.weight, self.moment):
            if x is not None:
                digest.update(np.ascontiguousarray(x).tobytes())
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class LocalResult:
    """The result of a local fit.

    Parameters
    ----------
    name : str
    content : bytes
        The content of an adtn file.
    relative_error : float
        The relative error of the layer's outputs if their inputs are known, or else of the weight.
    """

    name: str
    content: bytes
    relative_error: float

    @property
    def generator(self) -> Generator:
        """Return the generator with its parameters."""
        return from_bytes(self.content)


class Executor(Protocol):
    """The interface that :mod:`concurrent.futures` and a Dask client have in common."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        """Return a future with ``result()``."""
        ...


def solve(task: LocalTask) -> LocalResult:
    """Fit one weight, in a worker.

    Restarts share the steps of one fit per rung: each of ``n`` seeds has ``steps / n``, the better half continues with
    twice as many, and the last one with all steps.
    """
    target = Reconstruction(task.weight)
    if task.moment is not None:
        target = DataAwareReconstruction(task.weight, task.moment)
    starts = [_first(task, task.seed + n) for n in range(task.restarts)]
    running = list({to_bytes(generator): generator for generator in starts}.values())  # a decomposition has no seed
    while True:
        steps = task.steps // len(running)
        if steps:
            running = [_continued(generator, target, task, steps) for generator in running]
        if len(running) == 1:
            last = running[0]
            if task.precision is not None:
                passes = PASSES if task.sweeps > 2 else max(int(8 / task.precision.bits), 1)  # fewer bits take more
                last = rounded_in_metric(last, task.precision, task.weight, task.moment, passes)
            return LocalResult(task.name, to_bytes(last), _error(last, task))
        running = sorted(running, key=lambda generator: _error(generator, task))[: (len(running) + 1) // 2]


def _first(task: LocalTask, seed: int) -> Generator:
    like: dict[str, Any] = {"layout": task.layout, "scale": task.weight, "seed": seed}
    if not task.silent:
        generator = Generator(task.weight.shape, task.topology, base=task.base, **like)
        # measured on convolutions of ResNet-20: from random Tucker cores, L-BFGS stays at an error of 0.98 where HOSVD
        # is exact, and never ends below the error of a decomposition
        if isinstance(task.topology, Dense) and task.start == "closed-form":
            return dense_generator(task.weight)
        if has_decomposition(generator) and task.start == "closed-form":
            return decompose(generator, task.weight, moment=task.moment, sweeps=task.sweeps)
        # a nonlinear network that starts where it is nearly linear stays there
        if has_decomposition(generator) and is_linear(generator) and task.steps:
            return decompose(generator, task.weight)
        return generator
    return starting_at_zero(task.weight.shape, task.topology, **like)


def dense_generator(weight: np.ndarray) -> Generator:
    """Make a generator whose only core is the weight."""
    layout = Layout.whole(weight.shape)
    core = np.reshape(weight, layout.dims)  # an axis of length 1 has no leg
    return Generator(weight.shape, Dense(), layout=layout, scale=1.0, params={"weight": core})


def starting_at_zero(shape: tuple[int, ...], topology: Topology, **options: Any) -> Generator:
    """Make an adapter: a generator whose weight is zero but whose parameters can be trained.

    Parameters
    ----------
    shape, topology
        See :class:`adtn.Generator`.
    **options
        The layout, scale, seed and dtype of the generator.

    Examples
    --------
    >>> import adtn
    >>> bool((starting_at_zero((8, 8), adtn.TTN(bond=2)).weight() == 0).all())
    True
    """
    like = Generator(shape, topology, base=np.zeros(shape, np.float32), **options)
    return Generator(shape, topology, params=like.params, **options)


class _Slow:
    """A callback that stops a fit whose loss fell by less than a thousandth in twenty steps."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=_SLOW_STEPS + 1)

    def __call__(self, step: int, loss: float) -> bool:
        self.losses.append(loss)
        return len(self.losses) > _SLOW_STEPS and self.losses[0] - loss < _SLOW_GAIN * loss


def _continued(generator: Generator, target: Any, task: LocalTask, steps: int) -> Generator:
    falls = task.optimizer == "lbfgs"  # the loss of others may rise, and falls most at the end of their schedule
    return (
        fit(
            generator,
            target,
            device=task.device,
            optimizer=task.optimizer,
            steps=steps,
            lr=task.lr,
            seed=task.seed,
            progress=False,
            callbacks=[_Slow()] if falls else [],
        )
        .uninterrupted()
        .generator
    )


def run_local(
    tasks: Sequence[LocalTask], executor: Executor | None, folder: Path | None, done: Callable[[LocalResult], None]
) -> list[LocalResult]:
    """Fit all weights, and return results in the order of tasks; finished ones are cached in ``folder``."""
    results: dict[str, LocalResult] = {}
    waiting: list[LocalTask] = []
    for task in tasks:
        cached = _cached(task, folder)
        if cached is None:
            waiting.append(task)
        else:
            results[task.label or task.name] = cached
            done(cached)
    for task, result in _results(waiting, executor):
        if folder is not None:
            _cache(task, result, folder)
        results[task.label or task.name] = result
        done(result)
    return [results[task.label or task.name] for task in tasks]


def _results(tasks: Iterable[LocalTask], executor: Executor | None) -> Iterator[tuple[LocalTask, LocalResult]]:
    if executor is None:
        for task in tasks:
            yield task, solve(task)
        return
    for task, future in [(task, executor.submit(solve, task)) for task in tasks]:
        yield task, future.result()


def _cached(task: LocalTask, folder: Path | None) -> LocalResult | None:
    if folder is None:
        return None
    try:
        generator = load(_file(task, folder))
    except FileFormatError:
        return None  # it is recomputed
    if (generator.shape, generator.topology, generator.layout) != (task.weight.shape, task.topology, task.layout):
        return None
    return LocalResult(task.name, to_bytes(generator), _error(generator, task))


def _cache(task: LocalTask, result: LocalResult, folder: Path) -> None:
    file = _file(task, folder)
    try:
        write_atomic(file, result.content)
    except OSError as error:
        text = f"Layer {task.name!r} was not cached in {file} ({error}); the work continues."
        warnings.warn(text, OutputWarning, stacklevel=2)


def _file(task: LocalTask, folder: Path) -> Path:
    return folder / f"{file_name(task.label or task.name, task.mark())}.safetensors"


def _error(generator: Generator, task: LocalTask) -> float:
    """Compute the relative error of the outputs if their inputs are known, or else of the weight."""
    rows = task.weight.reshape(task.weight.shape[0], -1)
    away = generator.weight().reshape(rows.shape) - rows

    def power(x: np.ndarray) -> float:
        return float(np.vdot(x if task.moment is None else x @ task.moment, x))

    return (max(power(away), 0.0) / power(rows)) ** 0.5 if power(rows) > 0.0 else 0.0
