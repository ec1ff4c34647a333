"""Convolutions as chains of smaller ones, where the scheduler finds that faster than their weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from adtn import Generator
from adtn.backends import get_backend
from adtn.schedule import Images, decide, decide_convolution
from adtn.weight import Chain, Factored, Materialised

from ...shared._cache import remember
from ...shared._geometry import ConvMode
from ._calls import differentiable, is_traced
from ._slice import Weight
from ._weight import GeneratedWeight

_BACKEND = get_backend("torch")
_TRACED = Images(batch=16, pixels_in=256, pixels_out=256, train=True)
"""What compiled layers are planned for: one graph serves all sizes."""

_Key = tuple[Images, str, str]
Chained = tuple[Chain, tuple[Materialised, ...]]


class Chains:
    """The plans of one convolution by the sizes of its images.

    Parameters
    ----------
    weight : GeneratedWeight or GeneratedSlice
        The weight of the layer.
    groups : int
        The groups of the layer.
    mode : {"materialise", "factored"}, optional
        The mode of execution, which the scheduler chooses by default.
    """

    def __init__(self, weight: Weight, groups: int, mode: ConvMode | None) -> None:
        self._groups = groups
        self._mode: ConvMode | None = mode
        self._structure: Generator | None = None
        self._plans: dict[_Key, Chained | None] = {}
        self._cached: tuple[tuple[Materialised, ...], list[Any], Sequence[torch.Tensor]] | None = None
        self.traced: Chained | None = None  # an attribute, as compilers cannot follow the parts of a constant
        if mode == Factored.mode:  # refuse what is not possible at once
            self(weight, _TRACED)

    def __call__(self, weight: Weight, images: Images) -> Chained | None:
        """Return the chain for images of these sizes and the parts that it generates; ``None`` if the weight is."""
        return self._planned(weight, images, *_place(weight))

    def trace(self, weight: Weight) -> bool:
        """Plan for compilers, and return whether there is a chain, :attr:`traced`.

        Chains that permute legs are left to ``mode="factored"``, as code for images of any size fails with them.
        """
        chained = self(weight, _TRACED)
        plain = chained is not None and not any(order.permutes for order in chained[0].reorders)
        self.traced = chained if plain or self._mode == Factored.mode else None
        return self.traced is not None

    def weights(
        self, weight: GeneratedWeight, arrays: dict[str, torch.Tensor], parts: tuple[Materialised, ...]
    ) -> Sequence[torch.Tensor]:
        """Compute the parts of a chain from these cores; without gradients, cached until a core changes."""
        if is_traced() or differentiable(arrays) or not weight.caches:
            return [weight.weight_of(arrays, part) for part in parts]
        stamp, cached = weight.stamp(arrays), self._cached
        if stamp is None or cached is None or cached[:2] != (parts, stamp):
            # ordinary tensors even in inference mode, as later calls may need gradients through them
            with torch.inference_mode(False), torch.no_grad():
                made = [weight.weight_of(arrays, part) for part in parts]
            if stamp is None:
                return made
            self._cached = cached = parts, stamp, made
        return cached[2]

    def _planned(self, weight: Weight, images: Images, device: str, dtype: str) -> Chained | None:
        if self._mode == Materialised.mode or not isinstance(weight, GeneratedWeight) or device == "torch:meta":
            return None
        if self._structure is not weight.structure:  # it was permuted
            self._structure, self._plans = weight.structure, {}
        key = (images.rounded, device, dtype)
        if key in self._plans:
            return self._plans[key]
        plan = decide_convolution(
            weight.structure, images, device=device, dtype=dtype, groups=self._groups, mode=self._mode
        )
        parts = plan.chain.pieces if plan.chain else ()
        made = tuple(decide(piece, "generate", device=device, dtype=dtype).materialised for piece in parts)
        chained = None if plan.chain is None else (plan.chain, tuple(part.on(_BACKEND) for part in made))
        return remember(self._plans, key, chained)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "traced": None, "_cached": None}


def _place(weight: Weight) -> tuple[str, str]:
    """Return the device and dtype of a weight."""
    blank = torch.empty(0, dtype=weight.dtype, device="cpu")
    return f"torch:{weight.device}", _BACKEND.dtype_of(blank)
