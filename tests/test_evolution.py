"""Observers of trainings: what they see of generators and models, in fits and in compressions."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.bondspace import Evolution, watch
from adtn.errors import ADTNError, CompressError, FitError, TopologyError
from adtn.optim import Snapshot

pytest.importorskip("torch")
pytest.importorskip("flax")

import torch

import flax_models
import models

TARGET = np.outer(np.arange(36.0), np.arange(36.0))
GEN = adtn.Generator((36, 36), adtn.LowRank(bond=3), dtype="float64", seed=1)


def model_and_data(framework: str) -> tuple[Any, Any, str]:
    """Return a model with batch normalisation and dropout, its data and the name of a layer."""
    if framework == "flax":
        return flax_models.Net(), flax_models.batches(), "linears.0"
    model = models.net()
    model.insert(4, torch.nn.Dropout(0.1))
    return model, models.batches(), "5"


def config_of(name: str) -> adtn.Config:
    return adtn.Config(
        targets=[name], topology=adtn.LowRank(bond=3), recipe=("normalise", "finetune"), tune_steps=10, tune_lr=1e-2
    )


@dataclass
class Seeing:
    """An observer that records everything."""

    every: int = 4
    stop: int = -1
    seen: list[Snapshot] = field(default_factory=list)

    def observe(self, snapshot: Snapshot) -> bool:
        self.seen.append(snapshot)
        return snapshot.step == self.stop


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.parametrize("device", ["numpy:cpu", "torch:cpu", "jax:cpu"])
def test_an_observer_of_a_fit_sees_the_parameters_of_each_step(device: str, optimizer: Any) -> None:
    pytest.importorskip(device.split(":")[0])
    own = Seeing()
    options: Any = {"device": device, "optimizer": optimizer, "lr": 0.03, "schedule": "constant"}
    solution = adtn.fit(GEN, TARGET, steps=10, callbacks=[own], **options)
    assert [s.step for s in own.seen] == [0, 4, 8, 10]
    assert np.allclose(own.seen[0].generators["weight"].weight(), GEN.weight(), rtol=1e-12)
    for s in own.seen:
        away = s.generators["weight"].weight() - TARGET
        assert s.loss == pytest.approx(np.vdot(away, away) / np.vdot(TARGET, TARGET), rel=1e-6)
    assert solution.status is adtn.Status.FINISHED
    assert adtn.fit(GEN, TARGET, steps=10, callbacks=[Seeing(stop=8)], **options).steps == 8


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_an_observer_of_a_compression_sees_the_model_as_it_is(framework: str) -> None:
    model, batches, name = model_and_data(framework)
    own, losses = Seeing(), list[int]()
    report = adtn.compress(model, config_of(name), data=batches, callbacks=[own, lambda step, _: losses.append(step)])
    assert [s.step for s in own.seen] == [0, 4, 8, 10]
    assert losses == list(range(10))
    weights = [s.generators[name].weight() for s in own.seen]
    assert all(np.abs(a - b).max() > 1e-5 for a, b in pairwise(weights))
    assert np.allclose(weights[-1], report.generators[name].weight(), rtol=1e-6)
    assert all(s.model is model for s in own.seen)


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_what_observers_do_changes_no_training(framework: str) -> None:
    found: list[Any] = []
    for callbacks in ([], [Evolution(3, batches=model_and_data(framework)[1])]):
        model, batches, name = model_and_data(framework)
        report = adtn.compress(model, config_of(name), data=batches, callbacks=callbacks)
        found.append(report.generators[name].weight())
    assert np.array_equal(*found)


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_a_callback_ends_a_training(framework: str) -> None:
    model, batches, name = model_and_data(framework)
    calls: list[int] = []
    adtn.compress(model, config_of(name), data=batches, callbacks=[lambda step, _: calls.append(step) or step == 4])
    assert calls == [0, 1, 2, 3, 4]


def test_evolution_has_the_spectra_and_statistics_of_every_look() -> None:
    model, batches, name = model_and_data("torch")
    own, seen = Evolution(5, batches=batches), Seeing(5)
    adtn.compress(model, config_of(name), data=batches, callbacks=[own, seen])
    assert own.steps == [0, 5, 10] == list(own.watched)
    for point, snapshot in zip(own.points, seen.seen, strict=True):
        (bond,) = adtn.bonds(snapshot.generators[name])
        assert (point.bond, point.dim, point.exact) == (f"{name}.bonds.r", 3, True)
        assert np.array_equal(point.spectrum, bond.spectrum())
        assert point.effective_rank == bond.effective_rank
    again = watch(model.eval(), batches)[f"{name}.bonds.r"]
    assert own.watched[10][f"{name}.bonds.r"].separability == pytest.approx(again.separability, rel=1e-6)
    assert f"{name}.bonds.r" in str(own)


def test_several_trainings_are_counted_on() -> None:
    own = Evolution(5)
    first = adtn.fit(GEN, TARGET, steps=10, callbacks=[own]).generator
    adtn.fit(first, TARGET, steps=5, callbacks=[own])
    assert own.steps == [0, 5, 10, 15]


def test_pictures_of_an_evolution(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    own = Evolution(5)
    adtn.fit(GEN, TARGET, steps=10, callbacks=[own])
    figure = own.draw(tmp_path / "e.svg")
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [0, 5, 10]
    assert (tmp_path / "e.svg").stat().st_size > 1000
    with pytest.raises(TopologyError, match="observed nothing"):
        Evolution().draw()


def test_what_cannot_be_observed_is_refused() -> None:
    with pytest.raises(FitError, match="Got 3 in callbacks"):
        adtn.fit(GEN, TARGET, steps=1, callbacks=[3])  # pyright: ignore[reportArgumentType]
    with pytest.raises(FitError, match="every=0"):
        adtn.fit(GEN, TARGET, steps=1, callbacks=[Seeing(0)])
    model, batches, _ = model_and_data("torch")
    with pytest.raises(CompressError, match="Got 'x' in callbacks"):
        adtn.compress(model, data=batches, callbacks=["x"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TopologyError, match="fit no bond"):
        adtn.fit(GEN, TARGET, steps=1, callbacks=[Evolution(names="q*")])
    with pytest.raises(ADTNError, match="a training of a model"):
        adtn.fit(GEN, TARGET, steps=1, callbacks=[Evolution(batches=batches)])
