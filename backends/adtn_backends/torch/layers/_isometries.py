"""Cores that stay isometries, as functions of the parameters of a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from adtn.calculus import isometric

from ._calls import differentiable, is_traced

Stamp = Callable[[dict[str, torch.Tensor]], list[Any] | None]


class Isometries:
    """The isometries of a module; without gradients, the last ones are kept.

    Parameters
    ----------
    rows : mapping of str to int
        The number of rows of every core that stays an isometry, by name.
    """

    def __init__(self, rows: Mapping[str, int]) -> None:
        self._rows = rows
        self._last: tuple[list[Any], dict[str, torch.Tensor]] | None = None
        if rows:  # autoray imports functions at first use, which compilers cannot trace
            isometric({"": torch.zeros(1, 1)}, {"": 1})

    def __call__(self, arrays: dict[str, torch.Tensor], stamp: Stamp) -> dict[str, torch.Tensor]:
        """Replace parameters by the isometries that they stand for; those of an equal ``stamp`` are equal."""
        if not self._rows:
            return arrays
        raw = {name: arrays[name] for name in self._rows}
        now = None if is_traced() or differentiable(raw) else stamp(raw)
        if now is None:
            return isometric(arrays, self._rows)
        if self._last is None or self._last[0] != now:
            with torch.inference_mode(False), torch.no_grad():
                self._last = now, isometric(raw, self._rows)
        return {**arrays, **self._last[1]}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}
