"""Programs as straight-line code: one Python function per pass, without an object or a decision per step.

Small networks spend their time between operations, not in them. Shapes, permutations and transposed operands are known
when a program is planned, so the code has constants only: views that follow each other are one expression, and a
transposed operand is an attribute of the product that reads it. What it computes is what :mod:`._adjoint` computes, in
the same order.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .._typing import Array, Float, Inds, Shape
from ..backends import Dialect
from ..program import MatrixView, PairStep, Program, Stage

_LARGE = 1 << 16  # entries from which a workspace may reuse memory, in double precision
_LEAST_PRODUCT = 1 << 13  # multiplications of one product of a stack, from which the call costs less than copies
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class _Sym:
    """A variable of the code: its name, its shape as it is stored, and whether its transpose is meant."""

    name: str
    shape: Shape
    transposed: bool = False

    @property
    def mT(self) -> _Sym:
        return _Sym(self.name, self.shape, not self.transposed)

    @property
    def text(self) -> str:
        return f"{self.name}.mT" if self.transposed else self.name

    @property
    def matrix(self) -> Shape:
        """The shape as it is meant."""
        return (*self.shape[:-2], self.shape[-1], self.shape[-2]) if self.transposed else self.shape


class _Writer:
    """The lines of one function."""

    def __init__(self, dialect: Dialect) -> None:
        self.lines: list[str] = []
        self.dialect = dialect
        self._count = 0
        self._large: list[str] = []

    def new(self, text: str, shape: Shape) -> _Sym:
        """Write an assignment to a new variable."""
        name = f"v{self._count}"
        self._count += 1
        self.lines.append(f"{name} = {text}")
        if math.prod(shape) >= _LARGE:
            self._large.append(name)
        return _Sym(name, shape)

    def ended(self, result: str) -> list[str]:
        """Return all lines with the last one, and free large arrays as soon as nothing reads them any more."""
        lines = [*self.lines, f"return {result}"]
        for name in self._large:
            last = max(k for k, line in enumerate(lines) if re.search(rf"\b{name}\b", line))
            if last < len(lines) - 1:
                lines.insert(last + 1, f"del {name}")
        return lines

    def matmul(self, x: _Sym, y: _Sym) -> _Sym:
        """Write a product."""
        a, b = x.matrix, y.matrix
        shape = (*a[:-1], b[-1])
        small = math.prod(shape) < _LARGE
        call = self.dialect.products[len(shape)] if small else "space.matmul"
        return self.new(f"{call}({x.text}, {y.text})", shape)

    def read(self, view: MatrixView, x: _Sym) -> _Sym:
        """Write :meth:`MatrixView.read`."""
        text, shape = x.text, x.matrix
        if view.sums:
            text = f"{self._reshaped(text, shape, view.full)}.sum({view.sums})"
            shape = tuple(n for axis, n in enumerate(view.full) if axis not in view.sums)
        if view.moves:
            text = f"{self._reshaped(text, shape, view.merged)}.{self.dialect.permute}({view.perm})"
            shape = view.permuted
            text = self._packed(text, shape, view.stored)
            shape = view.stored
        text = self._reshaped(text, shape, view.stored)
        found = x if text == x.text and not x.transposed else self.new(text, view.stored)
        return found.mT if view.swapped else found

    def write(self, view: MatrixView, x: _Sym, *, whole: bool = True) -> _Sym:
        """Write :meth:`MatrixView.write`; unless ``whole``, what reads the result gives it its shape."""
        x = x.mT if view.swapped else x
        text, shape = x.text, x.matrix
        if view.moves:
            text = f"{self._reshaped(text, shape, view.permuted)}.{self.dialect.permute}({view.inverse})"
            shape = tuple(view.permuted[axis] for axis in view.inverse)
        if view.sums:
            thin = self._reshaped(text, shape, view.thin)
            return self.new(self.dialect.expand.format(x=thin, shape=view.full), view.full)
        if not whole and math.prod(shape) < _LARGE:
            return self.new(text, shape) if view.moves else x
        copies = view.moves or x.transposed
        text = (self._packed if copies else self._reshaped)(text, shape, view.full)
        return x if text == x.text and not x.transposed else self.new(text, view.full)

    def write_product(self, view: MatrixView, x: _Sym, y: _Sym, transposed: bool, *, whole: bool) -> _Sym:
        """Write :meth:`MatrixView.write_product`."""
        product = self.matmul(y.mT, x.mT).mT if transposed else self.matmul(x, y)
        return self.write(view, product, whole=whole)

    def stacked(self, x: _Sym, y: _Sym, *, shared: bool) -> _Sym:
        """Write the products of the matrix ``x``, or of a stack of them if not ``shared``, with a stack ``y``."""
        (count, k, n), m = y.matrix, x.matrix[-2]
        text = self.dialect.expand.format(x=x.text, shape=(count, m, k)) if shared else x.text
        shape = (count, m, n)
        call = self.dialect.products[3] if math.prod(shape) < _LARGE else "space.matmul"
        return self.new(f"{call}({text}, {y.text})", shape)

    def cut(self, x: _Sym, shape: Shape) -> _Sym:
        """Write a view or copy of another shape."""
        text = self._reshaped(x.text, x.matrix, shape)
        return x if text == x.text and not x.transposed else self.new(text, shape)

    def _reshaped(self, text: str, shape: Shape, new: Shape) -> str:
        return text if shape == new else f"{text}.reshape({new})"

    def _packed(self, text: str, shape: Shape, new: Shape) -> str:
        if math.prod(new) >= _LARGE:
            return f"space.packed({text}, {new})"
        return f"{text}.reshape({new})" if shape != new else text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stacked:
    """A contraction that is a stack of products with one matrix, without a permuting copy: ``C[f] = A B[f]``.

    The larger operand and the result are stored as ``(f, k, n)`` and ``(f, m, n)``. As a single product, both would be
    copied to another order, ``(k, f n)`` and ``(m, f n)``.
    """

    of_left: bool
    """Whether the stack is the left operand; then all three are meant transposed."""
    operand: Shape
    result: Shape

    @property
    def matrix(self) -> Shape:
        """The shape of the matrix, as it multiplies the stack from the left."""
        return self.result[1], self.operand[1]


def _stacked(step: PairStep) -> _Stacked | None:
    """Return the form of a contraction as a stack of products, if it saves permuting copies and these are not small."""
    for of_left, view in ((False, step.b), (True, step.a)):
        operand, result = _middle(view, of_left), _middle(step.c, of_left)
        if operand is None or result is None or operand[::2] != result[::2]:
            continue
        (count, k, n), m = operand, result[1]
        if m * k * n >= _LEAST_PRODUCT and m * k <= (m + k) * n and count > 1:
            return _Stacked(of_left=of_left, operand=operand, result=result)
    return None


def _middle(view: MatrixView, of_left: bool) -> Shape | None:
    """Return ``(f, k, n)`` if a tensor is stored so that its rows, or columns if ``of_left``, are in the middle."""
    if not view.moves or view.sums or len(view.merged) != 3 or len(view.stored) != 2:
        return None
    f, k, n = view.merged
    as_rows = view.perm == (1, 0, 2) and view.stored == (k, f * n)
    as_columns = view.perm == (0, 2, 1) and view.stored == (f * n, k)
    if (as_rows and view.swapped == of_left) or (as_columns and view.swapped != of_left):
        return view.merged
    return None


def _forward_stage(w: _Writer, stage: Stage, t: int, state: _Sym | None) -> tuple[_Sym, list[str]]:
    """Write the forward pass of a stage, and return its state and the names on its tape."""
    slots: list[_Sym] = [] if state is None else [state]
    for core in stage.cores:
        cut = f".reshape({core.shape})" if core.kind == "input" else ""  # it comes as rows
        slots.append(w.new(f"arrays[{core.param!r}]{cut}", core.shape))
    tape: list[str] = []
    if stage.alone is not None:
        z = w.read(stage.alone, slots[0])
    else:
        for step in stage.steps:
            left, right = slots[step.left], slots[step.right]
            whole = step is stage.steps[-1]
            if (form := _stacked(step)) is not None:
                a = w.cut(left, form.operand) if form.of_left else w.read(step.a, left)
                b = w.read(step.b, right) if form.of_left else w.cut(right, form.operand)
                product = w.stacked(b.mT, a, shared=True) if form.of_left else w.stacked(a, b, shared=True)
                slots.append(w.cut(product, step.c.full) if whole else product)
            else:
                a, b = w.read(step.a, left), w.read(step.b, right)
                slots.append(w.write_product(step.c, a, b, step.transposed[0], whole=whole))
            tape += [a.name, b.name]
        z = slots[-1]
    if stage.segment.activation == "identity":
        return z, tape
    return w.new(f"space.activate(sigma{t}, {z.text})", z.matrix), [*tape, z.name]


def _tape_of(stage: Stage, names: Sequence[str]) -> tuple[list[tuple[_Sym, _Sym]], str | None]:
    """Return the operands of all steps, and the state before an activation, on the tape."""
    pairs = zip(names[: 2 * len(stage.steps) : 2], names[1 : 2 * len(stage.steps) : 2], strict=True)
    matrices: list[tuple[_Sym, _Sym]] = []
    for step, (a, b) in zip(stage.steps, pairs, strict=True):
        form = _stacked(step)
        in_stack = [form is not None and form.of_left, form is not None and not form.of_left]
        left, right = (
            _Sym(name, form.operand) if form is not None and stack else _operand(name, view)
            for name, view, stack in zip((a, b), (step.a, step.b), in_stack, strict=True)
        )
        matrices.append((left, right))
    return matrices, None if stage.segment.activation == "identity" else names[-1]


def _operand(name: str, view: MatrixView) -> _Sym:
    return _Sym(name, view.stored, view.swapped)


def _backward_stage(w: _Writer, stage: Stage, matrices: Sequence[tuple[_Sym, _Sym]], zbar: _Sym) -> list[_Sym | None]:
    """Write the adjoints of all operands of a stage."""
    if stage.alone is not None:
        return [w.write(stage.alone, zbar)]
    count = len(stage.cores) + stage.has_state
    bars: list[_Sym | None] = [None] * (count + len(stage.steps))
    bars[-1] = zbar
    for step, (a, b) in zip(reversed(stage.steps), reversed(matrices), strict=True):
        bar = bars[step.out]
        if bar is None or not (step.need_a or step.need_b):
            continue
        if (form := _stacked(step)) is not None:
            bars[step.left], bars[step.right] = _backward_stacked(w, step, form, (a, b), bar, count)
        else:
            c = w.read(step.c, bar)
            if step.need_a:
                whole = step.left < count
                bars[step.left] = w.write_product(step.a, c, b.mT, step.transposed[1], whole=whole)
            if step.need_b:
                whole = step.right < count
                bars[step.right] = w.write_product(step.b, a.mT, c, step.transposed[2], whole=whole)
    return bars[:count]


def _backward_stacked(
    w: _Writer, step: PairStep, form: _Stacked, operands: tuple[_Sym, _Sym], bar: _Sym, count: int
) -> tuple[_Sym | None, _Sym | None]:
    """Write the adjoints of both operands of a stack of products: ``Ā = Σ C̄[f] B[f]ᵀ`` and ``B̄[f] = Aᵀ C̄[f]``."""
    stack, matrix = operands if form.of_left else operands[::-1]
    matrix = matrix.mT if form.of_left else matrix
    of_stack, of_matrix = (step.a, step.b) if form.of_left else (step.b, step.a)
    need_stack, need_matrix = (step.need_a, step.need_b) if form.of_left else (step.need_b, step.need_a)
    slot_stack, slot_matrix = (step.left, step.right) if form.of_left else (step.right, step.left)
    c = w.cut(bar, form.result)
    found_stack = found_matrix = None
    if need_matrix:
        terms = w.stacked(c, stack.mT, shared=False)
        total = w.new(f"{terms.text}.sum(0)", form.matrix)
        found_matrix = w.write(of_matrix, total.mT if form.of_left else total, whole=slot_matrix < count)
    if need_stack:
        found_stack = w.stacked(matrix.mT, c, shared=True)
        found_stack = w.cut(found_stack, of_stack.full) if slot_stack < count else found_stack
    return (found_stack, found_matrix) if form.of_left else (found_matrix, found_stack)


class FlatProgram:
    """A program as straight-line code for one framework.

    Parameters
    ----------
    program : Program
    dialect : Dialect
        The names of operations in the framework.
    """

    def __init__(self, program: Program, dialect: Dialect) -> None:
        self.program, self.dialect = program, dialect
        self._sigmas = {f"sigma{t}": stage.activation for t, stage in enumerate(program.stages)}

    @cached_property
    def forward(self) -> Callable[..., Float[Array, "*legs"]]:
        """Compute the state ``X_T``: ``forward(arrays, space)``."""
        return self._compiled("forward", ("arrays", "space"), self._forward(with_tape=False))

    @cached_property
    def forward_tape(self) -> Callable[..., tuple[Float[Array, "*legs"], tuple[Float[Array, "..."], ...]]]:
        """Compute the state and a tuple of arrays for :attr:`pullback`."""
        return self._compiled("forward_tape", ("arrays", "space"), self._forward(with_tape=True))

    @cached_property
    def pullback(self) -> Callable[..., dict[str, Float[Array, "..."]]]:
        """Compute the adjoints of trained parameters: ``pullback(tape, cotangent, space)``."""
        return self._compiled("pullback", ("tape", "cotangent", "space"), self._pullback())

    def code(self) -> str:
        """Return the text of all functions."""
        parts = {
            "forward(arrays, space)": self._forward(with_tape=False),
            "forward_tape(arrays, space)": self._forward(with_tape=True),
            "pullback(tape, cotangent, space)": self._pullback(),
        }
        return "\n\n\n".join("\n    ".join([f"def {head}:", *lines]) for head, lines in parts.items()) + "\n"

    def _forward(self, *, with_tape: bool) -> list[str]:
        w, state, tape = _Writer(self.dialect), None, list[str]()
        for t, stage in enumerate(self.program.stages):
            state, own = _forward_stage(w, stage, t, state)
            tape += own
        assert state is not None, "a program has a stage"
        held = f"({', '.join(tape)},)" if tape else "()"
        return w.ended(f"{state.text}, {held}" if with_tape else state.text)

    def _pullback(self) -> list[str]:
        w, stages = _Writer(self.dialect), self.program.stages
        sizes = [2 * len(stage.steps) + (stage.segment.activation != "identity") for stage in stages]
        names = [f"t{k}" for k in range(sum(sizes))]
        if names:
            w.lines.append(f"{', '.join(names)}, = tape")
        grads: dict[str, str] = {}
        xbar = _Sym("cotangent", stages[-1].out_shape)
        for t in reversed(range(len(stages))):
            stage, own = stages[t], names[sum(sizes[:t]) : sum(sizes[: t + 1])]
            matrices, z = _tape_of(stage, own)
            if z is not None:
                xbar = w.new(f"space.activate_vjp(sigma{t}, {z}, {xbar.text})", xbar.matrix)
            operands = _backward_stage(w, stage, matrices, xbar)
            for core, bar in zip(stage.cores, operands[stage.has_state :], strict=True):
                if core.trainable and bar is not None:
                    before = grads.get(core.param)
                    grads[core.param] = bar.text if before is None else f"{before} + {bar.text}"
            if not stage.need_state:
                break
            state = operands[0]
            assert state is not None, "it depends on trained parameters"
            xbar = state
        return w.ended(f"{{{', '.join(f'{name!r}: {text}' for name, text in grads.items())}}}")

    def _compiled(self, name: str, arguments: Inds, lines: list[str]) -> Any:
        text = "\n    ".join([f"def {name}({', '.join(arguments)}):", *lines]) + "\n"
        file = f"<adtn {name} {next(_numbers)}>"
        space: dict[str, Any] = {**self.dialect.names, **self._sigmas}
        exec(compile(text, file, "exec"), space)  # of our own text, with names and shapes of a checked plan
        return space[name]
