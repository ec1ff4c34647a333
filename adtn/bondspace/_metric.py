r"""Spectra of bonds in a metric of inputs and of gradients of outputs.

With second moments C of the inputs of a layer and G of the gradients with respect to its outputs (Kronecker-factored
curvature), the squared norm of a change of the weight is :math:`\mathrm{tr}(\Delta W^\top G\, \Delta W\, C)`.

A bond separates the legs of the weight, :math:`W = \sum_k A_k \otimes B_k`. If all input legs are on one side, and all
output legs on one side, the metric is a product over both sides, and the values are the singular values of
:math:`G^{1/2} W C^{1/2}` across the bond. If the legs of an axis are on both sides, the metric is no such product, and
no Schmidt decomposition exists. Then the values are *generalised*: with the environment

.. math:: Y_{kl,mn} = \langle W_{kl}, W_{mn}\rangle, \qquad W_{kl} = A_k \otimes B_l ,

they are those of the product :math:`Y_A \otimes Y_B` that is nearest to Y, scaled to the norm of the weight.

References: J. Martens, R. Grosse (2015), arXiv:1503.05671 (Kronecker factors). G. Evenbly (2018), arXiv:1801.05390
(environments of bonds). C. Van Loan, N. Pitsianis (1993), Approximation with Kronecker products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .._arrays import finite_array
from .._typing import Float
from ..errors import TopologyError
from ..weight import Weighting, checked_moment, padded_moment
from ._messages import triangular
from ._network import MOST_ENTRIES, Graph, contracted
from ._source import Source

_CHUNK = 1 << 23
_NEGATIVE = 1e-5  # relative eigenvalue below zero, from sums in single precision


@dataclass(frozen=True, kw_only=True, eq=False)
class Metric:
    """The second moments in which changes of a weight are measured.

    Parameters
    ----------
    inputs : array, optional
        C, the mean of ``x xᵀ`` over the inputs of the layer, ``(n_in, n_in)``; by default, the identity.
    outputs : array, optional
        G, the mean of ``g gᵀ`` over the gradients with respect to its outputs, ``(n_out, n_out)``; by default, the
        identity.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> from adtn.bondspace import Metric
    >>> gen = adtn.Generator((4, 6), adtn.LowRank(bond=2), scale=1.0, dtype="float64")
    >>> C = np.diag(np.arange(1.0, 7.0))
    >>> values = adtn.bonds(gen)["r"].spectrum(Metric(inputs=C))
    >>> bool(np.allclose(values, np.linalg.svd(gen.weight() @ np.sqrt(C), compute_uv=False)[:2]))
    True
    """

    inputs: Any = None
    outputs: Any = None

    def factors(self, weighting: Weighting) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return roots F of G and of C, with ``F.T @ F`` the moment in generated order with its padding.

        Raises
        ------
        TopologyError
            If a moment does not fit the weight.
        """
        return self._outputs(weighting), self._inputs(weighting)

    def _inputs(self, weighting: Weighting) -> np.ndarray | None:
        if self.inputs is None:
            return None
        layout = weighting.layout
        moment, size = _scaled(self.inputs, "inputs", layout.shape)
        found = padded_moment(layout, np.asarray(weighting.moment_to_generated_order(moment)))
        return self._root(found * size, "inputs")

    def _outputs(self, weighting: Weighting) -> np.ndarray | None:
        if self.outputs is None:
            return None
        layout = weighting.layout
        n, padded = layout.shape[0], layout.padded_shape[0]
        moment, size = _scaled(self.outputs, "outputs", (1, n))
        p = weighting.permutations[0] if weighting.permutations else None
        if p is not None:
            moment = np.asarray(p.restore(p.restore(moment, 0), 1))
        return self._root(np.pad(moment, (0, padded - n)) * size, "outputs")

    def _root(self, moment: Float[np.ndarray, "n n"], name: str) -> Float[np.ndarray, "rank n"]:
        if name not in self._roots:
            values, vectors = np.linalg.eigh(moment)
            if values[0] < -_NEGATIVE * np.abs(values).max():
                raise TopologyError(
                    f"Got {name} with the eigenvalue {values[0]:.3g} beside {values[-1]:.3g} in a metric; expected a "
                    "second moment, such as x.T @ x / len(x), which has no negative ones."
                )
            keep = values > 1e-14 * values[-1]
            self._roots[name] = np.sqrt(values[keep])[:, None] * vectors[:, keep].T
        return self._roots[name]

    @cached_property
    def _roots(self) -> dict[str, np.ndarray]:
        return {}


def _scaled(moment: Any, name: str, shape: tuple[int, ...]) -> tuple[Float[np.ndarray, "n n"], float]:
    """Return a checked moment, whose largest entry is one, and the factor that was taken out of it."""
    found = np.asarray(finite_array(name, moment, TopologyError), np.float64)
    return checked_moment(found, shape), float(np.abs(found).max())


