"""Local fits end where they no longer gain, and not before."""

from __future__ import annotations

from typing import Any

import adtn
import numpy as np
import pytest
from adtn.compression import _local

STEPS = 300


def solved(topology: adtn.Topology, optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[int, float]:
    """Solve one task, and return the steps that were taken and the error of the outputs."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 32)) * np.geomspace(1.0, 0.1, 32)
    weight = rng.standard_normal((48, 32)).astype(np.float32)
    taken: list[int] = []

    def counted(*args: Any, **options: Any) -> adtn.Solution:
        found = adtn.fit(*args, **options)
        taken.append(found.steps)
        return found

    monkeypatch.setattr(_local, "fit", counted)
    task = _local.LocalTask(
        name="layer",
        weight=weight,
        moment=x.T @ x / 200,
        topology=topology,
        layout=adtn.Generator(weight.shape, topology).layout,
        base=None,
        seed=0,
        steps=STEPS,
        optimizer=optimizer,
        lr=1e-2,
        device="numpy:cpu",
    )
    error = _local.solve(task).relative_error
    return sum(taken), error


@pytest.mark.parametrize("topology", [adtn.LowRank(bond=4), adtn.MPO(bond=3)], ids=repr)
def test_a_fit_ends_where_it_no_longer_gains(topology: adtn.Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, error = solved(topology, "lbfgs", monkeypatch)
    monkeypatch.setattr(_local, "_SLOW_GAIN", 0.0)
    most, least = solved(topology, "lbfgs", monkeypatch)
    assert 20 < steps < STEPS
    assert steps < most
    assert error < 1.01 * least


def test_a_fit_whose_loss_may_rise_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert solved(adtn.MPO(bond=3), "adam", monkeypatch)[0] == STEPS
