"""Probes under transforms of JAX, and copies and pickles of models that are probed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.errors import TopologyError

pytest.importorskip("torch")
pytest.importorskip("flax")

import jax
import jax.numpy as jnp
import torch
from flax import nnx

import adtn_backends.jax as of_jax
import adtn_backends.torch as of_torch

GEN = adtn.Generator((16, 36), adtn.MPO(bond=4), seed=1)
X = np.random.default_rng(0).standard_normal((5, 36)).astype(np.float32)
NAME = "layer.bonds.b0"


class Model(nnx.Module):
    """A layer with a bond between two functions."""

    def __init__(self) -> None:
        self.layer = of_jax.ADTNLinear(GEN)

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(self.layer(2.0 * x))


def exact() -> np.ndarray:
    model = Model()
    with adtn.probe(model) as found:
        model(jnp.asarray(X))
    return np.asarray(found[NAME])


def total(model: Any) -> Callable[[Any], Any]:
    return lambda x: model(x).sum()


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "vmap": jax.vmap,
    "vmap twice": lambda call: jax.vmap(jax.vmap(call, 0, 0), 1, 1),
    "grad": lambda call: jax.grad(lambda x: call(x).sum()),
    "grad of vmap": lambda call: jax.grad(lambda x: jax.vmap(call)(x).sum()),
    "vmap of grad": lambda call: jax.vmap(jax.grad(lambda x: call(x).sum())),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_values_pass_vmap_and_grad_of_a_model_outside(transform: Callable[[Any], Any]) -> None:
    model, x = Model(), jnp.asarray(X)
    x, shape = (x[:, None], (1, *exact().shape)) if transform is TRANSFORMS["vmap twice"] else (x, exact().shape)
    with adtn.probe(model) as found:
        y = transform(model)(x)
        assert found[NAME].shape == shape and not isinstance(found[NAME], jax.core.Tracer)
    assert np.allclose(found[NAME].reshape(exact().shape), exact(), rtol=1e-5, atol=1e-6)
    assert np.allclose(y, transform(model)(x), rtol=1e-4, atol=1e-5)


def test_values_pass_grad_over_split_modules_and_the_last_call_counts() -> None:
    model, x = Model(), jnp.asarray(X)
    with adtn.probe(model) as found:
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        jax.grad(lambda params: nnx.merge(graph, params, rest)(x).sum())(params)
        assert np.allclose(found[NAME], exact(), rtol=1e-5, atol=1e-6)
        model(2.0 * x)
        assert np.allclose(found[NAME], 2.0 * exact(), rtol=1e-5, atol=1e-6)
        jax.vmap(model)(3.0 * x)
        assert np.allclose(found[NAME], 3.0 * exact(), rtol=1e-5, atol=1e-6)
        nnx.jit(lambda model, x: model(x))(model, 4.0 * x)
        assert np.allclose(found[NAME], 4.0 * exact(), rtol=1e-5, atol=1e-6)
        nnx.vmap(lambda model, x: model(x), in_axes=(None, 0))(model, 6.0 * x)
        assert np.allclose(found[NAME], 6.0 * exact(), rtol=1e-5, atol=1e-6)
        nnx.grad(lambda model: nnx.remat(lambda model, x: model(x))(model, 5.0 * x).sum())(model)
        assert np.allclose(found[NAME], 5.0 * exact(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "transform",
    [jax.jit, jax.vmap, jax.checkpoint, lambda call: jax.jit(jax.vmap(jax.checkpoint(call)))],
    ids=["jit", "vmap", "checkpoint", "all"],
)
def test_probes_inside_functions_return_values(transform: Callable[[Any], Any]) -> None:
    graph, state = nnx.split(Model())
    outer = Model()

    def inside(x: Any) -> Any:
        with adtn.probe(nnx.merge(graph, state)) as found:
            return found.model(x), dict(found)

    def around(x: Any) -> Any:
        with adtn.probe(outer, patch={NAME: jnp.eye(4)}) as found:
            return outer(x), dict(found)

    for call in (inside, around):
        y, found = transform(call)(jnp.asarray(X))
        assert np.allclose(y, Model()(jnp.asarray(X)), rtol=1e-4, atol=1e-5)
        assert np.allclose(found[NAME], exact(), rtol=1e-5, atol=1e-6)
    assert type(outer.layer) is of_jax.ADTNLinear

    def loss(x: Any) -> Any:
        return sum((value**2).sum() for value in inside(x)[1].values())

    assert np.allclose(jax.grad(loss)(jnp.asarray(X))[0], jax.jit(jax.grad(loss))(jnp.asarray(X))[0], rtol=1e-4)


def test_compilers_of_a_model_outside_are_refused() -> None:
    model, x = Model(), jnp.asarray(X)
    with adtn.probe(model) as found:
        for transform in (jax.jit, jax.checkpoint, lambda call: jax.vmap(jax.jit(call))):
            with pytest.raises(TopologyError, match="a function that JAX traces.*return dict"):
                transform(lambda x: model(x))(x)
        graph, state = nnx.split(model)
        jitted = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
        jitted(state, x)
        with pytest.raises(KeyError, match="With modules of nnx.merge: Open the probe inside"):
            found[NAME]
    assert np.allclose(model(x), jitted(state, x), rtol=1e-4, atol=1e-5)
    kept: list[Any] = []

    def leaks(x: Any) -> Any:
        with adtn.probe(model) as found:
            kept.append(found)
            return model(x)

    jax.jit(leaks)(x)
    with pytest.raises(TopologyError, match="Return dict"):
        kept[0][NAME]


def test_values_pass_transforms_of_torch() -> None:
    layer, x = of_torch.ADTNLinear(GEN), torch.tensor(X)
    call: Any = layer
    grad, vmap = torch.func.grad, torch.func.vmap

    def inside(x: Any) -> Any:
        with adtn.probe(layer) as found:
            layer(x)
        return found["bonds.b0"].square().sum()

    with adtn.probe(layer) as found:
        for transformed in (vmap(call), grad(lambda x: vmap(call)(x).sum()), vmap(grad(lambda x: call(x).sum()))):
            transformed(x)
            assert np.allclose(found["bonds.b0"].detach(), exact() / 2.0, rtol=1e-4, atol=1e-5)
    given = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(inside(given), given)
    assert torch.allclose(grad(inside)(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(vmap(grad(inside))(x), expected, rtol=1e-4, atol=1e-5)


def test_copies_and_pickles_of_probed_models_have_no_probe() -> None:
    x = torch.tensor(X)
    transposed = of_torch.parametrized(torch.nn.ConvTranspose1d(16, 4, 9), {
        "weight": of_torch.GeneratedWeight(adtn.Generator((16, 4, 9), adtn.TTN(bond=2)))
    })  # fmt: skip
    model = torch.nn.ModuleDict({"layer": of_torch.ADTNLinear(GEN), "transposed": transposed})
    keys = list(model.state_dict())
    with adtn.probe(model) as found:
        model["layer"](x)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), {"layer": copy.copy(model["layer"])}]
        model["layer"](2.0 * x)
        assert len(found.calls(NAME)) == 2 and "layer.bonds.b0" in dict(model.named_modules())
        for other in copies:
            assert type(other["layer"]) is of_torch.ADTNLinear and not hasattr(other["layer"], "bonds")
            assert torch.allclose(other["layer"](x), model["layer"].to_dense()(x), atol=1e-5)
        assert len(found.calls(NAME)) == 2
        for other in copies[:2]:
            assert list(other.state_dict()) == keys and not hasattr(other["transposed"], "bonds")
            with adtn.probe(other) as own:
                other["layer"](x)
            assert torch.allclose(own[NAME], found.calls(NAME)[0], atol=1e-6)
    assert type(model["layer"]) is of_torch.ADTNLinear


def test_copies_of_probed_flax_models_compute_as_before() -> None:
    model, x = Model(), jnp.asarray(X)
    with adtn.probe(model, patch={NAME: jnp.zeros((4, 4))}) as found:
        model(x)
        before = found[NAME]
        for other in (copy.deepcopy(model), nnx.clone(model)):
            assert np.allclose(other(x), nnx.clone(other)(x)) and np.asarray(other(x)).any()
            with adtn.probe(other) as own:
                other(x)
            assert np.allclose(own[NAME], exact(), rtol=1e-5, atol=1e-6)
        assert found[NAME] is before and not np.asarray(model(x)).any()
        other = pickle.loads(pickle.dumps(model.layer))
        assert type(other) is of_jax.ADTNLinear and not any(key.startswith("bonds") for key in vars(other))
        nnx.split(other)
    assert np.asarray(model(x)).any()
