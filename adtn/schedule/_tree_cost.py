"""The predicted time on a device as an objective of cotengra, for ranking, reconfiguration and slicing of trees."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from cotengra.scoring import ExactObjective

from ..device import DeviceProfile

# part of every cache key; increase it when the cost or the candidates change
OBJECTIVE_VERSION = 8


class DeviceTime(ExactObjective):
    """The predicted time of a tree on a device, in units of multiply-adds.

    Per contraction, it counts the product by its shape ``(batch, m, n, k)``, memory as a roofline, a permuting copy of
    every tensor whose indices are not in the order that the product requires, and the launches.

    Parameters
    ----------
    profile : DeviceProfile
        The profile of the device and dtype.

    Notes
    -----
    The unit is multiply-adds and not seconds, as the inner dynamic programming starts its cost cap at the local cost.
    The dynamic programming itself accepts only a string: the roofline ``limit-f``.
    """

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile
        self.per_second = profile.gemm_flop_per_s(1024, 1024, 1024) / 2.0
        super().__init__()

    def __repr__(self) -> str:
        return f"DeviceTime({self.profile.name}, {self.profile.dtype})"

    def __hash__(self) -> int:
        return hash((OBJECTIVE_VERSION, self.profile))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceTime) and self.profile == other.profile

    def seconds(self, sizes: dict[Any, int], left: Any, right: Any, out: Any) -> float:
        """Return the cost of one contraction, from the indices of its operands and result."""
        groups: dict[str, list[Any]] = {"batch": [], "rows": [], "inner": [], "cols": []}
        for i in left:
            groups["batch" if i in right and i in out else "inner" if i in right else "rows"].append(i)
        groups["cols"] = [i for i in right if i not in left]
        b, m, k, n = (math.prod(sizes[i] for i in groups[g]) for g in ("batch", "rows", "inner", "cols"))
        profile = self.profile
        entries = (b * m * k, b * k * n, b * m * n)
        time = profile.launch_s + b * profile.gemm_s(m, n, k)
        moved = sum(entries) * profile.itemsize
        if moved > profile.cache_bytes:
            time = max(time, moved / profile.bandwidth_bytes_per_s)
        inner = set(groups["inner"])
        for inds, size in zip((left, right), entries, strict=False):
            if not _contiguous(inds, inner):
                run = sizes[next(reversed(list(inds)))]
                time += profile.permute_s(size, run, 2, 2, 3)
        return time

    def cost_local_tree_node(self, tree: Any, node: Any) -> float:
        """Return the cost of one contraction of a tree, for reconfiguration."""
        left, right = tree.children[node]
        legs = [tree.get_legs(x) for x in (left, right, node)]
        return self.seconds(tree.size_dict, *legs) * self.per_second

    def score_local(self, **kwargs: Any) -> float:
        """Return the cost from the operations and the size of the result alone, for simulated annealing."""
        flops, size = kwargs["flops"], kwargs["size"]
        factor = self.profile.flops_per_entry
        try:
            return math.log2(sum(max(f, factor * s) for f, s in zip(flops, size, strict=True)))
        except TypeError:
            return math.log2(max(flops, factor * size))

    def score_slice_index(self, costs: Any, ix: Any) -> float:
        """Return the cost that slicing an index saves."""
        return math.log(costs._flop_reductions[ix] + costs._write_reductions[ix] * self.profile.flops_per_entry + 1)

    def get_dynamic_programming_minimize(self) -> str:
        """Return the roofline of the profile."""
        return f"limit-{self.profile.flops_per_entry:.3g}"

    def __call__(self, trial: dict[str, Any]) -> float:
        """Compute the base-2 logarithm of the cost of the whole tree."""
        tree = trial["tree"]
        return math.log2(sum(self.cost_local_tree_node(tree, node) for node, _, _ in tree.traverse()))


def _contiguous(inds: Any, inner: set[Any]) -> bool:
    """Return whether the summed indices are contiguous at one end, so that the tensor is a matrix without copying."""
    flags = [i in inner for i in inds]
    changes = sum(a != b for a, b in pairwise(flags))
    return changes <= 1
