"""The planner: candidates of every mode are priced on null arrays, and the best one is chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from .._checks import Count, checked, shown
from ..backends import split_device
from ..device import DeviceProfile, Memory, Profile, chosen_profile, parse_bytes, shipped_profiles
from ..errors import ScheduleError
from ..topology import check_activation
from ..weight import Layer, Mode
from ._candidates import Candidate, Candidates
from ._plan import Alternative, Contraction, Plan, Task
from ._request import FitLoss, Request
from ._search import step_ops
from ._sketch import Planned

_ROWS_ARE_WORTH = 0.95
"""Rows this close to the best order are taken: they need no copy of the target in another order."""
_SPARING = 0.92
"""Tiles this close to the fastest are taken when they need less memory."""
_MOST_TRUST = 0.95
"""Even a profile without error is believed only so far against a cached weight."""
_DEVIATIONS = 2.0
"""By so many standard errors of a profile's logarithmic predictions another mode must beat a cached weight."""


@checked(ScheduleError)
def plan(
    generator: Planned,
    task: Task = "apply",
    *,
    device: str | None = None,
    dtype: str | None = None,
    batch: Count | None = None,
    memory: Memory = None,
    mode: Mode | None = None,
    profile: Profile | None = None,
) -> Plan:
    """Plan how a task is done on a device: contraction orders, execution mode, tiles.

    Parameters
    ----------
    generator : Generator
        The generator, of which only the structure matters.
    task : {"generate", "apply", "train", "fit"}
        - ``"generate"``: generate the weight
        - ``"apply"``: ``x @ W.T``, repeatedly with the same parameters
        - ``"train"``: ``x @ W.T`` and its adjoint with parameters that change at every call
        - ``"fit"``: loss and gradients of a reconstruction
    device : str, optional
        The device; by default ``"numpy:cpu"``, or the device that a named profile describes, which need not
        be present, as the plan is made on the null backend.
    dtype : str, optional
        The dtype; by default, that of the generator.
    batch : int, optional
        The number of rows of ``x``; by default 1.
    memory : str or int, optional
        The largest additional memory in bytes, or a string such as ``"512MiB"``.
    mode : {"materialise", "stream", "factored"}, optional
        The mode to use; by default, the fastest one is chosen.
    profile : DeviceProfile or str, optional
        A profile, the name of a shipped one (``"h200"``) or a file; by default, the profile of the device.

    Returns
    -------
    Plan
        The plan, which prints as a table.

    Raises
    ------
    ScheduleError
        If no alternative fits the memory (the message names the smallest limit that works), or the mode is impossible.
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


@checked(ScheduleError)
def decide(
    generator: Planned,
    task: Task,
    *,
    device: str,
    dtype: str | None = None,
    batch: Count | None = None,
    memory: Memory = None,
    mode: Mode | None = None,
    profile: Profile | None = None,
    loss: FitLoss = "distance",
    exact: bool = False,
) -> Plan:
    """Plan like :func:`plan`, also for fits with another loss than the distance, or that need the residuals."""
    if not hasattr(generator, "segments"):
        raise ScheduleError(f"Got generator={shown(generator)}; expected an adtn.Generator.")
    if task in ("apply", "train") and len(generator.shape) != 2:
        raise ScheduleError(f"Got a weight of shape {generator.shape}; task={task!r} needs (n_out, n_in).")
    dtype = generator.dtype if dtype is None else dtype
    for segment in generator.segments:
        check_activation(segment.activation, *split_device(device))
    weighting = generator.weighting
    request = Request(
        segments=generator.segments,
        weighting=weighting,
        task=task,
        device=device,
        dtype=dtype,
        batch=batch if task in ("apply", "train") else None,
        memory=parse_bytes(memory),
        mode=mode,
        profile=chosen_profile(device, dtype, profile),
        topology=str(generator.topology),
        loss=loss,
        exact=exact,
    )
    if task != "fit":
        return _decided(request)
    # the scale is an argument of a fit's loss, so all fits of one structure share a plan and its compiled code
    shared = replace(request, weighting=replace(weighting, scale=1.0))
    return replace(_decided(shared), weighting=weighting)


@lru_cache(maxsize=256)
def _decided(request: Request) -> Plan:
    """Price all candidates, and choose the best."""
    candidates = Candidates(request)
    tried = list(candidates)
    fitting = [c for c in tried if request.memory is None or c.price.peak_bytes <= request.memory]
    if not fitting:
        least = min(c.price.peak_bytes for c in tried)
        asked = f" in mode {request.mode!r}" if request.mode else ""
        raise ScheduleError(
            f"Got a memory limit of {request.memory} bytes; the smallest that works for this {request.task}{asked} is "
            f"{least} bytes ({least / 2**20:.1f} MiB). Raise it, or use smaller bonds or dtypes."
        )
    best = choose(request, fitting)
    others = sorted((c for c in tried if c is not best), key=lambda c: c.seconds)
    alternatives = [_alternative(best), *(_alternative(c, _why_not(request, c, best)) for c in others)]
    return Plan(
        task=request.task,
        shape=request.weighting.layout.shape,
        topology=request.topology,
        device=request.device,
        dtype=request.dtype,
        batch=request.batch,
        memory_bytes=request.memory,
        profile=request.profile,
        chosen=alternatives[0],
        alternatives=tuple(alternatives),
        contractions=tuple(_contractions(request, best)),
        notes=tuple(candidates.notes),
        weighting=request.weighting,
        executable=best.executable,
    )


def choose(request: Request, candidates: list[Candidate]) -> Candidate:
    """Choose the fastest; prefer a cached weight unless another mode is clearly faster, and rows if as fast."""
    best = min(candidates, key=lambda c: c.seconds)
    if not best.executable.by_rows:
        rows = [c for c in candidates if c.executable.by_rows]
        near = min(rows, key=lambda c: c.seconds, default=best)
        if near.seconds * _ROWS_ARE_WORTH <= best.seconds:
            best = near
    if best.executable.tiles > 1:
        kind, by_rows, fastest = type(best.executable), best.executable.by_rows, best.seconds
        alike = [c for c in candidates if type(c.executable) is kind and c.executable.by_rows == by_rows]
        best = min((c for c in alike if c.seconds * _SPARING <= fastest), key=lambda c: c.price.peak_bytes)
    if request.task == "apply":
        for c in candidates:
            cached = isinstance(c.executable, Layer) and c.executable.makes_weight
            if cached and c.seconds * _trust(request.profile) <= best.seconds:
                return c
    return best


def _trust(profile: DeviceProfile) -> float:
    """Return how much faster than a cached weight a mode must be predicted to be; less with an accurate profile.

    The cached weight is a single product, whose time is predicted best.
    """
    error = profile.fit_error.get("program", 0.2)
    return min(_MOST_TRUST, math.exp(-_DEVIATIONS * error))


def _why_not(request: Request, lost: Candidate, best: Candidate) -> str:
    if request.memory is not None and lost.price.peak_bytes > request.memory:
        return "does not fit the memory limit"
    if lost.seconds < best.seconds:
        return "not clearly faster, and takes more memory"
    return f"{lost.seconds / best.seconds:.2f}x the time"


def _alternative(candidate: Candidate, lost: str = "") -> Alternative:
    executable, price = candidate.executable, candidate.price
    return Alternative(
        mode=executable.mode,
        label=executable.label,
        by_rows=executable.by_rows,
        tiles=executable.tiles,
        tile_shape=executable.tile_shape,
        seconds=price.seconds,
        first_seconds=price.first_seconds,
        peak_bytes=price.peak_bytes,
        lost=lost,
    )


def _contractions(request: Request, best: Candidate) -> Iterator[Contraction]:
    """List the pairwise contractions of a forward pass with their predicted times."""
    for segment, times, step in best.executable.steps():
        ops = list(step_ops(step, request.dtype))
        yield Contraction(
            segment=segment,
            times=times,
            bmnk=step.bmnk,
            result=step.c.full,
            flops=step.flops,
            nbytes=ops[-1].moved_bytes,
            permutes=len(ops) - 1,
            seconds=sum(map(request.profile.seconds, ops)),
        )
