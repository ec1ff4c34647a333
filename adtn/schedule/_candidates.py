"""The candidates for a task: executables of every mode, with the contraction orders and tiles worth trying."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from .._typing import Inds
from ..backends import get_backend
from ..errors import ScheduleError
from ..program import Path, closed, product_order, row_order, tile_counts, tile_program
from ..topology import sizes_of
from ..weight import (
    MODES,
    Executable,
    Factored,
    InTiles,
    Materialised,
    Mode,
    Projected,
    Streamed,
    TiledWeight,
    input_legs,
    projecting,
    why_not_factored,
    with_input,
)
from ._price import Price, Tracer
from ._request import Request
from ._search import Cost, best_path, best_tiled_path

_TILE_ENTRIES = (1 << 16, 1 << 18, 1 << 20)
"""Tiles that fit the second-level cache of a core, the last one, and what several cores share."""
_TILE_ENTRIES_FOR_LIMIT = (1 << 12, 1 << 14, 1 << 22)
"""Further ones under a memory limit: the smallest that are worth a launch, and one for limits that are hardly felt."""
_PROJECTED_ENTRIES = (1 << 18, 1 << 21)
"""Tiles of a target that is projected: half a megabyte and four megabytes in single precision."""
_HELPLESS = 0.5
"""A projection that takes less than this part of the time of rows is not overtaken by rows in another order."""
_ORDER_GAIN = 0.95
"""Legs in another order are streamed only where they gain this much when the weight is made at once."""
_LARGE_STATE = 1 / 4
"""From this part of the weight on, the state before the last segment is as good as the weight in memory."""


@dataclass(frozen=True)
class Candidate:
    """An executable with its price."""

    executable: Executable
    price: Price

    @property
    def seconds(self) -> float:
        """The predicted seconds of one call."""
        return self.price.seconds


class Candidates:
    """The candidates that a request allows, priced one after the other.

    Parameters
    ----------
    request : Request
        The request.

    Raises
    ------
    ScheduleError
        While iterating, if the requested mode is not possible.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.layout = request.weighting.layout
        self.sizes = sizes_of(request.segments)
        self.notes: list[str] = []
        self.null = get_backend("null")
        self.tracer = Tracer(request)
        self.cost: Cost = "adjoint" if request.task in ("fit", "train") else "forward"
        inner = request.segments[:-1]
        self.head: tuple[Path, ...] = tuple(best_path(s, self.sizes, request.profile, self.cost) for s in inner)

    def __iter__(self) -> Iterator[Candidate]:
        request = self.request
        allowed = (request.mode,) if request.mode else MODES
        without_weight = list(self._without_weight()) if Factored.mode in allowed else []
        yield from without_weight
        best_without = min((c.seconds for c in without_weight), default=math.inf)
        yield from self._in_tiles(allowed, best_without)
        if request.mode == Streamed.mode and request.task == "generate":
            raise ScheduleError(
                "Got mode='stream' for 'generate', whose result is the whole weight; use 'materialise'."
            )
        if self.has_large_state:
            self.notes.append(
                "streaming is not possible in the usual sense: the last segment reads a state of "
                f"{self._state_entries} entries, as large as the weight; its gates are fused into blocks instead"
            )

    # candidates without the weight

    def _without_weight(self) -> Iterator[Candidate]:
        """Yield layers and fits that do not generate the weight."""
        if why := self.why_not_factored():
            if self.request.mode:
                raise ScheduleError(f"Got mode='factored', but {why}; use 'stream' or 'materialise'.")
            return
        yield from self._projected() if self.request.task == "fit" else [self._factored()]

    def why_not_factored(self) -> str:
        """Return why the task needs the weight; empty if it does not."""
        request = self.request
        if request.task == "generate" or request.loss == "any":
            return "the task needs the weight"
        if request.task == "fit":
            if request.exact:
                return "the task needs the residuals"
            if self.has_large_state and not self.is_weighted:  # products with a moment cost more than the state
                return "the last segment reads a state as large as the weight"
            return why_not_factored(request.segments, request.weighting, request.dtype, self.is_weighted)
        linear = request.segments[-1].activation == "identity"
        return "" if linear else "there is an activation after the last segment"

    def _factored(self) -> Candidate:
        """Make the layer that does not generate its weight."""
        request = self.request
        segments = with_input(request.segments, self.layout, request.rows)
        path = best_path(segments[-1], sizes_of(segments), request.profile, self.cost)
        return self._priced(
            Factored(
                request.segments,
                (*self.head, path),
                weighting=request.weighting,
                batch=request.rows,
                backend=self.null,
            )
        )

    def _projected(self) -> Iterable[Candidate]:
        """Make a fit that projects the target, in tiles."""
        request, last = self.request, self.request.segments[-1]
        paths = (*self.head, best_path(last, self.sizes, request.profile, "projected"))
        square = closed(last, self.sizes, input_legs(last, request.weighting) if self.is_weighted else ())
        cost = "adjoint" if self.is_weighted else "small"
        norm_path = best_path(square, self.sizes | sizes_of([square]), request.profile, cost)
        total = math.prod(self.layout.dims)
        order = product_order(last, paths[-1], self.sizes, total)
        # whole legs only, as a part of a leg would prevent plain matrix products
        counts = list(accumulate((self.sizes[i] for i in order), operator.mul))
        near = [min(counts, key=lambda c: abs(math.log(c * e / total))) for e in _PROJECTED_ENTRIES]
        for tiles in dict.fromkeys([1, *near]):
            weight = projecting(request.segments, paths, request.weighting, tiles, norm_path, self.is_weighted)
            yield self._priced(Projected(weight, self.null))

    # candidates with the weight, in tiles

    def _in_tiles(self, allowed: tuple[Mode, ...], best_without: float) -> Iterator[Candidate]:
        request, segments = self.request, self.request.segments
        orders = [(True, row_order(segments, self.layout))]
        if request.task == "fit" and request.loss == "distance" and orders[0][1] != segments[-1].outputs:
            orders.append((False, segments[-1].outputs))
        fastest: dict[bool, float] = {}
        for by_rows, order in orders:
            last = replace(segments[-1], outputs=order)
            path = best_path(last, self.sizes, request.profile, self.cost)
            enough = False
            if Materialised.mode in allowed:
                whole = self._tiled(Materialised, path, order, by_rows=by_rows)
                fastest[by_rows] = whole.seconds
                yield whole
                # blocks of rows are as good as any other order, or no order helps
                enough = not whole.executable.permutes or best_without < _HELPLESS * whole.seconds
            streams = Streamed.mode in allowed and request.task != "generate"
            gains = by_rows or fastest.get(False, 0.0) <= fastest.get(True, math.inf) * _ORDER_GAIN
            if streams and gains:
                tilings = self._tilings(order, by_rows=by_rows)
                if tilings and not self.has_large_state:  # the best order for tiles of one size is good for others
                    middle = tilings[len(tilings) // 2]
                    path = best_tiled_path(last, self.sizes, request.profile, self.cost, middle)
                for tiles in tilings:
                    yield self._tiled(Streamed, path, order, by_rows=by_rows, tiles=tiles)
            if by_rows and enough:
                return

    def _tilings(self, order: Inds, *, by_rows: bool) -> list[int]:
        """List the numbers of tiles worth trying: near usual sizes, and with a memory limit also the smallest tiles."""
        total = math.prod(self.sizes[i] for i in order)
        outputs = self.request.segments[-1].outputs
        of_rows = {name for name, (axis, _) in zip(outputs, self.layout.leg_axes, strict=True) if not axis}
        sliced = [i for i in order if i in of_rows] if by_rows else order
        counts = [c for c in tile_counts(tuple(self.sizes[i] for i in sliced)) if c > 1]
        entries = _TILE_ENTRIES + (_TILE_ENTRIES_FOR_LIMIT if self.request.memory is not None else ())
        wanted = [total / n for n in entries]
        near = {min(counts, key=lambda c: abs(math.log(c / w))) for w in wanted if w > 1.5 and counts}
        if self.request.mode == Streamed.mode and counts and not near:
            near = {counts[0]}
        return sorted(near)

    def _tiled(self, kind: type[InTiles], path: Path, order: Inds, *, by_rows: bool, tiles: int = 1) -> Candidate:
        """Make a fit or layer with one tiling of the weight."""
        request = self.request
        program = tile_program(request.segments, (*self.head, path), order, tiles)
        places = tuple(request.segments[-1].outputs.index(i) for i in order)
        return self._priced(
            kind(TiledWeight(tiled=program, weighting=request.weighting, positions=places, by_rows=by_rows), self.null)
        )

    def _priced(self, executable: Executable) -> Candidate:
        return Candidate(executable, self.tracer.price(executable))

    @property
    def is_weighted(self) -> bool:
        """Whether a fit measures outputs, by a second moment of inputs."""
        return self.request.loss == "output distance"

    @property
    def has_large_state(self) -> bool:
        """Whether the state that the last segment reads is as large as the weight."""
        return self._state_entries >= _LARGE_STATE * math.prod(self.layout.padded_shape)

    @property
    def _state_entries(self) -> int:
        return math.prod(self.sizes[i] for i in self.request.segments[-1].inputs)
