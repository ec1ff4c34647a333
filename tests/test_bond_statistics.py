"""Statistics of what is on bonds, in batches, beside those of all samples at once."""

from __future__ import annotations

from typing import Any

import adtn
import numpy as np
import pytest
from adtn.bondspace import watch
from adtn.errors import TopologyError

pytest.importorskip("torch")
pytest.importorskip("flax")

import jax.numpy as jnp
import torch

import adtn_backends.jax as of_jax
import adtn_backends.torch as of_torch

X = np.random.default_rng(0).standard_normal((120, 36)).astype(np.float32) * np.linspace(0.3, 2.0, 36, dtype=np.float32)
LABELS = np.argmax(X @ np.random.default_rng(1).standard_normal((36, 3)), 1)
GEN = adtn.Generator((40, 36), adtn.MPO(bond=4), seed=1)


def batches(framework: str, size: int) -> list[Any]:
    convert = torch.tensor if framework == "torch" else jnp.asarray
    return [(convert(X[k : k + size]), LABELS[k : k + size]) for k in range(0, len(X), size)]


def layer(framework: str) -> Any:
    return (of_torch if framework == "torch" else of_jax).ADTNLinear(GEN)


def whole() -> np.ndarray:
    with adtn.probe(layer("torch")) as found, torch.no_grad():
        found.model(torch.tensor(X))
    return found["bonds.b0"].double().numpy()


@pytest.mark.parametrize("framework", ["torch", "flax"])
@pytest.mark.parametrize("size", [120, 17])
def test_moments_are_those_of_all_samples(framework: str, size: int) -> None:
    found = watch(layer(framework), batches(framework, size))["bonds.b0"]
    value = whole()
    vectors, features = value.reshape(-1, 4), value.reshape(len(value), -1)
    assert found.samples == 120
    assert np.allclose(found.mean, vectors.mean(0), atol=1e-5)
    assert np.allclose(found.covariance, np.cov(vectors.T, bias=True), rtol=1e-4, atol=1e-5)
    values, components = found.pca()
    assert np.allclose(components * values @ components.T, found.covariance, rtol=1e-6, atol=1e-8)
    assert 1.0 <= found.effective_rank <= 4.0
    means = np.array([features[k == LABELS].mean(0) for k in range(3)])
    within = sum(((features[k == LABELS] - means[k]) ** 2).sum() for k in range(3))
    between = sum((k == LABELS).sum() * ((means[k] - features.mean(0)) ** 2).sum() for k in range(3))
    assert found.separability == pytest.approx(between / within, rel=1e-4)


def test_svcca_is_that_of_all_samples() -> None:
    other = lambda x: x[:, :10] @ torch.ones(10, 7).cumsum(0).cumsum(1).cos()
    found = watch(layer("torch"), batches("torch", 30), others={"other": other}, pairs=[("bonds.b0", "other")])
    x, y = (a - a.mean(0) for a in (whole().reshape(120, -1), other(torch.tensor(X)).double().numpy()))

    def components(a: np.ndarray) -> np.ndarray:
        u, s, _ = np.linalg.svd(a, full_matrices=False)
        return u[:, : int(np.searchsorted((s**2).cumsum() / (s**2).sum(), 0.99)) + 1]

    exact = np.linalg.svd(components(x).T @ components(y), compute_uv=False).mean()
    assert found.svcca("bonds.b0", "other") == pytest.approx(exact, rel=1e-3)


def test_cka_of_batches_is_near_that_of_all_samples() -> None:
    others = {"inputs": lambda x: x, "turned": lambda x: 3.0 * x.flip(1), "noise": lambda x: torch.randn(len(x), 30)}
    torch.manual_seed(0)
    pairs = [("bonds.b0", "inputs"), ("inputs", "turned"), ("inputs", "noise")]
    small, large = (watch(layer("torch"), batches("torch", n), others=others, pairs=pairs) for n in (40, 120))
    assert small.cka("inputs", "turned") == pytest.approx(1.0)
    assert abs(small.cka("inputs", "noise")) < 0.1 and abs(large.cka("inputs", "noise")) < 0.1
    assert small.cka("bonds.b0", "inputs") == pytest.approx(large.cka("bonds.b0", "inputs"), abs=0.05)
    x, y = (a - a.mean(0) for a in (whole().reshape(120, -1), X.astype(np.float64)))
    biased = np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert large.cka("bonds.b0", "inputs") == pytest.approx(biased, abs=0.1)


def test_wrong_calls_are_refused() -> None:
    model, data = layer("torch"), batches("torch", 40)
    with pytest.raises(TopologyError, match="'bonds.b7', which fits none"):
        watch(model, data, "bonds.b7")
    with pytest.raises(TopologyError, match="pairs with other; expected names among bonds.b0"):
        watch(model, data, pairs=[("bonds.b0", "other")])
    with pytest.raises(TopologyError, match="at least one of each"):
        watch(model, [])
    with pytest.raises(TopologyError, match="Got values on bonds.b0 that are NaN or infinite"):
        watch(model, [data[0][0] / 0.0])
    found = watch(model, [x for x, _ in data])
    with pytest.raises(TopologyError, match="without labels"):
        _ = found["bonds.b0"].separability
    with pytest.raises(TopologyError, match="expected one of pairs=none"):
        found.cka("bonds.b0", "bonds.b0")
    few = watch(model, [data[0][0][:3]], pairs=[("bonds.b0", "bonds.b0")])
    with pytest.raises(TopologyError, match="less than 4 samples"):
        few.cka("bonds.b0", "bonds.b0")
    assert not hasattr(model, "bonds")
