r"""The gauge of least norm.

A bond between the cores A and B may carry :math:`X X^{-1}`, which changes both cores and not the weight. The sum of all
squared norms has no local minima over these matrices but its least value (Kempf and Ness), and there
:math:`\langle A_k, A_m\rangle = \langle B_k, B_m\rangle` on every bond. For one bond the best X follows from an SVD:
with :math:`A = Q_A R_A`, :math:`B = Q_B R_B` and :math:`R_A R_B^\top = U S V^\top`, the cores become
:math:`Q_A U S^{1/2}` and :math:`Q_B V S^{1/2}`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from .._typing import Float
from ..topology import BondIndex, Core, Segment, bond_indices, cores_of

_SWEEPS = 200
_TOLERANCE = 1e-9  # relative difference of the Gram matrices of both sides


def balanced_values(
    segments: Sequence[Segment], params: Mapping[str, Float[np.ndarray, "..."]]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Compute the values of the trained parameters in the gauge of least norm, in float64.

    Bonds of frozen cores, and of cores that share their parameter, keep their gauge.
    """
    values = {name: np.array(x, np.float64) for name, x in params.items()}
    uses = Counter(core.param for core in cores_of(segments))
    bonds = bond_indices(segments)
    for t, segment in enumerate(segments):
        free = {core.name: core for core in segment.cores if core.trainable and uses[core.param] == 1}
        inner = [bond for bond in bonds if bond.segment == t and bond.kind != "state"]
        joined = [(bond, [free[name] for name in bond.ends if name in free]) for bond in inner]
        whole = [(bond, cores) for bond, cores in joined if len(cores) > 1]
        _equal_norms(list(free.values()), values)
        for sweep in range(_SWEEPS):
            away = max((_even(bond, cores, values) for bond, cores in whole[:: 1 - 2 * (sweep % 2)]), default=0.0)
            if away < _TOLERANCE:
                break
        _equal_norms(list(free.values()), values)
    return values


def _even(bond: BondIndex, cores: Sequence[Core], values: dict[str, Float[np.ndarray, "..."]]) -> float:
    """Change the gauge of a bond, and return how far both sides were from equal Gram matrices."""
    if bond.kind == "hyper":
        return _even_slices(bond, cores, values)
    sides = [np.moveaxis(values[core.param], core.inds.index(bond.index), -1) for core in cores]
    flat = [x.reshape(-1, bond.dim) for x in sides]
    grams = [x.T @ x for x in flat]
    size = max(float(np.linalg.norm(gram)) for gram in grams)
    away = float(np.linalg.norm(grams[0] - grams[1])) / size if size else 0.0
    if away < _TOLERANCE:
        return away
    (q_a, r_a), (q_b, r_b) = (np.linalg.qr(x) for x in flat)
    u, s, vt = np.linalg.svd(r_a @ r_b.T, full_matrices=False)
    if not s.size or s[0] == 0.0:
        return 0.0  # a core of zeros can still be trained if its neighbours are not zero as well
    root = np.sqrt(s)
    for core, x, new in zip(cores, sides, (q_a @ (u * root), q_b @ (vt.T * root)), strict=True):
        padded = np.pad(new, ((0, 0), (0, bond.dim - s.size)))
        values[core.param] = np.moveaxis(padded.reshape(x.shape), -1, core.inds.index(bond.index))
    return away


def _even_slices(bond: BondIndex, cores: Sequence[Core], values: dict[str, Float[np.ndarray, "..."]]) -> float:
    """Scale the slices of a hyper-index to equal norms over its cores, term by term."""
    axes = [core.inds.index(bond.index) for core in cores]
    norms = np.stack(
        [
            np.linalg.norm(np.moveaxis(values[core.param], axis, 0).reshape(bond.dim, -1), axis=1)
            for core, axis in zip(cores, axes, strict=True)
        ]
    )
    alive = norms.min(axis=0) > 0.0
    safe = np.where(alive, norms, 1.0)
    mean = np.exp(np.log(safe).mean(axis=0))
    for core, axis, norm in zip(cores, axes, safe, strict=True):
        shape = [-1 if k == axis else 1 for k in range(len(core.inds))]
        values[core.param] = values[core.param] * (mean / norm).reshape(shape)
    return float(np.max(np.abs(safe / mean - 1.0), initial=0.0))


def _equal_norms(cores: Sequence[Core], values: dict[str, Float[np.ndarray, "..."]]) -> None:
    """Scale cores to equal norms; a segment with a core of zeros stays as it is."""
    norms = {core.param: float(np.linalg.norm(values[core.param])) for core in cores}
    if not norms or 0.0 in norms.values():
        return
    mean = math.exp(sum(map(math.log, norms.values())) / len(norms))
    for name, norm in norms.items():
        values[name] = np.asarray(values[name] * (mean / norm))
