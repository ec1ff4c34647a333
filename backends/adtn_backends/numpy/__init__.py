"""NumPy: the backend, and layers for inference."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .layers import ADTNConv1d as ADTNConv1d
    from .layers import ADTNConv2d as ADTNConv2d
    from .layers import ADTNConv3d as ADTNConv3d
    from .layers import ADTNEmbedding as ADTNEmbedding
    from .layers import ADTNLinear as ADTNLinear

__all__ = [
    "ADTNConv1d",
    "ADTNConv2d",
    "ADTNConv3d",
    "ADTNEmbedding",
    "ADTNLinear",
]


def __getattr__(name: str) -> Any:
    # imported late, so that the backend alone need not wait for the layers
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".layers", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
