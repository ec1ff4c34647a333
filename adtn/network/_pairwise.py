r"""One pairwise contraction and its adjoint, as permute, reshape and one matrix product.

For operands with indices :math:`A_{bmk}`, :math:`B_{bkn}` and result :math:`C_{bmn}` (each letter a group of
indices; ``b`` is in all three)::

    C[b] = A[b] B[b]        Ā[b] = C̄[b] B[b]ᵀ        B̄[b] = A[b]ᵀ C̄[b]

so the two adjoints cost as much as the contraction each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autoray import do

from .._typing import Array, Inds, Shape


@dataclass(frozen=True, slots=True)
class MatrixView:
    """How a tensor is read as a (batch of) matrices: sum, merge axes that stay together, permute, reshape."""

    full: Shape
    sums: tuple[int, ...]
    merged: Shape
    perm: tuple[int, ...]
    matrix: Shape
    inverse: tuple[int, ...]
    permuted: Shape

    @classmethod
    def of(cls, inds: Inds, sizes: dict[str, int], groups: tuple[Inds, ...]) -> MatrixView:
        """The view of a tensor with ``inds`` whose matrix axes are ``groups``; other indices are summed."""
        wanted = [i for group in groups for i in group]
        sums = tuple(axis for axis, i in enumerate(inds) if i not in wanted)
        kept = [i for i in inds if i in wanted]
        # neighbours that stay neighbours in the same order move as one axis: fewer, larger strides to permute
        position = {i: p for p, i in enumerate(wanted)}
        blocks: list[list[str]] = []
        for i in kept:
            if blocks and position[i] == position[blocks[-1][-1]] + 1:
                blocks[-1].append(i)
            else:
                blocks.append([i])
        by_target = sorted(range(len(blocks)), key=lambda b: position[blocks[b][0]])
        merged = tuple(math.prod(sizes[i] for i in block) for block in blocks)
        inverse = tuple(sorted(range(len(by_target)), key=lambda b: by_target[b]))
        return cls(
            full=tuple(sizes[i] for i in inds),
            sums=sums,
            merged=merged,
            perm=tuple(by_target),
            matrix=tuple(math.prod(sizes[i] for i in group) for group in groups),
            inverse=inverse,
            permuted=tuple(merged[b] for b in by_target),
        )

    def read(self, x: Array) -> Array:
        """The tensor as matrices."""
        if self.sums:
            x = do("sum", x, axis=self.sums)
        if self.inverse != tuple(range(len(self.inverse))):
            x = do("transpose", do("reshape", x, self.merged), self.perm)
        return do("reshape", x, self.matrix)

    def write(self, matrix: Array) -> Array:
        """The adjoint of :meth:`read`: matrices back to a tensor; summed indices get copies."""
        x = matrix
        if self.inverse != tuple(range(len(self.inverse))):
            x = do("transpose", do("reshape", x, self.permuted), self.inverse)
        if not self.sums:
            return do("reshape", x, self.full)
        thin = tuple(1 if axis in self.sums else d for axis, d in enumerate(self.full))
        return do("broadcast_to", do("reshape", x, thin), self.full)


def _swap(x: Array) -> Array:
    return do("transpose", x, (1, 0) if len(x.shape) == 2 else (0, 2, 1))


@dataclass(frozen=True, slots=True)
class PairStep:
    """One step of a contraction tree; operands and result are slots of a workspace.

    Parameters
    ----------
    left, right, out : int
        Slots.
    a, b, c : MatrixView
        How the operands and the result are read as matrices.
    need_a, need_b : bool
        Whether anything upstream of the operand is trained.
    """

    left: int
    right: int
    out: int
    a: MatrixView
    b: MatrixView
    c: MatrixView
    need_a: bool
    need_b: bool

    @property
    def flops(self) -> int:
        """Multiply-adds, counted as two operations."""
        m, n = self.a.matrix[-2], self.b.matrix[-1]
        k = self.a.matrix[-1]
        batch = self.a.matrix[0] if len(self.a.matrix) == 3 else 1
        return 2 * batch * m * n * k

    def forward(self, x: Array, y: Array) -> tuple[Array, Array, Array]:
        """The result, and both operands as matrices for the way back."""
        am, bm = self.a.read(x), self.b.read(y)
        return self.c.write(do("matmul", am, bm)), am, bm

    def backward(self, cbar: Array, am: Array, bm: Array) -> tuple[Array | None, Array | None]:
        """Adjoints of the operands that need one."""
        cm = self.c.read(cbar)
        abar = self.a.write(do("matmul", cm, _swap(bm))) if self.need_a else None
        bbar = self.b.write(do("matmul", _swap(am), cm)) if self.need_b else None
        return abar, bbar


def plan_pair(
    left: tuple[int, Inds, bool],
    right: tuple[int, Inds, bool],
    out: int,
    needed: set[str],
    sizes: dict[str, int],
    order: Inds | None,
) -> tuple[PairStep, Inds]:
    """Plan one contraction.

    Parameters
    ----------
    left, right : tuple of int, tuple of str and bool
        Slot, indices, and whether an adjoint is wanted.
    out : int
        Slot of the result.
    needed : set of str
        Indices that other operands or the output still need.
    sizes : dict of str to int
        Dimension of each index.
    order : tuple of str or None
        Required order of the result's indices, ``None`` for whatever costs no permutation.

    Returns
    -------
    tuple of PairStep and tuple of str
        The step and the indices of its result.
    """
    if order is not None and right[1] and order and order[0] in right[1] and order[0] not in left[1]:
        left, right = right, left  # rows of the product come first in the result
    rank = {i: p for p, i in enumerate(order)} if order is not None else {}

    def arranged(inds: list[str]) -> Inds:
        return tuple(sorted(inds, key=lambda i: rank.get(i, 0)))

    la, lb = left[1], right[1]
    batch = arranged([i for i in la if i in lb and i in needed])
    rows = arranged([i for i in la if i not in lb and i in needed])
    cols = arranged([i for i in lb if i not in la and i in needed])
    inner = tuple(i for i in la if i in lb and i not in needed)
    lead = (batch,) if batch else ()
    natural = (*batch, *rows, *cols)
    result = natural if order is None else order
    step = PairStep(
        left[0],
        right[0],
        out,
        MatrixView.of(la, sizes, (*lead, rows, inner)),
        MatrixView.of(lb, sizes, (*lead, inner, cols)),
        MatrixView.of(result, sizes, (*lead, rows, cols)),
        left[2],
        right[2],
    )
    return step, result
