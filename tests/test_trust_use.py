"""What people hand over and do: odd targets and batches, Ctrl-C, activations, tiny weights, plugins, operators of quimb."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Layout, Status
from adtn._backend import backend_of, check_device
from adtn._errors import CompressError, FileFormatError, FitError, TopologyError
from adtn.network import _activation
from autoray import do

from table import TOPOLOGIES, Row, to_numpy

OPTIMIZERS = ("adam", "adamw", "sgd", "lbfgs", "lm")
W = np.add.outer(np.sin(np.arange(16) / 3), np.cos(np.arange(16) / 2))


def make(**options: Any) -> adtn.Generator:
    return adtn.Generator((16, 16), adtn.TTN(bond=2), layout=Layout.of((16, 16), 4), scale=W, **options)


# Ctrl-C


def interrupted_at(step: int):
    def callback(now: int, loss: float) -> None:
        if now == step:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_interrupted_fit_gives_back_the_best_and_goes_on(device: str, optimizer: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "device": device, "optimizer": optimizer, "steps": 12, "lr": 0.03, "progress": False, "dtype": "float64",
        "schedule": "constant",
    }  # fmt: skip
    whole = adtn.fit(make(), W, **options)
    path = tmp_path / "fit.checkpoint"
    broken = adtn.fit(make(), W, callbacks=[interrupted_at(5)], checkpoint=path, **options)
    assert broken.status is Status.INTERRUPTED and "checkpoint" in broken.status.value
    np.testing.assert_allclose(broken.history, whole.history[:6], rtol=1e-6)
    assert broken.loss <= broken.history.min() * (1 + 1e-6)
    error = np.linalg.norm(broken.generator.weight() - W) / np.linalg.norm(W)
    assert error**2 == pytest.approx(broken.loss, rel=1e-3)
    assert path.exists()
    rest = adtn.fit(make(), W, checkpoint=path, **options)
    assert rest.status is whole.status and rest.loss < broken.loss
    if optimizer != "lbfgs":  # which forgets its curvature
        np.testing.assert_allclose(rest.history, whole.history, rtol=1e-6)


def test_an_interruption_inside_the_objective(device: str) -> None:
    asked: list[int] = []

    def batches(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        asked.append(1)
        if len(asked) == 8:
            raise KeyboardInterrupt
        return (rng.standard_normal((4, 16)),)

    def loss(weight: Any, x: Any) -> Any:
        y = do("matmul", x, do("transpose", weight, (1, 0)))
        mean = do("sum", y * y)
        return (mean, 2.0 * do("matmul", do("transpose", y, (1, 0)), x)) if device.startswith("numpy") else mean

    solution = adtn.fit(make(), adtn.Task(loss, batches=batches), steps=50, device=device, progress=False)
    assert solution.status is Status.INTERRUPTED
    assert solution.steps == len(solution.history) == 6


def test_a_second_interruption_ends_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adtn.optim import _fit

    def write(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_fit, "write_checkpoint", write)
    with pytest.raises(KeyboardInterrupt):
        adtn.fit(make(), W, steps=9, callbacks=[interrupted_at(3)], checkpoint=tmp_path / "c", progress=False)


def test_an_interruption_ends_a_whole_model_and_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from adtn.compress import _local

    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 3))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fit = adtn.fit
    monkeypatch.setattr(_local, "fit", lambda *args, **kw: fit(*args, callbacks=[interrupted_at(1)], **kw))
    with pytest.raises(KeyboardInterrupt):
        adtn.compress(model, adtn.Config(smallest=0, steps=5))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