@dataclass(frozen=True, kw_only=True, eq=False)
class _Side:
    """One side of a cut, as (output legs, input legs, bond), with the positions of these legs in their axes."""

    tensor: Float[np.ndarray, "outs ins bond"]
    outs: tuple[int, ...]
    ins: tuple[int, ...]


def metric_spectrum(source: Source, edge: str, core: str, metric: Any) -> Float[np.ndarray, " rank"]:
    """Compute the values of a bond in a metric, in descending order.

    Raises
    ------
    TopologyError
        If the weight has activations, the bond is on a loop, or the metric does not fit.
    """
    first, second, roots = _sides(source, edge, core, metric)
    applied = [_applied(side, source, roots) for side in (first, second)]
    scale = abs(source.generator.scale)
    if not _split(source, first, roots):
        r_a, r_b = (triangular(side.tensor.reshape(-1, side.tensor.shape[2])) for side in applied)
        return np.linalg.svd(r_a @ r_b.T, compute_uv=False) * scale
    y = _mixed(source, applied[0], applied[1], roots)
    return _generalised(y) * scale


def is_product(source: Source, legs: tuple[str, ...], metric: Metric) -> bool:
    """Return whether a metric is a product over the legs of one side of a cut and all others."""
    axes = {name: min(axis, 1) for name, (axis, _) in zip(*_names(source), strict=True)}
    for k, moment in enumerate((metric.outputs, metric.inputs)):
        here = [i for i in legs if axes.get(i) == k]
        if moment is not None and here and len(here) < sum(axis == k for axis in axes.values()):
            return False
    return True


def _names(source: Source) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    layout = source.generator.layout
    return layout.leg_names, layout.leg_axes


def metric_environment(source: Source, edge: str, core: str, metric: Any) -> Float[np.ndarray, "k l m n"]:
    r"""Compute :math:`Y_{kl,mn} = \langle W_{kl}, W_{mn}\rangle` in a metric, with its scale."""
    first, second, roots = _sides(source, edge, core, metric)
    a, b = (_applied(side, source, roots) for side in (first, second))
    d = a.tensor.shape[2]
    if _split(source, first, roots):
        y = _mixed(source, a, b, roots)
    else:
        grams = [side.tensor.reshape(-1, d).T @ side.tensor.reshape(-1, d) for side in (a, b)]
        y = np.einsum("km,ln->kmln", *grams)
    return np.einsum("kmln->klmn", y) * source.generator.scale**2


def _sides(
    source: Source, edge: str, core: str, metric: Any
) -> tuple[_Side, _Side, tuple[np.ndarray | None, np.ndarray | None]]:
    """Contract both sides of a bond, that of ``core`` second, and take the roots of the metric."""
    if metric is not None and not isinstance(metric, Metric):
        raise TopologyError(f"Got metric of the type {type(metric).__name__}; expected an adtn.bondspace.Metric.")
    if not source.is_linear:
        raise TopologyError(
            "Got a metric for a network with activations, where a segment is not the weight; expected None, or use "
            "ablation(inputs=...)."
        )
    tree = source.view(0).tree
    if tree is None or not source.view(0).is_exact(edge):
        raise TopologyError(f"Got a metric for {edge!r}, which is on a loop; expected a bond that cuts the network.")
    a, b = tree.edges[edge]
    if core in tree.nodes[a].names:
        a, b = b, a
    rest = set(range(len(tree.nodes))) - tree.beyond(edge, b)
    metric = Metric() if metric is None else metric
    roots = metric.factors(source.generator.weighting)
    return _side(source, tree, edge, rest), _side(source, tree, edge, tree.beyond(edge, b)), roots


def _side(source: Source, tree: Graph, edge: str, nodes: set[int]) -> _Side:
    layout = source.generator.layout
    position = {name: layout.leg_axes[q] for q, name in enumerate(layout.leg_names)}
    legs = sorted((i for i in tree.legs_of(nodes)), key=position.__getitem__)
    outs = [i for i in legs if position[i][0] == 0]
    ins = [i for i in legs if position[i][0] > 0]
    x = contracted([tree.nodes[n] for n in sorted(nodes)], (*outs, *ins, edge))
    n_out = math.prod(tree.sizes[i] for i in outs)
    n_in = math.prod(tree.sizes[i] for i in ins)
    order = {name: k for k, name in enumerate(sorted(position, key=position.__getitem__))}
    n_axis = sum(axis == 0 for axis, _ in position.values())
    return _Side(
        tensor=x.reshape(n_out, n_in, -1),
        outs=tuple(order[i] for i in outs),
        ins=tuple(order[i] - n_axis for i in ins),
    )


def _dims(source: Source) -> tuple[list[int], list[int]]:
    """Return the dimensions of the output legs and of the input legs, in the order of the axes."""
    legs = sorted(zip(source.generator.layout.leg_axes, source.generator.layout.dims, strict=True))
    return [d for (axis, _), d in legs if axis == 0], [d for (axis, _), d in legs if axis > 0]


