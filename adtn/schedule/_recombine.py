"""Quick estimates of contraction trees, and the best tree that the subtrees of many others make together.

A set of operands is a bit mask, and so is a set of indices: what two sets have in common, and what a contraction costs,
is looked up once and shared by all trees that contain it. Where the full price follows the order of every index from
the root down, the estimate only sees whether the groups of two neighbouring contractions cross; it ranks trees, and
those it prefers are priced in full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple

from .._typing import Inds
from ..device import DeviceProfile
from ..program import ONCE_PART, Path

Pairs = tuple[tuple[int, int], ...]


class _Subtree(NamedTuple):
    """The contraction of two sets of operands, with the best subtrees that make them; ``None`` for an operand."""

    seconds: float
    left: int
    right: int
    rows: int
    cols: int
    below: tuple[Any, Any]  # subtrees again


class Estimate:
    """A rough estimate of what trees of one segment cost.

    Parameters
    ----------
    terms : tuple of tuple of str
        Indices of the operands.
    outputs : tuple of str
        Of the result, in the order in which it is wanted.
    sizes : dict of str to int
        Dimension of each index.
    profile : DeviceProfile
        Prices of products and permuting copies.
    trained : iterable of int
        Operands that want an adjoint; nothing for a contraction alone.
    projected : bool
        Whether the last product is replaced by the projections of a target.
    tiles : int
        How often what has sliced legs is done.
    inside : dict of str to int
        What is left of the sliced legs inside a tile: 1, or a part of a leg that is cut in two.
    """

    def __init__(
        self,
        terms: tuple[Inds, ...],
        outputs: Inds,
        sizes: dict[str, int],
        profile: DeviceProfile,
        trained: Iterable[int] = (),
        *,
        projected: bool = False,
        tiles: int = 1,
        inside: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        names = dict.fromkeys(i for inds in (*terms, outputs) for i in inds)
        bit = {i: 1 << n for n, i in enumerate(names)}
        self.profile, self.projected = profile, projected
        self.dims = [sizes[i] for i in names]
        self.tiles, self.sliced = tiles, sum(bit[i] for i in inside)
        self.tile_dims = [inside.get(i, sizes[i]) for i in names]
        self.once = ONCE_PART * math.prod(sizes[i] for i in outputs)
        self.orders = [[bit[i] for i in inds] for inds in terms]
        self.wanted = [bit[i] for i in outputs]
        self.outputs = sum(self.wanted)
        self.all = (1 << len(terms)) - 1
        self.trained = sum(1 << slot for slot in trained)
        self.twice = 1.0 + bool(self.trained)  # what is permuted comes back as an adjoint
        users: dict[int, int] = {}
        for slot, order in enumerate(self.orders):
            for i in order:
                users[i] = users.get(i, 0) | 1 << slot
        self.users = users
        alone = sum(i for i, who in users.items() if who & (who - 1) == 0) & ~self.outputs
        self._sizes, self._tile_sizes = {0: 1}, {0: 1}
        self._open = {1 << slot: sum(order) & ~alone for slot, order in enumerate(self.orders)}
        self._products: dict[tuple[int, int], float] = {}
        self._fastest: dict[tuple[int, int, int], float] = {}
        self._operands: dict[tuple[int, int], float] = {}

    def size(self, inds: int) -> int:
        """Return the number of entries of a tensor with these indices."""
        known = self._sizes.get(inds)
        if known is None:
            known = self._sizes[inds] = math.prod(self.dims[i.bit_length() - 1] for i in _bits(inds))
        return known

    def tile_size(self, inds: int) -> int:
        """Return the number of entries that a tile sees of it."""
        known = self._tile_sizes.get(inds)
        if known is None:
            known = math.prod(self.tile_dims[i.bit_length() - 1] for i in _bits(inds))
            self._tile_sizes[inds] = known
        return known

    def times(self, inds: int) -> int:
        """Return how often a result is computed: once per tile when it has sliced legs and is large."""
        return self.tiles if inds & self.sliced and self.size(inds) > self.once else 1

    def left_open(self, left: int, right: int) -> int:
        """The indices of the contraction of two sets of operands."""
        both = left | right
        known = self._open.get(both)
        if known is None:
            x, y = self._open[left], self._open[right]
            inside = sum(i for i in _bits(x & y & ~self.outputs) if not self.users[i] & ~both)
            known = self._open[both] = (x | y) & ~inside
        return known

    def product(self, left: int, right: int) -> float:
        """Return the seconds of a contraction and its adjoints."""
        known = self._products.get((left, right))
        if known is None:
            x, y, out = self._open[left], self._open[right], self.left_open(left, right)
            common, k = self.size(x & y), self.size(x & y & ~out)
            b, m, n = common // k, self.size(x) // common, self.size(y) // common
            self._sizes[out] = b * m * n  # without a look at every index
            times = self.times(out)
            if times > 1:
                common, k = self.tile_size(x & y), self.tile_size(x & y & ~out)
                b, m, n = common // k, self.tile_size(x) // common, self.tile_size(y) // common
            shapes = [] if self.projected and left | right == self.all else [(m, n, k)]
            shapes += [(m, k, n)] if left & self.trained else []
            shapes += [(k, n, m)] if right & self.trained else []
            seconds = sum(self.profile.launch_s + b * self.fastest(*s) for s in shapes)
            known = self._products[left, right] = times * seconds
        return known

    def fastest(self, m: int, n: int, k: int) -> float:
        """Return the seconds of a product whose operands are laid out in the best way."""
        known = self._fastest.get((m, n, k))
        if known is None:
            price = self.profile.gemm_s
            known = min(price(*shape, transposed) for shape in ((m, n, k), (n, m, k)) for transposed in range(4))
            self._fastest[m, n, k] = known
        return known

    def operand(self, slot: int, inner: int) -> float:
        """Return the seconds of reading a given tensor: a copy when what is summed lies between what is not."""
        known = self._operands.get((slot, inner))
        if known is None:
            known = self._operands[slot, inner] = self._copy(self.orders[slot], inner, self.size)
        return known

    def crossing(self, rows: int, cols: int, inner: int) -> float:
        """Return the seconds of reading an intermediate: a copy when its two groups and the consumer's two cross."""
        summed, kept = (rows & inner, cols & inner), (rows & ~inner, cols & ~inner)
        if not all((*summed, *kept)):
            return 0.0
        times = self.times(rows | cols)
        size = self.size if times == 1 else self.tile_size
        *_, before, inside = sorted(map(size, (*summed, *kept)))
        return times * self._permute(size(rows | cols), inside, before, 4)

    def result(self, rows: int) -> float:
        """Return the seconds of bringing the last result into the requested order."""
        size = self.size if self.tiles == 1 else self.tile_size
        return 0.0 if self.projected else self.tiles * self._copy(self.wanted, rows, size)

    def _copy(self, order: Sequence[int], part: int, size: Callable[[int], int]) -> float:
        runs = [n for _, run in groupby(order, lambda i: i & part > 0) if (n := size(sum(run))) > 1]
        return 0.0 if len(runs) < 3 else self._permute(math.prod(runs), runs[-1], runs[-2], len(runs))

    def _permute(self, entries: int, inner: int, before: int, axes: int) -> float:
        return self.twice * (self.profile.launch_s + self.profile.permute_s(entries, inner, 1, before, axes))

    def pairs(self, path: Path) -> Pairs:
        """The sets of operands that a path contracts."""
        live = [1 << slot for slot in range(len(self.orders))]
        pairs: list[tuple[int, int]] = []
        for i, j in path:
            right, left = live.pop(j), live.pop(i)
            pairs.append((left, right) if left < right else (right, left))
            live.append(left | right)
        return tuple(pairs)

    def seconds(self, pairs: Pairs) -> float:
        """Estimate of a tree."""
        made: dict[int, _Subtree] = {}
        for left, right in pairs:
            made[left | right] = self._joined(left, right, ((made.get(left),), (made.get(right),)))
        return made[self.all].seconds + self.result(made[self.all].rows)

    def best(self, trees: Iterable[Pairs], n: int) -> list[Path]:
        """The best trees made of subtrees of the given ones, at most ``n`` with different last contractions.

        Exact for the estimate: every split of a set into two that occurs anywhere is tried with every split of the two.
        """
        splits: dict[int, dict[tuple[int, int], None]] = {}
        for pairs in trees:
            for left, right in pairs:
                splits.setdefault(left | right, {})[left, right] = None
        made: dict[int, list[_Subtree]] = {}
        for both in sorted(splits, key=int.bit_count):
            subtrees = [
                self._joined(left, right, (made.get(left, (None,)), made.get(right, (None,))))
                for left, right in splits[both]
            ]
            made[both] = sorted(subtrees, key=lambda t: t.seconds)
        last = sorted(made[self.all], key=lambda t: t.seconds + self.result(t.rows))
        return [self._path(tree) for tree in last[:n]]

    def _joined(self, left: int, right: int, below: Sequence[Sequence[_Subtree | None]]) -> _Subtree:
        """The contraction of two sets, of the best of the subtrees that may make them."""
        x, y, out = self._open[left], self._open[right], self.left_open(left, right)
        inner, seconds = x & y & ~out, self.product(left, right)
        chosen: list[_Subtree | None] = []
        for operand, trees in zip((left, right), below, strict=True):
            best, least = None, math.inf
            for tree in trees:
                if tree is None:
                    least = self.operand(operand.bit_length() - 1, inner)
                    break
                if tree.seconds >= least:
                    break
                price = tree.seconds + self.crossing(tree.rows, tree.cols, inner)
                if price < least:
                    best, least = tree, price
            chosen.append(best)
            seconds += least
        return _Subtree(seconds, left, right, x & ~y, y & ~x, (chosen[0], chosen[1]))

    def _path(self, tree: _Subtree) -> Path:
        """Positions in a list of operands that shrinks."""
        live = [1 << slot for slot in range(len(self.orders))]
        path: list[tuple[int, int]] = []

        def contract(tree: _Subtree) -> None:
            for below in tree.below:
                if below is not None:
                    contract(below)
            i, j = sorted((live.index(tree.left), live.index(tree.right)))
            path.append((i, j))
            live.pop(j)
            live.pop(i)
            live.append(tree.left | tree.right)

        contract(tree)
        return tuple(path)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low
        mask ^= low
