"""Bridge to the ``tensornetwork`` package: quimb networks to its nodes and back.

That package had its last release in 2021; the bridge is for people who have networks in it.
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
    """Nodes of the ``tensornetwork`` package that hold the arrays of a quimb network.

    Parameters
    ----------
    network : quimb.tensor.TensorNetwork
        Without indices on more than two tensors.
    backend : {"numpy", "pytorch", "jax"}, optional
        Of the nodes; the arrays must already be of that framework. The package's default when not given.

    Returns
    -------
    list of tensornetwork.Node
        One per tensor, in order. A node is named by its tags, an edge by its index.

    Raises
    ------
    MissingDependencyError
        Without the extra ``tensornetwork``.
    TopologyError
        For indices on more than two tensors, and tags with a comma.

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
            raise TopologyError(f"Got tags {list(tensor.tags)}; a tag with a comma cannot be told from two.")
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
    """The quimb network of connected nodes; the inverse of :func:`to_tensornetwork`.

    Parameters
    ----------
    nodes : iterable of tensornetwork.Node
        Edge names become index names; unnamed or equally named edges get new names.

    Returns
    -------
    quimb.tensor.TensorNetwork

    Raises
    ------
    MissingDependencyError
        Without the extra ``tensornetwork``.
    """
    _package()
    import quimb.tensor as qtn

    nodes = list(nodes)
    if not nodes or any(not hasattr(node, "edges") for node in nodes):
        raise TopologyError(f"Got nodes={shown(nodes)}; expected connected nodes of tensornetwork, at least one.")
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
