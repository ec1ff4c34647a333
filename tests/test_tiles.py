"""Tiles: the same weight and the same gradients for every order, number of tiles and path."""

from __future__ import annotations

import adtn
import numpy as np
import pytest
from adtn.backends import check_device
from adtn.errors import TopologyError
from adtn.program import product_order, row_order, tile_counts, tile_program
from adtn.topology import Core, Segment, sizes_of
from adtn.weight import TiledWeight, projecting, why_not_factored
from hypothesis import given
from hypothesis import strategies as st

from table import BACKENDS, TOPOLOGIES, Row, relative_error, to_numpy, tolerance, usable


def tiled(gen: adtn.Generator, tiles: int, by_rows: bool, once_part: float = 1 / 12) -> TiledWeight:
    order = row_order(gen.segments, gen.layout) if by_rows else gen.segments[-1].outputs
    program = tile_program(gen.segments, (None,) * len(gen.segments), order, tiles, once_part=once_part)
    places = tuple(gen.segments[-1].outputs.index(i) for i in order)
    return TiledWeight(tiled=program, weighting=gen.weighting, positions=places, by_rows=by_rows)


def run(gen: adtn.Generator, weight: TiledWeight, wbar: np.ndarray, device: str, dtype: str):
    """Assemble all tiles, and compute the gradients for a cotangent of the weight."""
    backend, where = check_device(device, dtype)
    arrays = gen.arrays(device, dtype)
    bars = backend.asarray(np.ascontiguousarray(weight.arrange(wbar)), where, dtype)

    def compute(arrays, bars):
        if "base" in arrays:
            arrays = {**arrays, "base": weight.arrange(arrays["base"])}

        def consume(tile, i, out):
            return backend.put(out, i, tile), backend.take(bars, i)

        return weight.run(backend, arrays, consume, bars * 0.0, adjoint=True)

    out, grads = backend.compile(compute)(arrays, bars)
    return to_numpy(out), {k: to_numpy(g) for k, g in grads.items()}


