"""The conversion of models back to dense ones."""

from __future__ import annotations

from typing import Any

from flax import nnx

from ._kinds import GENERATED
from ._places import modules_of, put_module


def to_dense(model: Any) -> nnx.Module:
    """Copy a model, with every generated layer replaced by an ordinary layer of Flax.

    A layer at several places remains one layer; layers that only share a generated weight become independent.

    Parameters
    ----------
    model : flax.nnx.Module
        The model, which is not changed.

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
    dense_layers = {id(module): module.to_dense() for _, module in places}
    outer = [name for name, _ in places]
    for name, module in places:
        if not name.startswith(tuple(f"{other}." for other in outer)):  # an attention is replaced with all its parts
            put_module(dense, name, dense_layers[id(module)])
    return dense
