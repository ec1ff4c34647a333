"""Rotary position embeddings of decoders: the rotation of cached keys, undone and applied again.

Cosines and sines come from the model's own module, so every kind of scaling is that of the model. How they are applied
differs between models: to the two halves of a head, or to neighbouring channels. In the first layer the key of a token
without its rotation depends on the token alone, so a sequence of equal tokens shows which convention holds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from adtn.errors import KVCacheError
from torch import nn

_TOLERANCE = 1e-2  # of equal keys, relative to their norm; a wrong convention misses it by a factor of a hundred


def _turned_halves(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _turned_neighbours(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def _as_is(x: torch.Tensor) -> torch.Tensor:
    return x


def _for_neighbours(x: torch.Tensor) -> torch.Tensor:
    return x[..., : x.shape[-1] // 2].repeat_interleave(2, -1)


_CONVENTIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "halves": (_turned_halves, _as_is),
    "neighbours": (_turned_neighbours, _as_is),
    "neighbours from halves": (_turned_neighbours, _for_neighbours),
}


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """The rotation of keys by their positions.

    Parameters
    ----------
    module : torch.nn.Module
        Of the model; it maps positions to cosines and sines.
    convention : str
        How these are applied.
    """

    module: nn.Module
    convention: str

    @property
    def depends_on_length(self) -> bool:
        """Whether the angle of a position changes with the number of tokens."""
        kinds: Any = getattr(self.module, "rope_type", "default")
        own = kinds.get("full_attention", "default") if isinstance(kinds, dict) else kinds
        return own in ("dynamic", "longrope")

    def positions_of(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
        """Return the positions in a call of the module, ``(batch or 1, length)``; ``None`` if for other layers."""
        found = inspect.signature(self.module.forward).bind(*arguments, **named).arguments
        if found.get("layer_type") not in (None, "full_attention"):
            return None
        return found.get("position_ids", arguments[1] if len(arguments) > 1 else None)

    def undo(self, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return keys, ``(..., length, channels)``, as they were before the rotation.

        Positions are ``(length,)``, or ``(batch, length)`` for keys ``(batch, heads, length, channels)``.
        """
        cos, sin = self._angles(keys, positions)
        return self._on_rotated(keys, lambda x, turned: (x * cos - turned * sin) / (cos * cos + sin * sin), cos)

    def apply(self, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotate keys, ``(..., length, channels)``, as the model does."""
        cos, sin = self._angles(keys, positions)
        return self._on_rotated(keys, lambda x, turned: x * cos + turned * sin, cos)

    def adjoint(self, gradient: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the gradient with respect to keys before the rotation, for one with respect to rotated keys."""
        cos, sin = self._angles(gradient, positions)
        return self._on_rotated(gradient, lambda x, turned: x * cos - turned * sin, cos)

    def _angles(self, like: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        arguments = {"layer_type": "full_attention"} if "layer_type" in _parameters(self.module) else {}
        rows = positions if positions.ndim == 2 else positions[None]
        cos, sin = self.module.forward(like.float(), rows, **arguments)  # without the hooks of live caches
        arranged, of_heads = _CONVENTIONS[self.convention][1], positions.ndim == 2
        cos, sin = (arranged(x)[:, None] if of_heads else arranged(x[0]) for x in (cos, sin))
        return cos, sin

    def _on_rotated(
        self, x: torch.Tensor, rotation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], cos: torch.Tensor
    ) -> torch.Tensor:
        """Rotate the first channels of ``x``, as many as there are cosines, in float32."""
        n = cos.shape[-1]
        own = x[..., :n].float()
        rotated = rotation(own, _CONVENTIONS[self.convention][0](own)).to(x.dtype)
        return torch.cat((rotated, x[..., n:]), -1) if n < x.shape[-1] else rotated


def _parameters(module: nn.Module) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


def _keys_of_equal_tokens(
    model: Any, first_keys: Callable[[torch.Tensor], torch.Tensor], positions: torch.Tensor
) -> torch.Tensor:
    """Return keys of a token that has some: embeddings of padding are often zero."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    keys = torch.zeros(())
    for token in (vocabulary // 2, vocabulary // 3, 1, 0):
        keys = first_keys(torch.full_like(positions, token)).float()
        if float(keys.norm()) > 0.0:
            break
    return keys


def rotary_of(model: nn.Module, first_keys: Callable[[torch.Tensor], torch.Tensor], length: int = 33) -> Rotary | None:
    """Find the rotation of a model's keys; ``None`` for models without one.

    Parameters
    ----------
    model : torch.nn.Module
    first_keys : callable
        Maps token ids, ``(length,)``, to the cached keys of the first layer, ``(heads, length, channels)``.
    length : int
        The number of equal tokens that are tried.

    Raises
    ------
    KVCacheError
        If the model rotates its keys in a way that is not known.
    """
    modules: list[Any] = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
    if not modules:
        return None
    positions = torch.arange(length, device=next(model.parameters()).device)
    keys = _keys_of_equal_tokens(model, first_keys, positions)
    for convention in _CONVENTIONS:
        rotary = Rotary(module=modules[0], convention=convention)
        try:
            found = rotary.undo(keys, positions)
        except (RuntimeError, TypeError, ValueError):
            continue
        if float((found - found[:, :1]).norm()) <= _TOLERANCE * float(found.norm()):
            return rotary
    raise KVCacheError(
        f"{type(model).__name__} rotates its keys by {type(modules[0]).__name__} in a way that is not known: none of "
        f"{', '.join(_CONVENTIONS)} makes the keys of equal tokens equal in the first layer. Expected a decoder with "
        "ordinary rotary embeddings, or without any."
    )
