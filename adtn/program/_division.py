"""The division of a convolution's last segment: a matrix on the input, a kernel, and a matrix on the output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from .._typing import Inds
from ..layout import Layout
from ..topology import Segment

Part = Literal["before", "kernel", "after"]
PARTS: tuple[Part, ...] = ("before", "kernel", "after")


@dataclass(frozen=True, eq=False)
class Division:
    """The legs through which the parts of a divided segment are connected, in the order in which they are computed.

    The input has the legs :attr:`columns`. The part ``"before"`` replaces some of them, the kernel some of the result,
    and the part ``"after"`` some of that, until only :attr:`rows` are left; other legs pass by. The incoming state
    belongs to the kernel. Bonds of dimension 1 connect nothing, and are summed inside each part.

    Parameters
    ----------
    segment : Segment
        The last segment, see :func:`why_undivided`.
    layout : Layout
        The layout of the weight, ``(out, in, *window)``.
    sizes : dict of str to int
        Dimension of each index.
    parts : dict of str to {"before", "kernel", "after"}
        The part of every core.
    """

    segment: Segment
    layout: Layout
    sizes: Mapping[str, int]
    parts: Mapping[str, Part]

    @cached_property
    def _axes(self) -> tuple[Inds, Inds, Inds]:
        legs = sorted(zip(self.layout.leg_axes, self.layout.leg_names, strict=True))
        rows, columns = (tuple(leg for (axis, _), leg in legs if axis == k) for k in (0, 1))
        return rows, columns, tuple(leg for (axis, _), leg in legs if axis > 1)

    @cached_property
    def _inds(self) -> dict[Part, set[str]]:
        inds: dict[Part, set[str]] = {part: set() for part in PARTS}
        inds["kernel"].update(self.segment.inputs)
        for core in self.segment.cores:
            inds[self.parts[core.name]].update(core.inds)
        return inds

    def _shared(self, part: Part, other: Iterable[str]) -> Iterator[str]:
        """Yield the indices of a part that another set has as well, in a fixed order."""
        inds, there = self._inds[part], set(other)
        return (i for i in self.sizes if i in inds and i in there and self.sizes[i] > 1)

    @property
    def rows(self) -> Inds:
        """The legs of the output, axis by axis."""
        return self._axes[0]

    @property
    def columns(self) -> Inds:
        """The legs of the input."""
        return self._axes[1]

    @property
    def window(self) -> Inds:
        """The legs of the window, which the kernel has."""
        return self._axes[2]

    @cached_property
    def before_in(self) -> Inds:
        """The legs of the input that ``"before"`` replaces."""
        return tuple(leg for leg in self.columns if leg in self._inds["before"])

    @cached_property
    def before_out(self) -> Inds:
        """The legs that replace them; first those that pass by the kernel."""
        out = self._shared("before", {*self._inds["kernel"], *self._inds["after"], *self.rows})
        kernel, after = self._inds["kernel"], self._inds["after"]
        return tuple(sorted(out, key=lambda i: (i in kernel) + (i in kernel and i not in after)))

    @cached_property
    def input(self) -> Inds:
        """The legs of what the kernel is applied to."""
        return (*(leg for leg in self.columns if leg not in self.before_in), *self.before_out)

    @cached_property
    def passing(self) -> Inds:
        """The legs that pass by the kernel."""
        return tuple(i for i in self.input if i not in self._inds["kernel"])

    @cached_property
    def groups(self) -> Inds:
        """The hyper-indices of all three parts."""
        return tuple(i for i in self.input if i in self._inds["kernel"] and i in self._inds["after"])

    @cached_property
    def kernel_in(self) -> Inds:
        """The legs that the kernel sums."""
        return tuple(i for i in self.input if i in self._inds["kernel"] and i not in self._inds["after"])

    @cached_property
    def kernel_out(self) -> Inds:
        """The legs that replace them; first those that are outputs already."""
        known = {*self.input, *self.window}
        new = [i for i in self._shared("kernel", {*self._inds["after"], *self.rows}) if i not in known]
        return tuple(sorted(new, key=lambda i: i in self._inds["after"]))

    @cached_property
    def output(self) -> Inds:
        """The legs of the result of the kernel."""
        return (*self.passing, *self.groups, *self.kernel_out)

    @cached_property
    def after_in(self) -> Inds:
        """The legs that ``"after"`` sums."""
        return tuple(i for i in self.output if i in self._inds["after"])

    @cached_property
    def after_out(self) -> Inds:
        """The legs that replace them."""
        return tuple(leg for leg in self.rows if leg in self._inds["after"])

    @cached_property
    def done(self) -> Inds:
        """The legs of the output that pass by ``"after"``."""
        return tuple(i for i in self.output if i not in self.after_in)


def why_undivided(segments: tuple[Segment, ...], layout: Layout) -> str:
    """Return why a convolution cannot be divided; empty if it can."""
    last = segments[-1]
    if last.activation != "identity":
        return "there is an activation after the last segment"
    if len(last.terms) < 2:
        return "the last segment has a single tensor"
    places = [i for term in last.terms for i in term]
    if any(places.count(leg) != 1 for leg in layout.leg_names):
        return "a leg of the weight is on several tensors"
    return ""
