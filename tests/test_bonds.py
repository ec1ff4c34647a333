"""Spectra of bonds against dense singular value decompositions, on trees, on loops and behind activations."""

from __future__ import annotations

import math

import adtn
import numpy as np
import pytest
from adtn import Generator, Layout
from adtn.bondspace import Bond
from adtn.errors import TopologyError
from adtn.topology import sizes_of

from oracles import dense_state
from table import TOPOLOGIES


def dense_segment(gen: Generator, t: int) -> tuple[np.ndarray, list[str]]:
    """Contract one segment with one ``numpy.einsum``, with its incoming legs open, and name its legs."""
    segment, sizes = gen.segments[t], sizes_of(gen.segments)
    arrays = {**gen.params, **gen.constants()}
    number: dict[str, int] = {}
    operands: list = []
    for core in segment.cores:
        operands += [np.asarray(arrays[core.param], np.float64), [number.setdefault(i, len(number)) for i in core.inds]]
    legs = list(segment.outputs)
    for i in segment.inputs:
        name = f"{i}:in" if i in segment.outputs else i
        legs.append(name)
        inner, outer = number.setdefault(i, len(number)), number.setdefault(f"{i}:in", len(number))
        operands += [np.eye(sizes[i]), [inner, outer]]
    out = [number[i] for i in segment.outputs] + [number[f"{i}:in"] for i in segment.inputs]
    return np.einsum(*operands, out, optimize="greedy"), legs


def unfolding(tensor: np.ndarray, legs: list[str], side: tuple[str, ...]) -> np.ndarray:
    """Make the legs of one side the rows."""
    first = [legs.index(i) for i in side]
    rest = [k for k in range(len(legs)) if k not in first]
    return np.transpose(tensor, first + rest).reshape(math.prod(tensor.shape[k] for k in first), -1)


