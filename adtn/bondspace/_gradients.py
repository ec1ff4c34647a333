"""Gradients with respect to a matrix on every bond, from those of the cores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from .._arrays import finite_array
from .._checks import checked, shown
from .._typing import Float
from ..errors import TopologyError
from ..generator import Generator
from ..topology import Core, bond_indices, cores_of, is_elementwise

Place = Literal["before", "after"]


@checked(TopologyError)
def bond_gradients(
    generator: Generator, grads: Mapping[str, Any], *, place: Place = "after"
) -> dict[str, Float[np.ndarray, "..."]]:
    r"""Compute the gradient of a loss with respect to a matrix on every bond, at the identity.

    With :math:`W(M) = \sum_{kl} A_k M_{kl} B_l` it is
    :math:`dL/dM_{kl} = \langle A_k, dL/dA_l\rangle = \langle dL/dB_k, B_l\rangle`, so the gradients of the cores are
    enough. On a hyper-index, and on a leg that is
    multiplied entry by entry, only its diagonal exists.

    Parameters
    ----------
    generator : Generator
    grads : mapping of str to array
        ``dL/dA`` of the trained parameters, of their shapes, as arrays of any framework.
    place : {"before", "after"}
        On legs of a state: before or after the activation.

    Returns
    -------
    dict of str to numpy.ndarray
        By bond, as :meth:`adtn.Generator.with_bond` names them: ``(dim, dim)``, or ``(dim,)`` where only a diagonal
        exists. Bonds next to which no core is trained, without sharing its parameter, are left out.

    Raises
    ------
    TopologyError
        If a gradient has another shape than its parameter.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> from adtn.bondspace import bond_gradients
    >>> gen = adtn.Generator((64, 64), adtn.MPO(bond=3), dtype="float64")
    >>> W = gen.weight()
    >>> _, grads = gen.function.vjp(gen.arrays("numpy:cpu", "float64"), W)  # of half of the squared norm
    >>> M = bond_gradients(gen, grads)["b0"]
    >>> bool(np.isclose(np.trace(M), np.sum(W * W)))
    True
    """
    params = generator.params
    found: dict[str, np.ndarray] = {}
    for name, grad in grads.items():
        found[name] = np.asarray(finite_array(f"grads[{name!r}]", grad, TopologyError), np.float64)
        if name not in params or found[name].shape != params[name].shape:
            want = params[name].shape if name in params else f"one of {sorted(params)}"
            raise TopologyError(f"Got grads[{name!r}]={shown(grad)}; expected {want}.")
    uses = Counter(core.param for core in cores_of(generator.segments))
    cores = {core.name: core for core in cores_of(generator.segments)}
    out: dict[str, np.ndarray] = {}
    for bond in bond_indices(generator.segments):
        sides = {"state": bond.above if place == "before" else bond.below}.get(bond.kind, bond.ends)
        free = [cores[name] for name in sides if uses[cores[name].param] == 1 and cores[name].param in found]
        if not free or (bond.kind == "state" and len(sides) != 1):
            continue
        core = free[0]
        matrix = _product(core, bond.index, np.asarray(params[core.param], np.float64), found[core.param])
        if bond.kind == "hyper" or is_elementwise(generator.segments, bond, "above" if place == "before" else "below"):
            matrix = np.diag(matrix).copy()
        out[bond.name] = matrix if core.name in bond.above else matrix.T
    return out


def _product(core: Core, index: str, x: np.ndarray, grad: np.ndarray) -> Float[np.ndarray, "dim dim"]:
    """Contract a core with a gradient over all axes but that of an index: the core's is the first of the result."""
    axis = core.inds.index(index)
    others = [k for k in range(x.ndim) if k != axis]
    return np.tensordot(x, grad, axes=(others, others))
