"""Pictures: nothing overlaps, every bond and leg is drawn once, and colours and widths are those of the bonds."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
import quimb.tensor as qtn
from adtn import Generator, Layout
from adtn.bondspace import Metric, draw_curves, draw_features, truncation_curve, watch
from adtn.drawing import Node, Picture, figure, place
from adtn.errors import MissingDependencyError, OutputError, TopologyError
from adtn.topology import bond_indices

from table import TOPOLOGIES

Box = tuple[float, float, float, float]


def networks() -> dict[str, Generator]:
    """Make generators from quimb, and some that are larger than those of the table."""
    two = [
        qtn.TensorNetwork([qtn.rand_tensor((3, 3), ("x", "y"), seed=1)]),
        qtn.TensorNetwork(
            [qtn.rand_tensor((3, 8), ("x", "out"), seed=2), qtn.rand_tensor((3, 8), ("y", "in"), seed=3)]
        ),
    ]
    random = qtn.TN_rand_reg(8, 3, 2, phys_dim=2, seed=3)
    layout = Layout.of((64, 64), 4, "interleaved")
    inds = ("axyp", "bxyq", "czpr", "dzqr")
    twins = qtn.TensorNetwork([qtn.rand_tensor((2,) * len(i), tuple(i), seed=k) for k, i in enumerate(inds)])
    mera = Generator((64, 64), adtn.MERA(bond=3), layout=layout)
    inner = [qtn.TensorNetwork([x for x in n if "STATE" not in x.tags]) for n in mera.networks()]
    tree = Generator((64, 64), adtn.TTN(bond=3, activation=None), layout=layout)

    def made(pieces: list[Any], **options: Any) -> Generator:
        return Generator.from_networks(pieces, dtype="float64", **options)

    return {
        "quimb mpo": made([qtn.MPO_rand(4, 3, phys_dim=2, seed=1)], shape=(16, 16)),
        "quimb ring": made([qtn.MPO_rand(4, 3, phys_dim=2, cyclic=True, seed=1)], shape=(16, 16)),
        "quimb mps": made([qtn.MPS_rand_state(5, 3, seed=1)], shape=(32,)),
        "quimb peps": made([qtn.PEPS.rand(3, 3, 2, seed=1)], shape=(512,)),
        "quimb pepo": made([qtn.PEPO.rand(2, 3, 2, seed=1)], shape=(64, 64)),
        "quimb torus": made([qtn.PEPS.rand(3, 3, 2, seed=1, cyclic=True)], shape=(512,)),
        "quimb double bonds": made([twins], shape=(16,), outputs=("a", "b", "c", "d")),
        "quimb random": made([random], shape=(256,), outputs=random.outer_inds()),
        "quimb two levels": made(two),
        "quimb tree": made(tree.networks(), layout=layout, outputs=layout.leg_names),
        "quimb mera": made(inner, layout=layout, outputs=layout.leg_names),
        "attn far pairs": Generator(
            (64, 64), adtn.ATTN(bond=2, pairs=((0, 2), (3, 5)), leaves=False), layout=Layout.of((64, 64), 4)
        ),
        "ring nonlinear": Generator((16, 16), adtn.TensorRing(bond=2, activation="tanh", where="all")),
        "mpo nonlinear": Generator((64, 64), adtn.MPO(bond=2, activation="tanh", where="all")),
        "tucker of twelve": Generator((64, 64), adtn.Tucker(bond=2), layout=Layout.of((64, 64), 2)),
        "cp of twelve": Generator(
            (64, 64), adtn.CP(bond=2, activation="tanh", where="all"), layout=Layout.of((64, 64), 2)
        ),
        "mera long": Generator((256, 256), adtn.MERA(bond=2, periodic=True), layout=Layout.of((256, 256), 2)),
        "wall long": Generator((64, 64), adtn.BrickWall(layers=3), layout=Layout.of((64, 64), 2)),
    }


CASES = [*TOPOLOGIES, *networks()]


@pytest.fixture(scope="module")
def generators() -> dict[str, Generator]:
    return {**{name: row.generator() for name, row in TOPOLOGIES.items()}, **networks()}


@pytest.fixture
def picture(request: pytest.FixtureRequest, generators: dict[str, Generator]) -> Picture:
    gen = generators[request.param]
    return place(gen.segments, gen.layout)


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def crosses(start: tuple[float, float], end: tuple[float, float], box: Box) -> bool:
    """Return whether a straight line meets the inside of a box, by clipping (Liang and Barsky)."""
    low, high = 0.0, 1.0
    for k in (0, 1):
        step, left, right = end[k] - start[k], box[k] - start[k], box[k + 2] - start[k]
        if step == 0.0:
            if not left < 0.0 < right:
                return False
            continue
        near, far = sorted((left / step, right / step))
        low, high = max(low, near), min(high, far)
    return low < high


def shrunk(box: Box, by: float) -> Box:
    return box[0] + by, box[1] + by, box[2] - by, box[3] - by


def segments_of(line: Any) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    for piece in line.pieces:
        yield from itertools.pairwise(piece.points)


def named(nodes: tuple[Node, ...]) -> dict[str, Node]:
    return {node.name.removeprefix("(core) "): node for node in nodes if node.kind != "dot"}


@pytest.mark.parametrize("picture", CASES, indirect=True)
def test_nothing_overlaps(picture: Picture) -> None:
    for a, b in itertools.combinations(picture.nodes, 2):
        assert not overlap(a.box, b.box), (a, b)
    for label in picture.labels:
        assert not any(overlap(label.box, node.box) for node in picture.nodes), label
        assert not any(crosses(*s, label.box) for line in picture.lines for s in segments_of(line)), label
    for a, b in itertools.combinations(picture.labels, 2):
        assert not overlap(a.box, b.box), (a, b)


@pytest.mark.parametrize("picture", CASES, indirect=True)
def test_no_line_passes_through_a_foreign_node(picture: Picture) -> None:
    for line in picture.lines:
        foreign = [n for n in picture.nodes if n.name.removeprefix("(core) ") not in line.ends and n.kind != "dot"]
        for start, end in segments_of(line):
            for node in foreign:
                assert not crosses(start, end, shrunk(node.box, 0.02)), (line.name, node.name)


@pytest.mark.parametrize("name", CASES)
def test_every_bond_and_leg_is_drawn_once_between_its_cores(name: str, generators: dict[str, Generator]) -> None:
    gen = generators[name]
    picture = place(gen.segments, gen.layout)
    bonds = {bond.name: bond for bond in bond_indices(gen.segments)}
    lines = [line for line in picture.lines if line.kind != "leg"]
    assert sorted(line.name for line in lines) == sorted(bonds)
    legs = {line.name: line for line in picture.lines if line.kind == "leg"}
    assert list(legs) == list(gen.segments[-1].outputs)
    assert len(picture.lines) == len(bonds) + len(legs)
    assert [legs[n].axis for n in gen.layout.leg_names] == [axis for axis, _ in gen.layout.leg_axes]
    assert len({line.tip for line in legs.values()}) == len(legs)
    assert sorted(s.text for s in picture.labels if s.axis is not None) == sorted(legs)
    nodes = named(picture.nodes)
    assert sorted(nodes) == sorted(core.name for segment in gen.segments for core in segment.cores)
    for line in picture.lines:
        if line.kind != "leg":
            assert (line.kind, line.dim, line.ends) == (
                bonds[line.name].kind,
                bonds[line.name].dim,
                bonds[line.name].ends,
            )
        touched = {core for core in line.ends if any(_touches(nodes[core], p) for p in _tips(line))}
        assert touched == set(line.ends), line
        if line.kind == "hyper":
            dots = [node for node in picture.nodes if node.kind == "dot"]
            assert any(
                all(any(_touches(dot, p) for p in (s.points[0], s.points[-1])) for s in line.pieces) for dot in dots
            )
        drawn = list(segments_of(line))
        assert drawn and len(set(drawn)) == len(drawn)


def _tips(line: Any) -> list[tuple[float, float]]:
    return [p for piece in line.pieces for p in (piece.points[0], piece.points[-1])]


def _touches(node: Node, point: tuple[float, float]) -> bool:
    left, bottom, right, top = shrunk(node.box, -0.03)
    return left <= point[0] <= right and bottom <= point[1] <= top


def test_activations_are_between_their_segments(generators: dict[str, Generator]) -> None:
    gen = generators["ttn-all"]
    picture = place(gen.segments, gen.layout)
    heights = {core: node.at[1] for core, node in named(picture.nodes).items()}
    rules = [rule[0][1] for rule in picture.rules]
    assert heights["root"] > rules[0] > heights["iso1_0"] > rules[1] > heights["leaf2_0"] > rules[2]
    assert rules[2] > min(line.tip[1] for line in picture.lines if line.tip is not None)
    assert [s.text for s in picture.labels if s.axis is None] == ["σ = softplus"] * 3


@pytest.mark.parametrize("size", [(3, 4), (2, 5)])
def test_a_peps_is_the_lattice_that_it_is(size: tuple[int, int]) -> None:
    """Compare with the numbers of sites that quimb gives, also if the tensors come in another order."""
    peps = qtn.PEPS.rand(*size, 2, seed=1)
    rows, columns = size
    for tensors in (list(peps), [peps[i, j] for j in reversed(range(columns)) for i in reversed(range(rows))]):
        gen = Generator.from_networks(
            [qtn.TensorNetwork(tensors)], shape=(2 ** (rows * columns),), outputs=list(map(peps.site_ind, peps.sites))
        )
        picture = place(gen.segments, gen.layout)
        at = {core: node.at for core, node in named(picture.nodes).items()}
        sites = {core.name: gen.layout.leg_names.index(_leg(core.inds)) for core in gen.segments[0].cores}
        apart = min(math.dist(a, b) for a, b in itertools.combinations(at.values(), 2))
        places = {sites[core]: (round(-y / apart), round(x / apart)) for core, (x, y) in at.items()}
        for k, (i, j) in places.items():
            for m, (p, q) in places.items():
                near = abs(k // columns - m // columns) + abs(k % columns - m % columns)
                assert abs(i - p) + abs(j - q) == near
        if sites[gen.segments[0].cores[0].name] == 0:
            assert all(at == divmod(k, columns) for k, at in places.items())


def _leg(inds: tuple[str, ...]) -> str:
    (found,) = (i for i in inds if i.startswith("a0_"))
    return found


def test_a_mera_is_the_lattice_that_it_is() -> None:
    gen = Generator((256, 256), adtn.MERA(bond=2, periodic=True), layout=Layout.of((256, 256), 4, "interleaved"))
    at = {core: node.at for core, node in named(place(gen.segments, gen.layout).nodes).items()}
    leaves = [at[f"leaf3_{k}"][0] for k in range(8)]
    assert leaves == pytest.approx(list(range(8)))
    assert [at[f"dis2_{k}"][0] for k in range(4)] == pytest.approx([1.5, 3.5, 5.5, 7.5])
    assert [at[f"iso2_{k}"][0] for k in range(4)] == pytest.approx([0.5, 2.5, 4.5, 6.5])
    around = [s for s in place(gen.segments, gen.layout).lines if len(s.pieces) > 1]
    assert sorted(line.name for line in around) == ["b2_0", "b2_0_raw", "b3_0", "b3_0_raw"]


@pytest.mark.parametrize("name", CASES)
def test_figures_are_drawn_without_warnings_or_overlaps(name: str, generators: dict[str, Generator]) -> None:
    gen = generators[name]
    own, picture = gen.draw(), place(gen.segments, gen.layout)
    own.canvas.draw()
    axes, render = own.axes[0], own.canvas.get_renderer()
    nodes = [patch.get_window_extent(render) for patch in axes.patches]
    texts = [text.get_window_extent(render) for text in axes.texts]
    assert (len(nodes), len(texts)) == (len(picture.nodes), len(picture.labels))
    for text in texts:
        assert not any(text.overlaps(node) for node in nodes)
        assert text.x0 >= 0 and text.y0 >= 0 and text.x1 <= own.bbox.width and text.y1 <= own.bbox.height
    (legend,) = own.legends or [None]
    if legend is not None:
        extent = legend.get_window_extent(render)
        assert extent.x0 >= 0 and extent.x1 <= own.bbox.width
        assert not any(extent.overlaps(box) for box in [*nodes, *texts])


def test_colours_and_widths_are_those_of_dense_spectra() -> None:
    gen = Generator((64, 64), adtn.MPO(bond=(2, 6)), layout=Layout.of((64, 64), 4, "interleaved"), dtype="float64")
    state = gen.layout.to_legs(gen.weight())
    lines = {
        round(line.get_xydata()[:, 0].mean(), 3): line for line in gen.draw().axes[0].lines if line.get_zorder() == 1
    }
    horizontal = [lines[x] for x in sorted(lines) if np.ptp(lines[x].get_xydata()[:, 1]) == 0.0]
    plain = figure(place(gen.segments, gen.layout)).axes[0].lines
    assert len(horizontal) == 2
    shares: list[float] = []
    for k, dim in enumerate((2, 6)):
        values = np.linalg.svd(state.reshape(16 ** (k + 1), -1), compute_uv=False)
        p = values[values > 1e-12 * values[0]] ** 2 / (values**2).sum()
        shares.append(float(-(p * np.log(p)).sum() / math.log(dim)))
    from adtn.drawing._figure import _colormap

    assert [line.get_color() for line in horizontal] == [_colormap()(share) for share in shares]
    assert horizontal[0].get_linewidth() < horizontal[1].get_linewidth()
    assert {line.get_linestyle() for line in horizontal} == {"-"}
    assert _colormap()(shares[0]) not in {line.get_color() for line in plain}


def test_loops_are_dashed(generators: dict[str, Generator]) -> None:
    own = generators["ring"].draw()
    bonds = [line for line in own.axes[0].lines if line.get_zorder() == 1 and len(line.get_xdata()) > 2]
    assert len(bonds) == 4 and all(line.is_dashed() for line in bonds)
    assert "on a loop" in [text.get_text() for text in own.legends[0].get_texts()]


def test_structure_alone_needs_no_spectra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adtn.bondspace.Bond, "entropy", property(lambda bond: pytest.fail("a spectrum was computed")))
    gen = Generator((4096, 4096), adtn.BrickWall(layers=3))
    assert len(gen.draw(entropies=False).axes) == 1


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_equal_generators_give_equal_files(tmp_path: Path, ending: str) -> None:
    paths = [tmp_path / f"{k}.{ending}" for k in (1, 2)]
    for path in paths:
        Generator((16, 16), adtn.TTN(bond=2)).draw(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == paths


def test_a_bad_path_leaves_files_alone(tmp_path: Path) -> None:
    gen = Generator((16, 16), adtn.TTN(bond=2))
    with pytest.raises(OutputError, match=r"picture\.gif.*expected a name that ends in"):
        gen.draw(tmp_path / "picture.gif")
    with pytest.raises(OutputError, match="missing"):
        adtn.bonds(gen).draw(tmp_path / "missing" / "bonds.svg")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    gen = Generator((16, 16), adtn.TTN(bond=2))
    for draw in (gen.draw, adtn.bonds(gen).draw, truncation_curve(gen, sizes=[40]).draw):
        with pytest.raises(MissingDependencyError, match=r"adtn\[plot\]"):
            draw()


def test_spectra_are_those_of_the_bonds(generators: dict[str, Generator]) -> None:
    for name in ("mera", "ring", "cp", "mpo"):
        bonds = adtn.bonds(generators[name])
        panels = [axes for axes in bonds.draw().axes if axes.lines]
        assert len(panels) == len(bonds)
        for axes, bond in zip(panels, bonds, strict=True):
            values = bond.state_spectrum() if bond.kind == "state" else bond.spectrum()
            shown = axes.lines[0].get_ydata()
            np.testing.assert_allclose(shown, values[: len(shown)] / values[0])
            assert axes.get_yscale() == "log" and axes.get_title().startswith(bond.name)
            assert (axes.lines[0].get_markerfacecolor() == "white") is not bond.exact
    with pytest.raises(TopologyError, match="without bonds"):
        adtn.bonds(generators["dense"]).draw()


@pytest.mark.parametrize("name", ["mpo", "ttn", "tucker"])
def test_curves_are_truncations_to_every_size(name: str, generators: dict[str, Generator]) -> None:
    gen = generators[name]
    n_in = math.prod(gen.shape[1:])
    x = np.random.default_rng(0).standard_normal((50, n_in)) * np.linspace(0.1, 3, n_in)
    metric = Metric(inputs=x.T @ x / 50)
    curve = truncation_curve(gen, metric, sizes=[int(f * gen.num_params) for f in (0.8, 0.5)])
    assert (curve[0].params, curve[0].relative_error, len(curve)) == (gen.num_params, 0.0, 3)
    for point, f in zip(curve[1:], (0.8, 0.5), strict=True):
        own = adtn.truncate(gen, params=int(f * gen.num_params), metric=metric)
        assert point.params == own.generator.num_params == point.generator.num_params
        assert point.relative_error == pytest.approx(own.relative_error, rel=1e-9)
        change = (point.generator.weight() - gen.weight()) @ x.T
        assert point.relative_error == pytest.approx(
            np.linalg.norm(change) / np.linalg.norm(gen.weight() @ x.T), rel=1e-6
        )


def test_curves_in_one_picture(generators: dict[str, Generator]) -> None:
    gen = generators["mpo-bonds"]
    curve = truncation_curve(gen)
    assert [p.params for p in curve] == sorted({p.params for p in curve}, reverse=True)
    assert len(curve) > 3
    (axes,) = draw_curves({"whole": curve, "again": curve}).axes
    assert [line.get_label() for line in axes.lines] == ["whole", "again"]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(p.params, p.relative_error) for p in curve])
    with pytest.raises(TopologyError, match=r"size 1; expected at least"):
        truncation_curve(gen, sizes=[1])
    with pytest.raises(TopologyError, match="whole numbers"):
        truncation_curve(gen, sizes=[0])


def test_features_over_layers_and_training() -> None:
    torch = pytest.importorskip("torch")
    from adtn_backends.torch import ADTNLinear

    layers = [ADTNLinear(Generator(s, adtn.LowRank(bond=3), seed=k)) for k, s in enumerate([(20, 12), (8, 20)])]
    model = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1])
    torch.manual_seed(0)
    x, y = torch.randn(60, 12), torch.arange(60) % 3
    found = watch(model, [(x, y)])
    left, right = draw_features({"before": found, "after": found}).axes
    np.testing.assert_allclose(left.lines[1].get_ydata(), [own.effective_rank for own in found.values()])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [own.separability for own in found.values()])
    assert [text.get_text() for text in left.get_xticklabels()] == ["0.bonds.r", "2.bonds.r"]
    assert len(draw_features(watch(model, [x])).axes) == 1  # no labels, no classes
    (swapped, _) = draw_features(found, names=["2.bonds.r", "0.bonds.r"]).axes
    np.testing.assert_allclose(swapped.lines[0].get_ydata(), left.lines[0].get_ydata()[::-1])
    with pytest.raises(TopologyError, match=r"2\.bonds\.r; expected results that have all"):
        draw_features({"all": found, "one": watch(model, [x], "0.bonds.*")})
