"""A model without generated weights."""

from __future__ import annotations

from typing import Any

from flax import nnx

from ._kinds import GENERATED
from ._places import modules_of, put_module


def to_dense(model: Any) -> nnx.Module:
    """A copy of a model in which every generated layer is an ordinary one of Flax.

    A layer that is at several places stays one; layers that only share a generated weight become independent.

    Parameters
    ----------
    model : flax.nnx.Module
        Left as it is.

    Examples
    --------
    >>> import adtn
    >>> from adtn_backends.jax import ADTNLinear
    >>> from flax import nnx
    >>> layer = ADTNLinear(adtn.Generator((64, 32), adtn.TTN(bond=2)))
    >>> type(to_dense(nnx.Sequential(layer, nnx.relu)).layers[0]).__name__
    'Linear'
    """
    if isinstance(model, GENERATED):
        return model.to_dense()
    dense = nnx.clone(model)
    places = [(name, module) for name, module in modules_of(dense) if isinstance(module, GENERATED)]
    made = {id(module): module.to_dense() for _, module in places}
    outer = [name for name, _ in places]
    for name, module in places:
        if not name.startswith(tuple(f"{other}." for other in outer)):  # parts of an attention go with it
            put_module(dense, name, made[id(module)])
    return dense
