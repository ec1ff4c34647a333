"""PyTorch: the backend, and modules whose weights are generated."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .layers import Adapted as Adapted
    from .layers import ADTNConv1d as ADTNConv1d
    from .layers import ADTNConv2d as ADTNConv2d
    from .layers import ADTNConv3d as ADTNConv3d
    from .layers import ADTNEmbedding as ADTNEmbedding
    from .layers import ADTNLinear as ADTNLinear
    from .layers import ADTNMultiheadAttention as ADTNMultiheadAttention
    from .layers import GeneratedSlice as GeneratedSlice
    from .layers import GeneratedWeight as GeneratedWeight
    from .layers import Mode as Mode
    from .layers import Parametrized as Parametrized
    from .layers import absorb_heads as absorb_heads
    from .layers import absorb_hidden as absorb_hidden
    from .layers import absorb_orders as absorb_orders
    from .layers import absorb_residual as absorb_residual
    from .layers import absorb_rotary as absorb_rotary
    from .layers import absorb_values as absorb_values
    from .layers import adapter_generators as adapter_generators
    from .layers import adapter_names as adapter_names
    from .layers import add_adapter as add_adapter
    from .layers import cached_weights as cached_weights
    from .layers import load_adapter as load_adapter
    from .layers import merge_adapters as merge_adapters
    from .layers import parametrized as parametrized
    from .layers import remove_adapters as remove_adapters
    from .layers import save_adapter as save_adapter
    from .layers import set_adapter as set_adapter
    from .layers import to_dense as to_dense
    from .layers import unmerge_adapters as unmerge_adapters

__all__ = [
    "ADTNConv1d",
    "ADTNConv2d",
    "ADTNConv3d",
    "ADTNEmbedding",
    "ADTNLinear",
    "ADTNMultiheadAttention",
    "Adapted",
    "GeneratedSlice",
    "GeneratedWeight",
    "Mode",
    "Parametrized",
    "absorb_heads",
    "absorb_hidden",
    "absorb_orders",
    "absorb_residual",
    "absorb_rotary",
    "absorb_values",
    "adapter_generators",
    "adapter_names",
    "add_adapter",
    "cached_weights",
    "load_adapter",
    "merge_adapters",
    "parametrized",
    "remove_adapters",
    "save_adapter",
    "set_adapter",
    "to_dense",
    "unmerge_adapters",
]


def __getattr__(name: str) -> Any:
    # imported late, so that the backend alone need not wait for the layers
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".layers", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
