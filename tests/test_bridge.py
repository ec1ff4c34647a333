"""The bridge to the tensornetwork package."""

from __future__ import annotations

import sys
import warnings

import adtn
import numpy as np
import pytest
from adtn.errors import MissingDependencyError, TopologyError

from table import TOPOLOGIES


@pytest.fixture
def package():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package is of 2021
        return pytest.importorskip("tensornetwork")


def network(backend: str):
    import quimb.tensor as qtn

    tn = qtn.TN_rand_reg(6, 3, D=2, phys_dim=3, seed=3)
    for k, tensor in enumerate(tn):
        tensor.add_tag(f"T{k}")
    if backend == "pytorch":
        torch = pytest.importorskip("torch")
        tn.apply_to_arrays(torch.tensor)
    if backend == "jax":
        jnp = pytest.importorskip("jax.numpy")
        tn.apply_to_arrays(lambda x: jnp.asarray(x, dtype="float32"))
    return tn


@pytest.mark.parametrize("backend", ["numpy", "pytorch", "jax"])
@pytest.mark.filterwarnings("ignore")
def test_round_trip_is_exact(package, backend: str) -> None:
    tn = network(backend)
    nodes = adtn.to_tensornetwork(tn, backend)
    back = adtn.from_tensornetwork(nodes)
    assert len(list(back)) == len(list(tn))
    for ours, theirs in zip(tn, back, strict=True):
        assert ours.inds == theirs.inds
        assert set(ours.tags) == set(theirs.tags)
        assert type(ours.data) is type(theirs.data)
        assert np.array_equal(np.asarray(ours.data), np.asarray(theirs.data))


@pytest.mark.filterwarnings("ignore")
def test_both_packages_contract_to_the_same(package) -> None:
    tn = network("numpy")
    nodes = adtn.to_tensornetwork(tn)
    inds = tn.outer_inds()
    ends = {edge.name: edge for node in nodes for edge in node.edges if edge.is_dangling()}
    found = package.contractors.greedy(nodes, output_edge_order=[ends[i] for i in inds]).tensor
    np.testing.assert_allclose(found, tn.contract(..., output_inds=inds).transpose(*inds).data, rtol=1e-10)


@pytest.mark.filterwarnings("ignore")
def test_nodes_made_by_hand(package) -> None:
    a, b = package.Node(np.ones((2, 3)), name="a"), package.Node(np.ones((3, 2)), name="b")
    a[1] ^ b[0]
    tn = adtn.from_tensornetwork([a, b])
    assert tn.contract(..., output_inds=tn.outer_inds()).data.tolist() == [[3, 3], [3, 3]]


@pytest.mark.filterwarnings("ignore")
def test_what_nodes_cannot_express(package) -> None:
    gen = adtn.Generator((8, 8), adtn.CP(bond=2), layout=adtn.Layout.of((8, 8), 2))
    with pytest.raises(TopologyError, match="more than two tensors"):
        adtn.to_tensornetwork(gen.networks()[0])


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensornetwork", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'adtn\[tensornetwork\]'"):
        adtn.from_tensornetwork([])


@pytest.mark.parametrize("key", ["mpo", "tucker", "ttn-linear", "ttn-ternary", "ring"])
@pytest.mark.filterwarnings("ignore")
def test_truncated_and_balanced_generators_go_there_and_back(package, key: str) -> None:
    gen = TOPOLOGIES[key].generator()
    small = adtn.truncate(gen, params=int(0.8 * gen.num_params)).generator
    assert small.num_params < gen.num_params
    networks = small.networks()
    for network in networks[1:]:
        network.delete("STATE")  # what comes from the network before
    back = [adtn.from_tensornetwork(adtn.to_tensornetwork(tn)) for tn in networks]
    again = adtn.Generator.from_networks(
        back,
        layout=small.layout,
        outputs=list(small.segments[-1].outputs),
        activation=small.segments[0].activation if len(networks) > 1 else None,
        scale=small.scale,
        dtype="float64",
    )
    np.testing.assert_allclose(again.weight(), small.weight(), rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(adtn.bonds(small), adtn.bonds(again), strict=True):
        assert theirs.effective_rank == pytest.approx(ours.effective_rank, rel=1e-9)