def singular_values(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.svd(matrix, compute_uv=False)


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """Compute the largest difference of two spectra of any length, relative to the largest value."""
    n = max(len(got), len(want))
    padded = [np.pad(x, (0, n - len(x))) for x in (got, want)]
    return float(np.abs(padded[0] - padded[1]).max() / want[0])


def is_linear(gen: Generator) -> bool:
    return len(gen.segments) == 1 and gen.segments[0].activation == "identity"


@pytest.mark.parametrize("key", TOPOLOGIES)
def test_spectra_that_are_marked_exact_are_those_of_dense_unfoldings(key: str) -> None:
    gen = TOPOLOGIES[key].generator(scale=0.7)
    dense = {t: dense_segment(gen, t) for t in range(len(gen.segments))}
    for bond in adtn.bonds(gen):
        if bond.kind == "state" or not bond.exact:
            continue
        tensor, legs = dense[bond.segment]
        want = singular_values(unfolding(tensor, legs, bond.legs)) * (0.7 if is_linear(gen) else 1.0)
        got = bond.spectrum()
        assert difference(got, want) < 1e-13, bond
        assert len(got) <= bond.dim


def exact_bonds(key: str) -> dict[str, bool]:
    return {bond.name: bond.exact for bond in adtn.bonds(TOPOLOGIES[key].generator()) if bond.kind != "state"}


def test_trees_are_exact_and_loops_are_not() -> None:
    for key in ("tt", "mpo", "ttn-linear", "low-rank", "kronecker", "tucker", "tucker-2", "cp"):
        assert exact_bonds(key) and all(exact_bonds(key).values()), key
    wall = adtn.bonds(Generator((16, 16), adtn.BrickWall(layers=1)))
    assert len(wall) == 8 + 6 and all(bond.exact for bond in wall)  # one vector per leg, and those between the columns
    for key in ("ring", "ring-bonds"):
        assert not any(exact_bonds(key).values()), key
    assert set(exact_bonds("mera-periodic").values()) == {True, False}


@pytest.mark.parametrize("key", ["tt", "mpo", "ttn-linear", "tucker", "cp", "ring", "mera", "ttn", "low-rank-legs"])
@pytest.mark.parametrize("seed", range(3))
def test_any_cut_of_the_weight_is_that_of_the_dense_weight(key: str, seed: int) -> None:
    gen = TOPOLOGIES[key].generator(scale=0.7)
    state = 0.7 * dense_state(gen.segments, gen.params)
    rng = np.random.default_rng(seed)
    names = list(gen.layout.leg_names)
    b = adtn.bonds(gen)
    for side in (tuple(i for i in names if i.startswith("a0")), tuple(i for i in names if rng.random() < 0.5)):
        want = singular_values(unfolding(state, names, side))
        got = b.cut(side)
        assert difference(got, want) < 1e-13
        assert difference(b.cut([i for i in names if i not in side]), want) < 1e-13


def test_bonds_of_a_dense_weight_are_those_of_its_decomposition() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((12, 20)) * 3.0
    layout = Layout.of((12, 20), 4)
    for topology in (adtn.TT(bond=99), adtn.MPO(bond=99), adtn.TTN(bond=99), adtn.Tucker(bond=99)):
        b = adtn.bonds(weight, layout=layout, topology=topology)
        legs, names = layout.to_legs(weight), list(layout.leg_names)
        for bond in b:
            assert bond.exact
            assert difference(bond.spectrum(), singular_values(unfolding(legs, names, bond.legs))) < 1e-12
    padded = adtn.bonds(
        rng.standard_normal((7, 5)), layout=Layout.of((7, 5), 2, max_padding=2), topology=adtn.TT(bond=9)
    )
    assert all(bond.exact for bond in padded)


def test_permutations_and_bases_do_not_change_spectra() -> None:
    row = TOPOLOGIES["mpo"]
    gen = row.generator(scale=1.0)
    rng = np.random.default_rng(0)
    other = gen.with_permutations([rng.permutation(n) for n in gen.shape])
    based = row.generator(base=adtn.SeededBase(1), scale=1.0, params=dict(gen.params))
    for bond, a, c in zip(adtn.bonds(gen), adtn.bonds(other), adtn.bonds(based), strict=True):
        np.testing.assert_array_equal(bond.spectrum(), a.spectrum())
        np.testing.assert_array_equal(bond.spectrum(), c.spectrum())


def test_measures_of_a_spectrum() -> None:
    weight = np.diag([2.0, 2.0, 0.0, 0.0])
    bond: Bond = adtn.bonds(weight, layout=Layout.whole((4, 4)), topology=adtn.TT(bond=3))["b0"]
    assert bond.entropy == pytest.approx(math.log(2.0))
    assert bond.effective_rank == pytest.approx(2.0)
    assert bond.participation == pytest.approx(2.0)
    assert (bond.kind, bond.dim, bond.ends, bond.legs, bond.gauge) == ("linear", 3, ("site0", "site1"), ("a1_0",), "GL")
    zero = adtn.bonds(np.zeros((4, 4)), layout=Layout.whole((4, 4)), topology=adtn.TT(bond=3))["b0"]
    assert (zero.entropy, zero.participation, zero.span) == (0.0, 0.0, 0)


def test_wrong_questions_are_refused() -> None:
    b = adtn.bonds(TOPOLOGIES["ttn"].generator())
    with pytest.raises(TopologyError, match=r"Got the bond 'b9'; expected one of these 6: b1_0"):
        b["b9"]
    with pytest.raises(TopologyError, match=r"'b1_0', a leg of a state.*state_spectrum"):
        b["b1_0"].spectrum()
    with pytest.raises(TopologyError, match="Got legs=.*expected some of"):
        b.cut(["nothing"])
    with pytest.raises(TopologyError, match="not a leg of a state"):
        adtn.bonds(TOPOLOGIES["tt"].generator())["b0"].state_spectrum()
    with pytest.raises(TopologyError, match="without a topology"):
        adtn.bonds(np.eye(4))
    with pytest.raises(TopologyError, match="has no decomposition"):
        adtn.bonds(np.eye(4), topology=adtn.BrickWall())
    with pytest.raises(TopologyError, match="which has its own"):
        adtn.bonds(TOPOLOGIES["tt"].generator(), topology=adtn.TT())
