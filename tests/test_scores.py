"""Scores that are not finite: refused for the dense model, and never good for a result."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Config
from adtn.compression import Baseline, ModelCost
from adtn.errors import CompressError, QualityWarning

from table import BACKENDS

FRAMEWORKS = [name for name in ("torch", "jax") if name in BACKENDS]
QUICK: dict[str, Any] = {"topology": adtn.LowRank(bond=28), "recipe": "closed-form"}
COST = ModelCost(params=10, bytes=40, accuracy=None, forward_seconds=None, forward_peak_bytes=None)


@pytest.fixture(params=FRAMEWORKS)
def model(request: pytest.FixtureRequest) -> Any:
    if request.param == "torch":
        import torch

        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32))
    from flax import nnx

    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(32, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 32, rngs=rngs))


def scores(*values: Any) -> Any:
    """Return a score that has one value after the other, and then the last one."""

    def each() -> Iterator[Any]:
        yield from values
        while True:
            yield values[-1]

    found = each()
    return lambda model: next(found)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (None, "None"),
        ("good", "'good'"),
        (np.ones(2), "an array"),
    ],
)
@pytest.mark.parametrize(
    "config", [Config(**QUICK), Config(budget=adtn.Budget(accuracy_loss=1.0))], ids=["size", "loss"]
)
def test_a_score_of_the_dense_model_that_is_no_number_is_refused(
    model: Any, value: Any, shown: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adtn.compression._run.run_local", lambda *_: pytest.fail("nothing is fitted"))
    with pytest.raises(
        CompressError, match=rf"score= returned {shown}.* for the (dense )?model; expected a.* number.*Correct"
    ):
        adtn.compress(model, config, score=lambda model: value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_lost_is_warned_of(model: Any, value: float) -> None:
    with pytest.warns(QualityWarning, match=f"The score was 0.9 and is {value} now.*Allow a larger size"):
        report = adtn.compress(model, Config(**QUICK), score=scores(0.9, value))
    assert report.summary()[0].startswith("warning: The score was 0.9")


@pytest.mark.filterwarnings("ignore:2 of 2 layers have a relative error:adtn.errors.QualityWarning")  # by half of it
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_size_whose_score_is_no_number_loses_too_much(model: Any, value: float) -> None:
    config = Config(budget=adtn.Budget(accuracy_loss=1.0), recipe="closed-form")
    with pytest.raises(CompressError, match=rf"No size that was tried.*the last one.*with a score of {value}"):
        adtn.compress(model, config, score=scores(90.0, value))
    report = adtn.compress(model, config, score=scores(90.0, value, 89.5))
    assert report.after.score == 89.5


def test_a_baseline_without_a_number_beats_nothing_and_any_number_beats_none() -> None:
    row = {"name": "other", "params": 5, "bytes": 20}
    for bad in (math.nan, math.inf):
        assert not Baseline(**row, quality=bad, loss=None).beats(ModelCost(**{**vars(COST), "score": 0.5}))
        assert Baseline(**row, quality=0.5, loss=None).beats(ModelCost(**{**vars(COST), "score": bad}))
        assert Baseline(**row, quality=None, loss=0.5).beats(ModelCost(**{**vars(COST), "loss": bad}))
    assert not Baseline(**row, quality=None, loss=math.nan).beats(ModelCost(**{**vars(COST), "loss": 0.5}))