def _split(source: Source, side: _Side, roots: tuple[np.ndarray | None, np.ndarray | None]) -> list[int]:
    """List the axes of the metric, 0 for outputs and 1 for inputs, whose legs are on both sides."""
    counts = [(len(side.outs), len(_dims(source)[0])), (len(side.ins), len(_dims(source)[1]))]
    return [k for k, (here, total) in enumerate(counts) if roots[k] is not None and 0 < here < total]


def _applied(side: _Side, source: Source, roots: tuple[np.ndarray | None, np.ndarray | None]) -> _Side:
    """Multiply a side with the roots of those axes whose legs it has all."""
    x = side.tensor
    for k, legs in enumerate((side.outs, side.ins)):
        root = roots[k]
        if root is not None and len(legs) == len(_dims(source)[k]):
            x = np.moveaxis(np.tensordot(root, x, axes=(1, k)), 0, k)
    return _Side(tensor=x, outs=side.outs, ins=side.ins)


def _mixed(
    source: Source, a: _Side, b: _Side, roots: tuple[np.ndarray | None, np.ndarray | None]
) -> Float[np.ndarray, "k m l n"]:
    """Compute the environment of a bond that cuts through an axis of the metric, ordered as (k, m, l, n)."""
    split = _split(source, a, roots)
    if len(split) == 2:
        return _streamed(source, a, b, roots)
    axis = split[0]
    root = roots[axis]
    assert root is not None
    doubled: list[np.ndarray] = []
    for side in (a, b):  # as ((bond, bond'), (legs, legs'))
        x = np.moveaxis(side.tensor, axis, 1)  # (summed, legs, bond)
        _, p, d = x.shape
        if (p * d) ** 2 > MOST_ENTRIES:
            raise TopologyError(
                f"Got a metric whose environment of this bond has {(p * d) ** 2:,} entries; at most {MOST_ENTRIES:,} "
                "are made. Use smaller legs, or a metric of the other axis."
            )
        flat = x.reshape(x.shape[0], p * d)
        square = (flat.T @ flat).reshape(p, d, p, d)
        doubled.append(square.transpose(1, 3, 0, 2).reshape(d * d, p * p))
    moment = _by_sides(root.T @ root, _dims(source)[axis], (a.outs, a.ins)[axis], (b.outs, b.ins)[axis])
    d = a.tensor.shape[2]
    return (doubled[0] @ moment @ doubled[1].T).reshape(d, d, d, d)


def _by_sides(
    matrix: Float[np.ndarray, "n n"], dims: list[int], first: tuple[int, ...], second: tuple[int, ...]
) -> Float[np.ndarray, "first2 second2"]:
    """Order a moment as ((first, first'), (second, second'))."""
    n = len(dims)
    x = matrix.reshape(*dims, *dims).transpose([*first, *(n + i for i in first), *second, *(n + i for i in second)])
    return x.reshape(math.prod(dims[i] for i in first) ** 2, -1)


def _streamed(
    source: Source, a: _Side, b: _Side, roots: tuple[np.ndarray | None, np.ndarray | None]
) -> Float[np.ndarray, "k m l n"]:
    """Sum the environment over the rows of the root of the inputs, if both axes are cut."""
    of_out, of_in = roots
    assert of_out is not None and of_in is not None
    outs, ins = _dims(source)
    d = a.tensor.shape[2]
    rows = of_in.reshape(len(of_in), *ins).transpose([0, *(1 + i for i in a.ins), *(1 + i for i in b.ins)])
    rows = rows.reshape(len(of_in), a.tensor.shape[1], b.tensor.shape[1])
    columns = of_out.reshape(len(of_out), *outs).transpose([0, *(1 + i for i in a.outs), *(1 + i for i in b.outs)])
    columns = columns.reshape(len(of_out), -1)
    step = max(1, _CHUNK // (columns.shape[1] * d * d))
    y = np.zeros((d * d, d * d))
    for start in range(0, len(rows), step):
        v = np.einsum("sij,oik,pjl->sopkl", rows[start : start + step], a.tensor, b.tensor, optimize=True)
        out = np.tensordot(columns, v.reshape(len(v), -1, d * d), axes=(1, 1)).reshape(-1, d * d)
        y += out.T @ out
    return y.reshape(d, d, d, d).transpose(0, 2, 1, 3)


def _generalised(y: Float[np.ndarray, "k m l n"]) -> Float[np.ndarray, " rank"]:
    """Compute the values of the product of two Gram matrices that is nearest to an environment."""
    d = y.shape[0]
    u, s, vt = np.linalg.svd(y.reshape(d * d, d * d))
    grams = [x.reshape(d, d) for x in (u[:, 0], s[0] * vt[0])]
    sign = 1.0 if np.trace(grams[0]) >= 0.0 else -1.0
    factors: list[np.ndarray] = []
    for gram in grams:
        values, vectors = np.linalg.eigh(sign * (gram + gram.T) / 2.0)
        factors.append(np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T)
    found = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False)
    norm = math.sqrt(max(float(np.einsum("kmkm->", y)), 0.0))
    return found * (norm / max(float(np.linalg.norm(found)), 1e-300))
