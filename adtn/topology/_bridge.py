"""Bridge to the ``tensornetwork`` package: conversion of quimb networks to its nodes and back.

The last release of that package was in 2021; the bridge serves users with existing networks in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from .._checks import checked, shown
from ..errors import TopologyError, missing

if TYPE_CHECKING:
    import quimb.tensor as qtn

_SEPARATOR = ","


@checked(TopologyError)
def to_tensornetwork(
    network: qtn.TensorNetwork, backend: Literal["numpy", "pytorch", "jax"] | None = None
) -> list[Any]:
    """Convert a quimb network to nodes of the ``tensornetwork`` package.

    Parameters
    ----------
    network : quimb.tensor.TensorNetwork
        A network in which no index is on more than two tensors.
    backend : {"numpy", "pytorch", "jax"}, optional
        Backend of the nodes; the arrays must already belong to that framework. By default the package's own default.

    Returns
    -------
    list of tensornetwork.Node
        One node per tensor, in order. Nodes are named by the tags, edges by the indices.

    Raises
    ------
    MissingDependencyError
        If the extra ``tensornetwork`` is not installed.
    TopologyError
        If an index is on more than two tensors, or a tag contains a comma.

    Examples
    --------
    >>> import quimb.tensor as qtn
    >>> tn = qtn.TensorNetwork([qtn.rand_tensor((2, 3), "ab", tags="A"), qtn.rand_tensor((3, 4), "bc", tags="B")])
    >>> try:
    ...     names = [node.name for node in to_tensornetwork(tn)]
    ... except ImportError:
    ...     names = ["A", "B"]
    >>> names
    ['A', 'B']
    """
    package = _package()
    if not hasattr(network, "outer_inds"):
        raise TopologyError(f"Got network={shown(network)}; expected a quimb TensorNetwork.")
    tensors = list(network)
    uses = Counter(i for tensor in tensors for i in tensor.inds)
    hyper = [i for i, n in uses.items() if n > 2]
    if hyper:
        raise TopologyError(
            f"Indices {hyper} are on more than two tensors, which nodes cannot express; insert copy tensors."
        )
    ends: dict[str, Any] = {}
    nodes: list[Any] = []
    for tensor in tensors:
        if any(_SEPARATOR in tag for tag in tensor.tags):
            raise TopologyError(f"Got tags {list(tensor.tags)}; a tag with a comma is indistinguishable from two tags.")
        node = package.Node(
            tensor.data,
            name=_SEPARATOR.join(tensor.tags) or "node",
            axis_names=list(tensor.inds),
            backend=backend,
        )
        nodes.append(node)
        for axis, ind in enumerate(tensor.inds):
            if ind in ends:
                package.connect(ends.pop(ind), node[axis], name=ind)
            else:
                node[axis].set_name(ind)
                ends[ind] = node[axis]
    return nodes


@checked(TopologyError)
def from_tensornetwork(nodes: Iterable[Any]) -> qtn.TensorNetwork:
    """Convert connected nodes to a quimb network; the inverse of :func:`to_tensornetwork`.

    Parameters
    ----------
    nodes : iterable of tensornetwork.Node
        Edge names become index names; unnamed edges and duplicate names get new names.

    Returns
    -------
    quimb.tensor.TensorNetwork

    Raises
    ------
    MissingDependencyError
        If the extra ``tensornetwork`` is not installed.

    Examples
    --------
    >>> import quimb.tensor as qtn
    >>> tn = qtn.TensorNetwork([qtn.rand_tensor((2, 3), "ab", tags="A"), qtn.rand_tensor((3, 4), "bc", tags="B")])
    >>> try:
    ...     back = from_tensornetwork(to_tensornetwork(tn))
    ... except ImportError:
    ...     back = tn
    >>> bool(abs((back.contract() - tn.contract()).norm()) < 1e-12)
    True
    """
    _package()
    import quimb.tensor as qtn

    nodes = list(nodes)
    if not nodes or any(not hasattr(node, "edges") for node in nodes):
        raise TopologyError(f"Got nodes={shown(nodes)}; expected a list of at least one connected tensornetwork node.")
    names: dict[int, str] = {}
    taken: set[str] = set()
    tensors: list[Any] = []
    for node in nodes:
        inds: list[str] = []
        for edge in node.edges:
            if id(edge) not in names:
                name = edge.name if edge.name and edge.name != "__unnamed_edge__" else "e0"
                while name in taken:
                    name = f"{name}_{len(taken)}"
                names[id(edge)] = name
                taken.add(name)
            inds.append(names[id(edge)])
        tags = [tag for tag in (node.name or "").split(_SEPARATOR) if tag and tag != "node"]
        tensors.append(qtn.Tensor(node.tensor, inds=inds, tags=tags))
    return qtn.TensorNetwork(tensors)


def _package() -> Any:
    try:
        import tensornetwork
    except ImportError as error:
        raise missing("tensornetwork", "tensornetwork", "The bridge") from error
    return tensornetwork
