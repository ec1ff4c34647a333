"""Executables: one object per mode is both priced and run."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.backends import get_backend
from adtn.errors import ScheduleError
from adtn.weight import MODES, Executable

from oracles import dense_weight
from table import Row, relative_error

SOURCES = [Path(adtn.__file__).parent, Path(adtn.__file__).parent.parent / "backends"]
TASKS = ("generate", "apply", "train", "fit")


def plans(row: Row) -> dict[tuple[str, str], adtn.Plan]:
    made = {}
    for task in TASKS:
        for mode in MODES:
            if len(row.shape) == 2 or task in ("generate", "fit"):
                try:
                    made[task, mode] = adtn.plan(row.generator(), task, batch=5, mode=mode)  # type: ignore[arg-type]
                except ScheduleError as error:
                    assert "Got mode=" in str(error)
    return made


def test_a_plan_runs_what_it_priced(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that every pass on null arrays is of the executable that the plan holds, or of a copy of it."""
    from adtn.schedule import _planner

    monkeypatch.setattr(_planner, "_decided", _planner._decided.__wrapped__)
    traced: list[Executable] = []
    bind = Executable.on

    def on(self: Executable, backend: Any) -> Executable:
        traced.append(self)
        return bind(self, backend)

    monkeypatch.setattr(Executable, "on", on)
    for (task, mode), plan in plans(row).items():
        assert any(plan.executable is e for e in traced), (task, mode)
        assert plan.mode == plan.executable.mode == mode
        assert plan.tiles == plan.executable.tiles
        steps = [(t, times, step.bmnk) for t, times, step in plan.executable.steps()]
        assert steps == [(c.segment, c.times, c.bmnk) for c in plan.contractions]


def test_contractions_are_those_that_run(row: Row) -> None:
    """Check that the products that a plan lists are those of a forward pass of its executable on null arrays."""
    null: Any = get_backend("null")
    for (task, mode), plan in plans(row).items():
        if task != "apply":
            continue
        gen = row.generator()
        arrays, counter = null.arrays_like({**gen.params, **gen.constants()}, "float32")
        x = null.asarray(np.broadcast_to(np.float32(0), (5, row.shape[1])), "cpu", "float32")
        plan.layer.on(null)(arrays, x)
        done = sum(op.flops * times for op, times in counter.ops.items() if op.kind == "matmul")
        listed = sum(c.times * c.flops for c in plan.contractions)
        # with the weight, there is also the product with the input
        assert done == listed + (0 if mode == "factored" else 2 * 5 * padded(gen, mode)), mode


def padded(gen: adtn.Generator, mode: str) -> int:
    n_out, n_in = gen.shape
    return (n_out if mode == "materialise" else gen.layout.padded_shape[0]) * n_in


def test_fixed_parameters_give_the_same_product(row: Row) -> None:
    if len(row.shape) != 2:
        pytest.skip("a layer needs a matrix")
    gen, x = row.generator(), np.random.default_rng(0).standard_normal((5, row.shape[1]))
    for mode in MODES:
        try:
            layer = adtn.plan(gen, "apply", batch=5, mode=mode).layer.on(get_backend("numpy"))
        except ScheduleError:
            continue
        product = layer.fixed(lambda: gen.arrays("numpy:cpu", "float64"), gen.weight, 5)
        assert relative_error(product(x), x @ dense_weight(gen).T) < 1e-12


def test_plans_are_for_their_task() -> None:
    plan = adtn.plan(adtn.Generator((8, 8), adtn.TTN(bond=2)), "fit")
    for name in ("layer", "materialised"):
        with pytest.raises(ScheduleError, match="Got a plan for 'fit'; expected one for"):
            getattr(plan, name)
    with pytest.raises(ScheduleError, match="Got a plan for 'apply'"):
        adtn.plan(adtn.Generator((8, 8), adtn.TTN(bond=2)), "apply").fit  # noqa: B018


def test_names_of_modes_are_not_interpreted() -> None:
    found = []
    for path in (p for folder in SOURCES for p in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                parts = [node.left, *node.comparators]
                names = {n.value for part in parts for n in ast.walk(part) if isinstance(n, ast.Constant)}
                if names & set(MODES):
                    found.append(f"{path.name}:{node.lineno}")
    assert not found
