"""The linear module: an ordinary module whose forward compiles and exports."""

from __future__ import annotations

import copy
import pickle

import adtn
import numpy as np
import pytest
from adtn._errors import LayoutError

from table import TOPOLOGIES

torch = pytest.importorskip("torch")
layers = pytest.importorskip("adtn_backends.torch_layers")

GENERATORS = {
    "ttn": lambda: TOPOLOGIES["ttn"].generator(dtype="float32"),
    "nonlinear end": lambda: TOPOLOGIES["ttn-all"].generator(dtype="float32"),
    "frozen cores": lambda: TOPOLOGIES["brickwall"].generator(dtype="float32"),
    "seeded base": lambda: TOPOLOGIES["mpo"].generator(dtype="float32", base=adtn.SeededBase(1)),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_forward_and_gradients_are_those_of_the_dense_layer(name: str) -> None:
    gen = GENERATORS[name]()
    layer = layers.ADTNLinear(gen, bias=np.arange(gen.shape[0]))
    x = torch.randn(2, 3, gen.shape[1], requires_grad=True)
    weight = gen.function({k: getattr(layer, k.replace(".", "_"), None) if k in gen.params else torch.tensor(
        np.asarray(v, dtype="float32")) for k, v in {**gen.params, **gen.constants()}.items()})  # fmt: skip
    want = x @ weight.T + layer.bias
    got = layer(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.weight(), weight, rtol=1e-4, atol=1e-5)
    leaves = [x, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad((got**2).sum(), leaves), torch.autograd.grad((want**2).sum(), leaves), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.parametrize("name", GENERATORS)
def test_forward_compiles_to_one_graph_and_exports(name: str) -> None:
    gen = GENERATORS[name]()
    layer = layers.ADTNLinear(gen)
    x = torch.randn(5, gen.shape[1])
    want = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), want, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), want, rtol=1e-4, atol=1e-5)


def test_the_state_is_plain_and_stable() -> None:
    gen = TOPOLOGIES["mera"].generator(dtype="float32")
    layer = layers.ADTNLinear(gen)
    assert set(layer.state_dict()) == {*gen.params, "bias"}
    layer(torch.randn(3, gen.shape[1]))
    assert set(layer.state_dict()) == {*gen.params, "bias"}, "a forward adds nothing"
    other = layers.ADTNLinear(TOPOLOGIES["mera"].generator(seed=9, dtype="float32"))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(4, gen.shape[1])
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(twin(x), layer(x))
    assert np.array_equal(layer.generator().params["root"], gen.params["root"])


def test_only_matrices() -> None:
    with pytest.raises(LayoutError, match="n_out, n_in"):
        layers.ADTNLinear(adtn.Generator((4, 4, 4), adtn.TTN(bond=2)))
