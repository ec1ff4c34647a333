"""Probes of the bonds of a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from .._typing import Array, Float
from ..backends import backend_names, get_backend
from ..errors import MissingDependencyError, TopologyError


class Probe(Protocol):
    """The bonds of a model by names, as they were passed in the last call of their layers."""

    names: Sequence[str]
    """The bonds that are noted."""
    skipped: Mapping[str, str]
    """Why other generated layers have no bonds for inputs."""

    def __enter__(self) -> Probe:
        """Let everything pass the bonds."""
        ...

    def __exit__(self, *_: object) -> None:
        """Let the layers compute as before; what was found stays."""
        ...

    def close(self) -> None:
        """Let the layers compute as before; what was found stays."""
        ...

    def clear(self) -> None:
        """Forget what was found."""
        ...

    def __getitem__(self, name: str) -> Float[Array, "*batch rest bond"]:
        """Return what was on a bond."""
        ...

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of bonds that were passed."""
        ...

    def __len__(self) -> int:
        """Return the number of bonds that were passed."""
        ...


def probe(model: Any, names: str | Sequence[str] = "*", patch: Mapping[str, Any] | None = None) -> Any:
    """Show, or change, what is on the bonds of generated layers while a model computes.

    Inside the block, layers with a noted or patched bond contract their input with one core after the other, in a fixed
    order that begins at the input; outside of it they compute as before. A bond is passed when its first end has been
    read. What is on it has the shape ``(*batch, rest, bond)``: ``rest`` are the inputs that were not read yet, the
    outputs that are finished, and other open bonds. So there is one vector per sample only on a bond between all inputs
    and all outputs, such as that of :class:`adtn.LowRank`. For convolutions ``batch`` is (batch, positions), for an
    attention (batch, tokens), and for an embedding that of the ids, whose ``rest`` has no inputs. Cores before the last
    activation do not depend on the input: their bonds have no values.

    In PyTorch, bonds are modules inside the block, such as ``model.fc1.bonds["b1_0"]``, so forward hooks and tools that
    build on them see them. In Flax, what is on a bond passes ``nnx.jit`` as an ``nnx.Intermediate``, and ``jax.vmap``
    and ``jax.grad``; for ``jax.jit``, ``jax.checkpoint`` and ``jax.lax.scan``, open the probe inside the function.
    Copies and pickles of a probed model are not probed.

    Parameters
    ----------
    model : torch.nn.Module or flax.nnx.Module
    names : str or sequence of str
        Patterns of the bonds that are noted, such as ``"fc1.bonds.*"``.
    patch : mapping of str to array or callable, optional
        By patterns: a matrix ``(bond, bond)`` that values are multiplied with from the right, or a function of values.

    Returns
    -------
    Probe
        A context manager, and a mapping of names to arrays, with gradients if the model has them. ``skipped`` says
        which generated layers have no such bonds, and why.

    Raises
    ------
    TopologyError
        If a pattern fits no bond, a matrix does not fit its bond, or it is not a model; when it is called, if a patch
        has another shape, or JAX traces a function around a model whose probe is open outside of it.

    Examples
    --------
    >>> import adtn, torch
    >>> from adtn_backends.torch import ADTNLinear
    >>> model = torch.nn.Sequential(ADTNLinear(adtn.Generator((64, 36), adtn.LowRank(bond=4))), torch.nn.ReLU())
    >>> x = torch.ones(5, 36)
    >>> with adtn.probe(model) as found, torch.no_grad():
    ...     y = model(x)
    >>> {name: tuple(value.shape) for name, value in found.items()}
    {'0.bonds.r': (5, 1, 4)}
    >>> with adtn.probe(model, patch={"0.bonds.r": torch.zeros(4, 4)}), torch.no_grad():
    ...     float(model(x).abs().max())
    0.0
    """
    for name in sorted(backend_names(), key=lambda name: name not in sys.modules):  # others need not be imported
        try:
            wrap = getattr(get_backend(name), "probe", None)  # a backend need not have one
            found = None if wrap is None else wrap(model, names, patch or {})
        except MissingDependencyError:
            continue
        if found is not None:
            return found
    raise TopologyError(f"Got a {type(model).__name__}; expected a torch.nn.Module or flax.nnx.Module.")