def all_counts(gen: adtn.Generator, by_rows: bool) -> list[int]:
    order = row_order(gen.segments, gen.layout) if by_rows else gen.segments[-1].outputs
    sizes = sizes_of(gen.segments)
    legs = [i for i, (axis, _) in zip(gen.segments[-1].outputs, gen.layout.leg_axes, strict=True) if not axis]
    return tile_counts(tuple(sizes[i] for i in (legs if by_rows else order)))


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("once_part", [0.0, 1 / 12, 1.0])
def test_tiles_are_the_weight_and_its_gradients(row: Row, by_rows: bool, once_part: float) -> None:
    gen = row.generator(seed=1)
    wbar = np.random.default_rng(1).standard_normal(row.shape)
    arrays = gen.arrays("numpy:cpu", "float64")
    want, grads = gen.function.vjp(arrays, wbar)
    counts = all_counts(gen, by_rows)
    for tiles in dict.fromkeys((*counts[:5], counts[len(counts) // 2])):
        weight = tiled(gen, tiles, by_rows, once_part)
        got, found = run(gen, weight, wbar, "numpy:cpu", "float64")
        assert relative_error(got, weight.arrange(want)) < 1e-12, tiles
        assert set(found) == set(grads)
        for name, grad in grads.items():
            scale = max(float(np.abs(grad).max()), 1e-9 * float(np.linalg.norm(wbar)))
            assert float(np.abs(found[name] - grad).max()) < 1e-9 * scale, (tiles, name)


@pytest.mark.parametrize("key", BACKENDS)
@pytest.mark.parametrize("name", ["ttn", "ttn-all", "mera-periodic", "attn", "brickwall-odd", "mpo", "dense"])
def test_tiles_are_the_same_on_every_backend(key: str, name: str) -> None:
    device = usable(key)
    dtype = BACKENDS[key][1][0]
    gen = TOPOLOGIES[name].generator(seed=2)
    wbar = np.random.default_rng(0).standard_normal(gen.shape)
    want, grads = gen.function.vjp(gen.arrays("numpy:cpu", "float64"), wbar)
    for by_rows in (True, False):
        weight = tiled(gen, all_counts(gen, by_rows)[1], by_rows, 0.0)
        got, found = run(gen, weight, wbar, device, dtype)
        assert relative_error(got, weight.arrange(want)) < tolerance(dtype, 64)
        for k, grad in grads.items():
            error = np.linalg.norm(found[k] - grad) / max(np.linalg.norm(grad), 1e-3 * np.linalg.norm(wbar) * gen.scale)
            assert error < tolerance(dtype, 256), k


@pytest.mark.parametrize("base", ["seeded", "array"])
@pytest.mark.parametrize("by_rows", [True, False])
def test_bases_and_padding_pass_by_in_tiles(base: str, by_rows: bool) -> None:
    row = TOPOLOGIES["attn-pairs"] if by_rows else TOPOLOGIES["brickwall-mixed"]
    given_base = adtn.SeededBase(3) if base == "seeded" else np.random.default_rng(5).standard_normal(row.shape)
    gen = row.generator(seed=3, base=given_base)
    padded = adtn.Generator(
        (7, 11),
        adtn.TTN(bond=2),
        layout=adtn.Layout.of((7, 11), 4, max_padding=3),
        base=given_base if base == "seeded" else np.ones((7, 11)),
        dtype="float64",
    )
    for g in (gen, padded):
        wbar = np.random.default_rng(1).standard_normal(g.shape)
        want, grads = g.function.vjp(g.arrays("numpy:cpu", "float64"), wbar)
        for tiles in all_counts(g, by_rows)[:3]:
            weight = tiled(g, tiles, by_rows)
            got, found = run(g, weight, wbar, "numpy:cpu", "float64")
            assert relative_error(got, weight.arrange(want)) < 1e-12
            for k, grad in grads.items():
                np.testing.assert_allclose(found[k], grad, rtol=1e-9, atol=1e-12)


def projected(gen: adtn.Generator, tiles: int) -> TiledWeight:
    return projecting(gen.segments, (None,) * len(gen.segments), gen.weighting, tiles)


def distance(gen: adtn.Generator, target: np.ndarray, tiles: int, device: str, dtype: str):
    """Compute the squared distance and half of its gradient without the weight."""
    backend, where = check_device(device, dtype)
    weight = projected(gen, tiles)
    arranged = backend.asarray(np.ascontiguousarray(weight.arrange(target)), where, dtype)
    step = backend.compile(lambda arrays, goal: weight.project(backend, arrays, goal, backend.workspace()))
    loss, grads = step(gen.arrays(device, dtype), arranged)
    return float(to_numpy(loss)) + float(np.sum(target**2)), {k: to_numpy(g) for k, g in grads.items()}


NOT_PROJECTED = {
    TOPOLOGIES["ttn-all"]: "there is an activation after the last segment",
    TOPOLOGIES["dense"]: "the last segment is a single tensor",
}


def test_projections_are_the_distance_and_its_gradients(row: Row) -> None:
    gen = row.generator(seed=1)
    if row in NOT_PROJECTED:
        assert why_not_factored(gen.segments, gen.weighting, "float64") == NOT_PROJECTED[row]
        return
    target = np.random.default_rng(1).standard_normal(row.shape)
    arrays = gen.arrays("numpy:cpu", "float64")
    weight = gen.function(arrays)
    want, grads = np.sum((weight - target) ** 2), gen.function.vjp(arrays, weight - target)[1]
    cuts = [n for n in range(2, 65) if can_be_cut(gen, n)][:4]
    assert len(cuts) >= 2, "every network of the table can be tiled"
    for tiles in (1, *cuts):
        loss, found = distance(gen, target, tiles, "numpy:cpu", "float64")
        assert loss == pytest.approx(want, rel=1e-12)
        assert set(found) == set(grads)
        for name, grad in grads.items():
            scale = max(float(np.abs(grad).max()), 1e-9 * float(np.linalg.norm(target)))
            assert float(np.abs(found[name] - grad).max()) < 1e-9 * scale, (tiles, name)


def can_be_cut(gen: adtn.Generator, tiles: int) -> bool:
    try:
        projected(gen, tiles)
    except TopologyError:
        return False
    return True


@pytest.mark.parametrize("key", BACKENDS)
@pytest.mark.parametrize("name", ["ttn-linear", "attn", "mpo", "mera-shared", "cp"])
def test_projections_are_the_same_on_every_backend(key: str, name: str) -> None:
    device = usable(key)
    dtype = BACKENDS[key][1][0]
    gen = TOPOLOGIES[name].generator(seed=2)
    target = np.random.default_rng(0).standard_normal(gen.shape)
    arrays = gen.arrays("numpy:cpu", "float64")
    residual = gen.function(arrays) - target
    loss, found = distance(gen, target, 4, device, dtype)
    assert loss == pytest.approx(np.sum(residual**2), rel=tolerance(dtype, 64))
    for k, grad in gen.function.vjp(arrays, residual)[1].items():
        error = np.linalg.norm(found[k] - grad) / max(np.linalg.norm(grad), 1e-3 * np.linalg.norm(target) * gen.scale)
        assert error < tolerance(dtype, 256), k


def test_padding_rows_are_silent() -> None:
    layout = adtn.Layout.from_factors((7, 8), ((2, 4), (2, 4)))
    gen = adtn.Generator((7, 8), adtn.TTN(bond=2), layout=layout, dtype="float64")
    assert layout.padded_shape[0] > 7
    weight = tiled(gen, 2, True)
    got, _ = run(gen, weight, np.ones((7, 8)), "numpy:cpu", "float64")
    assert np.all(got.reshape(-1, 8)[7:] == 0)
    np.testing.assert_allclose(got.reshape(-1, 8)[:7], gen.weight(), rtol=1e-10)


def test_a_count_that_does_not_divide_is_refused() -> None:
    gen = adtn.Generator((16, 16), adtn.TTN(bond=2))
    with pytest.raises(TopologyError, match=r"Got tiles=7; legs .* can be split into \[1, 2, 4"):
        tiled(gen, 7, True)


@given(dims=st.lists(st.integers(1, 12), min_size=1, max_size=4), data=st.data())
def test_counts_are_exactly_those_that_can_be_cut(dims: list[int], data: st.DataObject) -> None:
    counts = tile_counts(tuple(dims))
    assert counts[0] == 1
    assert counts[-1] == int(np.prod(dims))
    assert counts == sorted(set(counts))
    n = data.draw(st.sampled_from(counts))
    for d in dims:  # whole legs, then a divisor of the next
        if n % d:
            break
        n //= d
    assert n == 1 or d % n == 0


@given(st.data())
def test_products_leave_the_legs_of_a_chain_in_order(data: st.DataObject) -> None:
    """Contract neighbours of a chain of matrices in any order: each operand has the shared indices at one end."""
    n = data.draw(st.integers(2, 6))
    places = data.draw(st.permutations(range(n)))  # where the cores stand in the segment
    links = [tuple(f"b{k}" for k in (q - 1, q) if 0 <= k < n - 1) for q in range(n)]
    sizes = {f"b{k}": data.draw(st.integers(2, 4)) for k in range(n - 1)} | {f"x{q}": 3 for q in range(n)}
    inds = [(*links[q], f"x{q}") for q in places]
    cores = tuple(
        Core(name=f"c{q}", inds=i, shape=tuple(sizes[k] for k in i), param=f"c{q}", kind="core")
        for q, i in zip(places, inds, strict=True)
    )
    live, path = [[q] for q in places], []  # parts of the chain, in the order in which numpy.einsum_path has them
    while len(live) > 1:
        pairs = [(i, j) for i, a in enumerate(live) for j, b in enumerate(live) if a[-1] + 1 == b[0]]
        i, j = data.draw(st.sampled_from(pairs))
        path.append((min(i, j), max(i, j)))
        whole = [*live[i], *live[j]]
        live = [*(part for k, part in enumerate(live) if k not in (i, j)), whole]
    segment = Segment((), cores, tuple(f"x{q}" for q in range(n)))
    order = product_order(segment, tuple(path), sizes, 1)
    assert order in (segment.outputs, segment.outputs[::-1])
