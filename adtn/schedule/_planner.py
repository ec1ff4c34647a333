"""The decision: candidates of every mode, run on null arrays, priced by the profile, the best one kept."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from autoray import do

from .._backend import Op, check_device, get_backend, split_device
from .._errors import ScheduleError
from .._typing import Shape
from ..network import (
    BASE,
    BASE_SCALE,
    Path,
    Segment,
    Stage,
    Weighting,
    closed,
    product_order,
    row_order,
    sizes_of,
    tile_counts,
    tile_program,
)
from ._bytes import parse_bytes
from ._distance import projecting, squared_distance, why_not_factored
from ._execution import KEPT_BYTES, TiledWeight, generate
from ._layers import FactoredApply, TiledApply, with_input
from ._plan import MODES, TASKS, Alternative, Contraction, Plan
from ._profile import DeviceProfile, shipped_profiles
from ._profile_store import find_profile, named_profile
from ._search import Cost, best_path, best_tiled_path, step_ops
from ._sketch import Planned

_TILE_ENTRIES = (1 << 16, 1 << 18, 1 << 20)
_PROJECTED = (1 << 18, 1 << 21)
_MARGIN = 0.95
_CLEARLY = 0.5
_SPARING = 0.92  # tiles this much slower are taken when they need less memory


def plan(
    generator: Planned,
    task: str = "apply",
    *,
    device: str | None = None,
    dtype: str | None = None,
    batch: int | None = None,
    memory: str | int | None = None,
    mode: str | None = None,
    profile: DeviceProfile | str | None = None,
) -> Plan:
    """Decide how a task is done on a device: contraction orders, execution mode, tiles.

    Parameters
    ----------
    generator : Generator
        Only its structure matters, not its numbers.
    task : {"generate", "apply", "train", "fit"}
        - ``"generate"``: the weight
        - ``"apply"``: ``x @ W.T`` again and again with the same parameters
        - ``"train"``: ``x @ W.T`` and its adjoint with parameters that change at every call
        - ``"fit"``: loss and gradients of a reconstruction
    device : str, optional
        Where; ``"numpy:cpu"`` when not given, or with the name of a profile whatever that describes, which need not
        be there: the plan is made on the null backend.
    dtype : str, optional
        That of the generator when not given.
    batch : int, optional
        Rows of ``x``; 1 when not given.
    memory : str or int, optional
        Largest extra memory in bytes, or such as ``"512MiB"``.
    mode : {"materialise", "stream", "factored"}, optional
        Use this one.
    profile : DeviceProfile or str, optional
        A profile, the name of a shipped one (``"h200"``) or a file; that of the device when not given.

    Returns
    -------
    Plan
        Prints as a table.

    Raises
    ------
    ScheduleError
        If no alternative fits the memory (the message says the smallest limit that works) or the mode is impossible.
    DeviceError, MissingDependencyError
        If the device or dtype is not available.

    References
    ----------
    Roofline: S. Williams, A. Waterman, D. Patterson (2009), doi:10.1145/1498765.1498785. Contraction trees:
    J. Gray, S. Kourtis (2021), arXiv:2002.01935.

    Examples
    --------
    >>> import adtn
    >>> gen = adtn.Generator((4096, 4096), adtn.TTN(bond=4), layout=adtn.Layout.of((4096, 4096), leg=8))
    >>> adtn.plan(gen, "fit", profile="h200").mode
    'factored'
    """
    if device is None:
        device = "null:cpu" if isinstance(profile, str) and profile in shipped_profiles() else "numpy:cpu"
    return decide(generator, task, device=device, dtype=dtype, batch=batch, memory=memory, mode=mode, profile=profile)


def decide(
    generator: Planned,
    task: str,
    *,
    device: str,
    dtype: str | None = None,
    batch: int | None = None,
    memory: str | int | None = None,
    mode: str | None = None,
    profile: DeviceProfile | str | None = None,
    only_rows: bool = False,
    modes: tuple[str, ...] = MODES,
) -> Plan:
    """:func:`plan`, also for objectives that need whole rows of the weight, and with fewer modes to choose from."""
    if task not in TASKS:
        raise ScheduleError(f"Got task={task!r}; expected one of {', '.join(TASKS)}.")
    if mode is not None and mode not in MODES:
        raise ScheduleError(f"Got mode={mode!r}; expected one of {', '.join(MODES)}.")
    if task in ("apply", "train") and len(generator.shape) != 2:
        raise ScheduleError(f"Got a weight of shape {generator.shape}; task={task!r} needs (n_out, n_in).")
    if batch is not None and batch < 1:
        raise ScheduleError(f"Got batch={batch}; expected at least 1.")
    dtype = dtype or generator.dtype
    found = _profile(device, dtype, profile)
    weighting = generator.weighting
    key = _Key(
        generator.segments, weighting, task, device, dtype, batch if task in ("apply", "train") else None,
        parse_bytes(memory), mode, found, str(generator.topology), only_rows, modes,
    )  # fmt: skip
    if task != "fit":
        return _decide(key)
    # the scale is an argument of a fit's loss: all fits of one structure share a plan, and what was compiled for it
    return replace(_decide(replace(key, weighting=replace(weighting, scale=1.0))), weighting=weighting)


def _profile(device: str, dtype: str, profile: DeviceProfile | str | None) -> DeviceProfile:
    if isinstance(profile, DeviceProfile):
        return profile
    if profile is None:
        backend, where = check_device(device, dtype)
        return find_profile(backend, where, dtype)
    return named_profile(profile, dtype)


@dataclass(frozen=True)
class _Key:
    """Everything a decision depends on."""

    segments: tuple[Segment, ...]
    weighting: Weighting
    task: str
    device: str
    dtype: str
    batch: int | None
    memory: int | None
    mode: str | None
    profile: DeviceProfile
    topology: str
    only_rows: bool
    modes: tuple[str, ...]


@lru_cache(maxsize=256)
def _decide(key: _Key) -> Plan:
    return _Planner(key).decide()


@dataclass(frozen=True)
class _Candidate:
    alternative: Alternative
    weight: TiledWeight | None
    stages: tuple[Stage, ...] = ()  # of what is done without the weight
    paths: tuple[Path, ...] = ()


class _Planner:
    """One decision under way."""

    def __init__(self, key: _Key) -> None:
        self.key = key
        self.layout = key.weighting.layout
        self.sizes = sizes_of(key.segments)
        self.notes: list[str] = []
        self.null: Any = get_backend("null")
        # a shipped profile plans for devices that are not there
        name, where = split_device(key.device)
        backend = None if key.profile.source == "datasheet" and name == "null" else get_backend(name)
        self.shares = backend is None or backend.shares_memory(where)
        self.fused = frozenset[str]() if backend is None else backend.fused
        self.scratch_bytes = 0 if backend is None else backend.scratch_bytes
        self.cost: Cost = "adjoint" if key.task in ("fit", "train") else "forward"
        inner = key.segments[:-1]
        self.head: tuple[Path, ...] = tuple(best_path(s, self.sizes, key.profile, self.cost) for s in inner)

    def decide(self) -> Plan:
        """Try everything, keep the best."""
        key = self.key
        tried = list(self.candidates())
        fitting = [c for c in tried if key.memory is None or c.alternative.peak_bytes <= key.memory]
        if not fitting:
            least = min(c.alternative.peak_bytes for c in tried)
            asked = f" in mode {key.mode!r}" if key.mode else ""
            raise ScheduleError(
                f"Got a memory limit of {key.memory} bytes; the smallest that works for this {key.task}{asked} is "
                f"{least} bytes ({least / 2**20:.1f} MiB). Raise it, or use smaller bonds or dtypes."
            )
        best = self.best(fitting)
        alternatives = [best.alternative]
        for c in sorted(tried, key=lambda c: c.alternative.seconds):
            if c is not best:
                alternatives.append(replace(c.alternative, lost=self.reason(c.alternative, best.alternative)))
        return Plan(
            key.task, self.layout.shape, key.topology, key.device, key.dtype, key.batch, key.memory, key.profile,
            best.alternative, tuple(alternatives), tuple(self.contractions(best)), tuple(self.notes),
            key.segments, key.weighting, best.weight, best.paths,
        )  # fmt: skip

    def best(self, fitting: list[_Candidate]) -> _Candidate:
        """The fastest; a cached weight unless something else is clearly faster, and rows when they are as fast."""
        best = min(fitting, key=lambda c: c.alternative.seconds)
        if not best.alternative.by_rows:  # rows need no copy of the target in another order
            rows = [c for c in fitting if c.alternative.by_rows]
            near = min(rows, key=lambda c: c.alternative.seconds, default=best)
            if near.alternative.seconds * _MARGIN <= best.alternative.seconds:
                best = near
        if best.alternative.tiles > 1:
            a = best.alternative
            near = [
                c for c in fitting
                if (c.alternative.mode, c.alternative.by_rows) == (a.mode, a.by_rows)
                and c.alternative.seconds * _SPARING <= a.seconds
            ]  # fmt: skip
            best = min(near, key=lambda c: c.alternative.peak_bytes)
        if self.key.task == "apply":
            for c in fitting:
                if (
                    c.alternative.mode == "materialise"
                    and c.alternative.seconds * self.doubt() <= best.alternative.seconds
                ):
                    return c
        return best

    def doubt(self) -> float:
        """How much faster than a cached weight another mode must be predicted to be: a good profile is believed more.

        The cached weight is a single product, and predicted better than anything else.
        """
        error = self.key.profile.fit_error.get("program", 0.2)
        return min(_MARGIN, math.exp(-2.0 * error))

    def reason(self, a: Alternative, best: Alternative) -> str:
        """Why an alternative lost."""
        if self.key.memory is not None and a.peak_bytes > self.key.memory:
            return "does not fit the memory limit"
        if a.seconds < best.seconds:
            return "not clearly faster, and takes more memory"
        return f"{a.seconds / best.seconds:.2f}x the time"

    def candidates(self) -> Iterable[_Candidate]:
        """All that the task and the forced mode allow."""
        key = self.key
        wanted = (key.mode,) if key.mode else key.modes
        projected = math.inf
        if "factored" in wanted:
            why = self.why_not_factored()
            if not why:
                for found in self.projected() if key.task == "fit" else (self.factored(),):
                    projected = min(projected, found.alternative.seconds)
                    yield found
            elif key.mode:
                raise ScheduleError(f"Got mode='factored', but {why}; use 'stream' or 'materialise'.")
        orders = [(True, row_order(key.segments, self.layout))]
        if key.task == "fit" and not key.only_rows and orders[0][1] != key.segments[-1].outputs:
            orders.append((False, key.segments[-1].outputs))
        fastest: dict[bool, float] = {}
        while orders:
            by_rows, order = orders.pop(0)
            path = best_path(replace(key.segments[-1], outputs=order), self.sizes, key.profile, self.cost)
            if "materialise" in wanted:
                found = self.tiled(path, order, by_rows, 1, "materialise")
                fastest[by_rows] = found.alternative.seconds
                yield found
                if by_rows and (not _permutes(found) or projected < _CLEARLY * found.alternative.seconds):
                    orders.clear()  # rows are as good as any order, or no order helps
            slower = not by_rows and fastest.get(False, 0.0) > fastest.get(True, math.inf) * _MARGIN
            if "stream" in wanted and key.task != "generate" and not slower:
                tilings = self.tilings(order, by_rows=by_rows)
                if tilings and not self.large_state():  # what is best in tiles of one size is good in those of another
                    last = replace(key.segments[-1], outputs=order)
                    path = best_tiled_path(last, self.sizes, key.profile, self.cost, tilings[len(tilings) // 2])
                for tiles in tilings:
                    yield self.tiled(path, order, by_rows, tiles, "stream")
        if key.mode == "stream" and key.task == "generate":
            raise ScheduleError(
                "Got mode='stream' for 'generate', whose result is the whole weight; use 'materialise'."
            )
        self.note_large_state()

    def why_not_factored(self) -> str:
        """Why the task needs the weight; empty when it does not."""
        key = self.key
        if key.task == "generate" or key.only_rows:
            return "the task needs the weight"
        if key.task == "fit":
            if self.large_state():
                return "the last segment reads a state as large as the weight"
            return why_not_factored(key.segments, key.weighting, key.dtype)
        return "there is an activation after the last segment" if key.segments[-1].activation != "identity" else ""

    def projected(self) -> Iterable[_Candidate]:
        """A fit that projects the target, in tiles."""
        key, last = self.key, self.key.segments[-1]
        paths = (*self.head, best_path(last, self.sizes, key.profile, "projected"))
        square = closed(last, self.sizes)
        norm_path = best_path(square, self.sizes | sizes_of([square]), key.profile, "small")
        total = math.prod(self.layout.dims)
        order = product_order(last, paths[-1], self.sizes, total)
        # whole legs only: what is left of a leg would lie in the way of the products
        counts = list(accumulate((self.sizes[i] for i in order), operator.mul))
        for tiles in dict.fromkeys([1, *(min(counts, key=lambda c: abs(math.log(c * e / total))) for e in _PROJECTED)]):
            yield self.priced(projecting(key.segments, paths, key.weighting, tiles, norm_path), "factored")

    def tilings(self, order: tuple[str, ...], *, by_rows: bool) -> list[int]:
        """How many tiles are worth trying: near the usual sizes, and with a limit also the smallest tiles."""
        total = math.prod(self.sizes[i] for i in order)
        rows = [i for i in order if i in set(self._row_legs())] if by_rows else order
        counts = [c for c in tile_counts(tuple(self.sizes[i] for i in rows)) if c > 1]
        wanted = [total / entries for entries in _TILE_ENTRIES]
        if self.key.memory is not None:
            wanted += [total / (1 << p) for p in (14, 12, 22)]
        near = {min(counts, key=lambda c: abs(math.log(c / w))) for w in wanted if w > 1.5 and counts}
        if self.key.mode == "stream" and counts and not near:
            near = {counts[0]}
        return sorted(near)

    def _row_legs(self) -> Iterable[str]:
        return (n for n, (axis, _) in zip(self.key.segments[-1].outputs, self.layout.leg_axes, strict=True) if not axis)

    def large_state(self) -> bool:
        """Whether what the last segment reads is of the size of the weight."""
        state = math.prod(self.sizes[i] for i in self.key.segments[-1].inputs)
        return state * 4 >= math.prod(self.layout.padded_shape)

    def note_large_state(self) -> None:
        """Say when the state before the last segment is as large as the weight: then no tiling saves memory."""
        key = self.key
        state = math.prod(self.sizes[i] for i in key.segments[-1].inputs)
        if self.large_state():
            self.notes.append(
                "streaming is not possible in the usual sense: the last segment reads a state of "
                f"{state} entries, as large as the weight; its gates are fused into blocks instead"
            )

    def tiled(self, path: Path, order: tuple[str, ...], by_rows: bool, tiles: int, mode: str) -> _Candidate:
        """One tiling of the weight."""
        key = self.key
        program = tile_program(key.segments, (*self.head, path), order, tiles)
        places = tuple(key.segments[-1].outputs.index(i) for i in order)
        return self.priced(TiledWeight(program, key.weighting, places, by_rows), mode)

    def priced(self, weight: TiledWeight, mode: str) -> _Candidate:
        """A candidate with its prices."""
        seconds, first, peak = self.trace(weight, mode)
        tiles, shape = weight.tiled.tiles, weight.tile_shape
        a = Alternative(mode, weight.by_rows, tiles, shape, seconds, first, peak + self.scratch_bytes)
        return _Candidate(a, weight)

    def factored(self) -> _Candidate:
        """The layer without its weight."""
        key = self.key
        segments = with_input(key.segments, self.layout, key.batch or 1)
        sizes = sizes_of(segments)
        path = best_path(segments[-1], sizes, key.profile, self.cost)
        paths = (*self.head, path)
        applied = FactoredApply(key.segments, paths, key.weighting, self.null)
        arrays, counter = self.arrays()
        x = self.null.asarray(_shaped((key.batch or 1, self.layout.shape[1])), "cpu", key.dtype)
        held = counter.live_bytes
        counter.ops.clear()
        counter.peak_bytes = held
        if key.task == "train":
            y, tape = applied.with_tape(arrays, x)
            applied.pullback(tape, arrays, x, y)
        else:
            applied(arrays, x)
        a = Alternative(
            "factored", True, 1, (), self.seconds(counter), 0.0, counter.peak_bytes - held + self.scratch_bytes
        )
        return _Candidate(a, None, applied.program(key.batch or 1).stages, paths)

    def target(self, counter: Any, arrange: Callable[[Any], Any]) -> tuple[Any, int, Any]:
        """The target of a fit, to be kept alive, the bytes that are held before it, and the target as it is read."""
        goal = self.null.asarray(_shaped(self.layout.shape), "cpu", self.key.dtype)
        held = counter.live_bytes if self.shares else counter.live_bytes - goal.nbytes
        return goal, held, arrange(goal)

    def arrays(self) -> tuple[dict[str, Any], Any]:
        """Null arrays for every core and the base."""
        key = self.key
        shapes = {core.param: _shaped(core.shape) for s in key.segments for core in s.cores}
        if key.weighting.has_base:
            shapes[BASE] = _shaped(self.layout.shape)
            shapes[BASE_SCALE] = _shaped(())
        arrays, counter = self.null.arrays_like(shapes, key.dtype)
        counter.fused = self.fused
        return arrays, counter

    def seconds(self, counter: Any) -> float:
        """Predicted time of what was counted."""
        return self.key.profile.total_s(counter.ops.items())

    def trace(self, weight: TiledWeight, mode: str) -> tuple[float, float, int]:
        """Seconds of a call, seconds of what is kept, peak bytes, by running the task on null arrays."""
        key, null = self.key, self.null
        arrays, counter = self.arrays()
        if key.task == "fit":
            _goal, held, arranged = self.target(counter, weight.arrange)
            if mode == "factored":
                counter.ops.clear()
                weight.project(null, arrays, arranged, null.workspace())
                return self.seconds(counter), 0.0, counter.peak_bytes - held
            if weight.weighting.has_base:
                arrays[BASE] = weight.arrange(arrays[BASE])
            counter.ops.clear()
            zero = do("zeros_like", do("reshape", arranged, (-1,))[0])
            weight.run(null, arrays, squared_distance(null, arranged), zero, adjoint=True)
            return self.seconds(counter), 0.0, counter.peak_bytes - held
        if key.task == "generate":
            held = counter.live_bytes
            w = generate(weight, null, arrays, null.workspace(KEPT_BYTES))
            del w
            return self.seconds(counter), 0.0, counter.peak_bytes - held
        x = null.asarray(_shaped((key.batch or 1, self.layout.shape[1])), "cpu", key.dtype)
        held = counter.live_bytes
        counter.ops.clear()
        first = 0.0
        if mode == "materialise" and key.task == "apply":  # the weight is kept from the first call on
            w = generate(weight, null, arrays, null.workspace(KEPT_BYTES))
            first = self.seconds(counter)
            counter.ops.clear()
            y = x @ w.mT
            del w, y
            return self.seconds(counter), first, counter.peak_bytes - held
        layer = TiledApply(weight, null)
        y, tape = layer.with_tape(arrays, x)
        if key.task == "train":
            layer.pullback(tape, arrays, x, y)
        del y
        return self.seconds(counter), first, counter.peak_bytes - held

    def contractions(self, c: _Candidate) -> Iterable[Contraction]:
        """The pairwise contractions of the chosen one, forward."""
        stages, tile_steps, tiles = c.stages, (), 1
        if c.weight is not None:
            tiled = c.weight.tiled
            stages, tile_steps, tiles = (*tiled.head.stages, tiled.last), tiled.steps, tiled.tiles
        last = len(stages) - 1
        listed = [(t, 1, step) for t, stage in enumerate(stages) for step in stage.steps]
        listed += [(last, tiles, step) for step in tile_steps]
        if c.alternative.mode == "factored" and c.weight is not None:  # not the last product: two that project
            listed[-1] = (last, 2 * tiles, listed[-1][2])
        for t, times, step in listed:
            ops = list(step_ops(step, self.key.dtype))
            product: Op = ops[-1]
            yield Contraction(
                t, times, step.bmnk, step.c.full, step.flops, product.moved_bytes, len(ops) - 1,
                sum(map(self.key.profile.seconds, ops)),
            )  # fmt: skip


def _permutes(candidate: _Candidate) -> bool:
    """Whether the last contraction copies any of its tensors into another order."""
    tiled = candidate.weight.tiled if candidate.weight is not None else None
    steps = (*tiled.last.steps, *tiled.steps) if tiled is not None else ()
    return not steps or any(view.moves for view in (steps[-1].a, steps[-1].b, steps[-1].c))


def _shaped(shape: Shape) -> np.ndarray:
    """An array of any shape that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)
