r"""Pairwise contractions and their adjoints, as permutes, reshapes and matrix products.

For operands with indices :math:`A_{bmk}`, :math:`B_{bkn}` and result :math:`C_{bmn}` (each letter a group of
indices; ``b`` is in all three)::

    C[b] = A[b] B[b]        Ā[b] = C̄[b] B[b]ᵀ        B̄[b] = A[b]ᵀ C̄[b]

so each of the two adjoints costs as much as the contraction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise

from autoray import do

from .._typing import Array, Float, Inds, Shape
from ..backends import Workspace
from ._order import Node

PLAIN = Workspace()
_SMALL = 8  # transposing a result that is this much smaller than an operand costs nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixView:
    """A view of a tensor as a matrix or batch of matrices: sum, merge adjacent axes, permute, reshape.

    A tensor stored as the transposed matrix is not permuted: ``swapped`` is set, and matrix products accept
    transposed operands at no cost.
    """

    full: Shape
    sums: tuple[int, ...]
    merged: Shape
    perm: tuple[int, ...]
    stored: Shape
    inverse: tuple[int, ...]
    permuted: Shape
    moves: bool
    """Whether reading copies because no reshape gives the required order."""
    thin: Shape
    """The full shape, with ones at the summed axes."""
    swapped: bool = False

    @classmethod
    def of(cls, inds: Inds, sizes: dict[str, int], groups: tuple[Inds, ...]) -> MatrixView:
        """Build the view of a tensor with ``inds`` whose matrix axes are ``groups``; other indices are summed."""
        return _view(*_pattern(inds, sizes, groups))

    @classmethod
    def plain(cls, inds: Inds, sizes: dict[str, int], groups: tuple[Inds, ...]) -> MatrixView:
        """Build the view as :meth:`of` does, without considering the transposed matrix."""
        return _plain(*_pattern(inds, sizes, groups))

    def copied(self, *, written: bool) -> tuple[int, int, int, int, int]:
        """Return the permuting copy as the shape of an :class:`Op`."""
        shape, axes = (self.permuted, self.inverse) if written else (self.merged, self.perm)
        *_, before, last = axes
        return math.prod(shape), shape[last], math.prod(shape[last + 1 :]), shape[before], len(shape)

    @property
    def matrix(self) -> Shape:
        """The shape of the result of :meth:`read`."""
        return (*self.stored[:-2], self.stored[-1], self.stored[-2]) if self.swapped else self.stored

    def read(self, x: Float[Array, "..."], space: Workspace = PLAIN) -> Float[Array, "*matrices"]:
        """Read a tensor as matrices."""
        if self.sums:
            x = do("sum", do("reshape", x, self.full), axis=self.sums)
        if self.moves:
            x = do("transpose", do("reshape", x, self.merged), self.perm)
        if self.moves or x.shape != self.stored:  # small networks spend their time on such calls, so avoid them
            x = space.packed(x, self.stored)
        return x.mT if self.swapped else x

    def write(self, matrix: Float[Array, "*matrices"]) -> Float[Array, "..."]:
        """Apply the adjoint of :meth:`read`: convert matrices to a tensor, broadcasting along summed indices."""
        return self._restore(matrix.mT if self.swapped else matrix, PLAIN)

    def write_product(
        self, x: Float[Array, "*stack m k"], y: Float[Array, "*stack k n"], transposed: bool, space: Workspace
    ) -> Float[Array, "..."]:
        """Compute ``write(x @ y)``, by the transposed product if ``transposed``."""
        matrix = space.matmul(y.mT, x.mT) if transposed else space.matmul(x, y)
        if transposed != self.swapped:
            return self._restore(matrix.mT, space)
        return matrix if matrix.shape == self.full and not self.moves else self._restore(matrix, space)

    def _restore(self, stored: Float[Array, "*matrices"], space: Workspace) -> Float[Array, "..."]:
        if self.moves:
            stored = do("transpose", do("reshape", stored, self.permuted), self.inverse)
        if not self.sums:
            return space.packed(stored, self.full)
        return do("broadcast_to", do("reshape", stored, self.thin), self.full)


def _pattern(inds: Inds, sizes: dict[str, int], groups: tuple[Inds, ...]) -> tuple[Shape, tuple[int, ...], Shape]:
    """Describe a tensor and its groups without names: axis lengths, target positions of the axes, group sizes."""
    position = {i: p for p, i in enumerate(i for group in groups for i in group)}
    return tuple([sizes[i] for i in inds]), tuple([position.get(i, -1) for i in inds]), tuple(map(len, groups))


@lru_cache(maxsize=1 << 16)  # there are few patterns, and plans use them repeatedly
def _view(full: Shape, places: tuple[int, ...], lengths: tuple[int, ...]) -> MatrixView:
    """Build the view of a tensor whose axes go to the positions ``places`` (-1: summed), in groups of ``lengths``."""
    view = _plain(full, places, lengths)
    if len(lengths) < 2 or not view.moves:
        return view
    *_, m, n = lengths
    start = sum(lengths) - m - n
    other = tuple(p if p < start else p + n if p < start + m else p - m for p in places)
    transposed = _plain(full, other, (*lengths[:-2], n, m))
    return view if transposed.moves else replace(transposed, swapped=True)


def _plain(full: Shape, places: tuple[int, ...], lengths: tuple[int, ...]) -> MatrixView:
    """Build the view without considering the transposed matrix."""
    sums = tuple(axis for axis, p in enumerate(places) if p < 0)
    remaining = [axis for axis, p in enumerate(places) if p >= 0]
    # axes that stay adjacent and in order are permuted as one, which leaves fewer and larger strides
    blocks: list[list[int]] = []
    for axis in remaining:
        if blocks and places[axis] == places[blocks[-1][-1]] + 1:
            blocks[-1].append(axis)
        else:
            blocks.append([axis])
    by_target = sorted(range(len(blocks)), key=lambda b: places[blocks[b][0]])
    merged = tuple(math.prod(full[axis] for axis in block) for block in blocks)
    size_at = {places[axis]: full[axis] for axis in remaining}
    ends = list(accumulate(lengths, initial=0))
    stored = tuple(math.prod(size_at[p] for p in range(start, end)) for start, end in pairwise(ends))
    inverse = tuple(sorted(range(len(by_target)), key=lambda b: by_target[b]))
    moves = inverse != tuple(range(len(inverse)))
    thin = tuple(1 if p < 0 else d for p, d in zip(places, full, strict=True))
    permuted = tuple(merged[b] for b in by_target)
    return MatrixView(
        full=full,
        sums=sums,
        merged=merged,
        perm=tuple(by_target),
        stored=stored,
        inverse=inverse,
        permuted=permuted,
        moves=moves,
        thin=thin,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStep:
    """One step of a contraction tree, with its operands and its result in slots of a workspace.

    Parameters
    ----------
    left, right, out : int
        Slots of the operands and the result.
    a, b, c : MatrixView
        How the operands and the result are read as matrices.
    need_a, need_b : bool
        Whether the operand depends on trained parameters.
    inds : tuple of str
        Indices of the result, in the order in which it is stored.
    transposed : tuple of three bool
        Whether the result, and the adjoints of left and right, are computed as their transposes.
    """

    left: int
    right: int
    out: int
    a: MatrixView
    b: MatrixView
    c: MatrixView
    need_a: bool
    need_b: bool
    inds: Inds
    transposed: tuple[bool, bool, bool]

    @property
    def bmnk(self) -> tuple[int, int, int, int]:
        """The batch, row, column and inner dimensions of the product."""
        a, b = self.a.matrix, self.b.matrix
        return (a[0] if len(a) == 3 else 1), a[-2], b[-1], a[-1]

    @property
    def entries(self) -> int:
        """The number of entries of the result."""
        batch, m, n, _ = self.bmnk
        return batch * m * n

    @property
    def flops(self) -> int:
        """The number of operations; a multiply-add counts as two."""
        return 2 * math.prod(self.bmnk)

    def forward(
        self, x: Float[Array, "..."], y: Float[Array, "..."], space: Workspace
    ) -> tuple[Float[Array, "..."], Float[Array, "*stack m k"], Float[Array, "*stack k n"]]:
        """Compute the result, and return it with both operands as matrices for the backward pass."""
        am, bm = self.a.read(x, space), self.b.read(y, space)
        return self.c.write_product(am, bm, self.transposed[0], space), am, bm

    def backward(
        self,
        cbar: Float[Array, "..."],
        am: Float[Array, "*stack m k"],
        bm: Float[Array, "*stack k n"],
        space: Workspace,
    ) -> tuple[Float[Array, "..."] | None, Float[Array, "..."] | None]:
        """Compute the adjoints of the operands that need one."""
        cm = self.c.read(cbar, space)
        abar = self.a.write_product(cm, bm.mT, self.transposed[1], space) if self.need_a else None
        bbar = self.b.write_product(am.mT, cm, self.transposed[2], space) if self.need_b else None
        return abar, bbar


def plan_pair(node: Node, stored: tuple[Inds, Inds, Inds], need: tuple[bool, bool], sizes: dict[str, int]) -> PairStep:
    """Plan one contraction.

    Parameters
    ----------
    node : Node
        The slots and the groups of indices.
    stored : tuple of three tuples of str
        Index orders of left, right and the result.
    need : tuple of two bool
        Whether adjoints of left and right are needed.
    sizes : dict of str to int
        Dimension of each index.
    """
    lead = (node.batch,) if node.batch else ()
    a = MatrixView.of(stored[0], sizes, (*lead, node.rows, node.inner))
    b = MatrixView.of(stored[1], sizes, (*lead, node.inner, node.cols))
    c = MatrixView.of(stored[2], sizes, (*lead, node.rows, node.cols))
    return PairStep(
        left=node.left,
        right=node.right,
        out=node.out,
        a=a,
        b=b,
        c=c,
        need_a=need[0],
        need_b=need[1],
        inds=stored[2],
        transposed=_orientations(a, b, c),
    )


def _orientations(a: MatrixView, b: MatrixView, c: MatrixView) -> tuple[bool, bool, bool]:
    """Decide which of ``C``, ``Ā`` and ``B̄`` to compute transposed: as stored, or, if small, to suit the large operand.

    Libraries are slow at thin products with a large transposed operand (by up to ten times, measured), and
    transposing a small result costs nothing.
    """
    size_a, size_b, size_c = (math.prod(view.matrix) for view in (a, b, c))
    larger, large = (a, size_a) if size_a >= size_b else (b, size_b)
    return (
        larger.swapped if _SMALL * size_c <= large else c.swapped,
        c.swapped if _SMALL * size_a <= size_c else a.swapped,
        c.swapped if _SMALL * size_b <= size_c else b.swapped,
    )
