"""Models with unusual weights: nothing breaks, and the report says what is not compressed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import adtn
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from adtn import Config
from adtn.errors import CompressError
from flax import nnx
from torch import nn
from torch.nn.utils import parametrizations

from adtn_backends.torch._model import TorchModel

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")

QUICK: dict[str, Any] = {"topology": adtn.TTN(bond=2), "steps": 5, "tune_steps": 3}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def batches() -> list[Any]:
    torch.manual_seed(1)
    return [(torch.randn(16, 32), torch.randint(0, 4, (16,))) for _ in range(2)]


class Net(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.a, self.b = nnx.Linear(32, 32, rngs=rngs), nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.b(nnx.relu(self.a(x)))


def arrays() -> list[Any]:
    return [(x.numpy(), y.numpy()) for x, y in batches()]


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_computed_weights_stay_dense_and_are_not_read(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = net()
    norm(model[0])
    before = copy.deepcopy(model[0].state_dict())  # reading the weight would change the vectors of the spectral norm
    report = adtn.compress(model, Config(**QUICK, recipe="reconstruct"))
    assert [row.name for row in report.layers] == ["2"]
    assert "remove_parametrizations" in report.dense["0"]
    assert set(report.dense) == {"0", "4"}
    for name, x in model[0].state_dict().items():
        assert torch.equal(x, before[name]), name


def test_models_of_torchscript_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made = torch.jit.script(net())
    with pytest.raises(CompressError, match="compiled by TorchScript"):
        adtn.compress(made, Config(**QUICK), data=batches())


def without_numbers(how: str) -> nn.Module:
    if how == "lazy":
        return nn.Sequential(nn.LazyLinear(32), nn.Linear(32, 4))
    with torch.device("meta"):
        return net()


@pytest.mark.parametrize("how", ["lazy", "meta"])
def test_models_without_values_are_refused(how: str) -> None:
    with pytest.raises(CompressError, match=r"'0\.weight' has no values yet"):
        adtn.compress(without_numbers(how), Config(**QUICK), data=batches())
    with pytest.raises(CompressError, match="shapes without values"):
        adtn.compress(nnx.eval_shape(Net), Config(**QUICK), data=arrays())


def test_tensors_of_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = net()
    with pytest.raises(CompressError, match="inference mode"):
        adtn.compress(model, Config(**QUICK), data=batches())


@pytest.mark.parametrize("mode", ["replace", "adapter"])
@pytest.mark.parametrize(("value", "why"), [(0.0, "is zero"), (float("nan"), "NaN")])
def test_a_weight_that_cannot_be_generated_stays_dense(value: float, why: str, mode: Any) -> None:
    model = net()
    nn.init.constant_(model[2].weight, value)
    config = Config(**{**QUICK, "tune_steps": 0}, mode=mode)
    report = adtn.compress(model, config, data=batches())
    assert [row.name for row in report.layers] == ["0"]
    assert why in report.dense["2"]
    flax: Any = Net()
    flax.a.kernel[...] = jnp.full((32, 32), value)
    with pytest.raises(CompressError, match=f"a: .*{why}"):
        adtn.compress(flax, config, data=arrays())


def test_a_loss_that_is_never_finite_is_not_the_fault_of_the_rate() -> None:
    model, flax = net(), Net()
    nn.init.constant_(model[4].bias, float("inf"))
    flax.b.bias[...] = jnp.full(4, jnp.nan)
    for one, data in ((model, batches()), (flax, arrays())):
        with pytest.raises(CompressError, match="before the first step"):
            adtn.compress(one, Config(**QUICK, recipe="finetune"), data=data)


def test_half_precision_is_refused_for_adam_before_anything_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [(x.half(), y) for x, y in batches()]
    report = adtn.compress(net().half(), Config(**QUICK, tune_optimizer="sgd"), data=data)
    assert all(np.isfinite(report.losses))
    monkeypatch.setattr(TorchModel, "second_moments", None)  # the first step that takes time
    with pytest.raises(CompressError, match="float16 parameters to train with Adam"):
        adtn.compress(net().half(), Config(**QUICK), data=data)


def test_a_weight_of_equal_entries_can_be_made() -> None:
    gen = adtn.Generator((32, 32), adtn.MPO(bond=1), scale=np.full((32, 32), 0.1, np.float32))
    assert gen.scale == pytest.approx(0.1)
    model = net()
    nn.init.constant_(model[0].weight, 0.1)
    report = adtn.compress(model, Config(targets=["0"], topology=adtn.MPO(bond=1), steps=50))
    assert report.layers[0].local_errors[0] < 1e-4


class Stacked(nnx.Module):
    """A model whose layers are stacked in one array, for a scan."""

    def __init__(self, kind: Callable[[nnx.Rngs], nnx.Module]) -> None:
        make = nnx.split_rngs(splits=3)(nnx.vmap(kind, in_axes=(0,), out_axes=0))
        self.layers = make(nnx.Rngs(0))
        self.first, self.last = (nnx.Linear(32, n, rngs=nnx.Rngs(1)) for n in (32, 4))

    def __call__(self, x: Any) -> Any:
        return self.last(nnx.relu(self.first(x)))


@pytest.mark.parametrize(
    "kind",
    [
        lambda rngs: nnx.Linear(32, 32, rngs=rngs),
        lambda rngs: nnx.LinearGeneral(32, (4, 8), rngs=rngs),
        lambda rngs: nnx.Conv(16, 16, (3, 3), rngs=rngs),
        lambda rngs: nnx.Embed(64, 16, rngs=rngs),
    ],
)
def test_layers_that_are_stacked_for_a_scan_stay_dense(kind: Any) -> None:
    report = adtn.compress(Stacked(kind), Config(**QUICK), data=arrays())
    assert [row.name for row in report.layers] == ["first"]
    assert "several layers in one array" in report.dense["layers"]


@pytest.mark.parametrize("norm", [nnx.WeightNorm, nnx.SpectralNorm])
def test_flax_layers_inside_a_norm_of_their_weight_stay_dense(norm: Any) -> None:
    class Normed(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.inner = nnx.Linear(32, 32, rngs=rngs)
            self.normed = norm(self.inner, rngs=rngs)
            self.other, self.last = nnx.Linear(32, 32, rngs=rngs), nnx.Linear(32, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.last(nnx.relu(self.other(nnx.relu(self.normed(x)))))

    report = adtn.compress(Normed(), Config(**QUICK), data=arrays())
    assert [row.name for row in report.layers] == ["other"]
    assert f"{norm.__name__} changes its weight" in report.dense["inner"]
