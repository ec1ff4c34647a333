"""The interface to a decoder of a framework, through which its caches are coded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .._typing import Array, Float, Int
from ..backends import backend_names, get_backend
from ..errors import KVCacheError, MissingDependencyError
from ._live import LayerCode, LiveOptions
from ._pair import Pair

States = Pair[Array]
"""Keys before rotation, and values, of one sequence: ``(tokens, layers, heads, channels)``."""


class Decoder(Protocol):
    """A decoder and its caches."""

    @property
    def model(self) -> Any:
        """The model."""
        ...

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose states are coded; others are stored as they are."""
        ...

    @property
    def digest(self) -> str:
        """The SHA-256 digest of the parameters."""
        ...

    @property
    def nbytes(self) -> int:
        """The bytes of the parameters."""
        ...

    @property
    def like(self) -> Array:
        """An array of the framework, on the device of the model."""
        ...

    def prefill(self, token_ids: Int[np.ndarray, " tokens"]) -> Any:
        """Return the exact cache of a text."""
        ...

    def states(self, cache: Any, *, rotated: bool = False) -> States:
        """Return what is coded of a cache, in float32; keys are as before their rotation, unless ``rotated``."""
        ...

    def others(self, cache: Any) -> Mapping[str, np.ndarray]:
        """Return what is not coded of a cache, by name."""
        ...

    def cache(
        self, states: States, others: Mapping[str, np.ndarray], *, rotated: bool = False, device: Any = None
    ) -> Any:
        """Build a cache, with which the model goes on, on its device if none is given; see :meth:`states`."""
        ...

    def live(self, codes: Sequence[LayerCode], options: LiveOptions) -> Any:
        """Make an empty cache that codes the old tokens of :attr:`layers`; see :meth:`adtn.kv.KVCodec.live`."""
        ...

    def gradients(
        self, cache: Any, continuation: Int[np.ndarray, " tokens"], samples: int, seed: int
    ) -> Iterator[States]:
        """Return gradients of log-likelihoods of labels that the model draws, with respect to what is coded.

        Parameters
        ----------
        cache
            An exact cache, which is used up.
        continuation : array, (n,)
            The tokens that read it.
        samples : int
            The number of gradients. Each is that of the sum over the continuation, divided by the square root of its
            length, so the mean of their outer products is the Fisher information of the mean divergence per token.
        seed : int
        """
        ...

    def tokens(self, text: str) -> Int[np.ndarray, " tokens"]:
        """Return the token ids of a text, by the tokenizer of the model."""
        ...

    def text(self, token_ids: Int[np.ndarray, " tokens"]) -> str:
        """Return the text of token ids."""
        ...

    def generate(self, cache: Any, token_ids: Int[np.ndarray, " tokens"], new: int) -> Int[np.ndarray, " new"]:
        """Return the ``new`` most likely tokens after a text, of which the cache holds the beginning."""
        ...

    def log_probabilities(
        self, cache: Any, continuation: Int[np.ndarray, " tokens"], *, position: int | None = None
    ) -> Float[Array, "tokens vocabulary"]:
        """Return those of the next token after each of a continuation that reads a cache, which is used up.

        ``position`` is that of the first token of the continuation, where it is not the length of the cache.
        """
        ...


def decoder_of(model: Any) -> Decoder:
    """Find the framework of a model.

    Raises
    ------
    KVCacheError
        If no framework here has decoders of this type.
    """
    loaded_first = sorted(backend_names(), key=lambda name: name not in sys.modules)  # others need not be imported
    for name in loaded_first:
        try:
            wrap = getattr(get_backend(name), "decoder", None)  # a backend need not have one
        except MissingDependencyError:
            continue
        found: Decoder | None = None if wrap is None else wrap(model)
        if found is not None:
            return found
    raise KVCacheError(
        f"Got a {type(model).__name__}, which is not a decoder of transformers for PyTorch; expected a model such as "
        "LlamaForCausalLM."
    )
