"""The learning rate of a training within a budget, if none is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adtn
import pytest
from adtn import Config
from adtn.compression import _learning_rate, _run, model_of

from models import batches, net, same, state_of

torch = pytest.importorskip("torch")
# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
STEPS = _learning_rate.SHORTEST


def trained(lines: list[str], steps: int = STEPS, **options: Any) -> Any:
    model, folder = net(), options.pop("folder", None)
    config = Config(targets=["4"], tune_steps=steps, **options)
    data = batches()
    adtn.compress(model, config, budget=adtn.Budget(ratio=3), data=data, folder=folder, progress=lines.append)
    return model


def tried(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("learning rate")]


def test_the_largest_rate_with_which_a_tenth_of_the_steps_helps_is_taken() -> None:
    lines: list[str] = []
    model = trained(lines)
    *_, last = tried(lines)
    rate = float(last.split()[2].rstrip(":"))
    assert f"after {STEPS // 10} steps" in last and rate in _learning_rate.TRIED
    assert same(model, state_of(trained([], tune_lr=rate))), "trials leave nothing behind"


def test_rates_with_which_the_loss_becomes_infinite_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_learning_rate, "TRIED", (1e30,))
    lines: list[str] = []
    model = trained(lines)
    assert len(tried(lines)) == 1
    assert same(model, state_of(trained([], tune_lr=_learning_rate.SMALLEST_RATE)))


@pytest.mark.parametrize("options", [{"tune_lr": 0.01}, {"steps": STEPS - 1}], ids=["given", "short"])
def test_given_rates_and_short_trainings_are_not_tried(options: dict[str, Any]) -> None:
    lines: list[str] = []
    trained(lines, **options)
    assert not tried(lines)


def test_an_interrupted_training_goes_on_with_the_rate_that_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = type(model_of(net(), None))
    tune = adapter.tune

    def interrupted(self: Any, data: Any, loss: Any, tuning: Any, report: Any) -> Any:
        if tuning.steps == STEPS:
            raise KeyboardInterrupt
        return tune(self, data, loss, tuning, report)

    first: list[str] = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(adapter, "tune", interrupted)
        trained(first, folder=tmp_path)
    assert tried(first)
    (known,) = tmp_path.glob("training-*.rate")
    found, second, third = known.read_text(), list[str](), list[str]()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(adapter, "tune", interrupted)
        known.write_text("damaged")
        trained(second, folder=tmp_path)
    assert tried(second) == tried(first) and known.read_text() == found
    model = trained(third, folder=tmp_path)
    assert not tried(third)
    assert same(model, state_of(trained([])))
    assert not list(tmp_path.glob("training-*")), "nothing is left when a training is finished"


def test_a_full_disk_does_not_end_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_run, "write_atomic", full)
    with pytest.warns(adtn.errors.OutputWarning, match=r"learning rate was not written to .*No space left"):
        model = trained([], folder=tmp_path)
    assert same(model, state_of(trained([])))
