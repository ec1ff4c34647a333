"""Parameters that are stored as codes, and decoded when they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from .._typing import Float
from ..precision import Codes


class Decoded(Mapping[str, np.ndarray]):
    """A mapping of arrays by name, of which codes are decoded at each access: nothing decoded stays in memory.

    Parameters
    ----------
    arrays : mapping of str to Codes or array
        The arrays.
    dtype : str
        The dtype of decoded arrays.
    """

    def __init__(self, arrays: Mapping[str, Codes | np.ndarray], dtype: str) -> None:
        self._arrays, self._dtype = dict(sorted(arrays.items())), dtype

    def __getitem__(self, name: str) -> Float[np.ndarray, "..."]:
        x = self._arrays[name]
        x = x.decode().astype(self._dtype, copy=False) if isinstance(x, Codes) else x
        x.setflags(write=False)
        return x

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return repr(self._arrays)
