"""The decision how a convolution is computed: with its weight, or as a chain of smaller ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal

from .._checks import Count, checked, shown
from .._typing import Inds, Shape
from ..device import DeviceProfile, Profile, chosen_profile
from ..errors import ScheduleError
from ..program import PARTS, Division, Part, why_undivided
from ..topology import Segment, sizes_of
from ..weight import Chain, Factored, Materialised, Mode, Piece, Weighting, chain_of
from ._planner import decide
from ._sketch import Planned

_GAIN = 0.95
"""A chain is taken where it is predicted to take less than this part of the time with the weight."""
_GAIN_PERMUTED = 0.7
"""The same for one that permutes legs: many images of few channels took up to twice as long as predicted."""
ConvolutionMode = Annotated[Literal["materialise", "factored"], "'materialise' or 'factored'"]
_CONVOLUTION = 1.8
_ARRANGED = 4.0
"""A convolution takes so many times as long as the product with all windows, and so many passes over its input and
output, which are arranged in blocks: medians of float32 steps in PyTorch on a CPU, with 3x3 windows and 4 to 128
channels."""
_PERMUTE = 3.5
"""Passes that a permutation of channels takes, of tensors that no cache holds."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images that a convolution is planned for.

    Parameters
    ----------
    batch : int
        The number of images.
    pixels_in, pixels_out : int
        The pixels of an image before and after it.
    train : bool
        Whether the time of the adjoint counts, and the weight changes in every call.
    """

    batch: int
    pixels_in: int
    pixels_out: int
    train: bool

    @property
    def rounded(self) -> Images:
        """The next powers of two, as plans are made for ranges of sizes."""
        return Images(
            batch=_rounded(self.batch),
            pixels_in=_rounded(self.pixels_in),
            pixels_out=_rounded(self.pixels_out),
            train=self.train,
        )


def _rounded(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


@dataclass(frozen=True, kw_only=True)
class ConvolutionPlan:
    """The decision how a convolution is computed, which prints as a table.

    Parameters
    ----------
    shape : tuple of int
        The shape of the weight.
    topology, device, dtype : str
    images : Images
        The images for which it is planned, with sizes rounded to powers of two.
    chain : Chain or None
        The chain; ``None`` if the weight is generated.
    seconds : float or None
        The predicted seconds of one call as a chain; ``None`` if there is none.
    dense_seconds : float or None
        The predicted seconds of one call with the weight; ``None`` if there is no choice.
    why : str
        The reason why there is no chain.

    Examples
    --------
    >>> import adtn
    >>> gen = adtn.Generator((512, 512, 3, 3), adtn.TTN(bond=4))
    >>> plan = adtn.plan_convolution(gen, "train", batch=32, size=(4, 4))
    >>> [piece.shape for piece in plan.chain.pieces]
    [(64, 512), (64, 64, 3, 3), (512, 64)]
    """

    shape: Shape
    topology: str
    device: str
    dtype: str
    images: Images
    chain: Chain | None = field(default=None, repr=False)
    seconds: float | None = None
    dense_seconds: float | None = None
    why: str = ""

    @property
    def mode(self) -> Mode:
        """The mode of execution: ``"factored"`` for a chain, ``"materialise"`` for a weight that is generated."""
        return Materialised.mode if self.chain is None else Factored.mode

    def __str__(self) -> str:
        images, times = self.images, "x".join(map(str, self.shape))
        task = "train" if images.train else "apply"
        lines = [
            f"{task} {times} {self.topology}, {images.batch} images of {images.pixels_in} pixels "
            f"on {self.device} in {self.dtype}: {self.mode}{f' ({self.why})' if self.why else ''}"
        ]
        for label, seconds in (("as a chain", self.seconds), ("with the weight", self.dense_seconds)):
            lines += [f"  {label:<17}{seconds * 1e3:.3g} ms predicted"] if seconds is not None else []
        if self.chain is not None:
            names = {id(self.chain.before): "matrix", id(self.chain.kernel): "kernel", id(self.chain.after): "matrix"}
            shapes = [f"{names[id(piece)]} {'x'.join(map(str, piece.shape))}" for piece in self.chain.pieces]
            groups = f", {self.chain.groups} groups" if self.chain.groups > 1 else ""
            lines.append(f"  parts            {', '.join(shapes)}{groups}")
        return "\n".join(lines)


@checked(ScheduleError)
def plan_convolution(
    generator: Planned,
    task: Annotated[Literal["apply", "train"], "'apply' or 'train'"] = "apply",
    *,
    batch: Count = 1,
    size: tuple[Count, ...],
    size_out: tuple[Count, ...] | None = None,
    groups: Count = 1,
    device: str = "numpy:cpu",
    dtype: str | None = None,
    mode: ConvolutionMode | None = None,
    profile: Profile | None = None,
) -> ConvolutionPlan:
    """Plan a convolution: whether its weight is generated, or the layer is a chain of smaller ones.

    Parameters
    ----------
    generator : Generator
        The generator of a weight ``(out, in / groups, *window)``, of which only the structure matters.
    task : {"apply", "train"}
        See :func:`adtn.plan`.
    batch : int
        The number of images.
    size, size_out : tuple of int
        Their size, and that of the output if it is another.
    groups : int
        The groups of the layer; those with more than one have no chain.
    device, dtype, profile
        See :func:`adtn.plan`.
    mode : {"materialise", "factored"}, optional
        The mode to use; by default, the faster one.

    Returns
    -------
    ConvolutionPlan
        The plan, which prints as a table.

    Raises
    ------
    ScheduleError
        If the weight has no window, or ``mode="factored"`` is not possible.
    DeviceError, MissingDependencyError
        If the device or dtype is not available.

    Examples
    --------
    >>> import adtn
    >>> gen = adtn.Generator((512, 512, 3, 3), adtn.MPO(bond=8))
    >>> adtn.plan_convolution(gen, "train", batch=32, size=(4, 4)).mode
    'factored'
    """
    if not hasattr(generator, "segments"):
        raise ScheduleError(f"Got generator={shown(generator)}; expected an adtn.Generator.")
    axes, after = len(generator.shape) - 2, size if size_out is None else size_out
    if axes < 1 or any(len(given) != axes for given in (size, after)):
        raise ScheduleError(
            f"Got a weight of shape {generator.shape} with size={size} and size_out={size_out}; expected a weight "
            "(out, in, *window), and as many sizes as the window has axes."
        )
    images = Images(batch=batch, pixels_in=math.prod(size), pixels_out=math.prod(after), train=task == "train")
    return decide_convolution(generator, images, device=device, dtype=dtype, groups=groups, mode=mode, profile=profile)


def decide_convolution(
    generator: Planned,
    images: Images,
    *,
    device: str,
    dtype: str | None = None,
    groups: int = 1,
    mode: Mode | None = None,
    profile: Profile | None = None,
) -> ConvolutionPlan:
    """Plan like :func:`plan_convolution`, for images given as a record."""
    dtype = generator.dtype if dtype is None else dtype
    why = "groups have windows of their own" if groups > 1 else ""
    if not why and generator.weighting.has_base:
        why = "the weight has a base"
    why = why or why_undivided(generator.segments, generator.layout)
    if why and mode == Factored.mode:
        raise ScheduleError(f"Got mode='factored', but {why}; use 'materialise'.")
    request = _Request(
        segments=generator.segments,
        weighting=generator.weighting,
        topology=str(generator.topology),
        images=images.rounded,
        device=device,
        dtype=dtype,
        profile=chosen_profile(device, dtype, profile),
        mode=mode,
    )
    if mode == Materialised.mode or why:
        return request.plan(why="it was asked for" if mode == Materialised.mode else why)
    return _decided(request)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """Everything on which the decision depends."""

    segments: tuple[Segment, ...]
    weighting: Weighting
    topology: str
    images: Images
    device: str
    dtype: str
    profile: DeviceProfile
    mode: Mode | None

    def plan(self, **result: Any) -> ConvolutionPlan:
        """Make the plan with this result."""
        return ConvolutionPlan(
            shape=self.weighting.layout.shape,
            topology=self.topology,
            device=self.device,
            dtype=self.dtype,
            images=self.images,
            **result,
        )

    def generated(self, piece: Planned) -> float:
        """Predict the time in which a weight or a part of it is generated, and in training its adjoint."""
        plan = decide(
            piece, "generate", device=self.device, dtype=self.dtype, mode=Materialised.mode, profile=self.profile
        )
        return plan.predicted_seconds * (3.0 if self.images.train else 1.0)


@lru_cache(maxsize=256)
def _decided(request: _Request) -> ConvolutionPlan:
    segments, weighting, dtype = request.segments, request.weighting, request.dtype
    search = _Search(segments, weighting, request.images, request.profile)
    dense, parts = search.best()
    if parts is None:
        why = "every tensor has a leg of the window"
        if request.mode is not None:
            raise ScheduleError(f"Got mode='factored', but {why}; use 'materialise'.")
        return request.plan(dense_seconds=dense, why=why)
    chain = chain_of(search.division(parts), segments, weighting, dtype)
    seconds = search.seconds(parts)
    if request.images.train:  # otherwise both are cached
        seconds += sum(map(request.generated, chain.pieces))
        dense += request.generated(Piece(segments, weighting, request.topology, dtype))
    gain = _GAIN_PERMUTED if any(order.permutes for order in chain.reorders[:3]) else _GAIN
    taken = request.mode is not None or seconds <= gain * dense
    return request.plan(
        chain=chain if taken else None,
        seconds=seconds,
        dense_seconds=dense,
        why="" if taken else "the weight is faster",
    )


class _Search:
    """The search for the division that takes the least time, without the time in which its parts are generated."""

    def __init__(
        self, segments: tuple[Segment, ...], weighting: Weighting, images: Images, profile: DeviceProfile
    ) -> None:
        self.last, self.layout, self.images, self.profile = segments[-1], weighting.layout, images, profile
        self.sizes = sizes_of(segments)
        legs = dict(zip(self.layout.leg_names, self.layout.leg_axes, strict=True))
        self.axes = {leg: axis for leg, (axis, _) in legs.items()}
        self.free = [core for core in self.last.cores if all(self.axes.get(i, 0) < 2 for i in core.inds)]
        self.known: dict[tuple[Part, ...], float] = {}

    def best(self) -> tuple[float, dict[str, Part] | None]:
        """Return the time of the whole kernel, and the best division that has more parts, if there is one."""
        whole: dict[str, Part] = dict.fromkeys((core.name for core in self.last.cores), "kernel")
        for start in (whole, self._by_legs(whole)):
            self._descend(start)
        divided = {key: seconds for key, seconds in self.known.items() if set(key) != {"kernel"} and seconds < math.inf}
        best = min(divided, key=lambda key: divided[key], default=None)
        names = (core.name for core in self.last.cores)
        return self.seconds(whole), None if best is None else dict(zip(names, best, strict=True))

    def division(self, parts: dict[str, Part]) -> Division:
        """Return the legs of a division."""
        return Division(self.last, self.layout, self.sizes, parts)

    def _by_legs(self, whole: dict[str, Part]) -> dict[str, Part]:
        """Divide by the legs that each core has: only of the input, or only of the output."""
        parts = dict(whole)
        for core in self.free:
            axes = {self.axes[i] for i in core.inds if i in self.axes}
            if len(axes) == 1:
                parts[core.name] = "before" if axes == {1} else "after"
        return parts

    def _descend(self, parts: dict[str, Part]) -> None:
        """Move cores, and all cores on one side of a bond, to other parts while that gains time."""
        while True:
            moves: list[dict[str, Part]] = [
                {**parts, **dict.fromkeys(names, part)} for names in self._movable for part in PARTS
            ]
            best = min(moves, key=self.seconds, default=parts)
            if self.seconds(best) >= self.seconds(parts):
                return
            parts = best

    @cached_property
    def _movable(self) -> tuple[tuple[str, ...], ...]:
        """Single cores, and all cores that a bond separates from the window."""
        free = {core.name for core in self.free}
        groups: list[tuple[str, ...]] = [(name,) for name in free]
        for bond in dict.fromkeys(i for core in self.last.cores for i in core.inds if i not in self.axes):
            for core in self.last.cores:
                if bond in core.inds:
                    side = self._side(core.name, bond)
                    if len(side) > 1 and side <= free:
                        groups.append(tuple(sorted(side)))
        return tuple(dict.fromkeys(sorted(groups)))

    def _side(self, start: str, bond: str) -> set[str]:
        """Return the cores that are connected with one, also through the state, but not through a bond."""
        side, inds = {start}, set(next(core.inds for core in self.last.cores if core.name == start)) - {bond}
        while True:
            more = {c.name for c in self.last.cores if not inds.isdisjoint(c.inds) and c.name not in side}
            if not more:
                return side
            side |= more
            inds |= {i for core in self.last.cores if core.name in more for i in core.inds} - {bond}

    # times

    def seconds(self, parts: dict[str, Part]) -> float:
        """Predict the time of a division; infinite for one that is not possible."""
        key: tuple[Part, ...] = tuple(parts[core.name] for core in self.last.cores)
        if key not in self.known:
            self.known[key] = self._predicted(self.division(parts), set(key))
        return self.known[key]

    def _predicted(self, d: Division, used: set[Part]) -> float:
        has_kernel = "kernel" in used or bool(self.last.inputs)
        if not has_kernel or ("before" in used) > bool(d.before_in) or ("after" in used) > bool(d.after_out):
            return math.inf
        images = self.images
        before, after = images.batch * images.pixels_in, images.batch * images.pixels_out
        given, passing, groups = self._n(d.columns), self._n(d.passing), self._n(d.groups)
        inner, new = self._n(d.kernel_in), self._n(d.kernel_out)
        total = _CONVOLUTION * groups * self._product(after * passing, new, inner * self._n(d.window))
        total += _ARRANGED * (self._passes(before * self._n(d.input)) + self._passes(after * self._n(d.output)))
        if d.before_in:
            n = self._n(d.before_in)
            total += self._product(before * given // n, self._n(d.before_out), n)
            total += self._passes(before * (given + self._n(d.input)))
        if d.after_out:
            n, m = self._n(d.after_in), self._n(d.after_out)
            total += self._product(after * self._n(d.output) // n, m, n)
            total += self._passes(after * (self._n(d.output) + self._n((*d.done, *d.after_out))))
        return total + sum(self._permute(*orders) for orders in self._orders(d, before, after))

    def _orders(self, d: Division, before: int, after: int) -> Iterator[tuple[int, Inds, Inds]]:
        """Yield the pixels, the given and the wanted legs of every order."""
        if d.before_in:
            yield before, d.columns, (*(i for i in d.columns if i not in d.before_in), *d.before_in)
        yield before, d.input, (*d.passing, *d.groups, *d.kernel_in)
        if d.after_out:
            yield after, d.output, (*d.done, *d.after_in)
        yield after, (*d.done, *d.after_out), d.rows

    def _n(self, legs: Inds) -> int:
        return math.prod(self.sizes[i] for i in legs)

    def _product(self, m: int, n: int, k: int) -> float:
        """Predict the time of a product, and in training of its two adjoints."""
        sizes = [(m, n, k)] + [(m, k, n), (k, n, m)] * self.images.train
        return sum(self.profile.launch_s + self.profile.gemm_s(*size) for size in sizes)

    def _passes(self, entries: int) -> float:
        """Predict the time in which a result is written and read."""
        return (2 if self.images.train else 1) * self.profile.curve_s("arithmetic", entries)

    def _permute(self, pixels: int, given: Inds, wanted: Inds) -> float:
        return _PERMUTE * self._passes(pixels * self._n(given)) if given != wanted else 0.0
